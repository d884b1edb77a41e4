/* The stops of a pass: what it has taken in is appended. */
#ifndef NUMBERS_URING_LOG_PASS_H
#define NUMBERS_URING_LOG_PASS_H

#include "ingest/pieces.h"
#include "log/append.h"

/* To be called where a pass comes to a stop. Appends the batch, unless there is a verdict, which is
 * Python's, or the batch has room for more and need not be appended at once; the log may be NULL.
 * Returns whether the same call may go on. */
bool nu_pass_append(struct nu_intake *intake, struct nu_log *log, bool at_once);

#endif
