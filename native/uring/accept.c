/* Clients accepted, and refused where all slots are taken. */
#define _GNU_SOURCE
#include "net/sockets.h"
#include "os/clock.h"
#include "uring/connections.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

/* A listener whose accepts fail so often in a row is left alone for a while. */
enum { ACCEPT_FAILURES_MAX = 16 };

static bool exhausted(int error) {
    return error == EMFILE || error == ENFILE || error == ENOBUFS || error == ENOMEM ||
           error == ENOSPC;
}

void nu_listener_failed(struct nu_ring *ring, struct nu_listener *listener, int error) {
    ring->results->accept_errno = error;
    listener->failures = 0;
    listener->failed = true;
    if (exhausted(error))
        ring->listening = false;
}

/* Deals with an error of accept4(2): the connection ended before it was accepted, or brought an
 * error of the network's (accept(2)), and the next one will do; or there is no next one, for now.
 */
static void accept_failed(struct nu_ring *ring, struct nu_listener *listener, int error) {
    if (exhausted(error) || ++listener->failures >= ACCEPT_FAILURES_MAX)
        nu_listener_failed(ring, listener, error);
}

/* Accepts one client; returns its slot, or -errno: -ECONNREFUSED where it was refused. */
static int accept_one(struct nu_ring *ring, struct nu_listener *listener) {
    /* A blocking socket: for others the ring would complete with EAGAIN instead of waiting. */
    uint8_t peer[NU_PEER_BYTES];
    int fd = nu_accept(listener->fd, false, peer);
    if (fd < 0)
        return fd;
    listener->failures = 0;
    int connection = nu_connections_have_room(ring) ? nu_connection_open(ring, fd) : -ENOSPC;
    if (connection < 0) {
        close(fd);
        ring->results->refused++;
        return -ECONNREFUSED;
    }
    memcpy(ring->connections[connection].peer, peer, NU_PEER_BYTES);
    return connection;
}

/* Returns true if a client waits at the listener, and sets *left to true if a connected one has
 * left before that: what it has sent may not all have been received yet.
 *
 * The listener is looked at first (poll(2) goes through them in order), so a client that waits came
 * before that. */
static bool waits(struct nu_ring *ring, const struct nu_listener *listener, bool *left) {
    nfds_t count = 0;
    ring->polls[count++] = (struct pollfd){.fd = listener->fd, .events = POLLIN};
    for (uint32_t i = 0; i < ring->connections_max; i++)
        if (ring->connections[i].fd >= 0)
            ring->polls[count++] =
                (struct pollfd){.fd = ring->connections[i].fd, .events = POLLRDHUP};
    int ready = poll(ring->polls, count, 0);
    /* Where Linux does not tell, no one has left. */
    *left = ready > 1;
    return ready < 0 || ring->polls[0].revents;
}

/* Returns true if the listener's next client, which all slots are taken for, is to be refused.
 *
 * One that came after another had left has a slot soon, and waits for that in the backlog; whether
 * one has left another reactor, that one finds out within refuse_grace_ns. */
static bool refuses(struct nu_ring *ring, const struct nu_listener *listener) {
    bool left;
    if (!ring->refuse || !waits(ring, listener, &left))
        return false;
    ring->refusal_held = true;
    if (left || ring->ended_count) {
        /* However long that takes: a close that finishes ends the wait. */
        ring->refuse_at_ns = 0;
        return false;
    }
    if (ring->connections_elsewhere) {
        int64_t now_ns = nu_now_ns();
        if (!ring->refuse_at_ns)
            ring->refuse_at_ns = now_ns + ring->refuse_grace_ns;
        if (now_ns < ring->refuse_at_ns)
            return false;
    }
    ring->refusal_held = false;
    return true;
}

static void accept_from(struct nu_ring *ring, struct nu_listener *listener) {
    for (uint32_t i = 0; i < ring->accepts_per_pass_max && !listener->failed; i++) {
        if (!nu_connections_have_room(ring) && !refuses(ring, listener))
            return;
        if (ring->results->count == ring->completions_max)
            return;
        int connection = accept_one(ring, listener);
        if (connection >= 0) {
            nu_ring_hand_out(ring, NU_OPENED, (uint32_t)connection, 0, 0);
        } else if (connection == -EAGAIN && i) {
            return;
        } else if (connection != -ECONNREFUSED) {
            accept_failed(ring, listener, -connection);
            if (connection == -EAGAIN)
                return;
        }
    }
}

void nu_connections_accept(struct nu_ring *ring) {
    for (uint32_t i = 0; i < ring->listener_count; i++) {
        if (ring->listeners[i].ready && ring->listening)
            accept_from(ring, &ring->listeners[i]);
        /* The clients that still wait are told of when it is armed again. */
        ring->listeners[i].ready = false;
    }
    if (!ring->refusal_held)
        ring->refuse_at_ns = 0;
}

bool nu_connections_may_accept(struct nu_ring *ring) {
    if (!ring->listening)
        return false;
    if (ring->refuse_at_ns && nu_now_ns() >= ring->refuse_at_ns)
        ring->refusal_held = false;
    return nu_connections_have_room(ring) || (ring->refuse && !ring->refusal_held);
}

void nu_ring_listen(struct nu_ring *ring) {
    ring->listening = true;
    for (uint32_t i = 0; i < ring->listener_count; i++)
        ring->listeners[i].failed = false;
}

int nu_ring_accept(struct nu_ring *ring, uint32_t listener) {
    nu_connections_settle(ring);
    if (!nu_connections_have_room(ring))
        return -ENOSPC;
    return accept_one(ring, &ring->listeners[listener]);
}
