/* Probes of single features, on a ring as small as can be. */
#define _GNU_SOURCE
#include "uring/features.h"

#include "os/clock.h"
#include "uring/pools.h"

#include <errno.h>
#include <sys/socket.h>

enum { PROBE_BUFFERS = 4, PROBE_BUFFER_BYTES = 64, PROBE_SUBMISSIONS = 8, PROBE_QUEUED = 16 };

/* A probe waits this long for what must come at once. */
static const int64_t probe_wait_ns = NU_SECOND_NS;

/* Waits for the next completion of the request with this user_data; others are dropped. */
static int await_completion(struct nu_queue *queue, uint64_t user_data,
                            struct io_uring_cqe *found) {
    int64_t end_ns = nu_now_ns() + probe_wait_ns;
    for (int64_t left_ns = probe_wait_ns; left_ns > 0; left_ns = end_ns - nu_now_ns()) {
        int error = nu_queue_enter(queue, left_ns);
        if (error && !nu_error_may_pass(error))
            return error;
        while (nu_queue_take(queue, found))
            if (found->user_data == user_data)
                return 0;
        if (error)
            nu_pause();
    }
    return -ETIME;
}

static int probe_wait(struct nu_queue *queue) {
    int64_t end_ns = nu_now_ns() + probe_wait_ns;
    int error = nu_queue_enter(queue, 1);
    while (nu_error_may_pass(error) && nu_now_ns() < end_ns) {
        nu_pause();
        error = nu_queue_enter(queue, 1);
    }
    return error;
}

static int probe_buffers(struct nu_queue *queue, struct nu_pools *pools) {
    int error = nu_pools_register(pools, NU_SMALL, queue);
    if (!error)
        nu_pools_provide(pools, NU_SMALL, PROBE_BUFFERS);
    return error;
}

static int probe_poll(struct nu_queue *queue, int near, int far) {
    const uint64_t user_data = nu_user_data(NU_REQUEST_WAKEUP, 0, 0);
    struct io_uring_cqe completion;
    char byte = 0;
    if (!nu_queue_poll(queue, near, user_data))
        return -EBUSY;
    if (send(far, &byte, 1, MSG_DONTWAIT | MSG_NOSIGNAL) != 1)
        return -errno;
    int error = await_completion(queue, user_data, &completion);
    if (!error && completion.res < 0)
        error = completion.res;
    if (recv(near, &byte, 1, MSG_DONTWAIT) != 1 && !error)
        error = -errno;
    return error;
}

static int probe_multishot(struct nu_queue *queue, int near, int far) {
    const uint64_t user_data = nu_user_data(NU_REQUEST_RECEIVE, 0, 0);
    struct io_uring_cqe completion;
    if (!nu_queue_receive(queue, near, NU_SMALL, true, user_data))
        return -EBUSY;
    for (int chunk = 0; chunk < 2; chunk++) {
        char byte = 0;
        if (send(far, &byte, 1, MSG_DONTWAIT | MSG_NOSIGNAL) != 1)
            return -errno;
        int error = await_completion(queue, user_data, &completion);
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

/* The multishot receive is still under way: it is what has to end, and the only completion. */
static int probe_cancel(struct nu_queue *queue) {
    struct io_uring_cqe completion;
    if (!nu_queue_cancel_all(queue))
        return -EBUSY;
    int error = await_completion(queue, nu_user_data(NU_REQUEST_RECEIVE, 0, 0), &completion);
    if (error)
        return error;
    return completion.res == -ECANCELED ? 0 : -EOPNOTSUPP;
}

static void probe(struct nu_queue *queue, struct nu_pools *pools, int near, int far,
                  int32_t outcomes[NU_FEATURES]) {
    outcomes[NU_FEATURE_WAIT] = probe_wait(queue);
    outcomes[NU_FEATURE_BUFFERS] = probe_buffers(queue, pools);
    if (outcomes[NU_FEATURE_WAIT] == 0)
        outcomes[NU_FEATURE_POLL] = probe_poll(queue, near, far);
    if (outcomes[NU_FEATURE_POLL] == 0 && outcomes[NU_FEATURE_BUFFERS] == 0) {
        outcomes[NU_FEATURE_MULTISHOT] = probe_multishot(queue, near, far);
        /* In any case: no receive may be left that has its buffers in our arena. */
        int error = probe_cancel(queue);
        if (outcomes[NU_FEATURE_MULTISHOT] == 0)
            outcomes[NU_FEATURE_CANCEL] = error;
    }
}

void nu_probe_features(int32_t near, int32_t far, int32_t outcomes[NU_FEATURES]) {
    uint8_t arena[PROBE_BUFFERS * PROBE_BUFFER_BYTES];
    const struct nu_ring_config config = {
        .arena = arena,
        .arena_bytes = sizeof arena,
        .small = {PROBE_BUFFERS, PROBE_BUFFER_BYTES},
    };
    struct nu_queue queue = {.fd = NU_NONE};
    struct nu_pools pools = {0};
    const char *step;
    for (int i = 0; i < NU_FEATURES; i++)
        outcomes[i] = -ECANCELED;
    outcomes[NU_FEATURE_SETUP] = nu_pools_open(&pools, &config);
    if (outcomes[NU_FEATURE_SETUP] == 0)
        outcomes[NU_FEATURE_SETUP] =
            nu_queue_open(&queue, PROBE_SUBMISSIONS, PROBE_QUEUED, 0, &step);
    if (outcomes[NU_FEATURE_SETUP] == 0)
        probe(&queue, &pools, near, far, outcomes);
    nu_queue_close(&queue);
    nu_pools_close(&pools);
}
