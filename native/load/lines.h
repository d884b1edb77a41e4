/* Sequences of numbers, written out as lines.
 *
 * Like ingest.h, this header is handed to cffi line by line: see native/build_ffi.py.
 */
#ifndef NUMBERS_URING_LINES_H
#define NUMBERS_URING_LINES_H

#include <stddef.h>
#include <stdint.h>

enum nu_lines_limits {
    NU_LOAD_HOT = 1000, /* numbers that NU_MIX_HOT draws from */
    NU_LOAD_ROUNDS = 5
};

enum nu_mix {
    NU_MIX_UNIQUE,     /* each number at most once, in pseudo-random order */
    NU_MIX_RANDOM,     /* independent and uniform, repeats as they fall */
    NU_MIX_DUPLICATE,  /* exactly `distinct` different numbers, the repeats spread evenly */
    NU_MIX_SEQUENTIAL, /* 0, 1, 2, ... */
    NU_MIX_HOT         /* drawn from NU_LOAD_HOT numbers */
};

/* One step of the permutation: two parts of a number to 16 pseudo-random bits. */
struct nu_round {
    uint16_t first_factor;
    uint16_t second_factor;
    uint16_t addend;
    uint16_t last_factor;
};

/* A sequence of numbers of which the i-th is a function of these fields and i alone. */
struct nu_sequence {
    int mix;
    uint64_t seed;
    uint64_t numbers;
    uint64_t distinct;
    struct nu_round rounds[NU_LOAD_ROUNDS];
};

/* Sets all fields. `distinct` matters to NU_MIX_DUPLICATE alone: 1 .. numbers.
 *
 * Returns 0, or -EINVAL where there are not that many numbers: beyond NU_NUMBERS different ones
 * for the mixes unique, sequential and duplicate, or beyond 2^53 in all.
 */
int nu_sequence_set(struct nu_sequence *sequence, int mix, uint64_t seed, uint64_t numbers,
                    uint64_t distinct);

/* Writes numbers first .. first + count - 1 of the sequence as lines to out, 10 bytes each and no
 * byte more. The three write the same; nu_lines is the fastest that this CPU has.
 *
 * nu_lines_avx2 returns 0, or -ENOTSUP, with nothing done, where the CPU or the build lacks it.
 */
void nu_lines(const struct nu_sequence *sequence, uint64_t first, size_t count, uint8_t *out);
void nu_lines_portable(const struct nu_sequence *sequence, uint64_t first, size_t count,
                       uint8_t *out);
int nu_lines_avx2(const struct nu_sequence *sequence, uint64_t first, size_t count, uint8_t *out);

#endif
