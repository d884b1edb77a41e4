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
 * input, so it does not matter whether a number is repeated within the window. Where several
 * threads share the bitmap, bits are set behind it: see shared.h.
 */
#ifndef NUMBERS_URING_INGEST_WINDOW_H
#define NUMBERS_URING_INGEST_WINDOW_H

#include "ingest/shared.h"

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

/* Sets the number's bit, of a bitmap that no other thread writes to; returns whether it was clear.
 *
 * Little-endian, so bit n & 31 of the 32-bit word at byte n >> 5 << 2 is bit n & 7 of byte n >> 3;
 * shifts and bit tests of words need no masking, and NU_BITMAP_BYTES is a multiple of 4.
 */
static inline bool test_and_set(uint8_t *bitmap, uint32_t number) {
    uint8_t *place = bitmap + (number >> 5) * sizeof(uint32_t);
    uint32_t word;
    memcpy(&word, place, sizeof word);
    bool clear = !(word >> (number & 31) & 1);
    word |= 1u << (number & 31);
    memcpy(place, &word, sizeof word);
    return clear;
}

/* Sets the number's bit; returns whether it was clear. */
typedef bool test_and_set_fn(uint8_t *bitmap, uint32_t number);

/* Probes a block: appends its new lines and returns the batch's new end. With a shared bitmap that
 * may be the end before the last lines were settled.
 */
typedef uint8_t *probe_block_fn(uint8_t *bitmap, const uint32_t numbers[BLOCK_LINES],
                                const uint8_t *lines, uint8_t *out, struct nu_sharing *sharing);

/* The same for one line, of which no byte more is readable. */
typedef uint8_t *probe_line_fn(uint8_t *bitmap, uint32_t number, const uint8_t *line, uint8_t *out,
                               struct nu_sharing *sharing);

/* Each line is written and only the new ones are kept: a branch here would be a coin toss. A block
 * has COPY_BYTES to read from each of its lines, and the batch has as much room as the input has
 * bytes, so what is written beyond a line stays in the batch too. The bit comes
 * first, since the address of the copy waits for the line before: a few numbers that are repeated
 * take two thirds of the time that way.
 */
NU_INLINE uint8_t *probe_and_set(uint8_t *bitmap, const uint32_t numbers[BLOCK_LINES],
                                 const uint8_t *lines, uint8_t *out,
                                 test_and_set_fn *test_and_set) {
    for (int i = 0; i < BLOCK_LINES; i++) {
        bool is_new = test_and_set(bitmap, numbers[i]);
        memcpy(out, lines + i * NU_LINE_BYTES, COPY_BYTES);
        out += is_new ? NU_LINE_BYTES : 0;
    }
    return out;
}

NU_INLINE uint8_t *probe_block_alone(uint8_t *bitmap, const uint32_t numbers[BLOCK_LINES],
                                     const uint8_t *lines, uint8_t *out,
                                     struct nu_sharing *sharing) {
    (void)sharing;
    return probe_and_set(bitmap, numbers, lines, out, test_and_set);
}

NU_INLINE uint8_t *probe_line_alone(uint8_t *bitmap, uint32_t number, const uint8_t *line,
                                    uint8_t *out, struct nu_sharing *sharing) {
    (void)sharing;
    if (!test_and_set(bitmap, number))
        return out;
    memcpy(out, line, NU_LINE_BYTES);
    return out + NU_LINE_BYTES;
}

NU_INLINE uint8_t *probe_block_in_turn(uint8_t *bitmap, const uint32_t numbers[BLOCK_LINES],
                                       const uint8_t *lines, uint8_t *out,
                                       struct nu_sharing *sharing) {
    uint8_t *end = probe_and_set(bitmap, numbers, lines, out, nu_test_and_set_shared);
    nu_end_turn_if_due(sharing, BLOCK_LINES, (size_t)(end - out) / NU_LINE_BYTES);
    return end;
}

NU_INLINE uint8_t *probe_block_shared(uint8_t *bitmap, const uint32_t numbers[BLOCK_LINES],
                                      const uint8_t *lines, uint8_t *out,
                                      struct nu_sharing *sharing) {
    if (sharing->in_turn)
        return probe_block_in_turn(bitmap, numbers, lines, out, sharing);
    size_t count = sharing->count;
    for (int i = 0; i < BLOCK_LINES; i++) {
        bool clear = nu_is_clear(bitmap, numbers[i]);
        memcpy(out, lines + i * NU_LINE_BYTES, COPY_BYTES);
        sharing->numbers[count] = numbers[i];
        out += clear ? NU_LINE_BYTES : 0;
        count += clear;
    }
    sharing->count = count;
    sharing->looked += BLOCK_LINES;
    return count < NU_TURN_LINES ? out : nu_settle(bitmap, sharing, out);
}

NU_INLINE uint8_t *probe_line_shared(uint8_t *bitmap, uint32_t number, const uint8_t *line,
                                     uint8_t *out, struct nu_sharing *sharing) {
    if (!nu_is_clear(bitmap, number))
        return out;
    memcpy(out, line, NU_LINE_BYTES);
    sharing->numbers[sharing->count++] = number;
    out += NU_LINE_BYTES;
    return sharing->count < NU_TURN_LINES ? out : nu_settle(bitmap, sharing, out);
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

/* A whole kernel around one way to parse a block and one to probe numbers, by the block and alone.
 *
 * Only the last few lines, and the block with the first line that is no number, are left for the
 * loop at the end, which takes one line at a time and touches no byte too many.
 */
NU_INLINE int ingest_through_window(struct nu_ingest *ingest, const uint8_t *arena, size_t start,
                                    size_t stop, parse_block_fn parse_block,
                                    probe_block_fn probe_block, probe_line_fn probe_line,
                                    struct nu_sharing *sharing) {
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
            out = probe_block(bitmap, slot, line - WINDOW_BYTES, out, sharing);
        memcpy(slot, block, sizeof block);
        for (int i = 0; i < BLOCK_LINES; i++)
            __builtin_prefetch(&bitmap[block[i] >> 3]);
        parsed += BLOCK_LINES;
    }
    for (size_t i = parsed > WINDOW_LINES ? parsed - WINDOW_LINES : 0; i < parsed; i += BLOCK_LINES)
        out =
            probe_block(bitmap, &window[i % WINDOW_LINES], lines + i * NU_LINE_BYTES, out, sharing);

    uint32_t number;
    for (; end - line >= NU_LINE_BYTES && parse_line(line, &number); line += NU_LINE_BYTES)
        out = probe_line(bitmap, number, line, out, sharing);
    if (sharing) {
        out = nu_settle(bitmap, sharing, out);
        nu_end_turn(sharing);
    }
    return finish(ingest, lines, line, end, out);
}

NU_INLINE int ingest_alone(struct nu_ingest *ingest, const uint8_t *arena, size_t start,
                           size_t stop, parse_block_fn parse_block) {
    return ingest_through_window(ingest, arena, start, stop, parse_block, probe_block_alone,
                                 probe_line_alone, NULL);
}

NU_INLINE int ingest_shared(struct nu_ingest *ingest, const uint8_t *arena, size_t start,
                            size_t stop, parse_block_fn parse_block) {
    struct nu_sharing sharing;
    sharing.in_turn = false;
    sharing.short_turns = 0;
    sharing.looked = sharing.count = 0;
    return ingest_through_window(ingest, arena, start, stop, parse_block, probe_block_shared,
                                 probe_line_shared, &sharing);
}

#endif
