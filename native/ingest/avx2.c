/* The kernel for CPUs with AVX2.
 *
 * All lines are 10 bytes, so a block is parsed on the guess that it is 8 numbers, and one test says
 * whether it was. A register holds two lines, one in each half. XOR with what is expected turns
 * digits into their values and '\n' into 0; whatever is left above 9, or above 0 for '\n', is
 * wrong. Then neighbours are multiplied and added, doubling the digits each time, as described by
 * Wojciech Mula, "SIMD-ized parsing of series of integers".
 */
#include "ingest/ingest.h"

#include "ingest/window.h"

#ifdef __x86_64__
#include <immintrin.h>

#define TARGET __attribute__((target("avx2,bmi2")))

static inline TARGET __m256i both_halves(__m128i half) {
    return _mm256_broadcastsi128_si256(half);
}

/* Loads the lines at `lines` and 4 lines on, and turns them into the values of their characters. */
static inline TARGET __m256i load_two(const uint8_t *lines, __m256i *wrong) {
    const __m256i zeros = both_halves(
        _mm_setr_epi8('0', '0', '0', '0', '0', '0', '0', '0', '0', '\n', 0, 0, 0, 0, 0, 0));
    const __m256i limits =
        both_halves(_mm_setr_epi8(9, 9, 9, 9, 9, 9, 9, 9, 9, 0, -1, -1, -1, -1, -1, -1));
    const uint8_t *upper = lines + 4 * NU_LINE_BYTES;
    __m256i two =
        _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)lines)),
                                _mm_loadu_si128((const __m128i *)upper), 1);
    two = _mm256_xor_si256(two, zeros);
    *wrong = _mm256_or_si256(*wrong, _mm256_subs_epu8(two, limits));
    return two;
}

/* Returns, for each half, four 32-bit numbers whose sum is the line's: digits 1 to 4 times 100,000,
 * 5 to 8 times 10, the ninth, and 0. */
static inline TARGET __m256i value_parts(__m256i two) {
    const __m256i tens =
        both_halves(_mm_setr_epi8(10, 1, 10, 1, 10, 1, 10, 1, 1, 0, 0, 0, 0, 0, 0, 0));
    const __m256i hundreds = both_halves(_mm_setr_epi16(100, 1, 100, 1, 1, 0, 0, 0));
    const __m256i places = both_halves(_mm_setr_epi32(100000, 10, 1, 0));
    __m256i pairs = _mm256_maddubs_epi16(two, tens);
    return _mm256_mullo_epi32(_mm256_madd_epi16(pairs, hundreds), places);
}

static inline TARGET bool parse_block_avx2(const uint8_t *lines, uint32_t numbers[BLOCK_LINES]) {
    __m256i wrong = _mm256_setzero_si256();
    __m256i parts[4];
    for (int i = 0; i < 4; i++)
        parts[i] = value_parts(load_two(lines + i * NU_LINE_BYTES, &wrong));
    /* Two rounds of sums of neighbours: the lower half gets lines 0 to 3, the upper one 4 to 7. */
    __m256i sums = _mm256_hadd_epi32(_mm256_hadd_epi32(parts[0], parts[1]),
                                     _mm256_hadd_epi32(parts[2], parts[3]));
    _mm256_storeu_si256((__m256i *)numbers, sums);
    return _mm256_testz_si256(wrong, wrong);
}

TARGET int nu_ingest_avx2(struct nu_ingest *ingest, const uint8_t *arena, size_t start,
                          size_t stop) {
    return ingest_alone(ingest, arena, start, stop, parse_block_avx2);
}

TARGET int nu_ingest_avx2_shared(struct nu_ingest *ingest, const uint8_t *arena, size_t start,
                                 size_t stop) {
    return ingest_shared(ingest, arena, start, stop, parse_block_avx2);
}

int nu_cpu_has_avx2(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2");
}

#else

int nu_ingest_avx2(struct nu_ingest *ingest, const uint8_t *arena, size_t start, size_t stop) {
    return nu_ingest_swar(ingest, arena, start, stop);
}

int nu_ingest_avx2_shared(struct nu_ingest *ingest, const uint8_t *arena, size_t start,
                          size_t stop) {
    return nu_ingest_swar_shared(ingest, arena, start, stop);
}

int nu_cpu_has_avx2(void) {
    return 0;
}

#endif
