/* How the ring is used:
 *
 * - One io_uring_enter(2) a pass: it submits, runs the deferred work (DEFER_TASKRUN: nothing is
 *   received outside of it) and waits, with a timeout of its own (EXT_ARG).
 * - A connection starts with a multishot receive into small buffers: no submission for each packet.
 *   Whoever fills a small buffer is moved to large ones, received into one at a time. A multishot
 *   receive would take up to 32 buffers at once for a client that floods (MULTISHOT_MAX_RETRY in
 *   io_uring/net.c); like this, none holds more than one large buffer, and all are served in turn.
 * - A receive that finds its pool empty ends with -ENOBUFS, also a multishot one: it is armed again
 *   as soon as its pool holds buffers, the longest waiting first. Whatever ends a receive, a
 *   completion without F_MORE is its last one.
 * - A descriptor is closed, and its slot used again, only after the last completion of its receive:
 *   closing alone does not end one (the request holds the file). It is ended by ASYNC_CANCEL.
 * - Clients are accepted by accept4(2) once the ring has told that some wait: a multishot accept
 *   takes one more than there are slots before it can be cancelled, and it would have to be
 * dropped.
 * - The wake-up descriptor and the listeners are polled one-shot: arming one looks at the present
 *   state (io_poll_add), so what still is readable is told of again by the next pass.
 */
#define _GNU_SOURCE
#include "uring/uring.h"

#include <errno.h>
#include <linux/io_uring.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define SAME(ours, theirs) _Static_assert((uint64_t)(ours) == (uint64_t)(theirs), #theirs)
SAME(NU_URING_OP_POLL_ADD, IORING_OP_POLL_ADD);
SAME(NU_URING_OP_ASYNC_CANCEL, IORING_OP_ASYNC_CANCEL);
SAME(NU_URING_OP_RECV, IORING_OP_RECV);
SAME(NU_URING_SETUP_CQSIZE, IORING_SETUP_CQSIZE);
SAME(NU_URING_SETUP_CLAMP, IORING_SETUP_CLAMP);
SAME(NU_URING_SETUP_SINGLE_ISSUER, IORING_SETUP_SINGLE_ISSUER);
SAME(NU_URING_SETUP_DEFER_TASKRUN, IORING_SETUP_DEFER_TASKRUN);
SAME(NU_URING_FEAT_SINGLE_MMAP, IORING_FEAT_SINGLE_MMAP);
SAME(NU_URING_FEAT_NODROP, IORING_FEAT_NODROP);
SAME(NU_URING_FEAT_EXT_ARG, IORING_FEAT_EXT_ARG);
SAME(NU_URING_ENTER_GETEVENTS, IORING_ENTER_GETEVENTS);
SAME(NU_URING_ENTER_EXT_ARG, IORING_ENTER_EXT_ARG);
SAME(NU_URING_REGISTER_PBUF_RING, IORING_REGISTER_PBUF_RING);
SAME(NU_URING_SQE_BUFFER_SELECT, IOSQE_BUFFER_SELECT);
SAME(NU_URING_SQE_CQE_SKIP_SUCCESS, IOSQE_CQE_SKIP_SUCCESS);
SAME(NU_URING_RECV_MULTISHOT, IORING_RECV_MULTISHOT);
SAME(NU_URING_CANCEL_ALL, IORING_ASYNC_CANCEL_ALL);
SAME(NU_URING_CANCEL_ANY, IORING_ASYNC_CANCEL_ANY);
SAME(NU_URING_SQ_CQ_OVERFLOW, IORING_SQ_CQ_OVERFLOW);
SAME(NU_URING_CQE_F_BUFFER, IORING_CQE_F_BUFFER);
SAME(NU_URING_CQE_F_MORE, IORING_CQE_F_MORE);
SAME(NU_URING_CQE_BUFFER_SHIFT, IORING_CQE_BUFFER_SHIFT);
SAME(NU_URING_OFF_SQ_RING, IORING_OFF_SQ_RING);
SAME(NU_URING_OFF_SQES, IORING_OFF_SQES);
SAME(NU_URING_SQE_BYTES, sizeof(struct io_uring_sqe));
SAME(NU_URING_CQE_BYTES, sizeof(struct io_uring_cqe));
SAME(NU_URING_PARAMS_BYTES, sizeof(struct io_uring_params));
SAME(NU_URING_BUF_BYTES, sizeof(struct io_uring_buf));
SAME(NU_URING_BUF_REG_BYTES, sizeof(struct io_uring_buf_reg));
SAME(NU_URING_GETEVENTS_ARG_BYTES, sizeof(struct io_uring_getevents_arg));
SAME(NU_PEER_BYTES, sizeof(struct sockaddr_in6));

enum { SMALL, LARGE, POOLS };
enum { REQUEST_RECEIVE = 1, REQUEST_CANCEL, REQUEST_LISTENER, REQUEST_WAKEUP };
enum { LARGE_STOCK = 2, CONNECTIONS_PER_LARGE = 8 };
enum { ALIGNMENT = 64, NONE = -1, GENERATION_BITS = 24 };

/* A completion queue that stays full is flushed this often a pass; the rest comes with the next. */
enum { FLUSHES_MAX = 16 };

/* Closing waits this long, in all, for the ends of requests: they come at once. */
static const int64_t close_wait_ns = 1000000000;

/* A trial waits this long for what must come at once. */
static const int64_t trial_wait_ns = 1000000000;

struct pool {
    struct io_uring_buf_ring *ring;
    size_t ring_bytes;
    uint32_t buffers;
    uint32_t buffer_bytes;
    uint32_t stride_bytes; /* a buffer with what is free in front of it */
    uint32_t first_buffer; /* its buffers' numbers, among those of all pools, start here */
    size_t arena_start;
    uint32_t available; /* in the kernel's hands, as far as its completions have told */
    uint16_t tail;
    int32_t *reserve; /* buffers in nobody's hands; the last one in is the first one out */
    uint32_t reserve_count;
};

