/* Huge pages for memory that Python allocates, see madvise(2), and how much is given back. */
#include "os/memory.h"

#include <errno.h>
#include <limits.h>
#include <malloc.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

enum { NU_MADV_COLLAPSE = 25 }; /* Linux 6.1; C libraries came to name it later */

static int advise_huge(void *memory, size_t bytes, int advice) {
    const uintptr_t within = NU_HUGE_PAGE_BYTES - 1;
    uintptr_t first = ((uintptr_t)memory + within) & ~within;
    uintptr_t end = ((uintptr_t)memory + bytes) & ~within;
    return first < end && madvise((void *)first, end - first, advice) ? -errno : 0;
}

int nu_zero_huge(void *memory, size_t bytes) {
    /* Where it is refused, the call at the end has the reason. */
    (void)advise_huge(memory, bytes, MADV_HUGEPAGE);
    memset(memory, 0, bytes);
    return nu_collapse_huge(memory, bytes);
}

int nu_collapse_huge(void *memory, size_t bytes) {
    /* Not needed by the second call, but khugepaged then mends what that can't do now. */
    (void)advise_huge(memory, bytes, MADV_HUGEPAGE);
    return advise_huge(memory, bytes, NU_MADV_COLLAPSE);
}

void nu_keep_freed(size_t bytes) {
#ifdef __GLIBC__
    const int kept = bytes < INT_MAX ? (int)bytes : INT_MAX;
    (void)mallopt(M_TRIM_THRESHOLD, kept);
    /* Blocks of that size have a mapping of their own, which goes when they are freed. */
    (void)mallopt(M_MMAP_THRESHOLD, NU_HEAP_BLOCK_BYTES);
#else
    (void)bytes;
#endif
}
