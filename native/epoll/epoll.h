/* A pass of the epoll reactor: receives from all ready connections and takes in what comes.
 *
 * This header is the whole contract between C and Python, as ingest.h is. The plain loop of
 * numbers_uring/reactor/epoll.py does the same, one connection after the other, and says what it
 * stands on.
 */
#ifndef NUMBERS_URING_EPOLL_H
#define NUMBERS_URING_EPOLL_H

#include "ingest/intake.h"
#include "log/append.h"

#include <stdbool.h>

enum nu_epoll_sizes {
    NU_EPOLL_EVENT_BYTES = 16 /* at least those of a struct epoll_event */
};

/* Why nu_epoll_take has returned. */
enum nu_epoll_step {
    NU_PASS_OVER = 0,  /* every event was dealt with */
    NU_PASS_TAKEN = 1, /* see the intake: a verdict, no room in the batch, or enough for a call */
    NU_PASS_ENDED = 2, /* nothing more comes from `connection`, because of `error` or, at 0, EOF */
    NU_PASS_OTHER = 3  /* `fd` is ready, which is no connection */
};

/* The caller sets all above the results, and keeps the memory. */
struct nu_epoll_pass {
    int32_t epoll_fd;
    void *events; /* aligned to 8 bytes, room for events_max times NU_EPOLL_EVENT_BYTES */
    uint32_t events_max;
    int32_t *connections;   /* by descriptor: its slot, or -1 */
    uint32_t descriptors;   /* entries of that */
    uint8_t *failures;      /* by descriptor: receives in a row, with an error that may pass */
    uint32_t failures_max;  /* at most 255; so many end a connection */
    uint32_t receive_start; /* in the arena */
    uint32_t receive_bytes;
    uint64_t *rounds; /* by connection: see bulk_turns.py, as of all that has to do with bulk */
    uint64_t round;
    uint32_t bulk_bytes;
    uint32_t bulk_share_bytes;
    uint32_t bulk_look_bytes;
    uint32_t bulk_pass_bytes; /* a pass that takes so much in has another one behind it */

    /* Of the pass and its last look. */
    uint32_t ready; /* events of its first look, in all passes of the call */
    bool again;     /* it is not the first one */
    bool quiet;
    uint32_t count;      /* events that were found */
    uint32_t next;       /* the first of them that was not looked at */
    uint32_t bulk_count; /* descriptors, in front of the events, that are in bulk */
    uint32_t bulk_next;  /* the first of them that was not dealt with */
    int64_t bulk_left_bytes;

    /* Of the last step. */
    int32_t fd;
    uint32_t connection;
    int32_t error;
};

/* Begins a pass: waits for events, at most timeout_ms, and goes on as nu_epoll_take. In bulk, where
 * all was appended, it begins another one with what is ready at once. Returns NU_PASS_OVER, with
 * nothing else done, where there are no events; or -errno: -EINTR after a signal. */
int nu_epoll_pass(struct nu_epoll_pass *pass, struct nu_intake *intake, struct nu_log *log,
                  int timeout_ms);

/* Goes on with the pass, in the order that numbers_uring/reactor/bulk_turns.py describes, until
 * Python is to decide on something. Appends what it takes in if there is a log; that may be NULL.
 * Returns an nu_epoll_step. */
int nu_epoll_take(struct nu_epoll_pass *pass, struct nu_intake *intake, struct nu_log *log);

/* Receives once from this descriptor, to receive_start in the arena, and takes in nothing. Returns
 * the size; 0 where nothing more comes, because of `error` or, at 0, EOF; -1 where there is nothing
 * now, or a failure that is worth another try. */
int64_t nu_epoll_receive(struct nu_epoll_pass *pass, int32_t fd, uint8_t *arena);

#endif