struct buffer {
    uint32_t start; /* in the arena */
    uint32_t size;  /* received */
    int32_t next;   /* of the same connection */
    uint16_t id;    /* in its pool */
    uint8_t pool;
};

/* A list of connections; each is in one at most. */
struct queue {
    int32_t first;
    int32_t last;
    uint32_t count;
};

struct connection {
    int32_t fd;       /* -1: the slot is free, or will be with the next pass */
    int32_t ended_fd; /* kept until nu_ring_finish_close, or -1 */
    uint32_t generation;
    int32_t first_buffer; /* received and not handed out, in order */
    int32_t last_buffer;
    struct queue *queue;
    int32_t next;
    int32_t previous;
    uint8_t armed;      /* a receive is under way */
    uint8_t cancelling; /* and was asked to end */
    uint8_t armed_pool; /* that it takes from */
    uint8_t pool;       /* that the next one takes from */
    uint8_t ended;      /* there will be nothing more: see end */
    uint8_t end;        /* an nu_end */
    /* As accept4(2) tells it: the longest address of our listeners. Of AF_UNIX only the family. */
    struct sockaddr_in6 peer;
};

struct listener {
    int32_t fd;
    bool armed;
    bool ready;
};

struct nu_ring {
    struct nu_ring_results *results;
    struct nu_completion *completions;
    int fd;
    uint8_t *arena;

    void *rings; /* both queues in one mapping */
    size_t rings_bytes;
    struct io_uring_sqe *sqes;
    size_t sqes_bytes;
    const uint32_t *sq_head;
    uint32_t *sq_tail;
    const uint32_t *sq_flags;
    uint32_t sq_mask;
    uint32_t sq_entries;
    uint32_t sq_filled; /* the tail, also of what is not published yet */
    uint32_t *cq_head;
    const uint32_t *cq_tail;
    uint32_t cq_mask;
    const struct io_uring_cqe *cqes;

    struct pool pools[POOLS];
    struct buffer *buffers;
    int32_t *leased; /* buffers that the last pass handed out */
    uint32_t leased_count;

    struct connection *connections;
    uint32_t connections_max;
    uint32_t *free;
    uint32_t free_count;
    uint32_t occupied; /* connections elsewhere that count against connections_max */
    uint32_t *closed;  /* slots that the last pass handed out as NU_CLOSED */
    uint32_t closed_count;
    uint32_t ended_count; /* connections whose client has ended them, and that are not let go */
    struct queue ready;   /* with something to hand out */
    struct queue unarmed[POOLS]; /* waiting for a receive, by the pool it takes from */

    struct listener *listeners;
    uint32_t listener_count;
    bool listening;
    bool refuse;
    int32_t wakeup_fd;
    bool wakeup_armed;
    bool woken;
    uint32_t in_flight; /* requests, cancels left out */
    uint32_t completions_max;
    uint32_t accepts_per_pass_max;
};

/* System calls. */

static int io_uring_setup(uint32_t entries, struct io_uring_params *params) {
    long fd = syscall(__NR_io_uring_setup, entries, params);
    return fd < 0 ? -errno : (int)fd;
}

static int io_uring_register(int fd, uint32_t opcode, void *arg, uint32_t count) {
    return syscall(__NR_io_uring_register, fd, opcode, arg, count) < 0 ? -errno : 0;
}

static int64_t now_ns(void) {
    struct timespec now = {0};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000ll + now.tv_nsec;
}

/* Submits what is prepared, has the deferred work done, and waits for a completion if wait_ns > 0.
 * Returns 0, also where that was for nothing and is worth another try, or -errno. */
static int enter(struct nu_ring *ring, int64_t wait_ns) {
    uint32_t flags = IORING_ENTER_GETEVENTS;
    uint32_t submit = ring->sq_filled - __atomic_load_n(ring->sq_head, __ATOMIC_ACQUIRE);
    struct __kernel_timespec timeout = {wait_ns / 1000000000, wait_ns % 1000000000};
    struct io_uring_getevents_arg arg = {.sigmask_sz = 8, .ts = (uintptr_t)&timeout};
    bool wait = wait_ns > 0;
    if (wait)
        flags |= IORING_ENTER_EXT_ARG;
    __atomic_store_n(ring->sq_tail, ring->sq_filled, __ATOMIC_RELEASE);
    if (syscall(__NR_io_uring_enter, ring->fd, submit, wait, flags, wait ? &arg : NULL,
                wait ? sizeof arg : 0) >= 0)
        return 0;
    /* EAGAIN: no memory for a request; EBUSY: completions must be taken first. */
    if (errno == ETIME || errno == EINTR || errno == EAGAIN || errno == EBUSY)
        return 0;
    return -errno;
}

/* Requests. */

static uint64_t user_data(uint64_t request, uint32_t index, uint32_t generation) {
    uint64_t kept = generation & ((1u << GENERATION_BITS) - 1);
    return request << 56 | kept << 32 | index;
}

/* Returns a submission to be filled, or NULL where the queue is full and the kernel takes nothing.
 */
static struct io_uring_sqe *prepare(struct nu_ring *ring, uint8_t opcode, int fd, uint64_t data) {
    if (ring->sq_filled - __atomic_load_n(ring->sq_head, __ATOMIC_ACQUIRE) == ring->sq_entries &&
        enter(ring, 0) < 0)
        return NULL;
    if (ring->sq_filled - __atomic_load_n(ring->sq_head, __ATOMIC_ACQUIRE) == ring->sq_entries)
        return NULL;
    struct io_uring_sqe *sqe = &ring->sqes[ring->sq_filled++ & ring->sq_mask];
    memset(sqe, 0, sizeof *sqe);
    sqe->opcode = opcode;
    sqe->fd = fd;
    sqe->user_data = data;
    return sqe;
}

