#define _GNU_SOURCE
#include "os/writeback.h"

#include <errno.h>
#include <fcntl.h>

int nu_writeback_start(int fd, int64_t offset, int64_t bytes) {
    return sync_file_range(fd, offset, bytes, SYNC_FILE_RANGE_WRITE) ? -errno : 0;
}

int nu_writeback_finish(int fd, int64_t offset, int64_t bytes) {
    const unsigned all =
        SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;
    if (sync_file_range(fd, offset, bytes, all))
        return -errno;
    posix_fadvise(fd, offset, bytes, POSIX_FADV_DONTNEED); /* Advice, which may be refused. */
    return 0;
}
