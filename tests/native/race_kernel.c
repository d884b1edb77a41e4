/* Four threads take the same lines in to one bitmap, for ThreadSanitizer to look at.
 *
 * Prints nothing and returns 0 where each number was new to exactly one of them, with every variant
 * that this CPU runs.
 */
#include "ingest/ingest.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { THREADS = 4, LINES = 20000, BYTES = LINES * NU_LINE_BYTES };

typedef int ingest_fn(struct nu_ingest *ingest, const uint8_t *arena, size_t start, size_t stop);

struct taker {
    pthread_t thread;
    pthread_barrier_t *barrier;
    ingest_fn *function;
    const uint8_t *lines;
    struct nu_ingest ingest;
};

static void *take_in(void *argument) {
    struct taker *taker = argument;
    pthread_barrier_wait(taker->barrier);
    for (size_t start = 0; start < BYTES; start += BYTES / 20)
        if (taker->function(&taker->ingest, taker->lines, start, start + BYTES / 20) != NU_MORE)
            abort();
    return NULL;
}

static bool each_is_new_once(ingest_fn *function, uint8_t *bitmap, const uint8_t *lines) {
    struct taker takers[THREADS] = {0};
    pthread_barrier_t barrier;
    uint64_t unique = 0, duplicate = 0;
    memset(bitmap, 0, NU_BITMAP_BYTES);
    pthread_barrier_init(&barrier, NULL, THREADS);
    for (int i = 0; i < THREADS; i++) {
        takers[i] = (struct taker){.barrier = &barrier, .function = function, .lines = lines};
        takers[i].ingest.bitmap = bitmap;
        takers[i].ingest.batch = malloc(BYTES);
        takers[i].ingest.batch_bytes = BYTES;
        if (!takers[i].ingest.batch ||
            pthread_create(&takers[i].thread, NULL, take_in, &takers[i]) != 0)
            abort();
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(takers[i].thread, NULL);
        unique += takers[i].ingest.unique;
        duplicate += takers[i].ingest.duplicate;
        free(takers[i].ingest.batch);
    }
    pthread_barrier_destroy(&barrier);
    return unique == LINES && duplicate == (uint64_t)(THREADS - 1) * LINES;
}

int main(void) {
    uint8_t *bitmap = aligned_alloc(64, (NU_BITMAP_BYTES + 63) / 64 * 64);
    uint8_t *lines = malloc(BYTES + 1);
    if (!bitmap || !lines)
        return 2;
    /* Neighbours, so that threads meet in the same words, and others a little further apart: the
     * bits of a block of lines are set at once, or one by one. */
    for (int i = 0; i < LINES; i++)
        snprintf((char *)lines + (size_t)i * NU_LINE_BYTES, NU_LINE_BYTES + 1, "%09d\n",
                 i % 100 < 50 ? i * 3 : 10000000 + i * 17);
    bool right = each_is_new_once(nu_ingest_scalar_shared, bitmap, lines) &&
                 each_is_new_once(nu_ingest_swar_shared, bitmap, lines);
    if (nu_cpu_has_avx2())
        right = right && each_is_new_once(nu_ingest_avx2_shared, bitmap, lines);
    free(lines);
    free(bitmap);
    return right ? 0 : 1;
}
