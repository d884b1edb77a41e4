/* All connections' streams: pieces in, each joined to its connection's tail and given to a kernel.
 *
 * numbers_uring/ingest/intake.py does the same in Python, one piece a call, on the same memory. The
 * passes of native/epoll/ and native/uring/ take in many pieces a call, and return where a decision
 * is to be made, which is Python's.
 */
#ifndef NUMBERS_URING_INTAKE_H
#define NUMBERS_URING_INTAKE_H

#include "ingest/ingest.h"

/* The start of a line, until the rest of it comes. */
struct nu_tail {
    uint8_t bytes[9];
    uint8_t size;
};

/* The caller sets all above the results, once, and keeps the memory. */
struct nu_intake {
    int (*kernel)(struct nu_ingest *ingest, const uint8_t *arena, size_t start, size_t stop);
    struct nu_ingest *ingest;
    uint8_t *arena; /* with room for a tail in front of each piece */
    struct nu_tail *tails;
    uint32_t *complete;       /* room for complete_max, or NULL */
    uint32_t complete_max;    /* after which a call returns: it may receive twice from one */
    uint64_t chunk_bytes_max; /* room that the batch must have before a piece is taken in */
    uint64_t call_bytes_max;  /* of pieces, after which a call returns */
    uint8_t *unwritten;       /* set to 1 before anything is taken in; or NULL */
    uint8_t *gathered;        /* room for gather_bytes_max */
    uint32_t gather_bytes_max;
    uint32_t gather_piece_bytes_max; /* with the tail; not more than that */

    /* Of the present call. */
    uint32_t gathered_bytes; /* of its small pieces, numbers that no kernel has taken in yet */

    /* Of the last call of a pass. */
    uint64_t taken_bytes;
    uint32_t connection;     /* whose piece was the last one */
    int32_t verdict;         /* on it */
    uint32_t rejected_start; /* where in the arena the line starts that is NU_INVALID */
    uint32_t rejected_stop;  /* where that piece ends */
    uint32_t complete_count; /* connections, in `complete`, that have sent at least a whole line */
};

#endif
