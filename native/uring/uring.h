/* The io_uring reactor: what has happened on the sockets, as rows of an array.
 *
 * This header is the whole contract between C and Python, as ingest.h is. Kernel 6.1 or newer. A
 * ring belongs to the thread that opened it and must not be used across a fork.
 */
#ifndef NUMBERS_URING_URING_H
#define NUMBERS_URING_URING_H

#include <stddef.h>
#include <stdint.h>

enum nu_kind {
    NU_OPENED = 0,   /* a client was accepted into this slot */
    NU_RECEIVED = 1, /* size > 0 bytes of its stream lie at arena + start */
    NU_CLOSED = 2    /* it is over; start is an nu_end; see nu_ring_finish_close */
};

enum nu_end {
    NU_EOF = 0,         /* the client closed or shut down its side */
    NU_RESET = 1,       /* the network reports that the client is gone */
    NU_DISCONNECTED = 2 /* nu_ring_disconnect */
};

struct nu_completion {
    uint32_t kind;
    uint32_t connection;
    uint32_t start;
    uint32_t size;
};

/* Equal buffers that the kernel takes from as data comes: a provided buffer ring. */
struct nu_pool_config {
    uint32_t buffers;      /* a power of two, at most 32,768 */
    uint32_t buffer_bytes; /* a multiple of 64 */
};

/* What the last pass did, until the next one begins, and what all did. */
struct nu_ring_results {
    uint32_t count;          /* completions; nu_ring_take may add some */
    uint32_t received;       /* how many of them are NU_RECEIVED */
    uint32_t next;           /* the first of them that nu_ring_take was not through with */
    uint64_t received_bytes; /* in all of them */
    int32_t accept_errno;  /* why no client is accepted any more, of one listener or of all; 0 where
                              it was not stopped */
    int32_t receive_errno; /* why a connection that the network did not end was ended; or 0 */
    int32_t ring_errno;    /* why the ring did not do what it should: it may the next time; or 0 */
    uint64_t refused;      /* since the start, as all that follows */
    uint64_t overflows;    /* times that the kernel's completion queue did not suffice */
    uint64_t starved;      /* receives that found no buffer */
    uint64_t stale;        /* completions for a connection that is no more: there should be none */
};

/* All memory and the descriptors stay the caller's, who keeps them until nu_ring_close. The
 * listeners are non-blocking. */
struct nu_ring_config {
    uint8_t *arena;     /* all of the pools' buffers, with headroom_bytes free in front of each */
    size_t arena_bytes; /* at least nu_ring_arena_bytes */
    uint32_t headroom_bytes;
    struct nu_pool_config small; /* for multishot receives: clients that send little at a time */
    struct nu_pool_config large; /* for one receive each: clients that fill small buffers */
    uint32_t connections_max;
    uint32_t refuse; /* non-zero: accept and close clients that come while all slots are taken */
    int64_t refuse_grace_ns; /* how long a client waits for others' ends elsewhere before that */
    const int32_t *listener_fds;
    uint32_t listeners;
    int32_t wakeup_fd; /* -1: none */
    struct nu_ring_results *results;
    struct nu_completion *completions;
    uint32_t completions_max;
    uint32_t submissions_max;
    uint32_t queued_max;       /* entries of the kernel's completion queue */
    uint32_t ignored_features; /* NU_URING_FEAT_ that count as missing though Linux has them */
    uint32_t accepts_per_pass_max;
    uint32_t bulk_pass_bytes;      /* a pass that takes so much in has another one behind it */
    uint32_t receive_failures_max; /* in a row, with an error that may pass, until a connection is
                                      ended */
};

struct nu_ring;

/* Returns how many bytes of arena the pools of config need. */
size_t nu_ring_arena_bytes(const struct nu_ring_config *config);

/* Sets up a ring that accepts nothing yet. Returns 0 or -errno; *step then names what failed. */
int nu_ring_open(const struct nu_ring_config *config, struct nu_ring **ring, const char **step);

/* Ends every request, waits for that, and closes every connection. NULL is allowed. */
void nu_ring_close(struct nu_ring *ring);

