/* What the variants share: a line's parts, and the window that hides the bitmap's cache misses.
 *
 * Random numbers miss the cache at nearly each bitmap access, and a miss takes some 40 times as
 * long as all else that a line needs. A CPU keeps many misses in flight, but only if asked early.
 * So lines are parsed in blocks of 8, WINDOW_LINES ahead: as a block is parsed, its bitmap bytes
 * are prefetched; when it has become the oldest of the window, they have arrived, and it is probed.
 * The technique is group prefetching, Chen et al., "Improving hash join performance through
 * prefetching" (2004). The cache lines that are on their way, 128 of 64 bytes, fit into any
 * first-level cache. On a Zen 5 a window of 64 took half as long again, and longer ones than 128
 * gained nothing (perf/RESULTS.md).
 *
 * The window holds parsed numbers, never answers: bits are tested and set in the order of the
 * input, so it does not matter whether a number is repeated within the window.
 */
#ifndef NUMBERS_URING_INGEST_WINDOW_H
#define NUMBERS_URING_INGEST_WINDOW_H

#include "ingest/ingest.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

/* perf/peer.c is built with 64, too: what later kernels are measured against. */
#ifndef NU_WINDOW_LINES
#define NU_WINDOW_LINES 128
#endif

enum {
    BLOCK_LINES = 8,
    BLOCK_BYTES = BLOCK_LINES * NU_LINE_BYTES,
    WINDOW_LINES = NU_WINDOW_LINES,
    WINDOW_BYTES = WINDOW_LINES * NU_LINE_BYTES,
    COPY_BYTES = 16, /* a line is loaded, and stored to the batch, with the 6 bytes after it */
    BLOCK_REACH_BYTES = BLOCK_BYTES - NU_LINE_BYTES + COPY_BYTES
};

/* Parses the 8 lines at `lines`, of which BLOCK_REACH_BYTES are readable; false if one is no
 * number.
 */
typedef bool parse_block_fn(const uint8_t *lines, uint32_t numbers[BLOCK_LINES]);

/* Sets the number's bit; returns whether it was clear.
 *
 * Little-endian, so bit n & 31 of the 32-bit word at byte n >> 5 << 2 is bit n & 7 of byte n >> 3;
 * shifts and bit tests of words need no masking, and NU_BITMAP_BYTES is a multiple of 4.
 */
typedef bool test_and_set_fn(uint8_t *bitmap, uint32_t number);

/* For a bitmap that no other thread writes to at the same time. */
static inline bool test_and_set_alone(uint8_t *bitmap, uint32_t number) {
    uint8_t *place = bitmap + (number >> 5) * sizeof(uint32_t);
    uint32_t word;
    memcpy(&word, place, sizeof word);
    bool clear = !(word >> (number & 31) & 1);
    word |= 1u << (number & 31);
    memcpy(place, &word, sizeof word);
    return clear;
}

/* NU_BITMAP_BYTES is a multiple of 8, and little-endian words number the bits as bytes do. */
static inline uint64_t *shared_words(uint8_t *bitmap) {
    return (uint64_t *)__builtin_assume_aligned(bitmap, sizeof(uint64_t));
}

/* For a bitmap that several threads write to: of those that set a bit at once, one gets true.
 *
 * A locked instruction takes some 20 cycles and keeps later loads waiting, so a bit that is set
 * already, which it then stays, is only looked at. A thread that finds a bit set also sees all that
 * the one that set it did before: the loops rely on that to know whose batch has the number. On
 * x86-64 that order is there anyway.
 */
static inline bool test_and_set_shared(uint8_t *bitmap, uint32_t number) {
    uint64_t *word = shared_words(bitmap) + (number >> 6);
    uint64_t bit = 1ull << (number & 63);
    if (__atomic_load_n(word, __ATOMIC_ACQUIRE) & bit)
        return false;
    return !(__atomic_fetch_or(word, bit, __ATOMIC_ACQ_REL) & bit);
}

/* Probes a block: appends its new lines and returns the batch's new end. */
typedef uint8_t *probe_block_fn(uint8_t *bitmap, const uint32_t numbers[BLOCK_LINES],
                                const uint8_t *lines, uint8_t *out);

/* Each line is written and only the new ones are kept: a branch here would be a coin toss. A block
 * has COPY_BYTES to read from each of its lines, and the batch has as much room as the input has
 * bytes, so what is written beyond a line stays in the batch too.
 */
NU_INLINE uint8_t *probe_each(uint8_t *bitmap, const uint32_t numbers[BLOCK_LINES],
                              const uint8_t *lines, uint8_t *out, test_and_set_fn test_and_set) {
    for (int i = 0; i < BLOCK_LINES; i++) {
        memcpy(out, lines + i * NU_LINE_BYTES, COPY_BYTES);
        out += test_and_set(bitmap, numbers[i]) ? NU_LINE_BYTES : 0;
    }
    return out;
}

NU_INLINE uint8_t *probe_block_alone(uint8_t *bitmap, const uint32_t numbers[BLOCK_LINES],
                                     const uint8_t *lines, uint8_t *out) {
    return probe_each(bitmap, numbers, lines, out, test_and_set_alone);
}

/* Numbers that follow each other have their bits in one word, and then one locked instruction sets
 * all of them. Of the threads that set a bit at once, again one alone finds it clear before.
 */
