/* What all of the C code has in common. */
#ifndef NUMBERS_URING_BASE_H
#define NUMBERS_URING_BASE_H

/* The arithmetic on words, the packed numbers and the ring are made for it. */
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "numbers-uring needs a little-endian processor"
#endif

#define NU_INLINE static inline __attribute__((always_inline))

enum nu_limits {
    NU_LINE_BYTES = 10,         /* nine digits and '\n' */
    NU_NUMBERS = 1000000000,    /* numbers are 0 .. NU_NUMBERS - 1 */
    NU_BITMAP_BYTES = 125000000 /* one bit for each of them */
};

#endif
