#define _GNU_SOURCE /* a mutex that spins */
#include "ingest/shared.h"

#include <pthread.h>
#include <string.h>

/* Of all bitmaps: a process has one that threads share. A short turn takes a tenth of a
 * microsecond, and one that is kept ends with the block that is probed, so a thread spins before it
 * sleeps. */
#ifdef PTHREAD_ADAPTIVE_MUTEX_INITIALIZER_NP
static pthread_mutex_t turn = PTHREAD_ADAPTIVE_MUTEX_INITIALIZER_NP;
#else
static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
#endif

uint32_t nu_turn_waiters;

static void begin_turn(struct nu_sharing *sharing) {
    sharing->in_turn = true;
    if (!pthread_mutex_trylock(&turn))
        return;
    __atomic_fetch_add(&nu_turn_waiters, 1, __ATOMIC_RELAXED);
    pthread_mutex_lock(&turn);
    __atomic_fetch_sub(&nu_turn_waiters, 1, __ATOMIC_RELAXED);
    sharing->short_turns = NU_SHORT_TURNS;
}

void nu_end_turn(struct nu_sharing *sharing) {
    if (sharing->in_turn)
        pthread_mutex_unlock(&turn);
    sharing->in_turn = false;
}

/* To be called in turn; returns whether all were new. */
static bool test_and_set_each(uint8_t *bitmap, const uint32_t *numbers, size_t count,
                              bool *is_new) {
    bool all_new = true;
    for (size_t i = 0; i < count; i++) {
        is_new[i] = nu_test_and_set_shared(bitmap, numbers[i]);
        all_new &= is_new[i];
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

uint8_t *nu_settle(uint8_t *bitmap, struct nu_sharing *sharing, uint8_t *out) {
    size_t count = sharing->count;
    bool is_new[NU_UNSETTLED_MAX];
    if (count == 0)
        return out;
    if (!sharing->in_turn)
        begin_turn(sharing);
    bool all_new = may_follow_each_other(sharing->numbers, count)
                       ? test_and_set_runs(bitmap, sharing->numbers, count, is_new)
                       : test_and_set_each(bitmap, sharing->numbers, count, is_new);
    nu_end_turn_if_due(sharing, sharing->looked, count);
    sharing->short_turns -= sharing->short_turns > 0;
    sharing->count = sharing->looked = 0;
    return all_new ? out : keep_new(is_new, count, out - count * NU_LINE_BYTES);
}
