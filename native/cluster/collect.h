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
 * the numbers that are collected, first to end - 1, both at most 1,000,000,000. The kernel adds to
 * batch_used, and to: unique, how many numbers were new, sum, theirs modulo 2^64, and duplicate.
 * It touches the bytes of the bitmap that hold collected numbers, and no others.
 */
struct nu_collect {
    uint8_t *bitmap;
    uint8_t *batch;
    size_t batch_bytes;
    size_t batch_used;
    uint64_t unique;
    uint64_t sum;
    uint64_t duplicate;
    uint32_t first;
    uint32_t end;
};

/* Takes in `count` numbers, each an unsigned 32-bit integer, little-endian, from any address, and
 * appends the lines of those not seen before at batch + batch_used.
 *
 * Returns 0; or, with nothing done, -ERANGE where one of them is not collected, -ENOBUFS where the
 * batch lacks room for count lines.
 */
int nu_collect(struct nu_collect *collect, const uint8_t *packed, size_t count);

/* Takes in `count` lines of ten bytes that are in the log already, and appends nothing.
 *
 * Returns how many were taken: the one behind them is not nine digits and a newline, or its number
 * is not collected, or was seen before.
 */
size_t nu_collect_lines(struct nu_collect *collect, const uint8_t *lines, size_t count);

#endif
