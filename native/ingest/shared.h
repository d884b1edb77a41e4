/* How several threads set bits of one bitmap.
 *
 * A locked instruction for each new number takes some 20 cycles, and keeps later loads waiting. So
 * a kernel only looks at the bits, and appends the lines whose bit is clear; after NU_TURN_LINES of
 * them it takes its turn, in which no other thread sets bits, and sets theirs with plain stores. A
 * line whose bit was set meanwhile, by another thread or as a repeat among them, is then dropped
 * again. Repeats take no turn.
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

/* The last lines of a batch, whose bits were clear, and have yet to be set. */
struct nu_unsettled {
    size_t count;
    uint32_t numbers[NU_UNSETTLED_MAX];
};

/* NU_BITMAP_BYTES is a multiple of 8, and little-endian words number the bits as bytes do. */
static inline uint64_t *nu_shared_word(uint8_t *bitmap, uint32_t number) {
    return (uint64_t *)__builtin_assume_aligned(bitmap, sizeof(uint64_t)) + (number >> 6);
}

static inline bool nu_is_clear(uint8_t *bitmap, uint32_t number) {
    uint64_t word = __atomic_load_n(nu_shared_word(bitmap, number), __ATOMIC_ACQUIRE);
    return !(word >> (number & 63) & 1);
}

/* Sets the bits of the unsettled lines, which end at `out`; drops those that another line was
 * faster with. Returns the batch's new end. */
uint8_t *nu_settle(uint8_t *bitmap, struct nu_unsettled *unsettled, uint8_t *out);

#endif
