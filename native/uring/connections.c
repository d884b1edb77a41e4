/* Connections, from their descriptor to its close. */
#define _GNU_SOURCE
#include "uring/connections.h"

#include <errno.h>
#include <linux/sockios.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

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
    struct nu_list *list = NULL;
    if (connection->first_buffer != NU_NONE)
        list = &ring->ready;
    else if (connection->ended && !connection->armed)
        list = &ring->over;
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

int nu_connection_open(struct nu_ring *ring, int fd) {
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

void nu_ring_hand_out(struct nu_ring *ring, uint32_t kind, uint32_t connection, uint32_t start,
                      uint32_t size) {
    ring->completions[ring->results->count++] =
        (struct nu_completion){kind, connection, start, size};
    ring->results->received += kind == NU_RECEIVED;
    ring->results->received_bytes += size;
}

/* Moves into the connection's first buffer what has come behind it, as far as there is room. Only
 * small buffers are ever several, and several that are not full are tiny packets in a rush, which
 * come faster than one a pass could be handed out. */
static void merge(struct nu_ring *ring, struct nu_connection *connection) {
    struct nu_pools *pools = &ring->pools;
    struct nu_buffer *first = &pools->buffers[connection->first_buffer];
    uint32_t left_bytes = pools->pools[first->pool].buffer_bytes - first->size;
    while (first->next != NU_NONE && pools->buffers[first->next].size <= left_bytes) {
        int32_t number = first->next;
        const struct nu_buffer *next = &pools->buffers[number];
        memcpy(pools->arena + first->start + first->size, pools->arena + next->start, next->size);
        left_bytes -= next->size;
        first->size += next->size;
        first->next = next->next;
        nu_pools_give_back(pools, number);
    }
}

static void hand_out_buffer(struct nu_ring *ring, uint32_t index) {
    struct nu_connection *connection = &ring->connections[index];
    leave(ring, index);
    merge(ring, connection);
    const struct nu_buffer *buffer = &ring->pools.buffers[connection->first_buffer];
    nu_ring_hand_out(ring, NU_RECEIVED, index, buffer->start, buffer->size);
    ring->leased[ring->leased_count++] = connection->first_buffer;
    connection->first_buffer = buffer->next;
    nu_connection_sort(ring, index);
}

/* Closes nothing: the client sees that, and may take it to mean that all it sent is on file. */
static void hand_out_end(struct nu_ring *ring, uint32_t index) {
    struct nu_connection *connection = &ring->connections[index];
    leave(ring, index);
    connection->ended_fd = connection->fd;
    connection->fd = -1;
    ring->ended_count++;
    nu_ring_hand_out(ring, NU_CLOSED, index, connection->end, 0);
}

static bool has_space(const struct nu_ring *ring) {
    return ring->results->count + 2 <= ring->completions_max;
}

void nu_connections_serve(struct nu_ring *ring, bool ends) {
    /* Ends come first: that of a connection whose last buffer is handed out now is for the next
     * pass. */
    while (ends && ring->over.count && has_space(ring))
        hand_out_end(ring, (uint32_t)ring->over.first);
    for (uint32_t left = ring->ready.count; left && has_space(ring); left--)
        hand_out_buffer(ring, (uint32_t)ring->ready.first);
}

void nu_connections_take_back(struct nu_ring *ring) {
    for (uint32_t i = 0; i < ring->leased_count; i++)
        nu_pools_give_back(&ring->pools, ring->leased[i]);
    ring->leased_count = 0;
}

void nu_connections_settle(struct nu_ring *ring) {
    nu_connections_take_back(ring);
    ring->results->count = ring->results->received = ring->results->next = 0;
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
    nu_close(ring->connections[index].ended_fd, orderly);
    ring->connections[index].ended_fd = NU_NONE;
    ring->free[ring->free_count++] = index;
    ring->ended_count--;
    look_again(ring);
}

/* Between passes. */

int nu_ring_adopt(struct nu_ring *ring, int32_t fd) {
    nu_connections_settle(ring);
    return nu_connection_open(ring, fd);
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
    memcpy(address, ring->connections[connection].peer, NU_PEER_BYTES);
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
