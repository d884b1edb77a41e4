/* The arena's buffers, in pools that the kernel takes from as data comes: provided buffer rings.
 *
 * Internal to native/uring/. A buffer is named by its number among those of all pools.
 */
#ifndef NUMBERS_URING_POOLS_H
#define NUMBERS_URING_POOLS_H

#include "uring/queue.h"
#include "uring/uring.h"

enum { NU_SMALL, NU_LARGE, NU_POOLS };
enum { NU_NONE = -1 };

struct nu_pool {
    struct io_uring_buf_ring *ring;
    size_t ring_bytes;
    uint32_t buffers;
    uint32_t buffer_bytes;
    uint32_t first_buffer; /* its buffers' numbers, among those of all pools, start here */
    uint32_t available;    /* owned by Linux, according to its completions so far */
    uint16_t tail;
    int32_t *reserve; /* buffers that no one uses; the last one in is the first one out */
    uint32_t reserve_count;
};

struct nu_buffer {
    uint32_t start; /* in the arena */
    uint32_t size;  /* received */
    int32_t next;   /* of the same connection */
    uint16_t id;    /* in its pool */
    uint8_t pool;
    bool provided; /* to the kernel, which has not used it yet */
};

struct nu_pools {
    uint8_t *arena;
    struct nu_buffer *buffers;
    uint32_t buffer_count;
    struct nu_pool pools[NU_POOLS];
};

/* Lays the pools out in the arena; all buffers are in reserve. Returns 0 or -ENOMEM. The caller
 * closes the pools in either case. */
int nu_pools_open(struct nu_pools *pools, const struct nu_ring_config *config);

void nu_pools_close(struct nu_pools *pools);

/* Registers the pool as the buffer group of its number. Returns 0 or -errno. */
int nu_pools_register(struct nu_pools *pools, uint16_t pool, struct nu_queue *queue);

/* Puts a buffer into its pool's reserve. */
void nu_pools_give_back(struct nu_pools *pools, int32_t buffer);

/* Called when the kernel has used a buffer, given by its id in the pool. Returns its number. */
int32_t nu_pools_use(struct nu_pools *pools, uint16_t pool, uint16_t id);

/* Puts into reserve what the kernel has of the pool; it must run no receive any more. */
void nu_pools_take_back(struct nu_pools *pools, uint16_t pool);

/* Gives the kernel buffers of the pool until it has `wanted`, or none is in reserve. */
void nu_pools_provide(struct nu_pools *pools, uint16_t pool, uint32_t wanted);

#endif
