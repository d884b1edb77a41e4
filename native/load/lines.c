/* Numbers as lines.
 *
 * A number is kept in three parts, the head and the middle of four digits each and the last digit.
 * So all arithmetic fits 16 bits, sixteen numbers to a 256-bit register, and the parts need little
 * more to be text.
 *
 * The permutation of the mix unique is an unbalanced Feistel network on these parts: in each round
 * one part is moved on, modulo its radix, by a hash of the other two. A round can be undone, since
 * the other two are still there, so it maps different numbers to different numbers, and so do all
 * of them in a row; no table and no cycle walking is needed, for the parts' radixes multiply to
 * 10^9. See Black and Rogaway, "Ciphers with arbitrary finite domains" (2002), method 3.
 */
#include "load/lines.h"

#include "base.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum {
    RADIX = 10000, /* of head and middle */
    LAST_RADIX = 10,
    BLOCK = 256 /* numbers made at a time */
};

_Static_assert((uint64_t)RADIX *RADIX *LAST_RADIX == NU_NUMBERS, "parts make up the domain");

struct block {
    uint16_t head[BLOCK];
    uint16_t middle[BLOCK];
    uint16_t last[BLOCK];
};

/* A block as text: the five pairs of characters that each line is made of. */
struct text {
    uint16_t pairs[NU_LINE_BYTES / 2][BLOCK];
};

/* Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014): the index-th
 * output of splitmix64. */
NU_INLINE uint64_t random_bits(uint64_t seed, uint64_t index) {
    uint64_t bits = seed + (index + 1) * 0x9E3779B97F4A7C15u;
    bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9u;
    bits = (bits ^ bits >> 27) * 0x94D049BB133111EBu;
    return bits ^ bits >> 31;
}

/* Maps 32 random bits to 0 .. bound - 1. */
NU_INLINE uint32_t below(uint32_t bound, uint32_t bits) {
    return (uint32_t)((uint64_t)bits * bound >> 32);
}

int nu_sequence_set(struct nu_sequence *sequence, int mix, uint64_t seed, uint64_t numbers,
                    uint64_t distinct) {
    bool bounded = mix == NU_MIX_UNIQUE || mix == NU_MIX_SEQUENTIAL;
    if (mix < NU_MIX_UNIQUE || mix > NU_MIX_HOT || numbers > (uint64_t)1 << 53)
        return -EINVAL;
    if (bounded && numbers > NU_NUMBERS)
        return -EINVAL;
    if (mix == NU_MIX_DUPLICATE && (distinct < 1 || distinct > numbers || distinct > NU_NUMBERS))
        return -EINVAL;
    *sequence = (struct nu_sequence){
        .mix = mix, .seed = random_bits(seed, 0), .numbers = numbers, .distinct = distinct};
    for (int i = 0; i < NU_LOAD_ROUNDS; i++) {
        uint64_t bits = random_bits(~sequence->seed, (uint64_t)i);
        sequence->rounds[i] = (struct nu_round){
            .first_factor = (uint16_t)(bits | 1),
            .second_factor = (uint16_t)(bits >> 16 | 1),
            .addend = (uint16_t)(bits >> 32),
            .last_factor = (uint16_t)(bits >> 48 | 1),
        };
    }
    return 0;
}

/* Places: in which order a permuted mix goes through the domain does not matter, so the middle,
 * which has most values for its cost, changes fastest. */
NU_INLINE void place_run(struct block *block, uint64_t index) {
    uint32_t middle = (uint32_t)(index % RADIX);
    uint32_t head = (uint32_t)(index / RADIX % RADIX);
    uint32_t last = (uint32_t)(index / ((uint64_t)RADIX * RADIX));
    uint32_t next_head = (head + 1) % RADIX;
    uint32_t next_last = (last + (head + 1 == RADIX)) % LAST_RADIX;
    int same = RADIX - middle < BLOCK ? (int)(RADIX - middle) : BLOCK;
    int i = 0;
    for (; i < same; i++) {
        block->middle[i] = (uint16_t)(middle + (uint32_t)i);
        block->head[i] = (uint16_t)head;
        block->last[i] = (uint16_t)last;
    }
    for (; i < BLOCK; i++) {
        block->middle[i] = (uint16_t)(i - same);
        block->head[i] = (uint16_t)next_head;
        block->last[i] = (uint16_t)next_last;
    }
}

NU_INLINE void place(struct block *block, int i, uint32_t index) {
    block->middle[i] = (uint16_t)(index % RADIX);
    block->head[i] = (uint16_t)(index / RADIX % RADIX);
    block->last[i] = (uint16_t)(index / (RADIX * RADIX));
}

/* Of the first i numbers, (i * distinct + numbers - 1) / numbers are new, the first one always;
 * each other one repeats one of these. */
