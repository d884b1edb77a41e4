/* The portable kernels.
 *
 * The SWAR variant parses a line as one 64-bit word of eight digits and two more bytes. The word
 * holds the first digit in its lowest byte, so the sums of neighbours are formed pairwise: ten
 * times the lower byte plus the higher one, then pairs of pairs, then the two halves. The technique
 * is described by Wojciech Mula, "SIMD-ized parsing of series of integers", and Daniel Lemire,
 * "Quickly parsing eight digits" (2018).
 */
#include "ingest/ingest.h"

#include "ingest/window.h"

NU_INLINE int ingest_scalar(struct nu_ingest *ingest, const uint8_t *arena, size_t start,
                            size_t stop, test_and_set_fn test_and_set) {
    if (lacks_room(ingest, stop - start))
        return -ENOBUFS;
    const uint8_t *line = arena + start;
    const uint8_t *end = arena + stop;
    uint8_t *out = ingest->batch + ingest->batch_used;
    uint32_t number;
    for (; end - line >= NU_LINE_BYTES && parse_line(line, &number); line += NU_LINE_BYTES)
        if (test_and_set(ingest->bitmap, number))
            for (int i = 0; i < NU_LINE_BYTES; i++)
                *out++ = line[i];
    return finish(ingest, arena + start, line, end, out);
}

int nu_ingest_scalar(struct nu_ingest *ingest, const uint8_t *arena, size_t start, size_t stop) {
    return ingest_scalar(ingest, arena, start, stop, test_and_set_alone);
}

int nu_ingest_scalar_shared(struct nu_ingest *ingest, const uint8_t *arena, size_t start,
                            size_t stop) {
    return ingest_scalar(ingest, arena, start, stop, test_and_set_shared);
}

/* Non-zero where one of the eight bytes is no digit.
 *
 * The top bit of a byte is set by adding 0x46 from ':' to 0xB9, and by subtracting '0' from 0xB0 on
 * and, borrowing, below '0'. Carries and borrows leave only bytes that are no digit, so the lowest
 * of those is always seen.
 */
static inline uint64_t not_eight_digits(uint64_t word) {
    return ((word + 0x4646464646464646u) | (word - 0x3030303030303030u)) & 0x8080808080808080u;
}

static inline uint32_t eight_digits_value(uint64_t word) {
    word &= 0x0F0F0F0F0F0F0F0Fu;
    word = (word * ((10u << 8) + 1)) >> 8 & 0x00FF00FF00FF00FFu;
    word = (word * ((100u << 16) + 1)) >> 16 & 0x0000FFFF0000FFFFu;
    return (uint32_t)((word * ((10000ull << 32) + 1)) >> 32);
}

static inline bool parse_block_swar(const uint8_t *lines, uint32_t numbers[BLOCK_LINES]) {
    uint64_t wrong = 0;
    for (int i = 0; i < BLOCK_LINES; i++, lines += NU_LINE_BYTES) {
        uint64_t word;
        uint16_t ending;
        memcpy(&word, lines, sizeof word);
        memcpy(&ending, lines + sizeof word, sizeof ending);
        uint16_t ninth = (uint16_t)(ending - ('0' | '\n' << 8)); /* 0 to 9, or it is wrong */
        wrong |= not_eight_digits(word) | (ninth > 9);
        numbers[i] = eight_digits_value(word) * 10 + ninth;
    }
    return wrong == 0;
}

int nu_ingest_swar(struct nu_ingest *ingest, const uint8_t *arena, size_t start, size_t stop) {
    return ingest_through_window(ingest, arena, start, stop, parse_block_swar, probe_block_alone,
                                 test_and_set_alone);
}

int nu_ingest_swar_shared(struct nu_ingest *ingest, const uint8_t *arena, size_t start,
                          size_t stop) {
    return ingest_through_window(ingest, arena, start, stop, parse_block_swar, probe_block_shared,
                                 test_and_set_shared);
}
