/* A line is parsed as one 64-bit word of eight digits and two more bytes.
 *
 * The word holds the first digit in its lowest byte, so the sums of neighbours are formed pairwise:
 * ten times the lower byte plus the higher one, then pairs of pairs, then the two halves. The
 * technique is described by Wojciech Mula, "SIMD-ized parsing of series of integers", and Daniel
 * Lemire, "Quickly parsing eight digits" (2018).
 */
#include "ingest.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the word arithmetic is little-endian");

static const char terminate_line[NU_LINE_BYTES + 1] = "terminate\n";

static bool eight_digits(uint64_t word) {
    const uint64_t high_nibbles = 0xF0F0F0F0F0F0F0F0u;
    /* Adding 6 carries ':' to '?' into the next high nibble, so only '0' to '9' stay at 3 twice. */
    uint64_t carried = word + 0x0606060606060606u;
    return (word & high_nibbles) == 0x3030303030303030u &&
           (carried & high_nibbles) == 0x3030303030303030u;
}

static uint32_t eight_digits_value(uint64_t word) {
    word &= 0x0F0F0F0F0F0F0F0Fu;
    word = (word * ((10u << 8) + 1)) >> 8 & 0x00FF00FF00FF00FFu;
    word = (word * ((100u << 16) + 1)) >> 16 & 0x0000FFFF0000FFFFu;
    return (uint32_t)((word * ((10000ull << 32) + 1)) >> 32);
}

/* Parses the ten bytes at line; false when they are not nine digits and '\n'. */
static bool parse_line(const uint8_t *line, uint32_t *number) {
    uint64_t word;
    memcpy(&word, line, sizeof word);
    uint8_t ninth = line[8] - '0';
    if (!eight_digits(word) || ninth > 9 || line[9] != '\n')
        return false;
    *number = eight_digits_value(word) * 10 + ninth;
    return true;
}

/* Judges what is no number: a "terminate", the start of some line, or bytes that can be no line. */
static enum nu_verdict judge(const uint8_t *line, size_t bytes) {
    if (bytes >= NU_LINE_BYTES)
        return memcmp(line, terminate_line, NU_LINE_BYTES) == 0 ? NU_TERMINATE : NU_INVALID;
    if (memcmp(line, terminate_line, bytes) == 0)
        return NU_MORE;
    for (size_t i = 0; i < bytes; i++)
        if (line[i] < '0' || line[i] > '9')
            return NU_INVALID;
    return NU_MORE;
}

int nu_ingest_swar(struct nu_ingest *ingest, const uint8_t *arena, size_t start, size_t stop) {
    if (ingest->batch_bytes - ingest->batch_used < stop - start)
        return -ENOBUFS;
    uint8_t *bitmap = ingest->bitmap;
    uint8_t *out = ingest->batch + ingest->batch_used;
    const uint8_t *line = arena + start;
    const uint8_t *end = arena + stop;
    uint32_t number;

    while (end - line >= NU_LINE_BYTES && parse_line(line, &number)) {
        uint8_t bit = (uint8_t)(1u << (number & 7));
        uint8_t old = bitmap[number >> 3];
        bitmap[number >> 3] = old | bit;
        /* Written always and kept only if new: a branch here would be a coin toss. */
        memcpy(out, line, NU_LINE_BYTES);
        out += old & bit ? 0 : NU_LINE_BYTES;
        line += NU_LINE_BYTES;
    }

    size_t taken = (size_t)(line - (arena + start));
    size_t batched = (size_t)(out - (ingest->batch + ingest->batch_used));
    ingest->batch_used += batched;
    ingest->unique += batched / NU_LINE_BYTES;
    ingest->duplicate += (taken - batched) / NU_LINE_BYTES;
    enum nu_verdict verdict = judge(line, (size_t)(end - line));
    ingest->consumed = taken + (verdict == NU_TERMINATE ? NU_LINE_BYTES : 0);
    return verdict;
}
