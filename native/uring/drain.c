/* The end of a ring's work: what the sockets hold is received without it.
 *
 * A stop has to see what each socket holds, and that there is no more, for thousands of clients one
 * after the other; recv(2) tells both in one call, and also where Linux runs no request any more.
 */
#define _GNU_SOURCE
#include "os/clock.h"
#include "uring/connections.h"

#include <errno.h>
#include <sys/socket.h>

/* The ends of requests come at once, or not at all. */
static const int64_t drain_wait_ns = NU_SECOND_NS / 5;

void nu_end_requests(struct nu_ring *ring, int64_t wait_ns) {
    int64_t end_ns = nu_now_ns() + wait_ns;
    bool asked = false;
    ring->ending = true;
    for (int64_t left_ns = wait_ns; ring->queue.in_flight && left_ns > 0;
         left_ns = end_ns - nu_now_ns()) {
        asked = asked || nu_queue_cancel_all(&ring->queue);
        int error = nu_queue_enter(&ring->queue, left_ns);
        int flush_error;
        nu_ring_reap(ring, &flush_error);
        if (error && !nu_error_may_pass(error))
            return;
        if (error)
            nu_pause();
    }
}

void nu_ring_begin_drain(struct nu_ring *ring) {
    nu_connections_settle(ring);
    ring->listening = false;
    ring->wakeup_fd = NU_NONE;
    nu_end_requests(ring, drain_wait_ns);
    ring->draining = true;
    /* Where Linux has not ended a receive, it does not run it either: that takes an enter
     * (DEFER_TASKRUN), and there is none any more. So its buffers are free, too. */
    nu_pools_take_back(&ring->pools, NU_LARGE);
    for (uint32_t i = 0; i < ring->connections_max; i++)
        if (ring->connections[i].fd >= 0) {
            ring->connections[i].armed = false;
            nu_connection_sort(ring, i);
        }
}

static void receive_from(struct nu_ring *ring, uint32_t index, struct nu_pool *pool) {
    struct nu_connection *connection = &ring->connections[index];
    int32_t number = pool->reserve[--pool->reserve_count];
    uint8_t *place = ring->pools.arena + ring->pools.buffers[number].start;
    ssize_t size = 0;
    int error = EINTR;
    for (uint32_t tries = 0; tries < ring->receive_failures_max && error == EINTR; tries++) {
        size = recv(connection->fd, place, pool->buffer_bytes, MSG_DONTWAIT);
        error = size < 0 ? errno : 0;
    }
    if (size > 0) {
        nu_connection_keep(ring, connection, number, (uint32_t)size);
    } else {
        nu_pools_give_back(&ring->pools, number);
        if (error != EAGAIN) {
            connection->ended = true;
            connection->end = error ? NU_RESET : NU_EOF;
            if (error && !nu_is_network_error(error))
                ring->results->receive_errno = error;
        }
    }
    nu_connection_sort(ring, index);
}

int nu_drain_pass(struct nu_ring *ring) {
    struct nu_pool *pool = &ring->pools.pools[NU_LARGE];
    for (uint32_t left = ring->connections_max; left && pool->reserve_count; left--) {
        uint32_t index = ring->drain_place;
        const struct nu_connection *connection = &ring->connections[index];
        ring->drain_place = index + 1 == ring->connections_max ? 0 : index + 1;
        if (connection->fd >= 0 && !connection->ended && connection->first_buffer == NU_NONE)
            receive_from(ring, index, pool);
    }
    nu_connections_serve(ring, true);
    return (int)ring->results->count;
}