/* One pass: takes back the buffers and slots that the last pass handed out, submits, waits for at
 * most timeout_ns until something has happened, though for pile_up_ns in any case if that is less,
 * and fills in results and completions: at most one
 * NU_RECEIVED for each connection, and never its last one and its NU_CLOSED.
 *
 * Returns their count, 0 also after a signal or while the wake-up descriptor is readable; or
 * -errno.
 */
int nu_ring_pass(struct nu_ring *ring, int64_t timeout_ns, int64_t pile_up_ns);

/* Why nu_ring_take has returned. */
enum nu_rows {
    NU_ROWS_OVER = 0,  /* every completion was dealt with */
    NU_ROWS_TAKEN = 1, /* see the intake: a verdict, no room in the batch, or enough for a call */
    NU_ROWS_OTHER = 2  /* the next completion is no NU_RECEIVED; the caller deals with it, and adds
                          one to `next` */
};

struct nu_intake;

struct nu_log;

/* Takes in what the last pass has received, from its completion `next` on, until Python is to
 * decide on something; leaves out connections that nu_ring_disconnect has ended. Then goes on with
 * the pass: receives from those that send in bulk, each in its turn, until all had theirs or
 * something else comes; results may then tell of errors. Appends what it takes in if there is a
 * log; that may be NULL. Returns an nu_rows. */
int nu_ring_take(struct nu_ring *ring, struct nu_intake *intake, struct nu_log *log);

/* A pass, as nu_ring_pass, that goes on as nu_ring_take. In bulk, where all was appended, another
 * one follows, with what has happened meanwhile. Returns NU_ROWS_OVER, with nothing else done,
 * where nothing has happened; or -errno. */
int nu_ring_serve(struct nu_ring *ring, struct nu_intake *intake, struct nu_log *log,
                  int64_t timeout_ns, int64_t pile_up_ns);

/* Ends a connection: nothing more is received from it, and one of the next passes hands out its
 * NU_CLOSED. The caller must leave out what the last pass has handed out of it. */
void nu_ring_disconnect(struct nu_ring *ring, uint32_t connection);

/* Closes the descriptor after the NU_CLOSED; only then is the slot free. The client sees a reset,
 * or with orderly a FIN if it was received from to the end. */
void nu_ring_finish_close(struct nu_ring *ring, uint32_t connection, int orderly);

/* Starts to accept clients, again where accept_errno says that it was stopped. */
void nu_ring_listen(struct nu_ring *ring);

/* Ends every request, for good: each pass from then on receives once from every connection, waits
 * for nothing, accepts no one and does not look at the wake-up descriptor. To be called between
 * passes. */
void nu_ring_begin_drain(struct nu_ring *ring);

/* Accepts one client from the listener with this index. To be called between passes.
 *
 * Returns its slot; -ENOSPC where no slot is free, else -errno of accept(2): -EAGAIN where no
 * client waits.
 */
int nu_ring_accept(struct nu_ring *ring, uint32_t listener);

/* Takes over a connected stream socket. To be called between passes. Returns its slot or -ENOSPC.
 */
int nu_ring_adopt(struct nu_ring *ring, int32_t fd);

/* Gives up a connection that the last pass, or nu_ring_accept after it, has opened: its slot is
 * free, without an NU_CLOSED. To be called before the next pass. Returns its descriptor. */
int32_t nu_ring_release(struct nu_ring *ring, uint32_t connection);

/* Counts so many connections that are open elsewhere against connections_max, when clients are
 * accepted. */
void nu_ring_set_connections_elsewhere(struct nu_ring *ring, uint32_t connections);

/* Copies the address of the client that was accepted last into this slot, as nu_accept does. Zeros
 * where none was. */
void nu_ring_peer(const struct nu_ring *ring, uint32_t connection, uint8_t *address);

/* Returns the first open connection from this one on, or -1: between passes, a walk over all. */
int nu_ring_next_open(struct nu_ring *ring, uint32_t connection);

/* Returns how many bytes of an open connection are received but not handed out, in its socket or
 * in buffers. */
int64_t nu_ring_held_bytes(struct nu_ring *ring, uint32_t connection);

#endif
