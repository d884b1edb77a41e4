/* What the bitmap asks of Python's and Linux' memory management. */
#ifndef NUMBERS_URING_MEMORY_H
#define NUMBERS_URING_MEMORY_H

#include <stddef.h>

enum nu_memory_limits {
    NU_HUGE_PAGE_BYTES = 2097152,  /* x86-64; arm64 with 4 KiB pages; elsewhere a mere hint */
    NU_HEAP_BLOCK_BYTES = 33554432 /* the largest value that glibc takes, see mallopt(3) */
};

/* Makes an empty bytearray, given as its address, `bytes` long without touching the new memory.
 *
 * Returns 0, or -ENOMEM with the bytearray as it was. The contents are undefined until they are
 * written: nu_zero_huge. Takes Python's lock by itself.
 */
int nu_bytearray_resize(void *bytearray, size_t bytes);

/* Sets memory[0..bytes) to 0; whole huge pages that lie in it become huge pages where Linux has
 * some.
 *
 * Fast for memory that was never touched: each huge page is then faulted in at once. Returns what
 * nu_collapse_huge returns for what is not on huge pages after that.
 */
int nu_zero_huge(void *memory, size_t bytes);

/* Puts memory[0..bytes), as far as whole huge pages lie in it, on huge pages; contents stay.
 *
 * Returns 0, or -errno: -EINVAL from kernels before 6.1, which can't do it at once but are asked to
 * do it by and by; -EAGAIN or -ENOMEM where no huge page is free, some parts may be done even so.
 */
int nu_collapse_huge(void *memory, size_t bytes);

/* Has the C library keep up to `bytes` of freed memory at the end of its heap, for the next blocks.
 *
 * By itself glibc gives them back to Linux at 128 KiB, and every block of some hundred KiB costs
 * the faults of all its pages again. Does nothing where the C library is another one.
 */
void nu_keep_freed(size_t bytes);

#endif
