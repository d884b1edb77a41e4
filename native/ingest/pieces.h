/* What the passes of native/epoll/ and native/uring/ take pieces in with.
 *
 * A kernel hides the misses of the bitmap behind the lines that follow (window.h), and a piece of a
 * line or two has none. So the lines of small pieces are gathered within a call, and a kernel takes
 * in many of them at once, in the order in which they came.
 */
#ifndef NUMBERS_URING_PIECES_H
#define NUMBERS_URING_PIECES_H

#include "ingest/intake.h"

#include <stdbool.h>

/* To be called at the beginning of a call of a pass. */
void nu_intake_begin(struct nu_intake *intake);

/* To be called where a pass comes to a stop: only then all that was taken in is in the bitmap, the
 * batch and the counters. */
void nu_intake_end(struct nu_intake *intake);

/* Returns false where the call is to return, so that Python looks at the verdict, or at how much
 * was taken in. */
bool nu_intake_may_go_on(const struct nu_intake *intake);

/* Returns false while the batch may not have room for the next piece. */
static inline bool nu_intake_has_room(const struct nu_intake *intake) {
    return intake->ingest->batch_bytes - intake->ingest->batch_used >=
           intake->chunk_bytes_max + intake->gathered_bytes;
}

/* Takes in arena[start..start + size), the next piece of this connection; the bytes in front of it,
 * as many as its tail has, are overwritten. There must be room. Returns nu_intake_may_go_on. */
bool nu_intake_take(struct nu_intake *intake, uint32_t connection, size_t start, size_t size);

#endif
