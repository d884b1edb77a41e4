/* How the ring is used:
 *
 * - One io_uring_enter(2) a pass: it submits, runs the deferred work (DEFER_TASKRUN: nothing is
 *   received outside of it) and waits, with a timeout of its own (EXT_ARG). Since Linux 6.13 one
 *   that waits for a single completion runs NU_RUN_MIN pieces of that work and leaves the others:
 *   a second one, which waits for nothing, then runs all of them. Packets of many clients that are
 *   to pile up do so within the wait (min_wait_usec, since Linux 6.12), which then runs all by
 *   itself; those of few clients, which would be received one by one, do so before it.
 * - A client that sends little is received from by one multishot receive into small buffers: no
 *   submission for each packet. One that fills a small buffer is moved to large ones, received into
 *   one at a time: a multishot receive would take up to 32 buffers at once for a client that floods
 *   (MULTISHOT_MAX_RETRY in io_uring/net.c). So would the first one of a connection, which is
 *   therefore received into a single small buffer.
 * - Linux has one large buffer. Those that send in bulk have their turns behind each other, in one
 *   pass (nu_ring_receive_more), and each of them receives into the memory that the one before has
 *   just been taken in from: it is in the processor's cache, as epoll's only buffer is.
 * - A receive that finds its pool empty ends with -ENOBUFS, also a multishot one: it is armed again
 *   as soon as its pool holds buffers, the longest waiting first. Whatever ends a receive, a
 *   completion without F_MORE is its last one.
 * - A descriptor is closed, and its slot used again, only after the last completion of its receive:
 *   closing alone does not end one (the request holds the file). It is ended by ASYNC_CANCEL.
 * - Clients are accepted by accept4(2) once the ring has told that some wait: a multishot accept
 *   takes one more than there are slots before it can be cancelled, and that one would have to be
 *   dropped.
 * - The wake-up descriptor and the listeners are polled one-shot: arming one checks the present
 *   state (io_poll_add), so the next pass reports again what is still readable.
 */
#define _GNU_SOURCE
#include "os/clock.h"
#include "uring/connections.h"

#include <errno.h>

enum { LARGE_STOCK = 1, SMALL_STOCK = 32, SMALL_PER_CONNECTION = 2 };

/* As long as no pass, of so many, hands out more rows than this, few connections send, and so each
 * of them many packets in a rush, which cost least if they pile up in its socket. */
enum { FEW_ROWS = 64, FEW_PASSES = 64 };

/* A completion queue that stays full is flushed this often a pass; the rest comes with the next. */
enum { FLUSHES_MAX = 16 };

/* Completions. */

/* Returns true if a receive that ended like this is to be armed again. */
static bool may_receive_again(struct nu_ring *ring, struct nu_connection *connection,
                              int32_t result) {
    if (result > 0 || result == -ENOBUFS)
        return true;
    if (result == -ECANCELED && (connection->cancelling || ring->ending))
        return true;
    return (result == -ECANCELED || nu_error_may_pass(result)) &&
           ++connection->failures < ring->receive_failures_max;
}

static void receive_ended(struct nu_ring *ring, struct nu_connection *connection, int32_t result) {
    if (connection->ended || may_receive_again(ring, connection, result))
        return;
    /* Whatever the network says (reset, keepalive timed out, no route): the client is gone. */
    connection->ended = true;
    connection->end = result ? NU_RESET : NU_EOF;
    if (result < 0 && !nu_is_network_error(-result))
        ring->results->receive_errno = -result;
}

/* Chooses the pool by what came: a filled small buffer means that more is there. */
static void choose_pool(struct nu_ring *ring, uint32_t index, uint32_t size) {
    struct nu_connection *connection = &ring->connections[index];
    uint32_t small_bytes = ring->pools.pools[NU_SMALL].buffer_bytes;
    connection->little = size < small_bytes;
    if (connection->armed_pool == NU_LARGE) {
        connection->pool = size <= small_bytes / 2 ? NU_SMALL : NU_LARGE;
    } else if (size == small_bytes) {
        connection->pool = NU_LARGE;
        if (connection->armed && !connection->cancelling)
            nu_connection_cancel(ring, index);
    }
}

static void received(struct nu_ring *ring, uint32_t index, const struct io_uring_cqe *cqe) {
    struct nu_connection *connection = &ring->connections[index];
    if (cqe->res == -ENOBUFS)
        ring->results->starved++;
    if (cqe->res > 0)
        connection->failures = 0;
    if (cqe->res > 0 && connection->armed_pool == NU_SMALL)
        ring->quiet = true;
    if (!(cqe->flags & IORING_CQE_F_MORE)) {
        connection->armed = false;
        receive_ended(ring, connection, cqe->res);
    }
    if (cqe->flags & IORING_CQE_F_BUFFER) {
        int32_t number = nu_pools_use(&ring->pools, connection->armed_pool,
                                      (uint16_t)(cqe->flags >> IORING_CQE_BUFFER_SHIFT));
        if (cqe->res > 0 && connection->end != NU_DISCONNECTED) {
            nu_connection_keep(ring, connection, number, (uint32_t)cqe->res);
            choose_pool(ring, index, (uint32_t)cqe->res);
        } else {
            nu_pools_give_back(&ring->pools, number);
        }
    }
    nu_connection_sort(ring, index);
}