static bool prepare_poll(struct nu_ring *ring, int fd, uint64_t data) {
    struct io_uring_sqe *sqe = prepare(ring, IORING_OP_POLL_ADD, fd, data);
    if (!sqe)
        return false;
    sqe->poll32_events = POLLIN;
    ring->in_flight++;
    return true;
}

static bool prepare_receive(struct nu_ring *ring, uint32_t index) {
    struct connection *connection = &ring->connections[index];
    uint64_t data = user_data(REQUEST_RECEIVE, index, connection->generation);
    struct io_uring_sqe *sqe = prepare(ring, IORING_OP_RECV, connection->fd, data);
    if (!sqe)
        return false;
    sqe->flags = IOSQE_BUFFER_SELECT;
    sqe->buf_group = connection->pool;
    sqe->ioprio = connection->pool == SMALL ? IORING_RECV_MULTISHOT : 0;
    connection->armed = true;
    connection->armed_pool = connection->pool;
    connection->cancelling = false;
    ring->in_flight++;
    return true;
}

static bool prepare_cancel(struct nu_ring *ring, uint32_t index) {
    struct connection *connection = &ring->connections[index];
    uint64_t data = user_data(REQUEST_CANCEL, index, connection->generation);
    struct io_uring_sqe *sqe = prepare(ring, IORING_OP_ASYNC_CANCEL, -1, data);
    if (!sqe)
        return false;
    sqe->flags = IOSQE_CQE_SKIP_SUCCESS;
    sqe->addr = user_data(REQUEST_RECEIVE, index, connection->generation);
    connection->cancelling = true;
    return true;
}

/* Queues of connections. */

static void push(struct nu_ring *ring, struct queue *queue, uint32_t index) {
    struct connection *connection = &ring->connections[index];
    connection->queue = queue;
    connection->next = NONE;
    connection->previous = queue->last;
    if (queue->last == NONE)
        queue->first = (int32_t)index;
    else
        ring->connections[queue->last].next = (int32_t)index;
    queue->last = (int32_t)index;
    queue->count++;
}

static void leave(struct nu_ring *ring, uint32_t index) {
    struct connection *connection = &ring->connections[index];
    struct queue *queue = connection->queue;
    if (!queue)
        return;
    if (connection->previous == NONE)
        queue->first = connection->next;
    else
        ring->connections[connection->previous].next = connection->next;
    if (connection->next == NONE)
        queue->last = connection->previous;
    else
        ring->connections[connection->next].previous = connection->previous;
    queue->count--;
    connection->queue = NULL;
}

/* Puts the connection where its state says that it belongs. */
static void sort(struct nu_ring *ring, uint32_t index) {
    struct connection *connection = &ring->connections[index];
    bool ready = connection->first_buffer != NONE || (connection->ended && !connection->armed);
    struct queue *queue = NULL;
    if (ready)
        queue = &ring->ready;
    else if (!connection->armed)
        queue = &ring->unarmed[connection->pool];
    if (queue == connection->queue)
        return;
    leave(ring, index);
    if (queue)
        push(ring, queue, index);
}

/* Buffers. */

static void give_back(struct nu_ring *ring, int32_t number) {
    struct pool *pool = &ring->pools[ring->buffers[number].pool];
    pool->reserve[pool->reserve_count++] = number;
}

static void provide(struct nu_ring *ring, struct pool *pool) {
    int32_t number = pool->reserve[--pool->reserve_count];
    struct io_uring_buf *entry = &pool->ring->bufs[pool->tail & (pool->buffers - 1)];
    /* Not as a whole: the ring's tail lies in the first entry's last field. */
    entry->addr = (uintptr_t)ring->arena + ring->buffers[number].start;
    entry->len = pool->buffer_bytes;
    entry->bid = ring->buffers[number].id;
    pool->tail++;
    pool->available++;
}

/* Lets the kernel have all small buffers, and of the large ones as few as do: the fewer go round,
 * the more of them are still in the processor's cache. */
static void stock(struct nu_ring *ring) {
    for (int i = 0; i < POOLS; i++) {
        struct pool *pool = &ring->pools[i];
        uint32_t wanted = pool->buffers;
        if (i == LARGE)
            wanted = LARGE_STOCK + ring->unarmed[LARGE].count / CONNECTIONS_PER_LARGE;
        while (pool->available < wanted && pool->reserve_count)
            provide(ring, pool);
        __atomic_store_n(&pool->ring->tail, pool->tail, __ATOMIC_RELEASE);
    }
}

static void keep(struct nu_ring *ring, struct connection *connection, int32_t number,
                 uint32_t size) {
    ring->buffers[number].size = size;
    ring->buffers[number].next = NONE;
    if (connection->first_buffer == NONE)
        connection->first_buffer = number;
    else
        ring->buffers[connection->last_buffer].next = number;
    connection->last_buffer = number;
}

/* Connections. */

/* Whether one more client may be accepted. */
static bool has_room(const struct nu_ring *ring) {
    return ring->free_count > ring->occupied;
}

static int open_connection(struct nu_ring *ring, int fd) {
    if (!ring->free_count)
        return -ENOSPC;
    uint32_t index = ring->free[--ring->free_count];
    struct connection *connection = &ring->connections[index];
    *connection = (struct connection){
        .fd = fd,
        .ended_fd = NONE,
        .generation = connection->generation + 1,
        .first_buffer = NONE,
        .last_buffer = NONE,
        .pool = SMALL,
    };
    sort(ring, index);
    return (int)index;
}

static void hand_out(struct nu_ring *ring, uint32_t kind, uint32_t connection, uint32_t start,
                     uint32_t size) {
    ring->completions[ring->results->count++] =
        (struct nu_completion){kind, connection, start, size};
    ring->results->received_bytes += size;
}

