/* Appends to the log within a pass, as long as nothing is unusual.
 *
 * numbers_uring/log/writer.py does the same in Python and decides on whatever happens. Passes
 * append by themselves only from nu_log_allow to nu_log_stop, between which the file's end is known
 * here. Whatever is not as expected ends that, and is Python's with the next append. This header is
 * the whole contract between C and Python, as ingest.h is.
 */
#ifndef NUMBERS_URING_APPEND_H
#define NUMBERS_URING_APPEND_H

#include "ingest/ingest.h"

#include <stdbool.h>

struct nu_log_file {
    int32_t fd;
    uint64_t end_bytes; /* its size, unless other processes change it */
    int64_t slow_ns;    /* an append that takes so long is the last one */
};

/* What passes have done in the file. */
struct nu_log_end {
    uint64_t end_bytes;
    uint64_t lines;
    uint8_t last_line[NU_LINE_BYTES]; /* of those, if there are any */
    bool as_expected;                 /* none of them has found anything unusual */
    int32_t fstat_error;              /* an errno; or 0 */
    int32_t write_error;
    /* The file's last bytes, where they are the start of a line that could not be cut off: the
     * batch that it is from begins with them. */
    uint32_t torn_bytes;
    uint8_t torn[NU_LINE_BYTES];
};

struct nu_log;

/* Returns NULL where there is no memory. */
struct nu_log *nu_log_new(void);

/* NULL is allowed. */
void nu_log_free(struct nu_log *log);

/* Lets passes append to the file, until one of them finds something unusual. To be called by one
 * thread at a time, behind its nu_log_stop. */
void nu_log_allow(struct nu_log *log, const struct nu_log_file *file);

/* Waits for an append that has begun; none begins before the next nu_log_allow. Returns true, with
 * `end` filled in, where nu_log_allow was called since the last nu_log_stop. */
bool nu_log_stop(struct nu_log *log, struct nu_log_end *end);

/* Whole lines that passes have appended, and nanoseconds that they spent in write(2). From any
 * thread. */
uint64_t nu_log_lines(const struct nu_log *log);
int64_t nu_log_write_ns(const struct nu_log *log);

/* Appends the batch, which is whole lines, and takes it away. Returns false where part of it is
 * left, which is Python's then. */
bool nu_log_append(struct nu_log *log, struct nu_ingest *ingest);

#endif
