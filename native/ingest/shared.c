#define _GNU_SOURCE /* a mutex that spins */
#include "ingest/shared.h"

#include <pthread.h>
#include <string.h>

/* Of all bitmaps: a process has one that threads share. A turn takes a tenth of a microsecond, so a
 * thread spins before it sleeps. */
#ifdef PTHREAD_ADAPTIVE_MUTEX_INITIALIZER_NP
static pthread_mutex_t turn = PTHREAD_ADAPTIVE_MUTEX_INITIALIZER_NP;
#else
static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
#endif

/* To be called in turn. */
static bool test_and_set_shared(uint8_t *bitmap, uint32_t number) {
    uint64_t *word = nu_shared_word(bitmap, number);
    uint64_t bit = 1ull << (number & 63);
    uint64_t before = __atomic_load_n(word, __ATOMIC_RELAXED);
    __atomic_store_n(word, before | bit, __ATOMIC_RELEASE);
    return !(before & bit);
}

/* Moves the lines that are new to the front; returns where they end. */
static uint8_t *keep_new(const bool *is_new, size_t count, uint8_t *line) {
    uint8_t *out = line;
    for (size_t i = 0; i < count; i++, line += NU_LINE_BYTES) {
        if (out != line)
            memcpy(out, line, NU_LINE_BYTES);
        out += is_new[i] ? NU_LINE_BYTES : 0;
    }
    return out;
}

uint8_t *nu_settle(uint8_t *bitmap, struct nu_unsettled *unsettled, uint8_t *out) {
    size_t count = unsettled->count;
    bool is_new[NU_UNSETTLED_MAX];
    bool all_new = true;
    if (count == 0)
        return out;
    pthread_mutex_lock(&turn);
    for (size_t i = 0; i < count; i++) {
        is_new[i] = test_and_set_shared(bitmap, unsettled->numbers[i]);
        all_new &= is_new[i];
    }
    pthread_mutex_unlock(&turn);
    unsettled->count = 0;
    return all_new ? out : keep_new(is_new, count, out - count * NU_LINE_BYTES);
}