/* Hands out the connection's next buffer or, once it had all of them, its end.
 *
 * Never both in one pass, and what the client has ended is not closed here: the client sees that,
 * and may take it to mean that all it sent is on file. */
static void serve(struct nu_ring *ring, uint32_t index) {
    struct connection *connection = &ring->connections[index];
    leave(ring, index);
    if (connection->first_buffer != NONE) {
        const struct buffer *buffer = &ring->buffers[connection->first_buffer];
        hand_out(ring, NU_RECEIVED, index, buffer->start, buffer->size);
        ring->leased[ring->leased_count++] = connection->first_buffer;
        connection->first_buffer = buffer->next;
    } else if (connection->ended && !connection->armed) {
        if (connection->end == NU_DISCONNECTED) {
            /* Linux frees the descriptor whatever close(2) says. */
            close(connection->fd);
            ring->closed[ring->closed_count++] = index;
        } else {
            connection->ended_fd = connection->fd;
            ring->ended_count++;
        }
        connection->fd = -1;
        hand_out(ring, NU_CLOSED, index, connection->end, 0);
        return;
    }
    sort(ring, index);
}

static void serve_ready(struct nu_ring *ring) {
    for (uint32_t left = ring->ready.count; left; left--) {
        if (ring->results->count + 2 > ring->completions_max)
            return;
        serve(ring, (uint32_t)ring->ready.first);
    }
}

/* What the last pass handed out is the ring's again. */
static void settle(struct nu_ring *ring) {
    for (uint32_t i = 0; i < ring->leased_count; i++)
        give_back(ring, ring->leased[i]);
    while (ring->closed_count)
        ring->free[ring->free_count++] = ring->closed[--ring->closed_count];
    ring->leased_count = 0;
    ring->results->count = 0;
    ring->results->received_bytes = 0;
}

/* Completions. */

static void receive_ended(struct connection *connection, int32_t result) {
    if (result > 0 || result == -ENOBUFS || result == -ECANCELED || result == -EINTR ||
        result == -EAGAIN || connection->ended)
        return;
    /* Whatever the network says (reset, keepalive timed out, no route): the client is gone. */
    connection->ended = true;
    connection->end = result ? NU_RESET : NU_EOF;
}

/* Chooses the pool by what came: a filled small buffer says that more is to be had at once. */
static void choose_pool(struct nu_ring *ring, uint32_t index, uint32_t size) {
    struct connection *connection = &ring->connections[index];
    uint32_t small_bytes = ring->pools[SMALL].buffer_bytes;
    if (connection->armed_pool == LARGE) {
        connection->pool = size <= small_bytes / 2 ? SMALL : LARGE;
    } else if (size == small_bytes) {
        connection->pool = LARGE;
        if (connection->armed && !connection->cancelling)
            prepare_cancel(ring, index);
    }
}

static void received(struct nu_ring *ring, uint32_t index, const struct io_uring_cqe *cqe) {
    struct connection *connection = &ring->connections[index];
    if (cqe->res == -ENOBUFS)
        ring->results->starved++;
    if (!(cqe->flags & IORING_CQE_F_MORE)) {
        connection->armed = false;
        ring->in_flight--;
        receive_ended(connection, cqe->res);
    }
    if (cqe->flags & IORING_CQE_F_BUFFER) {
        struct pool *pool = &ring->pools[connection->armed_pool];
        int32_t number = (int32_t)(pool->first_buffer + (cqe->flags >> IORING_CQE_BUFFER_SHIFT));
        pool->available--;
        if (cqe->res > 0 && connection->end != NU_DISCONNECTED) {
            keep(ring, connection, number, (uint32_t)cqe->res);
            choose_pool(ring, index, (uint32_t)cqe->res);
        } else {
            give_back(ring, number);
        }
    }
    sort(ring, index);
}

static void cancel_failed(struct nu_ring *ring, uint32_t index) {
    struct connection *connection = &ring->connections[index];
    connection->cancelling = false;
    /* Most often the receive has just ended by itself. If not, it does now. */
    if (connection->armed && connection->end == NU_DISCONNECTED)
        shutdown(connection->fd, SHUT_RDWR);
}

static void connection_completed(struct nu_ring *ring, const struct io_uring_cqe *cqe) {
    uint64_t request = cqe->user_data >> 56;
    uint32_t index = (uint32_t)cqe->user_data;
    const struct connection *connection = &ring->connections[index];
    if (connection->fd < 0 || user_data(request, index, connection->generation) != cqe->user_data)
        ring->results->stale += request == REQUEST_RECEIVE;
    else if (request == REQUEST_RECEIVE)
        received(ring, index, cqe);
    else
        cancel_failed(ring, index);
}

static void completed(struct nu_ring *ring, const struct io_uring_cqe *cqe) {
    uint32_t index = (uint32_t)cqe->user_data;
    switch (cqe->user_data >> 56) {
    case REQUEST_WAKEUP:
        ring->in_flight--;
        ring->wakeup_armed = false;
        ring->woken = ring->wakeup_fd >= 0;
        break;
    case REQUEST_LISTENER:
        ring->in_flight--;
        ring->listeners[index].armed = false;
        ring->listeners[index].ready = cqe->res > 0;
        break;
    case REQUEST_RECEIVE:
    case REQUEST_CANCEL:
        connection_completed(ring, cqe);
        break;
    }
}

