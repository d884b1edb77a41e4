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

/* To be called in turn; returns whether all were new. */
static bool test_and_set_each(uint8_t *bitmap, const uint32_t *numbers, size_t count,
                              bool *is_new) {
    bool all_new = true;
    for (size_t i = 0; i < count; i++) {
        uint64_t *word = nu_shared_word(bitmap, numbers[i]);
        uint64_t bits = __atomic_load_n(word, __ATOMIC_RELAXED);
        uint64_t bit = 1ull << (numbers[i] & 63);
        is_new[i] = !(bits & bit);
        all_new &= is_new[i];
        __atomic_store_n(word, bits | bit, __ATOMIC_RELEASE);
    }
    return all_new;
}

/* The same for numbers that follow each other: their bits are in one word, and a load of it would
 * wait for the store before. With random numbers, this would take longer. */
static bool test_and_set_runs(uint8_t *bitmap, const uint32_t *numbers, size_t count,
                              bool *is_new) {
    bool all_new = true;
    for (size_t i = 0; i < count;) {
        uint64_t *word = nu_shared_word(bitmap, numbers[i]);
        uint64_t bits = __atomic_load_n(word, __ATOMIC_RELAXED);
        do {
            uint64_t bit = 1ull << (numbers[i] & 63);
            is_new[i] = !(bits & bit);
            all_new &= is_new[i];
            bits |= bit;
            i++;
        } while (i < count && nu_shared_word(bitmap, numbers[i]) == word);
        __atomic_store_n(word, bits, __ATOMIC_RELEASE);
    }
    return all_new;
}

/* A guess: whether the first and the last are in the same 4096 numbers. */
static bool may_follow_each_other(const uint32_t *numbers, size_t count) {
    return (numbers[0] ^ numbers[count - 1]) >> 12 == 0;
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
    if (count == 0)
        return out;
    pthread_mutex_lock(&turn);
    bool all_new = may_follow_each_other(unsettled->numbers, count)
                       ? test_and_set_runs(bitmap, unsettled->numbers, count, is_new)
                       : test_and_set_each(bitmap, unsettled->numbers, count, is_new);
    pthread_mutex_unlock(&turn);
    unsettled->count = 0;
    return all_new ? out : keep_new(is_new, count, out - count * NU_LINE_BYTES);
}
