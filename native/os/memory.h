/* What the bitmap asks of the kernel's memory management. */
#ifndef NUMBERS_URING_MEMORY_H
#define NUMBERS_URING_MEMORY_H

#include <stddef.h>

enum nu_memory_limits {
    NU_HUGE_PAGE_BYTES = 2097152 /* x86-64; arm64 with 4 KiB pages; elsewhere a mere hint */
};

/* Puts memory[0..bytes), as far as whole huge pages lie in it, on huge pages; contents stay.
 *
 * Returns 0, or -errno: -EINVAL from kernels before 6.1, which can't do it at once but are asked to
 * do it by and by; -EAGAIN or -ENOMEM where no huge page is free, some parts may be done even so.
 */
int nu_collapse_huge(void *memory, size_t bytes);

#endif
