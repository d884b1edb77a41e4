/* Provided buffers: from reserve to the kernel, to a connection, to reserve. */
#define _GNU_SOURCE
#include "uring/pools.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

enum { ALIGNMENT = 64 };

static uint32_t stride_bytes(const struct nu_ring_config *config, uint32_t buffer_bytes) {
    return (buffer_bytes + config->headroom_bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

size_t nu_ring_arena_bytes(const struct nu_ring_config *config) {
    return (size_t)config->small.buffers * stride_bytes(config, config->small.buffer_bytes) +
           (size_t)config->large.buffers * stride_bytes(config, config->large.buffer_bytes);
}

/* The large buffers lie behind the small ones, and the first ones of each pool are used first. */
static void lay_out(struct nu_pools *pools, const struct nu_ring_config *config) {
    const struct nu_pool_config *configs[NU_POOLS] = {&config->small, &config->large};
    uint32_t number = pools->buffer_count;
    size_t end = nu_ring_arena_bytes(config);
    for (uint8_t i = NU_POOLS; i--;) {
        struct nu_pool *pool = &pools->pools[i];
        uint32_t stride = stride_bytes(config, configs[i]->buffer_bytes);
        pool->buffers = configs[i]->buffers;
        pool->buffer_bytes = configs[i]->buffer_bytes;
        pool->first_buffer = number - pool->buffers;
        for (uint32_t id = pool->buffers; id--; end -= stride) {
            pools->buffers[--number] = (struct nu_buffer){
                .start = (uint32_t)(end - pool->buffer_bytes),
                .id = (uint16_t)id,
                .pool = i,
            };
            nu_pools_give_back(pools, (int32_t)number);
        }
    }
}

int nu_pools_open(struct nu_pools *pools, const struct nu_ring_config *config) {
    const uint32_t counts[NU_POOLS] = {config->small.buffers, config->large.buffers};
    pools->arena = config->arena;
    pools->buffer_count = counts[NU_SMALL] + counts[NU_LARGE];
    pools->buffers = calloc(pools->buffer_count, sizeof *pools->buffers);
    if (!pools->buffers)
        return -ENOMEM;
    for (int i = 0; i < NU_POOLS; i++) {
        /* One more: there may be none, and of none calloc(3) may return NULL. */
        pools->pools[i].reserve = calloc(counts[i] + 1, sizeof *pools->pools[i].reserve);
        if (!pools->pools[i].reserve)
            return -ENOMEM;
    }
    lay_out(pools, config);
    return 0;
}

int nu_pools_register(struct nu_pools *pools, uint16_t number, struct nu_queue *queue) {
    struct nu_pool *pool = &pools->pools[number];
    size_t bytes = pool->buffers * sizeof(struct io_uring_buf);
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return -errno;
    pool->ring = memory;
    pool->ring_bytes = bytes;
    return nu_queue_register_buffers(queue, memory, pool->buffers, number);
}

void nu_pools_close(struct nu_pools *pools) {
    for (int i = 0; i < NU_POOLS; i++) {
        if (pools->pools[i].ring)
            munmap(pools->pools[i].ring, pools->pools[i].ring_bytes);
        free(pools->pools[i].reserve);
    }
    free(pools->buffers);
}

void nu_pools_give_back(struct nu_pools *pools, int32_t buffer) {
    struct nu_pool *pool = &pools->pools[pools->buffers[buffer].pool];
    pool->reserve[pool->reserve_count++] = buffer;
}

int32_t nu_pools_use(struct nu_pools *pools, uint16_t number, uint16_t id) {
    struct nu_pool *pool = &pools->pools[number];
    int32_t buffer = (int32_t)(pool->first_buffer + id);
    pools->buffers[buffer].provided = false;
    pool->available--;
    return buffer;
}

void nu_pools_take_back(struct nu_pools *pools, uint16_t number) {
    for (uint32_t id = 0; id < pools->pools[number].buffers; id++)
        if (pools->buffers[pools->pools[number].first_buffer + id].provided)
            nu_pools_give_back(pools, nu_pools_use(pools, number, (uint16_t)id));
}

static void provide_one(struct nu_pools *pools, struct nu_pool *pool) {
    int32_t number = pool->reserve[--pool->reserve_count];
    struct io_uring_buf *entry = &pool->ring->bufs[pool->tail & (pool->buffers - 1)];
    /* Not as a whole: the ring's tail lies in the first entry's last field. */
    entry->addr = (uintptr_t)pools->arena + pools->buffers[number].start;
    entry->len = pool->buffer_bytes;
    entry->bid = pools->buffers[number].id;
    pools->buffers[number].provided = true;
    pool->tail++;
    pool->available++;
}

void nu_pools_provide(struct nu_pools *pools, uint16_t number, uint32_t wanted) {
    struct nu_pool *pool = &pools->pools[number];
    while (pool->available < wanted && pool->reserve_count)
        provide_one(pools, pool);
    __atomic_store_n(&pool->ring->tail, pool->tail, __ATOMIC_RELEASE);
}
