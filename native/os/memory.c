/* Huge pages for memory that is allocated and touched elsewhere, see madvise(2). */
#include "os/memory.h"

#include <errno.h>
#include <stdint.h>
#include <sys/mman.h>

enum { NU_MADV_COLLAPSE = 25 }; /* Linux 6.1; C libraries came to name it later */

int nu_collapse_huge(void *memory, size_t bytes) {
    const uintptr_t within = NU_HUGE_PAGE_BYTES - 1;
    uintptr_t first = ((uintptr_t)memory + within) & ~within;
    uintptr_t end = ((uintptr_t)memory + bytes) & ~within;
    if (first >= end)
        return 0;
    /* Not needed by the second call, but khugepaged then mends what that can't do now. */
    (void)madvise((void *)first, end - first, MADV_HUGEPAGE);
    return madvise((void *)first, end - first, NU_MADV_COLLAPSE) == 0 ? 0 : -errno;
}
