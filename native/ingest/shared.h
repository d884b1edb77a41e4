/* How several threads set bits of one bitmap.
 *
 * A locked instruction for each new number takes some 20 cycles, and keeps later loads waiting. So
 * threads take turns: who has it sets bits with plain stores. As long as no other thread waits, and
 * most lines are new, a thread keeps its turn. Without it, a kernel only looks at the bits, and
 * appends the lines whose bit is clear; after NU_TURN_LINES of them it takes a turn to set theirs.
 * A line whose bit was set meanwhile, by another thread or as a repeat among them, is then dropped
 * again. Repeats take no turn. That is a third slower than to keep the turn, but threads that are
 * both at work rarely wait for each other; so where one has waited, the next turns are short ones.
 *
 * A thread that finds a bit set also sees all that the one that set it did before: the loops rely
 * on that to know whose batch has the number. On x86-64 that order is there anyway.
 */
#ifndef NUMBERS_URING_INGEST_SHARED_H
#define NUMBERS_URING_INGEST_SHARED_H

#include "ingest/ingest.h"

#include <stdbool.h>

/* Few enough that the cache lines of their bits, and those of the window, are still in the
 * first-level cache at the turn; enough that two threads rarely wait for each other. */
enum { NU_TURN_LINES = 128, NU_UNSETTLED_MAX = NU_TURN_LINES + 8 };

/* Behind a turn that was waited for; a thread is through with them in some microseconds. */
enum { NU_SHORT_TURNS = 32 };

/* One kernel's call. */
struct nu_sharing {
    bool in_turn;
    uint32_t short_turns; /* how many are short yet */
    size_t looked;        /* lines since the last turn */
    size_t count; /* the last lines of the batch, whose bits were clear, and have yet to be set */
    uint32_t numbers[NU_UNSETTLED_MAX]; /* those lines' */
};

/* NU_BITMAP_BYTES is a multiple of 8, and little-endian words number the bits as bytes do. */
static inline uint64_t *nu_shared_word(uint8_t *bitmap, uint32_t number) {
    return (uint64_t *)__builtin_assume_aligned(bitmap, sizeof(uint64_t)) + (number >> 6);
}

static inline bool nu_is_clear(uint8_t *bitmap, uint32_t number) {
    uint64_t word = __atomic_load_n(nu_shared_word(bitmap, number), __ATOMIC_ACQUIRE);
    return !(word >> (number & 63) & 1);
}

/* To be called in turn; returns whether the bit was clear. */
static inline bool nu_test_and_set_shared(uint8_t *bitmap, uint32_t number) {
    uint64_t *word = nu_shared_word(bitmap, number);
    uint64_t bits = __atomic_load_n(word, __ATOMIC_RELAXED);
    uint64_t bit = 1ull << (number & 63);
    __atomic_store_n(word, bits | bit, __ATOMIC_RELEASE);
    return !(bits & bit);
}

/* Takes a turn, if it is not kept from before. Sets the bits of the lines that `sharing` counts,
 * which end at `out`; drops those that another line was faster with. May keep the turn. Returns the
 * batch's new end. */
uint8_t *nu_settle(uint8_t *bitmap, struct nu_sharing *sharing, uint8_t *out);

/* To be called before the call returns. */
void nu_end_turn(struct nu_sharing *sharing);

extern uint32_t nu_turn_waiters; /* threads */

/* Ends the turn unless most of the lines that were probed are new, and no other thread waits. */
static inline void nu_end_turn_if_due(struct nu_sharing *sharing, size_t lines, size_t new_lines) {
    if (__atomic_load_n(&nu_turn_waiters, __ATOMIC_RELAXED))
        sharing->short_turns = NU_SHORT_TURNS;
    if (sharing->short_turns || 2 * new_lines < lines)
        nu_end_turn(sharing);
}

#endif
