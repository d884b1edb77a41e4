/* What a pass does with its batch. */
#ifndef NUMBERS_URING_LOG_PASS_H
#define NUMBERS_URING_LOG_PASS_H

#include "ingest/pieces.h"
#include "log/append.h"

/* Returns whether the batch has room for the next piece, once it is appended where it had none. The
 * log may be NULL. */
bool nu_pass_has_room(struct nu_intake *intake, struct nu_log *log);

/* To be called at the end of a pass, and before a call of one returns. Appends the batch, unless
 * the call returns for what was taken in, which is then Python's to do; the log may be NULL.
 * Returns whether the same call may go on with another pass. */
bool nu_pass_end(struct nu_intake *intake, struct nu_log *log, bool taken);

#endif