/* Deals with all completions; returns whether there were any, and in *error 0 or -errno. */
static bool reap(struct nu_ring *ring, int *error) {
    uint32_t head = *ring->cq_head;
    uint32_t begin = head;
    *error = 0;
    for (int flushes = 0;; flushes++) {
        uint32_t tail = __atomic_load_n(ring->cq_tail, __ATOMIC_ACQUIRE);
        for (; head != tail; head++)
            completed(ring, &ring->cqes[head & ring->cq_mask]);
        __atomic_store_n(ring->cq_head, head, __ATOMIC_RELEASE);
        uint32_t flags = __atomic_load_n(ring->sq_flags, __ATOMIC_RELAXED);
        if (!(flags & IORING_SQ_CQ_OVERFLOW) || flushes == FLUSHES_MAX || *error)
            return head != begin;
        /* The kernel keeps what found no room, and moves it into the queue when it is entered. */
        ring->results->overflows++;
        *error = enter(ring, 0);
    }
}

/* Accepting. */

static bool exhausted(int error) {
    return error == EMFILE || error == ENFILE || error == ENOBUFS || error == ENOMEM;
}

/* Accepts one client; returns its slot, NONE where one was accepted and is gone, or -errno. */
static int accept_one(struct nu_ring *ring, int listener_fd, bool *gone) {
    /* A blocking socket: for others the ring would complete with EAGAIN instead of waiting. */
    struct sockaddr_in6 peer = {0};
    socklen_t peer_bytes = sizeof peer;
    int fd = accept4(listener_fd, (struct sockaddr *)&peer, &peer_bytes, SOCK_CLOEXEC);
    *gone = false;
    if (fd < 0) {
        /* The connection ended before it was accepted, or brought a network error: accept(2). */
        int error = errno;
        *gone = error != EAGAIN && !exhausted(error);
        if (exhausted(error)) {
            ring->results->accept_errno = error;
            ring->listening = false;
        }
        return -error;
    }
    int connection = has_room(ring) ? open_connection(ring, fd) : -ENOSPC;
    if (connection < 0) {
        close(fd);
        ring->results->refused++;
        *gone = true;
        return connection;
    }
    ring->connections[connection].peer = peer;
    return connection;
}

static void accept_from(struct nu_ring *ring, struct listener *listener) {
    for (uint32_t i = 0; i < ring->accepts_per_pass_max; i++) {
        bool gone;
        /* One that would be refused has a slot soon, where others have ended. */
        if (!has_room(ring) && (!ring->refuse || ring->closed_count || ring->ended_count))
            return;
        if (ring->results->count == ring->completions_max)
            return;
        int connection = accept_one(ring, listener->fd, &gone);
        if (connection >= 0)
            hand_out(ring, NU_OPENED, (uint32_t)connection, 0, 0);
        else if (!gone)
            return;
    }
}

static void accept_waiting(struct nu_ring *ring) {
    for (uint32_t i = 0; i < ring->listener_count; i++) {
        if (ring->listeners[i].ready && ring->listening)
            accept_from(ring, &ring->listeners[i]);
        /* Whoever still waits is told of when it is armed again. */
        ring->listeners[i].ready = false;
    }
}

/* Passes. */

/* Returns whether all that wait for this pool are armed, or no more can be for now. */
static bool arm_receives(struct nu_ring *ring, int pool) {
    struct queue *queue = &ring->unarmed[pool];
    /* Without a buffer at hand a receive would end at once, whether there is data or not. */
    for (uint32_t left = ring->pools[pool].available; left && queue->count; left--) {
        uint32_t index = (uint32_t)queue->first;
        if (!prepare_receive(ring, index))
            return true;
        sort(ring, index);
    }
    return !queue->count;
}

static bool arm(struct nu_ring *ring) {
    stock(ring);
    if (ring->wakeup_fd >= 0 && !ring->wakeup_armed)
        ring->wakeup_armed = prepare_poll(ring, ring->wakeup_fd, user_data(REQUEST_WAKEUP, 0, 0));
    if (ring->listening && (has_room(ring) || ring->refuse))
        for (uint32_t i = 0; i < ring->listener_count; i++)
            if (!ring->listeners[i].armed)
                ring->listeners[i].armed =
                    prepare_poll(ring, ring->listeners[i].fd, user_data(REQUEST_LISTENER, i, 0));
    bool small = arm_receives(ring, SMALL);
    bool large = arm_receives(ring, LARGE);
    return small && large;
}

int nu_ring_pass(struct nu_ring *ring, int64_t timeout_ns) {
    int64_t end_ns = timeout_ns > 0 ? now_ns() + timeout_ns : 0;
    bool all_armed;
    int error;
    settle(ring);
    ring->woken = false;
    ring->results->accept_errno = 0;
    do {
        all_armed = arm(ring);
        /* Those that are not may have data: arming goes on, a poolful at a time, before a wait. It
         * comes to its end: a buffer that is not the kernel's is on its way to the caller. */
        error = enter(ring, all_armed && !ring->ready.count ? timeout_ns : 0);
        if (error)
            return error;
        bool any = reap(ring, &error);
        if (error)
            return error;
        serve_ready(ring);
        accept_waiting(ring);
        if (ring->results->count || ring->woken || ring->results->accept_errno)
            break;
        /* Without a completion it was the timeout, or a signal. */
        if (!any && all_armed)
            break;
        timeout_ns = end_ns ? end_ns - now_ns() : 0;
    } while (timeout_ns > 0 || !all_armed);
    return (int)ring->results->count;
}

void nu_ring_disconnect(struct nu_ring *ring, uint32_t index) {
    struct connection *connection = &ring->connections[index];
    if (connection->fd < 0 || connection->end == NU_DISCONNECTED)
        return;
    connection->ended = true;
    connection->end = NU_DISCONNECTED;
    for (; connection->first_buffer != NONE;
         connection->first_buffer = ring->buffers[connection->first_buffer].next)
        give_back(ring, connection->first_buffer);
    if (connection->armed && !connection->cancelling && !prepare_cancel(ring, index))
        cancel_failed(ring, index);
    sort(ring, index);
}