NU_INLINE void place_duplicates(const struct nu_sequence *sequence, struct block *block,
                                uint64_t first) {
    uint64_t numbers = sequence->numbers, distinct = sequence->distinct;
    unsigned __int128 scaled = (unsigned __int128)first * distinct + (numbers - 1);
    uint32_t known = (uint32_t)(scaled / numbers);
    uint64_t rest = (uint64_t)(scaled % numbers);
    for (int i = 0; i < BLOCK; i++) {
        uint32_t bits = (uint32_t)(random_bits(sequence->seed, first + (uint64_t)i) >> 32);
        bool new = rest + distinct >= numbers;
        place(block, i, new ? known : below(known, bits));
        rest += distinct - (new ? numbers : 0);
        known += new;
    }
}

NU_INLINE void place_hot(const struct nu_sequence *sequence, struct block *block, uint64_t first) {
    for (int i = 0; i < BLOCK; i++) {
        uint64_t bits = random_bits(sequence->seed, first + (uint64_t)i);
        block->middle[i] = (uint16_t)below(NU_LOAD_HOT, (uint32_t)(bits >> 32));
        block->head[i] = 0;
        block->last[i] = 0;
    }
}

NU_INLINE void draw_random(const struct nu_sequence *sequence, struct block *block,
                           uint64_t first) {
    for (int i = 0; i < BLOCK; i++) {
        uint64_t bits = random_bits(sequence->seed, first + (uint64_t)i);
        uint64_t scaled = (bits & UINT32_MAX) * RADIX;
        block->head[i] = (uint16_t)(scaled >> 32);
        block->last[i] = (uint16_t)below(LAST_RADIX, (uint32_t)scaled);
        block->middle[i] = (uint16_t)below(RADIX, (uint32_t)(bits >> 32));
    }
}

NU_INLINE void count_up(struct block *block, uint64_t first) {
    for (int i = 0; i < BLOCK; i++) {
        uint32_t number = (uint32_t)first + (uint32_t)i;
        block->head[i] = (uint16_t)(number / (RADIX * LAST_RADIX) % RADIX);
        block->middle[i] = (uint16_t)(number / LAST_RADIX % RADIX);
        block->last[i] = (uint16_t)(number % LAST_RADIX);
    }
}

NU_INLINE uint16_t high_product(uint16_t a, uint16_t b) {
    return (uint16_t)((uint32_t)a * b >> 16);
}

/* Moves `part` on by a hash of the other two parts, modulo its radix. */
NU_INLINE void move(uint16_t *part, const uint16_t *first, const uint16_t *second,
                    struct nu_round round, uint16_t radix) {
    for (int i = 0; i < BLOCK; i++) {
        uint16_t hash = (uint16_t)(first[i] * round.first_factor + second[i] * round.second_factor +
                                   round.addend);
        hash = (uint16_t)((hash ^ hash >> 7) * (uint32_t)round.last_factor);
        uint16_t moved = (uint16_t)(part[i] + high_product(hash, radix));
        uint16_t wrapped = (uint16_t)(moved - radix);
        part[i] = moved < wrapped ? moved : wrapped;
    }
}

NU_INLINE void permute(const struct nu_round *rounds, struct block *block) {
    move(block->head, block->middle, block->last, rounds[0], RADIX);
    move(block->middle, block->head, block->last, rounds[1], RADIX);
    move(block->last, block->head, block->middle, rounds[2], LAST_RADIX);
    move(block->head, block->middle, block->last, rounds[3], RADIX);
    move(block->middle, block->head, block->last, rounds[4], RADIX);
}

NU_INLINE void make_block(const struct nu_sequence *sequence, uint64_t first, struct block *block) {
    switch (sequence->mix) {
    case NU_MIX_RANDOM:
        draw_random(sequence, block, first);
        return;
    case NU_MIX_SEQUENTIAL:
        count_up(block, first);
        return;
    case NU_MIX_DUPLICATE:
        place_duplicates(sequence, block, first);
        break;
    case NU_MIX_HOT:
        place_hot(sequence, block, first);
        break;
    default:
        place_run(block, first);
    }
    permute(sequence->rounds, block);
}

/* Two digits as characters, the first in the lower byte; 6554 / 2^16 is a tenth, near enough. */
NU_INLINE uint16_t pair(uint16_t value) {
    uint16_t tens = high_product(value, 6554);
    return (uint16_t)((value << 8) - tens * 2559 + 0x3030);
}

/* Four digits as two pairs; 5243 / 2^19 is a hundredth, near enough. */
NU_INLINE void write_pairs(const uint16_t *part, uint16_t *high, uint16_t *low) {
    for (int i = 0; i < BLOCK; i++) {
        uint16_t hundreds = high_product(part[i], 5243) >> 3;
        high[i] = pair(hundreds);
        low[i] = pair((uint16_t)(part[i] - hundreds * 100));
    }
}