NU_INLINE uint8_t *probe_block_shared(uint8_t *bitmap, const uint32_t numbers[BLOCK_LINES],
                                      const uint8_t *lines, uint8_t *out) {
    uint32_t spread = 0;
    for (int i = 1; i < BLOCK_LINES; i++)
        spread |= numbers[0] ^ numbers[i];
    if (spread >> 6)
        return probe_each(bitmap, numbers, lines, out, test_and_set_shared);
    uint64_t *word = shared_words(bitmap) + (numbers[0] >> 6);
    uint64_t bits = 0;
    for (int i = 0; i < BLOCK_LINES; i++)
        bits |= 1ull << (numbers[i] & 63);
    uint64_t seen = __atomic_load_n(word, __ATOMIC_ACQUIRE);
    if ((seen & bits) != bits)
        seen = __atomic_fetch_or(word, bits, __ATOMIC_ACQ_REL);
    for (int i = 0; i < BLOCK_LINES; i++) {
        uint64_t bit = 1ull << (numbers[i] & 63);
        memcpy(out, lines + i * NU_LINE_BYTES, COPY_BYTES);
        out += seen & bit ? 0 : NU_LINE_BYTES;
        seen |= bit;
    }
    return out;
}

/* Judges what is no number: a "terminate", the start of some line, or bytes that can be no line. */
static inline enum nu_verdict judge(const uint8_t *line, size_t bytes) {
    static const char terminate_line[NU_LINE_BYTES + 1] = "terminate\n";
    if (bytes >= NU_LINE_BYTES)
        return memcmp(line, terminate_line, NU_LINE_BYTES) == 0 ? NU_TERMINATE : NU_INVALID;
    if (memcmp(line, terminate_line, bytes) == 0)
        return NU_MORE;
    for (size_t i = 0; i < bytes; i++)
        if (line[i] < '0' || line[i] > '9')
            return NU_INVALID;
    return NU_MORE;
}

/* Settles the accounts: all lines in [start, line) were numbers, and the new ones end at out. */
static inline int finish(struct nu_ingest *ingest, const uint8_t *start, const uint8_t *line,
                         const uint8_t *stop, const uint8_t *out) {
    size_t taken = (size_t)(line - start);
    size_t batched = (size_t)(out - (ingest->batch + ingest->batch_used));
    ingest->batch_used += batched;
    ingest->unique += batched / NU_LINE_BYTES;
    ingest->duplicate += (taken - batched) / NU_LINE_BYTES;
    enum nu_verdict verdict = judge(line, (size_t)(stop - line));
    ingest->consumed = taken + (verdict == NU_TERMINATE ? NU_LINE_BYTES : 0);
    return verdict;
}

static inline bool lacks_room(const struct nu_ingest *ingest, size_t bytes) {
    return ingest->batch_bytes - ingest->batch_used < bytes;
}

/* Parses the ten bytes at `line`; false when they are not nine digits and '\n'. */
static inline bool parse_line(const uint8_t *line, uint32_t *number) {
    uint32_t value = 0;
    for (int i = 0; i < NU_LINE_BYTES - 1; i++) {
        uint32_t digit = (uint32_t)line[i] - '0';
        if (digit > 9)
            return false;
        value = value * 10 + digit;
    }
    *number = value;
    return line[NU_LINE_BYTES - 1] == '\n';
}

/* A whole kernel around one way to parse a block and one to set bits, by the block and alone.
 *
 * Only the last few lines, and the block with the first line that is no number, are left for the
 * loop at the end, which takes one line at a time and touches no byte too many.
 */
NU_INLINE int ingest_through_window(struct nu_ingest *ingest, const uint8_t *arena, size_t start,
                                    size_t stop, parse_block_fn parse_block,
                                    probe_block_fn probe_block, test_and_set_fn test_and_set) {
    if (lacks_room(ingest, stop - start))
        return -ENOBUFS;
    uint8_t *bitmap = ingest->bitmap;
    uint8_t *out = ingest->batch + ingest->batch_used;
    const uint8_t *lines = arena + start;
    const uint8_t *end = arena + stop;
    uint32_t window[WINDOW_LINES];
    uint32_t block[BLOCK_LINES];
    size_t parsed =
        0; /* lines; line i of the input is window[i % WINDOW_LINES] until it is probed */

    const uint8_t *line = lines;
    for (; end - line >= BLOCK_REACH_BYTES && parse_block(line, block); line += BLOCK_BYTES) {
        uint32_t *slot = &window[parsed % WINDOW_LINES];
        if (parsed >= WINDOW_LINES)
            out = probe_block(bitmap, slot, line - WINDOW_BYTES, out);
        memcpy(slot, block, sizeof block);
        for (int i = 0; i < BLOCK_LINES; i++)
            __builtin_prefetch(&bitmap[block[i] >> 3]);
        parsed += BLOCK_LINES;
    }
    for (size_t i = parsed > WINDOW_LINES ? parsed - WINDOW_LINES : 0; i < parsed; i += BLOCK_LINES)
        out = probe_block(bitmap, &window[i % WINDOW_LINES], lines + i * NU_LINE_BYTES, out);

    uint32_t number;
    for (; end - line >= NU_LINE_BYTES && parse_line(line, &number); line += NU_LINE_BYTES)
        if (test_and_set(bitmap, number)) {
            memcpy(out, line, NU_LINE_BYTES);
            out += NU_LINE_BYTES;
        }
    return finish(ingest, lines, line, end, out);
}

#endif