void nu_ring_finish_close(struct nu_ring *ring, uint32_t index) {
    close(ring->connections[index].ended_fd);
    ring->connections[index].ended_fd = NONE;
    ring->free[ring->free_count++] = index;
    ring->ended_count--;
}

void nu_ring_listen(struct nu_ring *ring, int on) {
    ring->listening = on;
}

void nu_ring_ignore_wakeup(struct nu_ring *ring) {
    ring->wakeup_fd = -1;
}

int nu_ring_accept(struct nu_ring *ring, uint32_t listener) {
    bool gone;
    settle(ring);
    if (!has_room(ring))
        return -ENOSPC;
    return accept_one(ring, ring->listeners[listener].fd, &gone);
}

int nu_ring_adopt(struct nu_ring *ring, int32_t fd) {
    settle(ring);
    return open_connection(ring, fd);
}

int32_t nu_ring_release(struct nu_ring *ring, uint32_t index) {
    struct connection *connection = &ring->connections[index];
    int32_t fd = connection->fd;
    leave(ring, index);
    connection->fd = -1;
    ring->free[ring->free_count++] = index;
    return fd;
}

void nu_ring_set_connections_elsewhere(struct nu_ring *ring, uint32_t connections) {
    ring->occupied = connections;
}

void nu_ring_peer(const struct nu_ring *ring, uint32_t connection, uint8_t *address) {
    memcpy(address, &ring->connections[connection].peer, NU_PEER_BYTES);
}

int nu_ring_next_open(struct nu_ring *ring, uint32_t connection) {
    for (; connection < ring->connections_max; connection++)
        if (ring->connections[connection].fd >= 0)
            return (int)connection;
    return NONE;
}

int64_t nu_ring_held_bytes(struct nu_ring *ring, uint32_t index) {
    const struct connection *connection = &ring->connections[index];
    int in_socket = 0;
    if (ioctl(connection->fd, SIOCINQ, &in_socket) < 0)
        return -errno;
    int64_t held_bytes = in_socket;
    for (int32_t i = connection->first_buffer; i != NONE; i = ring->buffers[i].next)
        held_bytes += ring->buffers[i].size;
    return held_bytes;
}

/* Set-up and end. */

