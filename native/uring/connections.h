/* A ring's state, and its connections: opened, accepted, handed out, ended.
 *
 * Internal to native/uring/.
 */
#ifndef NUMBERS_URING_CONNECTIONS_H
#define NUMBERS_URING_CONNECTIONS_H

#include "net/sockets.h"
#include "uring/pools.h"
#include "uring/queue.h"
#include "uring/uring.h"

#include <poll.h>

/* A list of connections; each is in one at most. */
struct nu_list {
    int32_t first;
    int32_t last;
    uint32_t count;
};

struct nu_connection {
    int32_t fd;       /* -1: the slot is free, or will be with the next pass */
    int32_t ended_fd; /* kept until nu_ring_finish_close, or -1 */
    uint32_t generation;
    int32_t first_buffer; /* received and not handed out, in order */
    int32_t last_buffer;
    struct nu_list *list;
    int32_t next;
    int32_t previous;
    uint8_t failures;   /* receives in a row */
    uint8_t armed;      /* a receive is under way */
    uint8_t cancelling; /* and was asked to end */
    uint8_t armed_pool; /* that it takes from */
    uint8_t pool;       /* that the next one takes from */
    uint8_t little;     /* what came last did not fill a small buffer */
    uint8_t ended;      /* there will be nothing more: see end */
    uint8_t end;        /* an nu_end */
    /* As nu_accept tells it. */
    uint8_t peer[NU_PEER_BYTES];
};

struct nu_listener {
    int32_t fd;
    bool armed;
    bool ready;
    bool failed;       /* not accepted from before nu_ring_listen */
    uint32_t failures; /* accepts in a row */
};

struct nu_ring {
    struct nu_ring_results *results;
    struct nu_completion *completions;
    uint32_t completions_max;
    struct nu_queue queue;
    struct nu_pools pools;
    int32_t *leased; /* buffers that the last pass handed out */
    uint32_t leased_count;

    struct nu_connection *connections;
    uint32_t connections_max;
    uint32_t connections_elsewhere; /* that count against connections_max */
    uint32_t *free;
    uint32_t free_count;
    uint32_t ended_count;             /* handed out as NU_CLOSED, before finish_close */
    struct nu_list ready;             /* with buffers to hand out */
    struct nu_list over;              /* with nothing to hand out but their end */
    struct nu_list unarmed[NU_POOLS]; /* waiting for a receive, by the pool it takes from */

    struct nu_listener *listeners;
    uint32_t listener_count;
    uint32_t accepts_per_pass_max;
    uint32_t bulk_pass_bytes;
    uint32_t receive_failures_max;
    bool listening;
    bool refuse;
    bool refusal_held;    /* clients wait that are not to be refused yet */
    int64_t refuse_at_ns; /* and until when, unless a slot becomes free; 0: as long as it takes */
    int64_t refuse_grace_ns;
    struct pollfd *polls; /* room for a listener and all connections */
    int32_t wakeup_fd;
    bool wakeup_armed;
    bool woken;
    bool armed_any;       /* receives that were not submitted yet */
    bool quiet;           /* something else came in this pass than chunks in bulk */
    uint32_t many_left;   /* passes in which it is known that many connections send */
    uint32_t bulk_left;   /* connections that have a turn in this pass yet */
    bool ending;          /* every request is being cancelled */
    bool draining;        /* none is under way any more */
    uint32_t drain_place; /* the first connection to receive from in the next pass */
};

/* Gives the descriptor a slot. Returns it, or -ENOSPC. */
int nu_connection_open(struct nu_ring *ring, int fd);

/* Adds a completion to what the pass hands out; there must be room for it. */
void nu_ring_hand_out(struct nu_ring *ring, uint32_t kind, uint32_t connection, uint32_t start,
                      uint32_t size);

/* Puts the connection into the list that its state says. */
void nu_connection_sort(struct nu_ring *ring, uint32_t index);

/* Hands out what the connections in `ready` have, as far as there is space for completions; and the
 * ends of those in `over`, if that is asked for. */
void nu_connections_serve(struct nu_ring *ring, bool ends);

/* Accepts from the listeners that are ready. In accept.c, as are the next two. */
void nu_connections_accept(struct nu_ring *ring);

/* Returns true if the listeners need a check: clients are to be accepted, or refused. */
bool nu_connections_may_accept(struct nu_ring *ring);

/* Leaves the listener alone until nu_ring_listen, because of an errno. */
void nu_listener_failed(struct nu_ring *ring, struct nu_listener *listener, int error);

/* Returns true if one more client may be accepted. */
bool nu_connections_have_room(const struct nu_ring *ring);

/* Takes back the buffers that were handed out. */
void nu_connections_take_back(struct nu_ring *ring);

/* The same, and forgets what the last pass handed out. */
void nu_connections_settle(struct nu_ring *ring);

/* Notes that a receive is to end, and asks for that. */
bool nu_connection_cancel(struct nu_ring *ring, uint32_t index);

/* Called when that was for nothing: most often the receive has just ended by itself. */
void nu_connection_cancel_failed(struct nu_ring *ring, uint32_t index);

/* Adds a buffer with `size` received bytes to what the connection has. */
void nu_connection_keep(struct nu_ring *ring, struct nu_connection *connection, int32_t buffer,
                        uint32_t size);

/* Returns true for an errno that means that the client is gone. */
bool nu_is_network_error(int error);

/* Cancels every request and waits for their ends, for at most wait_ns. In drain.c, as is the next.
 */
void nu_end_requests(struct nu_ring *ring, int64_t wait_ns);

/* A pass of a ring that drains: one recv(2) from each connection. Returns the completions' count.
 */
int nu_drain_pass(struct nu_ring *ring);

/* Deals with all completions of the queue; returns true if there were any, and sets *error to 0 or
 * -errno. In pass.c. */
bool nu_ring_reap(struct nu_ring *ring, int *error);

/* Called when everything that was handed out is taken in: goes on with the pass, and receives in
 * bulk from those that have not had their turn in it. Returns false where the pass is over: all
 * have had theirs, or something else has come. In pass.c. */
bool nu_ring_receive_more(struct nu_ring *ring);

#endif
