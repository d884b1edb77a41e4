/* A ring's beginning and end. */
#define _GNU_SOURCE
#include "os/clock.h"
#include "uring/connections.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <unistd.h>

/* Closing waits this long, in all, for the ends of requests: they come at once. */
static const int64_t close_wait_ns = NU_SECOND_NS;

static int allocate(struct nu_ring *ring, const struct nu_ring_config *config) {
    uint32_t buffers = config->small.buffers + config->large.buffers;
    int error = nu_pools_open(&ring->pools, config);
    if (error)
        return error;
    ring->leased = calloc(buffers, sizeof *ring->leased);
    ring->connections = calloc(config->connections_max, sizeof *ring->connections);
    ring->free = calloc(config->connections_max, sizeof *ring->free);
    ring->listeners = calloc(config->listeners + 1, sizeof *ring->listeners);
    ring->polls = calloc(config->connections_max + 1, sizeof *ring->polls);
    if (!ring->polls || !ring->leased || !ring->connections || !ring->free || !ring->listeners)
        return -ENOMEM;
    for (uint32_t i = 0; i < config->connections_max; i++) {
        ring->connections[i].fd = ring->connections[i].ended_fd = NU_NONE;
        ring->free[i] = config->connections_max - 1 - i;
    }
    for (uint32_t i = 0; i < config->listeners; i++)
        ring->listeners[i].fd = config->listener_fds[i];
    return 0;
}

static int set_up(struct nu_ring *ring, const struct nu_ring_config *config, const char **step) {
    *step = "memory";
    int error = allocate(ring, config);
    if (!error)
        error = nu_queue_open(&ring->queue, config->submissions_max, config->queued_max,
                              config->ignored_features, step);
    if (error)
        return error;
    *step = "io_uring_register";
    for (uint16_t i = 0; i < NU_POOLS && !error; i++)
        error = nu_pools_register(&ring->pools, i, &ring->queue);
    return error;
}

int nu_ring_open(const struct nu_ring_config *config, struct nu_ring **opened, const char **step) {
    const struct nu_list empty = {NU_NONE, NU_NONE, 0};
    *step = "arena";
    if (config->arena_bytes < nu_ring_arena_bytes(config) ||
        nu_ring_arena_bytes(config) > UINT32_MAX)
        return -EINVAL;
    *step = "memory";
    struct nu_ring *ring = calloc(1, sizeof *ring);
    if (!ring)
        return -ENOMEM;
    *ring = (struct nu_ring){
        .results = config->results,
        .completions = config->completions,
        .completions_max = config->completions_max,
        .queue = {.fd = NU_NONE},
        .connections_max = config->connections_max,
        .free_count = config->connections_max,
        .ready = empty,
        .over = empty,
        .unarmed = {empty, empty},
        .listener_count = config->listeners,
        .accepts_per_pass_max = config->accepts_per_pass_max,
        .bulk_pass_bytes = config->bulk_pass_bytes,
        .receive_failures_max = config->receive_failures_max,
        .refuse = config->refuse,
        .refuse_grace_ns = config->refuse_grace_ns,
        .wakeup_fd = config->wakeup_fd,
    };
    int error = set_up(ring, config, step);
    if (error) {
        nu_ring_close(ring);
        return error;
    }
    *opened = ring;
    return 0;
}

void nu_ring_close(struct nu_ring *ring) {
    if (!ring)
        return;
    /* The end of a ring alone would be followed by its requests' at some time later, and until then
     * they would keep the listeners' port taken. A ring that drains has tried already. */
    if (ring->queue.in_flight && !ring->draining)
        nu_end_requests(ring, close_wait_ns);
    for (uint32_t i = 0; ring->connections && i < ring->connections_max; i++) {
        if (ring->connections[i].fd >= 0)
            close(ring->connections[i].fd);
        if (ring->connections[i].ended_fd >= 0)
            close(ring->connections[i].ended_fd);
    }
    nu_queue_close(&ring->queue);
    nu_pools_close(&ring->pools);
    free(ring->leased);
    free(ring->polls);
    free(ring->connections);
    free(ring->free);
    free(ring->listeners);
    free(ring);
}
