/* The collector's kernel: packed numbers in, bitmap and batch updated.
 *
 * native/build_ffi.py hands every line of this header that does not start with '#' to cffi.
 */
#ifndef NUMBERS_URING_COLLECT_H
#define NUMBERS_URING_COLLECT_H

#include <stddef.h>
#include <stdint.h>

/* A collector's inputs and results.
 *
 * The caller sets bitmap (bit n & 7 of byte n >> 3 stands for number n), batch and batch_bytes, and
 * the numbers that are collected, first to end - 1, both at most 1,000,000,000. The kernel appends
 * the lines of numbers not seen before at batch + batch_used, and adds to batch_used and duplicate.
 * It touches the bytes of the bitmap that hold collected numbers, and no others.
 */
struct nu_collect {
    uint8_t *bitmap;
    uint8_t *batch;
    size_t batch_bytes;
    size_t batch_used;
    uint64_t duplicate;
    uint32_t first;
    uint32_t end;
};

/* Takes in `count` numbers, each an unsigned 32-bit integer, little-endian, from any address.
 *
 * Returns 0; or, with nothing done, -ERANGE where one of them is not collected, -ENOBUFS where the
 * batch lacks room for count lines.
 */
int nu_collect(struct nu_collect *collect, const uint8_t *packed, size_t count);

#endif
