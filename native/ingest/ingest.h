/* The ingest kernels: lines in, bitmap and batch updated, a verdict out.
 *
 * This header is the whole contract between C and Python: native/build_ffi.py hands every line of
 * it that does not start with '#' to cffi, so a difference between the two is a compile error.
 */
#ifndef NUMBERS_URING_INGEST_H
#define NUMBERS_URING_INGEST_H

#include "../base.h"

#include <stddef.h>
#include <stdint.h>

enum nu_verdict {
    NU_MORE = 0,     /* every line was taken in; fewer than 10 bytes, the tail, may be left */
    NU_INVALID = 1,  /* the bytes after those consumed cannot begin a valid line */
    NU_TERMINATE = 2 /* the last line consumed is "terminate" */
};

/* A kernel's inputs and results.
 *
 * The caller sets bitmap (NU_BITMAP_BYTES; bit n & 7 of byte n >> 3 stands for number n), batch and
 * batch_bytes. A kernel appends the lines not seen before at batch + batch_used, adds to
 * batch_used, unique and duplicate, and sets consumed: how many bytes, from the start of the input,
 * were whole lines taken in, "terminate" included.
 */
struct nu_ingest {
    uint8_t *bitmap;
    uint8_t *batch;
    size_t batch_bytes;
    size_t batch_used;
    size_t consumed;
    uint64_t unique;
    uint64_t duplicate;
};

/* Each variant takes in arena[start..stop). It reads no byte outside of that and writes none
 * outside of the batch; batch bytes from batch_used on that it does not count as used may hold
 * anything.
 *
 * Returns an nu_verdict, or -ENOBUFS, with nothing done, where the batch lacks room for
 * stop - start bytes.
 *
 * scalar  one byte at a time: the others are measured and tested against it
 * swar    a line at a time in short vectors, memory fetched ahead; any little-endian CPU
 * avx2    eight lines at a time, memory fetched ahead; only where nu_cpu_has_avx2()
 */
int nu_ingest_scalar(struct nu_ingest *ingest, const uint8_t *arena, size_t start, size_t stop);
int nu_ingest_swar(struct nu_ingest *ingest, const uint8_t *arena, size_t start, size_t stop);
int nu_ingest_avx2(struct nu_ingest *ingest, const uint8_t *arena, size_t start, size_t stop);

/* The same for a bitmap, aligned to 4 bytes, that several threads take lines in to at once, each
 * with a struct nu_ingest and a batch of its own: each number is new to exactly one of them. */
int nu_ingest_scalar_shared(struct nu_ingest *ingest, const uint8_t *arena, size_t start,
                            size_t stop);
int nu_ingest_swar_shared(struct nu_ingest *ingest, const uint8_t *arena, size_t start,
                          size_t stop);
int nu_ingest_avx2_shared(struct nu_ingest *ingest, const uint8_t *arena, size_t start,
                          size_t stop);

/* 1 where this CPU, and the system on it, run nu_ingest_avx2; else 0. */
int nu_cpu_has_avx2(void);

#endif
