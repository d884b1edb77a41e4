/* The portable kernels.
 *
 * The SWAR variant parses a block on the guess that it is 8 numbers, and tests that once. XOR with
 * what is expected turns digits into their values and '\n' into 0; what is greater than that can
 * be is wrong. The first digit is in the lowest byte, so the sums of neighbours are formed
 * pairwise: ten times the lower byte plus the higher one, for all pairs of a line at once; then, in
 * a 64-bit word, pairs of the first four pairs, and ten times the sum of those two. The technique
 * is described by Wojciech Mula, "SIMD-ized parsing of series of integers", and Daniel Lemire,
 * "Quickly parsing eight digits" (2018).
 */
#include "ingest/ingest.h"

#include "ingest/window.h"

int nu_ingest_scalar(struct nu_ingest *ingest, const uint8_t *arena, size_t start, size_t stop) {
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

/* Leaves all lines to the loop that takes one at a time. */
static inline bool parse_no_block(const uint8_t *lines, uint32_t numbers[BLOCK_LINES]) {
    (void)lines;
    (void)numbers;
    return false;
}

int nu_ingest_scalar_shared(struct nu_ingest *ingest, const uint8_t *arena, size_t start,
                            size_t stop) {
    return ingest_shared(ingest, arena, start, stop, parse_no_block);
}

/* Vectors of the compiler: SSE2 on x86-64, NEON on arm64, words where a CPU has neither. */
typedef uint8_t bytes16 __attribute__((vector_size(COPY_BYTES)));
typedef uint16_t pairs8 __attribute__((vector_size(COPY_BYTES)));
typedef uint64_t words2 __attribute__((vector_size(COPY_BYTES)));

static inline bool parse_block_swar(const uint8_t *lines, uint32_t numbers[BLOCK_LINES]) {
    const bytes16 zeros = {'0', '0', '0', '0', '0', '0', '0', '0', '0', '\n'};
    const bytes16 limits = {9, 9, 9, 9, 9, 9, 9, 9, 9, 0, 255, 255, 255, 255, 255, 255};
    /* The upper byte of each product is the pair's value, at the end that of the ninth digit. */
    const pairs8 tens = {(10 << 8) + 1, (10 << 8) + 1, (10 << 8) + 1, (10 << 8) + 1, 1 << 8};
    bytes16 wrong = {0};
    for (int i = 0; i < BLOCK_LINES; i++, lines += NU_LINE_BYTES) {
        bytes16 line;
        memcpy(&line, lines, sizeof line);
        line ^= zeros;
        wrong |= (bytes16)(line > limits);
        pairs8 pairs = (pairs8)line * tens >> 8;
        uint64_t word = ((words2)pairs)[0];
        word = word * ((100 << 16) + 1) >> 16 & 0x0000FFFF0000FFFFu;
        word = word * ((100000ull << 32) + 10) >> 32;
        numbers[i] = (uint32_t)word + pairs[4];
    }
    return (((words2)wrong)[0] | ((words2)wrong)[1]) == 0;
}

int nu_ingest_swar(struct nu_ingest *ingest, const uint8_t *arena, size_t start, size_t stop) {
    return ingest_alone(ingest, arena, start, stop, parse_block_swar);
}

int nu_ingest_swar_shared(struct nu_ingest *ingest, const uint8_t *arena, size_t start,
                          size_t stop) {
    return ingest_shared(ingest, arena, start, stop, parse_block_swar);
}
