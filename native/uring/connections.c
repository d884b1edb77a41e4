/* Connections, from their accept to the close of their descriptor. */
#define _GNU_SOURCE
#include "uring/connections.h"

#include "os/clock.h"

#include <errno.h>
#include <linux/sockios.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

_Static_assert(NU_PEER_BYTES == sizeof(struct sockaddr_in6), "the longest address of a listener");

/* Lists. */

static void push(struct nu_ring *ring, struct nu_list *list, uint32_t index) {
    struct nu_connection *connection = &ring->connections[index];
    connection->list = list;
    connection->next = NU_NONE;
    connection->previous = list->last;
    if (list->last == NU_NONE)
        list->first = (int32_t)index;
    else
        ring->connections[list->last].next = (int32_t)index;
    list->last = (int32_t)index;
    list->count++;
}

static void leave(struct nu_ring *ring, uint32_t index) {
    struct nu_connection *connection = &ring->connections[index];
    struct nu_list *list = connection->list;
    if (!list)
        return;
    if (connection->previous == NU_NONE)
        list->first = connection->next;
    else
        ring->connections[connection->previous].next = connection->next;
    if (connection->next == NU_NONE)
        list->last = connection->previous;
    else
        ring->connections[connection->next].previous = connection->previous;
    list->count--;
    connection->list = NULL;
}

void nu_connection_sort(struct nu_ring *ring, uint32_t index) {
    struct nu_connection *connection = &ring->connections[index];
    bool ready = connection->first_buffer != NU_NONE || (connection->ended && !connection->armed);
    struct nu_list *list = NULL;
    if (ready)
        list = &ring->ready;
    else if (!connection->armed)
        list = &ring->unarmed[connection->pool];
    if (list == connection->list)
        return;
    leave(ring, index);
    if (list)
        push(ring, list, index);
}

/* Connections. */

bool nu_connections_have_room(const struct nu_ring *ring) {
    return ring->free_count > ring->connections_elsewhere;
}

/* Called when a slot may be free: the next client is accepted, or refused for another reason. */
static void look_again(struct nu_ring *ring) {
    ring->refusal_held = false;
    ring->refuse_at_ns = 0;
}