NU_INLINE void make_text(const struct block *block, struct text *text) {
    write_pairs(block->head, text->pairs[0], text->pairs[1]);
    write_pairs(block->middle, text->pairs[2], text->pairs[3]);
    for (int i = 0; i < BLOCK; i++)
        text->pairs[4][i] = (uint16_t)(block->last[i] | ('\n' << 8 | '0'));
}

/* Writes the first `count` lines of the text. */
static void weave_portable(const struct text *text, size_t count, uint8_t *out) {
    for (size_t i = 0; i < count; i++)
        for (size_t pair = 0; pair < NU_LINE_BYTES / 2; pair++)
            memcpy(out + i * NU_LINE_BYTES + pair * 2, &text->pairs[pair][i], 2);
}

void nu_lines_portable(const struct nu_sequence *sequence, uint64_t first, size_t count,
                       uint8_t *out) {
    struct block block;
    struct text text;
    for (size_t done = 0; done < count; done += BLOCK) {
        make_block(sequence, first + done, &block);
        make_text(&block, &text);
        weave_portable(&text, count - done < BLOCK ? count - done : BLOCK,
                       out + done * NU_LINE_BYTES);
    }
}

#if defined(__x86_64__)

#define AVX2 __attribute__((target("avx2")))

/* Two lines, 16 bytes written for each: the six too many are the next line's, written later. */
AVX2 NU_INLINE void weave_two(__m128i eights, __m128i ends, uint8_t *out) {
    _mm_storeu_si128((__m128i *)(void *)out, _mm_unpacklo_epi64(eights, ends));
    _mm_storeu_si128((__m128i *)(void *)(out + NU_LINE_BYTES), _mm_unpackhi_epi64(eights, ends));
}

/* Eight lines at line `at` of the text, 86 bytes written. */
AVX2 NU_INLINE void weave_eight(const struct text *text, size_t at, uint8_t *out) {
    const __m128i zero = _mm_setzero_si128();
    __m128i pairs[5];
    for (int i = 0; i < 5; i++)
        pairs[i] = _mm_loadu_si128((const __m128i *)(const void *)(text->pairs[i] + at));
    __m128i heads_low = _mm_unpacklo_epi16(pairs[0], pairs[1]);
    __m128i heads_high = _mm_unpackhi_epi16(pairs[0], pairs[1]);
    __m128i middles_low = _mm_unpacklo_epi16(pairs[2], pairs[3]);
    __m128i middles_high = _mm_unpackhi_epi16(pairs[2], pairs[3]);
    __m128i ends_low = _mm_unpacklo_epi16(pairs[4], zero);
    __m128i ends_high = _mm_unpackhi_epi16(pairs[4], zero);
    weave_two(_mm_unpacklo_epi32(heads_low, middles_low), _mm_unpacklo_epi32(ends_low, zero), out);
    weave_two(_mm_unpackhi_epi32(heads_low, middles_low), _mm_unpackhi_epi32(ends_low, zero),
              out + 20);
    weave_two(_mm_unpacklo_epi32(heads_high, middles_high), _mm_unpacklo_epi32(ends_high, zero),
              out + 40);
    weave_two(_mm_unpackhi_epi32(heads_high, middles_high), _mm_unpackhi_epi32(ends_high, zero),
              out + 60);
}

AVX2 static void lines_avx2(const struct nu_sequence *sequence, uint64_t first, size_t count,
                            uint8_t *out) {
    struct block block;
    struct text text;
    size_t done = 0;
    /* One line more is needed behind the block, to take the bytes written too many. */
    for (; count - done > BLOCK; done += BLOCK) {
        make_block(sequence, first + done, &block);
        make_text(&block, &text);
        for (size_t i = 0; i < BLOCK; i += 8)
            weave_eight(&text, i, out + (done + i) * NU_LINE_BYTES);
    }
    make_block(sequence, first + done, &block);
    make_text(&block, &text);
    weave_portable(&text, count - done, out + done * NU_LINE_BYTES);
}

int nu_lines_avx2(const struct nu_sequence *sequence, uint64_t first, size_t count, uint8_t *out) {
    if (!__builtin_cpu_supports("avx2"))
        return -ENOTSUP;
    lines_avx2(sequence, first, count, out);
    return 0;
}

#else

int nu_lines_avx2(const struct nu_sequence *sequence, uint64_t first, size_t count, uint8_t *out) {
    (void)sequence, (void)first, (void)count, (void)out;
    return -ENOTSUP;
}

#endif

void nu_lines(const struct nu_sequence *sequence, uint64_t first, size_t count, uint8_t *out) {
    if (nu_lines_avx2(sequence, first, count, out) != 0)
        nu_lines_portable(sequence, first, count, out);
}