static void connection_completed(struct nu_ring *ring, const struct io_uring_cqe *cqe) {
    uint64_t request = cqe->user_data >> 56;
    uint32_t index = (uint32_t)cqe->user_data;
    const struct nu_connection *connection = &ring->connections[index];
    if (connection->fd < 0 ||
        nu_user_data(request, index, connection->generation) != cqe->user_data)
        ring->results->stale += request == NU_REQUEST_RECEIVE;
    else if (request == NU_REQUEST_RECEIVE)
        received(ring, index, cqe);
    else
        nu_connection_cancel_failed(ring, index);
}

static void completed(struct nu_ring *ring, const struct io_uring_cqe *cqe) {
    uint32_t index = (uint32_t)cqe->user_data;
    switch (cqe->user_data >> 56) {
    case NU_REQUEST_WAKEUP:
        ring->quiet = true;
        ring->wakeup_armed = false;
        ring->woken = ring->wakeup_fd >= 0 && cqe->res > 0;
        if (cqe->res < 0)
            ring->results->ring_errno = -cqe->res;
        break;
    case NU_REQUEST_LISTENER:
        ring->quiet = true;
        ring->listeners[index].armed = false;
        ring->listeners[index].ready = cqe->res > 0;
        if (cqe->res < 0 && cqe->res != -ECANCELED)
            nu_listener_failed(ring, &ring->listeners[index], -cqe->res);
        break;
    case NU_REQUEST_RECEIVE:
    case NU_REQUEST_CANCEL:
        connection_completed(ring, cqe);
        break;
    }
}

bool nu_ring_reap(struct nu_ring *ring, int *error) {
    struct io_uring_cqe cqe;
    bool any = false;
    *error = 0;
    for (int flushes = 0;; flushes++) {
        for (; nu_queue_take(&ring->queue, &cqe); any = true)
            completed(ring, &cqe);
        if (!nu_queue_overflowed(&ring->queue) || flushes == FLUSHES_MAX || *error)
            return any;
        ring->results->overflows++;
        *error = nu_queue_enter(&ring->queue, 0);
    }
}

/* Arming. */

/* Lets the kernel have as few buffers as do: it takes the one that it has had for longest, so the
 * fewer go round, the more of their memory is still in the processor's cache. */
static void provide(struct nu_ring *ring) {
    uint32_t open = ring->connections_max - ring->free_count;
    nu_pools_provide(&ring->pools, NU_SMALL, SMALL_STOCK + open * SMALL_PER_CONNECTION);
    nu_pools_provide(&ring->pools, NU_LARGE, LARGE_STOCK);
}

static bool arm_receive(struct nu_ring *ring, uint32_t index) {
    struct nu_connection *connection = &ring->connections[index];
    uint64_t data = nu_user_data(NU_REQUEST_RECEIVE, index, connection->generation);
    bool multishot = connection->pool == NU_SMALL && connection->little;
    if (!nu_queue_receive(&ring->queue, connection->fd, connection->pool, multishot, data))
        return false;
    connection->armed = ring->armed_any = true;
    connection->armed_pool = connection->pool;
    connection->cancelling = false;
    nu_connection_sort(ring, index);
    return true;
}

/* Returns true if all that wait for this pool are armed, or no more can be for now. */
static bool arm_receives(struct nu_ring *ring, int pool) {
    struct nu_list *list = &ring->unarmed[pool];
    /* Without a buffer at hand a receive would end at once, whether there is data or not. */
    for (uint32_t left = ring->pools.pools[pool].available; left && list->count; left--) {
        uint32_t index = (uint32_t)list->first;
        if (!arm_receive(ring, index))
            return true;
    }
    return !list->count;
}

static bool arm(struct nu_ring *ring) {
    provide(ring);
    ring->armed_any = false;
    if (ring->wakeup_fd >= 0 && !ring->wakeup_armed)
        ring->wakeup_armed =
            nu_queue_poll(&ring->queue, ring->wakeup_fd, nu_user_data(NU_REQUEST_WAKEUP, 0, 0));
    if (nu_connections_may_accept(ring))
        for (uint32_t i = 0; i < ring->listener_count; i++)
            if (!ring->listeners[i].armed && !ring->listeners[i].failed)
                ring->listeners[i].armed = nu_queue_poll(&ring->queue, ring->listeners[i].fd,
                                                         nu_user_data(NU_REQUEST_LISTENER, i, 0));
    bool small = arm_receives(ring, NU_SMALL);
    bool large = arm_receives(ring, NU_LARGE);
    return small && large;
}