static int open_connection(struct nu_ring *ring, int fd) {
    if (!ring->free_count)
        return -ENOSPC;
    uint32_t index = ring->free[--ring->free_count];
    struct nu_connection *connection = &ring->connections[index];
    *connection = (struct nu_connection){
        .fd = fd,
        .ended_fd = NU_NONE,
        .generation = connection->generation + 1,
        .first_buffer = NU_NONE,
        .last_buffer = NU_NONE,
        .pool = NU_SMALL,
    };
    nu_connection_sort(ring, index);
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
 * Never both in one pass, and nothing is closed here: the client sees that, and may take it to mean
 * that all it sent is on file. */
static void serve(struct nu_ring *ring, uint32_t index) {
    struct nu_connection *connection = &ring->connections[index];
    leave(ring, index);
    if (connection->first_buffer != NU_NONE) {
        const struct nu_buffer *buffer = &ring->pools.buffers[connection->first_buffer];
        hand_out(ring, NU_RECEIVED, index, buffer->start, buffer->size);
        ring->leased[ring->leased_count++] = connection->first_buffer;
        connection->first_buffer = buffer->next;
    } else if (connection->ended && !connection->armed) {
        connection->ended_fd = connection->fd;
        connection->fd = -1;
        ring->ended_count++;
        hand_out(ring, NU_CLOSED, index, connection->end, 0);
        return;
    }
    nu_connection_sort(ring, index);
}

void nu_connections_serve(struct nu_ring *ring) {
    for (uint32_t left = ring->ready.count; left; left--) {
        if (ring->results->count + 2 > ring->completions_max)
            return;
        serve(ring, (uint32_t)ring->ready.first);
    }
}

void nu_connections_settle(struct nu_ring *ring) {
    for (uint32_t i = 0; i < ring->leased_count; i++)
        nu_pools_give_back(&ring->pools, ring->leased[i]);
    ring->leased_count = 0;
    ring->results->count = 0;
    ring->results->received_bytes = 0;
}

void nu_connection_keep(struct nu_ring *ring, struct nu_connection *connection, int32_t number,
                        uint32_t size) {
    ring->pools.buffers[number].size = size;
    ring->pools.buffers[number].next = NU_NONE;
    if (connection->first_buffer == NU_NONE)
        connection->first_buffer = number;
    else
        ring->pools.buffers[connection->last_buffer].next = number;
    connection->last_buffer = number;
}

/* Ending. */

bool nu_is_network_error(int error) {
    switch (error) {
    case ECONNRESET:
    case ECONNABORTED:
    case ECONNREFUSED:
    case EHOSTDOWN:
    case EHOSTUNREACH:
    case ENETDOWN:
    case ENETRESET:
    case ENETUNREACH:
    case ENONET:
    case ENOPROTOOPT:
    case ENOTCONN:
    case EPIPE:
    case EPROTO:
    case ETIMEDOUT:
        return true;
    default:
        return false;
    }
}

bool nu_connection_cancel(struct nu_ring *ring, uint32_t index) {
    struct nu_connection *connection = &ring->connections[index];
    uint32_t generation = connection->generation;
    if (!nu_queue_cancel(&ring->queue, nu_user_data(NU_REQUEST_RECEIVE, index, generation),
                         nu_user_data(NU_REQUEST_CANCEL, index, generation)))
        return false;
    connection->cancelling = true;
    return true;
}

void nu_connection_cancel_failed(struct nu_ring *ring, uint32_t index) {
    struct nu_connection *connection = &ring->connections[index];
    connection->cancelling = false;
    /* Where it has not ended by itself, it does now. Not SHUT_WR: the client would see a FIN. */
    if (connection->armed && connection->end == NU_DISCONNECTED)
        shutdown(connection->fd, SHUT_RD);
}

void nu_ring_disconnect(struct nu_ring *ring, uint32_t index) {
    struct nu_connection *connection = &ring->connections[index];
    if (connection->fd < 0 || connection->end == NU_DISCONNECTED)
        return;
    connection->ended = true;
    connection->end = NU_DISCONNECTED;
    for (; connection->first_buffer != NU_NONE;
         connection->first_buffer = ring->pools.buffers[connection->first_buffer].next)
        nu_pools_give_back(&ring->pools, connection->first_buffer);
    if (connection->armed && !connection->cancelling && !nu_connection_cancel(ring, index))
        nu_connection_cancel_failed(ring, index);
    nu_connection_sort(ring, index);
}

void nu_ring_finish_close(struct nu_ring *ring, uint32_t index, int orderly) {
    const struct linger close_with_fin = {0, 0};
    /* Where it is refused, the client sees a reset. Linux frees a descriptor whatever close(2)
     * says.
     */
    if (orderly)
        setsockopt(ring->connections[index].ended_fd, SOL_SOCKET, SO_LINGER, &close_with_fin,
                   sizeof close_with_fin);
    close(ring->connections[index].ended_fd);
    ring->connections[index].ended_fd = NU_NONE;
    ring->free[ring->free_count++] = index;
    ring->ended_count--;
    look_again(ring);
}

/* Accepting. */

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
    struct sockaddr_in6 peer = {0};
    socklen_t peer_bytes = sizeof peer;
    int fd = accept4(listener->fd, (struct sockaddr *)&peer, &peer_bytes, SOCK_CLOEXEC);
    if (fd < 0)
        return -errno;
    listener->failures = 0;
    int connection = nu_connections_have_room(ring) ? open_connection(ring, fd) : -ENOSPC;
    if (connection < 0) {
        close(fd);
        ring->results->refused++;
        return -ECONNREFUSED;
    }
    ring->connections[connection].peer = peer;
    return connection;
}

/* Returns true if a client waits at the listener, and sets *left to true if a connected one has
 * left before that: what it has sent may not all have been received yet.
 *
 * The listener is looked at first (poll(2) goes through them in order), so whoever waits came
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
    if (left || ring->ended_count)
        return false;
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
            hand_out(ring, NU_OPENED, (uint32_t)connection, 0, 0);
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

/* Between passes. */

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

int nu_ring_adopt(struct nu_ring *ring, int32_t fd) {
    nu_connections_settle(ring);
    return open_connection(ring, fd);
}

int32_t nu_ring_release(struct nu_ring *ring, uint32_t index) {
    struct nu_connection *connection = &ring->connections[index];
    int32_t fd = connection->fd;
    leave(ring, index);
    connection->fd = -1;
    ring->free[ring->free_count++] = index;
    look_again(ring);
    return fd;
}

void nu_ring_set_connections_elsewhere(struct nu_ring *ring, uint32_t connections) {
    ring->connections_elsewhere = connections;
    if (nu_connections_have_room(ring))
        look_again(ring);
}

void nu_ring_peer(const struct nu_ring *ring, uint32_t connection, uint8_t *address) {
    memcpy(address, &ring->connections[connection].peer, NU_PEER_BYTES);
}

int nu_ring_next_open(struct nu_ring *ring, uint32_t connection) {
    for (; connection < ring->connections_max; connection++)
        if (ring->connections[connection].fd >= 0)
            return (int)connection;
    return NU_NONE;
}

int64_t nu_ring_held_bytes(struct nu_ring *ring, uint32_t index) {
    const struct nu_connection *connection = &ring->connections[index];
    int in_socket = 0;
    if (ioctl(connection->fd, SIOCINQ, &in_socket) < 0)
        return -errno;
    int64_t held_bytes = in_socket;
    for (int32_t i = connection->first_buffer; i != NU_NONE; i = ring->pools.buffers[i].next)
        held_bytes += ring->pools.buffers[i].size;
    return held_bytes;
}