static uint32_t stride_bytes(const struct nu_ring_config *config, uint32_t buffer_bytes) {
    return (buffer_bytes + config->headroom_bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

size_t nu_ring_arena_bytes(const struct nu_ring_config *config) {
    return (size_t)config->small.buffers * stride_bytes(config, config->small.buffer_bytes) +
           (size_t)config->large.buffers * stride_bytes(config, config->large.buffer_bytes);
}

static void lay_out(struct nu_ring *ring, const struct nu_ring_config *config) {
    const struct nu_pool_config *configs[POOLS] = {&config->small, &config->large};
    uint32_t number = 0;
    size_t start = 0;
    for (uint8_t i = 0; i < POOLS; i++) {
        struct pool *pool = &ring->pools[i];
        pool->buffers = configs[i]->buffers;
        pool->buffer_bytes = configs[i]->buffer_bytes;
        pool->stride_bytes = stride_bytes(config, pool->buffer_bytes);
        pool->first_buffer = number;
        for (uint16_t id = 0; id < pool->buffers; id++, start += pool->stride_bytes)
            ring->buffers[number++] = (struct buffer){
                .start = (uint32_t)(start + pool->stride_bytes - pool->buffer_bytes),
                .id = id,
                .pool = i,
            };
    }
}

static int allocate(struct nu_ring *ring, const struct nu_ring_config *config) {
    uint32_t buffers = config->small.buffers + config->large.buffers;
    ring->buffers = calloc(buffers, sizeof *ring->buffers);
    ring->leased = calloc(buffers, sizeof *ring->leased);
    ring->connections = calloc(config->connections_max, sizeof *ring->connections);
    ring->free = calloc(config->connections_max, sizeof *ring->free);
    ring->closed = calloc(config->connections_max, sizeof *ring->closed);
    ring->listeners = calloc(config->listeners + 1, sizeof *ring->listeners);
    if (!ring->buffers || !ring->leased || !ring->connections || !ring->free || !ring->closed ||
        !ring->listeners)
        return -ENOMEM;
    for (uint32_t i = 0; i < config->connections_max; i++) {
        ring->connections[i].fd = ring->connections[i].ended_fd = NONE;
        ring->free[i] = config->connections_max - 1 - i;
    }
    for (uint32_t i = 0; i < config->listeners; i++)
        ring->listeners[i].fd = config->listener_fds[i];
    lay_out(ring, config);
    return 0;
}

static void *map(size_t bytes, int flags, int fd, uint64_t offset) {
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags, fd, (off_t)offset);
    return memory == MAP_FAILED ? NULL : memory;
}

static int map_queues(struct nu_ring *ring, const struct io_uring_params *params) {
    size_t sq_bytes = params->sq_off.array + params->sq_entries * sizeof(uint32_t);
    size_t cq_bytes = params->cq_off.cqes + params->cq_entries * sizeof(struct io_uring_cqe);
    ring->rings_bytes = sq_bytes > cq_bytes ? sq_bytes : cq_bytes;
    ring->sqes_bytes = params->sq_entries * sizeof(struct io_uring_sqe);
    ring->rings = map(ring->rings_bytes, MAP_SHARED | MAP_POPULATE, ring->fd, IORING_OFF_SQ_RING);
    if (!ring->rings)
        return -errno;
    ring->sqes = map(ring->sqes_bytes, MAP_SHARED | MAP_POPULATE, ring->fd, IORING_OFF_SQES);
    if (!ring->sqes)
        return -errno;
    char *rings = ring->rings;
    ring->sq_head = (uint32_t *)(rings + params->sq_off.head);
    ring->sq_tail = (uint32_t *)(rings + params->sq_off.tail);
    ring->sq_flags = (uint32_t *)(rings + params->sq_off.flags);
    ring->sq_entries = params->sq_entries;
    ring->sq_mask = params->sq_entries - 1;
    ring->cq_head = (uint32_t *)(rings + params->cq_off.head);
    ring->cq_tail = (uint32_t *)(rings + params->cq_off.tail);
    ring->cq_mask = params->cq_entries - 1;
    ring->cqes = (struct io_uring_cqe *)(rings + params->cq_off.cqes);
    uint32_t *array = (uint32_t *)(rings + params->sq_off.array);
    for (uint32_t i = 0; i < params->sq_entries; i++)
        array[i] = i;
    return 0;
}

static int set_up_queues(struct nu_ring *ring, const struct nu_ring_config *config) {
    const uint32_t features = IORING_FEAT_SINGLE_MMAP | IORING_FEAT_NODROP | IORING_FEAT_EXT_ARG;
    struct io_uring_params params = {
        .flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_CLAMP |
                 IORING_SETUP_CQSIZE,
        .cq_entries = config->queued_max,
    };
    ring->fd = io_uring_setup(config->submissions_max, &params);
    if (ring->fd < 0)
        return ring->fd;
    if ((params.features & features) != features)
        return -EOPNOTSUPP;
    return map_queues(ring, &params);
}

static int set_up_pool(struct nu_ring *ring, uint16_t group) {
    struct pool *pool = &ring->pools[group];
    size_t bytes = pool->buffers * sizeof(struct io_uring_buf);
    struct io_uring_buf_ring *memory = map(bytes, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (!memory)
        return -errno;
    pool->ring = memory;
    pool->ring_bytes = bytes;
    pool->reserve = calloc(pool->buffers, sizeof *pool->reserve);
    if (!pool->reserve)
        return -ENOMEM;
    struct io_uring_buf_reg registration = {
        .ring_addr = (uintptr_t)memory, .ring_entries = pool->buffers, .bgid = group};
    int error = io_uring_register(ring->fd, IORING_REGISTER_PBUF_RING, &registration, 1);
    for (uint32_t i = 0; !error && i < pool->buffers; i++)
        give_back(ring, (int32_t)(pool->first_buffer + i));
    return error;
}

static int set_up(struct nu_ring *ring, const struct nu_ring_config *config, const char **step) {
    *step = "memory";
    int error = allocate(ring, config);
    if (error)
        return error;
    *step = "io_uring_setup";
    error = set_up_queues(ring, config);
    if (error)
        return error;
    *step = "io_uring_register";
    for (uint16_t i = 0; i < POOLS && !error; i++)
        error = set_up_pool(ring, i);
    return error;
}

int nu_ring_open(const struct nu_ring_config *config, struct nu_ring **opened, const char **step) {
    const struct queue empty = {NONE, NONE, 0};
    *step = "arena";
    if (config->arena_bytes < nu_ring_arena_bytes(config) ||
        nu_ring_arena_bytes(config) > UINT32_MAX)
        return -EINVAL;
    *step = "memory";
    struct nu_ring *ring = calloc(1, sizeof *ring);
    if (!ring)
        return -ENOMEM;
    ring->fd = -1;
    ring->results = config->results;
    ring->completions = config->completions;
    ring->arena = config->arena;
    ring->connections_max = config->connections_max;
    ring->free_count = config->connections_max;
    ring->ready = ring->unarmed[SMALL] = ring->unarmed[LARGE] = empty;
    ring->listener_count = config->listeners;
    ring->refuse = config->refuse;
    ring->wakeup_fd = config->wakeup_fd;
    ring->completions_max = config->completions_max;
    ring->accepts_per_pass_max = config->accepts_per_pass_max;
    int error = set_up(ring, config, step);
    if (error) {
        nu_ring_close(ring);
        return error;
    }
    *opened = ring;
    return 0;
}

/* The end of a ring alone would be followed by its requests' at some time later, and until then
 * they would keep the listeners' port taken. */
static void end_requests(struct nu_ring *ring) {
    int64_t end_ns = now_ns() + close_wait_ns;
    int64_t left_ns = close_wait_ns;
    int error = 0;
    struct io_uring_sqe *sqe =
        prepare(ring, IORING_OP_ASYNC_CANCEL, -1, user_data(REQUEST_CANCEL, 0, 0));
    if (sqe)
        sqe->cancel_flags = IORING_ASYNC_CANCEL_ANY | IORING_ASYNC_CANCEL_ALL;
    while (ring->in_flight && left_ns > 0 && !error) {
        error = enter(ring, left_ns);
        if (!error)
            reap(ring, &error);
        left_ns = end_ns - now_ns();
    }
}

void nu_ring_close(struct nu_ring *ring) {
    if (!ring)
        return;
    if (ring->in_flight)
        end_requests(ring);
    for (uint32_t i = 0; ring->connections && i < ring->connections_max; i++) {
        if (ring->connections[i].fd >= 0)
            close(ring->connections[i].fd);
        if (ring->connections[i].ended_fd >= 0)
            close(ring->connections[i].ended_fd);
    }
    if (ring->fd >= 0)
        close(ring->fd);
    if (ring->rings)
        munmap(ring->rings, ring->rings_bytes);
    if (ring->sqes)
        munmap(ring->sqes, ring->sqes_bytes);
    for (int i = 0; i < POOLS; i++) {
        if (ring->pools[i].ring)
            munmap(ring->pools[i].ring, ring->pools[i].ring_bytes);
        free(ring->pools[i].reserve);
    }
    free(ring->buffers);
    free(ring->leased);
    free(ring->connections);
    free(ring->free);
    free(ring->closed);
    free(ring->listeners);
    free(ring);
}

/* Trials. */

enum { TRIAL_BUFFERS = 4, TRIAL_BUFFER_BYTES = 64 };

/* Waits for the next completion of the request with this user_data; others are dropped. */
static int await_completion(struct nu_ring *ring, uint64_t data, struct io_uring_cqe *found) {
    int64_t end_ns = now_ns() + trial_wait_ns;
    for (int64_t left_ns = trial_wait_ns; left_ns > 0; left_ns = end_ns - now_ns()) {
        int error = enter(ring, left_ns);
        if (error)
            return error;
        uint32_t head = *ring->cq_head;
        while (head != __atomic_load_n(ring->cq_tail, __ATOMIC_ACQUIRE)) {
            *found = ring->cqes[head++ & ring->cq_mask];
            __atomic_store_n(ring->cq_head, head, __ATOMIC_RELEASE);
            if (found->user_data == data)
                return 0;
        }
    }
    return -ETIME;
}

static int try_poll(struct nu_ring *ring, int near, int far) {
    const uint64_t data = user_data(REQUEST_WAKEUP, 0, 0);
    struct io_uring_cqe completion;
    char byte = 0;
    if (!prepare_poll(ring, near, data))
        return -EBUSY;
    if (send(far, &byte, 1, MSG_DONTWAIT | MSG_NOSIGNAL) != 1)
        return -errno;
    int error = await_completion(ring, data, &completion);
    if (!error)
        ring->in_flight--;
    if (!error && completion.res < 0)
        error = completion.res;
    if (recv(near, &byte, 1, MSG_DONTWAIT) != 1 && !error)
        error = -errno;
    return error;
}

static int try_multishot(struct nu_ring *ring, int near, int far) {
    const uint64_t data = user_data(REQUEST_RECEIVE, 0, 0);
    struct io_uring_cqe completion;
    struct io_uring_sqe *sqe = prepare(ring, IORING_OP_RECV, near, data);
    if (!sqe)
        return -EBUSY;
    sqe->flags = IOSQE_BUFFER_SELECT;
    sqe->buf_group = SMALL;
    sqe->ioprio = IORING_RECV_MULTISHOT;
    for (int piece = 0; piece < 2; piece++) {
        char byte = 0;
        if (send(far, &byte, 1, MSG_DONTWAIT | MSG_NOSIGNAL) != 1)
            return -errno;
        int error = await_completion(ring, data, &completion);
        if (error)
            return error;
        if (completion.res < 0)
            return completion.res;
        if (completion.res != 1 || !(completion.flags & IORING_CQE_F_BUFFER) ||
            !(completion.flags & IORING_CQE_F_MORE))
            return -EOPNOTSUPP;
    }
    return 0;
}

/* The multishot receive is still under way: it is what has to end. */
static int try_cancel(struct nu_ring *ring) {
    struct io_uring_cqe completion;
    struct io_uring_sqe *sqe =
        prepare(ring, IORING_OP_ASYNC_CANCEL, -1, user_data(REQUEST_CANCEL, 0, 0));
    if (!sqe)
        return -EBUSY;
    /* Succeeding in silence: the only completion to come is the receive's. */
    sqe->flags = IOSQE_CQE_SKIP_SUCCESS;
    sqe->cancel_flags = IORING_ASYNC_CANCEL_ANY | IORING_ASYNC_CANCEL_ALL;
    int error = await_completion(ring, user_data(REQUEST_RECEIVE, 0, 0), &completion);
    if (error)
        return error;
    return completion.res == -ECANCELED ? 0 : -EOPNOTSUPP;
}

static int try_buffers(struct nu_ring *ring) {
    struct pool *pool = &ring->pools[SMALL];
    int error = set_up_pool(ring, SMALL);
    if (error)
        return error;
    while (pool->reserve_count)
        provide(ring, pool);
    __atomic_store_n(&pool->ring->tail, pool->tail, __ATOMIC_RELEASE);
    return 0;
}

void nu_ring_try(int32_t near, int32_t far, int32_t outcomes[NU_TRIALS]) {
    uint8_t arena[TRIAL_BUFFERS * TRIAL_BUFFER_BYTES];
    struct nu_ring_results results = {0};
    const struct nu_ring_config config = {
        .arena = arena,
        .arena_bytes = sizeof arena,
        .small = {TRIAL_BUFFERS, TRIAL_BUFFER_BYTES},
        .connections_max = 1,
        .results = &results,
        .wakeup_fd = -1,
        .submissions_max = 8,
        .queued_max = 16,
    };
    struct nu_ring *ring = calloc(1, sizeof *ring);
    for (int i = 0; i < NU_TRIALS; i++)
        outcomes[i] = -ECANCELED;
    outcomes[NU_TRY_SETUP] = -ENOMEM;
    if (!ring)
        return;
    ring->fd = -1;
    ring->arena = arena;
    ring->connections_max = config.connections_max;
    ring->results = &results;
    if (allocate(ring, &config) == 0)
        outcomes[NU_TRY_SETUP] = set_up_queues(ring, &config);
    if (outcomes[NU_TRY_SETUP] == 0) {
        outcomes[NU_TRY_WAIT] = enter(ring, 1);
        outcomes[NU_TRY_BUFFERS] = try_buffers(ring);
    }
    if (outcomes[NU_TRY_WAIT] == 0)
        outcomes[NU_TRY_POLL] = try_poll(ring, near, far);
    if (outcomes[NU_TRY_POLL] == 0 && outcomes[NU_TRY_BUFFERS] == 0) {
        outcomes[NU_TRY_MULTISHOT] = try_multishot(ring, near, far);
        /* In any case: no receive may be left that has its buffers in our arena. */
        int error = try_cancel(ring);
        if (outcomes[NU_TRY_MULTISHOT] == 0)
            outcomes[NU_TRY_CANCEL] = error;
    }
    nu_ring_close(ring);
}
