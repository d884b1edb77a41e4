/* Threads take the same lines in to one bitmap, for ThreadSanitizer to look at.
 *
 * Prints nothing and returns 0 where each number was new to exactly one of four threads, and where
 * of two threads each that met a repeat saw what the other one wrote before it took the number in,
 * as a loop notes that its batch has something; with every variant that this CPU runs.
 */
#include "ingest/pieces.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { THREADS = 4, LINES = 100000, BYTES = LINES * NU_LINE_BYTES };
enum { PIECES = 250, PIECE_BYTES = BYTES / PIECES }; /* Several turns each, and some lines more. */

typedef int ingest_fn(struct nu_ingest *ingest, const uint8_t *arena, size_t start, size_t stop);

struct taker {
    pthread_t thread;
    pthread_barrier_t *barrier;
    ingest_fn *function;
    const uint8_t *lines;
    size_t cut; /* bytes of each piece that are taken in before the others */
    struct nu_ingest ingest;
    bool began[PIECES];
    const bool *other_began; /* NULL where it is not known whose repeats are met */
    bool missed;
};

static void *take_in(void *argument) {
    struct taker *taker = argument;
    struct nu_ingest *ingest = &taker->ingest;
    struct nu_tail tail = {0};
    uint8_t *arena = malloc(sizeof tail + PIECE_BYTES);
    uint8_t gathered[PIECE_BYTES / 2];
    struct nu_intake intake = {.kernel = taker->function,
                               .ingest = ingest,
                               .arena = arena,
                               .tails = &tail,
                               .gathered = gathered,
                               .gather_bytes_max = sizeof gathered,
                               .gather_piece_bytes_max = sizeof gathered / 4};
    if (!arena)
        abort();
    pthread_barrier_wait(taker->barrier);
    for (size_t piece = 0; piece < PIECES; piece++) {
        uint64_t duplicate = ingest->duplicate;
        taker->began[piece] = true;
        nu_intake_begin(&intake);
        for (size_t start = 0, size; start < PIECE_BYTES && intake.verdict == NU_MORE;
             start += size) {
            size = start ? PIECE_BYTES - start : taker->cut;
            memcpy(arena + sizeof tail, taker->lines + piece * PIECE_BYTES + start, size);
            nu_intake_take(&intake, 0, sizeof tail, size);
        }
        nu_intake_end(&intake);
        if (intake.verdict != NU_MORE)
            abort();
        if (taker->other_began && ingest->duplicate > duplicate && !taker->other_began[piece])
            taker->missed = true;
    }
    free(arena);
    return NULL;
}

/* Returns whether each number was new to one of `count` threads, and none has missed a note. */
static bool each_is_new_once(ingest_fn *function, uint8_t *bitmap, const uint8_t *lines,
                             int count) {
    struct taker *takers = calloc(THREADS, sizeof *takers);
    pthread_barrier_t barrier;
    uint64_t unique = 0, duplicate = 0;
    bool missed = false;
    if (!takers)
        abort();
    memset(bitmap, 0, NU_BITMAP_BYTES);
    pthread_barrier_init(&barrier, NULL, (unsigned)count);
    for (int i = 0; i < count; i++) {
        takers[i].barrier = &barrier;
        takers[i].function = function;
        takers[i].lines = lines;
        takers[i].cut = (size_t)i + 1;
        takers[i].other_began = count == 2 ? takers[1 - i].began : NULL;
        takers[i].ingest.bitmap = bitmap;
        takers[i].ingest.batch = malloc(BYTES);
        takers[i].ingest.batch_bytes = BYTES;
        if (!takers[i].ingest.batch ||
            pthread_create(&takers[i].thread, NULL, take_in, &takers[i]) != 0)
            abort();
    }
    for (int i = 0; i < count; i++) {
        pthread_join(takers[i].thread, NULL);
        unique += takers[i].ingest.unique;
        duplicate += takers[i].ingest.duplicate;
        missed |= takers[i].missed;
        free(takers[i].ingest.batch);
    }
    pthread_barrier_destroy(&barrier);
    free(takers);
    return unique == LINES && duplicate == (uint64_t)(count - 1) * LINES && !missed;
}

static bool is_right(ingest_fn *function, uint8_t *bitmap, const uint8_t *lines) {
    return each_is_new_once(function, bitmap, lines, THREADS) &&
           each_is_new_once(function, bitmap, lines, 2);
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
    bool right = is_right(nu_ingest_scalar_shared, bitmap, lines) &&
                 is_right(nu_ingest_swar_shared, bitmap, lines);
    if (nu_cpu_has_avx2())
        right = right && is_right(nu_ingest_avx2_shared, bitmap, lines);
    free(lines);
    free(bitmap);
    return right ? 0 : 1;
}
