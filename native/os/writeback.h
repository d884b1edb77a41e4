/* Write-back of a file behind its writer.
 *
 * A growing log otherwise fills the page cache, and where a virtual machine gives its free memory
 * back to the host, the first touch of each new page costs more than the copy into it.
 */
#ifndef NUMBERS_URING_WRITEBACK_H
#define NUMBERS_URING_WRITEBACK_H

#include <stdint.h>

/* Has the kernel start to write the range to disk, and returns. 0 or -errno. */
int nu_writeback_start(int fd, int64_t offset, int64_t bytes);

/* Waits until the range is written and gives its pages up. 0 or -errno; -EIO, -ENOSPC and -EDQUOT
 * mean that the range is not on disk. Says nothing of the disk's own cache or of metadata: that is
 * fdatasync's. */
int nu_writeback_finish(int fd, int64_t offset, int64_t bytes);

#endif