/* Passes. */

static int64_t until(int64_t due_ns, int64_t timeout_ns) {
    int64_t left_ns = due_ns - nu_now_ns();
    if (left_ns < 0)
        left_ns = 0;
    return left_ns < timeout_ns ? left_ns : timeout_ns;
}

/* Notes an error for the caller, who may want to make the next pass later. */
static bool try_again(struct nu_ring *ring, int error) {
    if (!nu_error_may_pass(error))
        return false;
    ring->results->ring_errno = -error;
    return true;
}

static int pass(struct nu_ring *ring, int64_t timeout_ns, int64_t pile_up_ns) {
    int64_t end_ns = timeout_ns > 0 ? nu_now_ns() + timeout_ns : 0;
    bool waits;
    int error;
    ring->woken = ring->quiet = false;
    do {
        bool all_armed = arm(ring);
        if (ring->refuse_at_ns && timeout_ns > 0)
            timeout_ns = until(ring->refuse_at_ns, timeout_ns);
        /* Those that are not may have data: arming goes on, a poolful at a time, before a wait. It
         * comes to its end: a buffer that is not the kernel's is on its way to the caller. Nor do
         * those wait for packets to pile up that have something already, most often their end. */
        bool has_some = ring->ready.count || ring->over.count;
        waits = all_armed && !has_some && !(pile_up_ns > 0 && ring->armed_any);
        if (!waits)
            error = nu_queue_enter(&ring->queue, 0);
        else if (pile_up_ns > 0 && timeout_ns > pile_up_ns)
            error = nu_queue_enter_for_all(&ring->queue, timeout_ns, pile_up_ns, !ring->many_left);
        else
            error = nu_queue_enter(&ring->queue, timeout_ns);
        bool interrupted = error == -EINTR;
        if (interrupted)
            /* A signal ended the wait. What does not wait cannot be interrupted by one. */
            error = nu_queue_enter(&ring->queue, 0);
        if (error && !try_again(ring, error))
            return error;
        bool ran_no_more = !error && nu_queue_count(&ring->queue) >= NU_RUN_MIN;
        bool any = nu_ring_reap(ring, &error);
        /* Only now: this one ends the multishot receives of clients that flood. */
        if (ran_no_more && !error && !(error = nu_queue_enter_for_all(&ring->queue, 0, 0, false)))
            any |= nu_ring_reap(ring, &error);
        if (error && !try_again(ring, error))
            return error;
        nu_connections_serve(ring, true);
        nu_connections_accept(ring);
        if (ring->results->count || ring->woken || interrupted || ring->results->accept_errno ||
            ring->results->ring_errno)
            break;
        /* Without a completion it was the timeout, or a signal. */
        if (!any && waits)
            break;
        timeout_ns = end_ns ? end_ns - nu_now_ns() : 0;
    } while (timeout_ns > 0 || !waits);
    return (int)ring->results->count;
}

int nu_ring_pass(struct nu_ring *ring, int64_t timeout_ns, int64_t pile_up_ns) {
    if (ring->results->count > FEW_ROWS)
        ring->many_left = FEW_PASSES;
    else if (ring->many_left)
        ring->many_left--;
    nu_connections_settle(ring);
    ring->results->accept_errno = 0;
    ring->results->receive_errno = 0;
    ring->results->ring_errno = 0;
    int count = ring->draining ? nu_drain_pass(ring) : pass(ring, timeout_ns, pile_up_ns);
    /* Also of those that it received from: their turns are the last. */
    ring->bulk_left = ring->quiet || ring->draining ? 0 : ring->unarmed[NU_LARGE].count;
    return count;
}

bool nu_ring_receive_more(struct nu_ring *ring) {
    const struct nu_list *list = &ring->unarmed[NU_LARGE];
    uint32_t count = ring->results->count;
    int error = 0;
    if (!ring->bulk_left)
        return false;
    nu_connections_take_back(ring);
    while (ring->bulk_left && list->count && !ring->quiet && !error) {
        ring->bulk_left--;
        nu_pools_provide(&ring->pools, NU_LARGE, LARGE_STOCK);
        if (!arm_receive(ring, (uint32_t)list->first))
            break;
        error = nu_queue_enter(&ring->queue, 0);
        if (!error)
            nu_ring_reap(ring, &error);
        /* What goes wrong here does so in the next pass, which tells of it. */
        nu_connections_serve(ring, false);
        if (ring->results->count > count)
            return true;
    }
    ring->bulk_left = 0;
    return false;
}
