/* The system calls of io_uring(7), and requests as it wants them. */
#define _GNU_SOURCE
#include "uring/queue.h"

#include "os/clock.h"
#include "uring/abi.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
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

enum { GENERATION_BITS = 24, PAUSE_NS = 1000000, SETUP_TRIES = 10 };

bool nu_error_may_pass(int error) {
    return error == -EINTR || error == -EAGAIN || error == -EBUSY;
}

/* Headers before Linux 6.12 have no min_wait_usec. */
struct nu_getevents_arg {
    uint64_t sigmask;
    uint32_t sigmask_sz;
    uint32_t min_wait_usec;
    uint64_t ts;
};
SAME(sizeof(struct nu_getevents_arg), sizeof(struct io_uring_getevents_arg));
SAME(offsetof(struct nu_getevents_arg, ts), offsetof(struct io_uring_getevents_arg, ts));

static void sleep_ns(int64_t ns) {
    const struct timespec time = {ns / NU_SECOND_NS, ns % NU_SECOND_NS};
    nanosleep(&time, NULL);
}

void nu_pause(void) {
    sleep_ns(PAUSE_NS);
}

/* System calls. */

static int io_uring_setup(uint32_t entries, struct io_uring_params *params) {
    long fd = -EAGAIN;
    for (int tries = 0; tries < SETUP_TRIES && nu_error_may_pass((int)fd); tries++) {
        if (tries)
            nu_pause();
        fd = syscall(__NR_io_uring_setup, entries, params);
        fd = fd < 0 ? -errno : fd;
    }
    return (int)fd;
}

int nu_queue_register_buffers(struct nu_queue *queue, struct io_uring_buf_ring *memory,
                              uint32_t entries, uint16_t group) {
    struct io_uring_buf_reg registration = {
        .ring_addr = (uintptr_t)memory, .ring_entries = entries, .bgid = group};
    int error = -EAGAIN;
    for (int tries = 0; tries < SETUP_TRIES && nu_error_may_pass(error); tries++) {
        if (tries)
            nu_pause();
        long result =
            syscall(__NR_io_uring_register, queue->fd, IORING_REGISTER_PBUF_RING, &registration, 1);
        error = result < 0 ? -errno : 0;
    }
    return error;
}

/* Waits for `completions` of them, if there are any to wait for. */
static int enter(struct nu_queue *queue, uint32_t completions, int64_t wait_ns,
                 int64_t pile_up_ns) {
    uint32_t flags = IORING_ENTER_GETEVENTS;
    uint32_t submit = queue->sq_filled - __atomic_load_n(queue->sq_head, __ATOMIC_ACQUIRE);
    struct __kernel_timespec timeout = {wait_ns / NU_SECOND_NS, wait_ns % NU_SECOND_NS};
    struct nu_getevents_arg arg = {
        .sigmask_sz = 8, .min_wait_usec = (uint32_t)(pile_up_ns / 1000), .ts = (uintptr_t)&timeout};
    if (completions)
        flags |= IORING_ENTER_EXT_ARG;
    __atomic_store_n(queue->sq_tail, queue->sq_filled, __ATOMIC_RELEASE);
    if (syscall(__NR_io_uring_enter, queue->fd, submit, completions, flags,
                completions ? &arg : NULL, completions ? sizeof arg : 0) >= 0)
        return 0;
    return errno == ETIME ? 0 : -errno;
}

int nu_queue_enter(struct nu_queue *queue, int64_t wait_ns) {
    return enter(queue, wait_ns > 0, wait_ns, 0);
}

/* Each request has at most one piece of work at a time, so with one completion more than there are
 * requests the kernel neither wakes up early nor leaves a piece out. With many more it would not
 * come to an end: it goes round as long as packets come in, until there are as many. */
int nu_queue_enter_for_all(struct nu_queue *queue, int64_t wait_ns, int64_t pile_up_ns,
                           bool in_sockets) {
    if (pile_up_ns && !in_sockets && queue->can_pile_up)
        return enter(queue, queue->in_flight + 1, wait_ns, pile_up_ns);
    if (pile_up_ns) {
        sleep_ns(pile_up_ns);
        int error = enter(queue, 1, wait_ns - pile_up_ns, 0);
        if (error)
            return error;
    }
    return enter(queue, queue->in_flight + 1, 0, 0);
}

/* Requests. */

uint64_t nu_user_data(enum nu_request request, uint32_t index, uint32_t generation) {
    uint64_t kept = generation & ((1u << GENERATION_BITS) - 1);
    return (uint64_t)request << 56 | kept << 32 | index;
}

/* Returns a submission to be filled, or NULL where the queue is full and the kernel takes nothing.
 */
static struct io_uring_sqe *prepare(struct nu_queue *queue, uint8_t opcode, int fd, uint64_t data) {
    if (queue->sq_filled - __atomic_load_n(queue->sq_head, __ATOMIC_ACQUIRE) == queue->sq_entries &&
        nu_queue_enter(queue, 0) < 0)
        return NULL;
    if (queue->sq_filled - __atomic_load_n(queue->sq_head, __ATOMIC_ACQUIRE) == queue->sq_entries)
        return NULL;
    struct io_uring_sqe *sqe = &queue->sqes[queue->sq_filled++ & queue->sq_mask];
    memset(sqe, 0, sizeof *sqe);
    sqe->opcode = opcode;
    sqe->fd = fd;
    sqe->user_data = data;
    return sqe;
}

bool nu_queue_poll(struct nu_queue *queue, int fd, uint64_t user_data) {
    struct io_uring_sqe *sqe = prepare(queue, IORING_OP_POLL_ADD, fd, user_data);
    if (!sqe)
        return false;
    sqe->poll32_events = POLLIN;
    queue->in_flight++;
    return true;
}

bool nu_queue_receive(struct nu_queue *queue, int fd, uint16_t group, bool multishot,
                      uint64_t user_data) {
    struct io_uring_sqe *sqe = prepare(queue, IORING_OP_RECV, fd, user_data);
    if (!sqe)
        return false;
    sqe->flags = IOSQE_BUFFER_SELECT;
    sqe->buf_group = group;
    sqe->ioprio = multishot ? IORING_RECV_MULTISHOT : 0;
    queue->in_flight++;
    return true;
}

bool nu_queue_cancel(struct nu_queue *queue, uint64_t target, uint64_t user_data) {
    struct io_uring_sqe *sqe = prepare(queue, IORING_OP_ASYNC_CANCEL, -1, user_data);
    if (!sqe)
        return false;
    sqe->flags = IOSQE_CQE_SKIP_SUCCESS;
    sqe->addr = target;
    return true;
}

bool nu_queue_cancel_all(struct nu_queue *queue) {
    uint64_t user_data = nu_user_data(NU_REQUEST_CANCEL, 0, 0);
    struct io_uring_sqe *sqe = prepare(queue, IORING_OP_ASYNC_CANCEL, -1, user_data);
    if (!sqe)
        return false;
    sqe->flags = IOSQE_CQE_SKIP_SUCCESS;
    sqe->cancel_flags = IORING_ASYNC_CANCEL_ANY | IORING_ASYNC_CANCEL_ALL;
    return true;
}

/* Completions. */

bool nu_queue_take(struct nu_queue *queue, struct io_uring_cqe *completion) {
    uint32_t head = *queue->cq_head;
    if (head == __atomic_load_n(queue->cq_tail, __ATOMIC_ACQUIRE))
        return false;
    memcpy(completion, &queue->cqes[head & queue->cq_mask], sizeof *completion);
    __atomic_store_n(queue->cq_head, head + 1, __ATOMIC_RELEASE);
    bool is_cancel = completion->user_data >> 56 == NU_REQUEST_CANCEL;
    if (!is_cancel && !(completion->flags & IORING_CQE_F_MORE))
        queue->in_flight--;
    return true;
}

uint32_t nu_queue_count(const struct nu_queue *queue) {
    return __atomic_load_n(queue->cq_tail, __ATOMIC_ACQUIRE) - *queue->cq_head;
}

bool nu_queue_overflowed(const struct nu_queue *queue) {
    return __atomic_load_n(queue->sq_flags, __ATOMIC_RELAXED) & IORING_SQ_CQ_OVERFLOW;
}

/* Set-up and end. */

static void *map(const struct nu_queue *queue, size_t bytes, uint64_t offset) {
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, queue->fd,
                        (off_t)offset);
    return memory == MAP_FAILED ? NULL : memory;
}

static int map_queues(struct nu_queue *queue, const struct io_uring_params *params) {
    size_t sq_bytes = params->sq_off.array + params->sq_entries * sizeof(uint32_t);
    size_t cq_bytes = params->cq_off.cqes + params->cq_entries * sizeof(struct io_uring_cqe);
    queue->rings_bytes = sq_bytes > cq_bytes ? sq_bytes : cq_bytes;
    queue->sqes_bytes = params->sq_entries * sizeof(struct io_uring_sqe);
    queue->rings = map(queue, queue->rings_bytes, IORING_OFF_SQ_RING);
    if (!queue->rings)
        return -errno;
    queue->sqes = map(queue, queue->sqes_bytes, IORING_OFF_SQES);
    if (!queue->sqes)
        return -errno;
    char *rings = queue->rings;
    queue->sq_head = (uint32_t *)(rings + params->sq_off.head);
    queue->sq_tail = (uint32_t *)(rings + params->sq_off.tail);
    queue->sq_flags = (uint32_t *)(rings + params->sq_off.flags);
    queue->sq_entries = params->sq_entries;
    queue->sq_mask = params->sq_entries - 1;
    queue->cq_head = (uint32_t *)(rings + params->cq_off.head);
    queue->cq_tail = (uint32_t *)(rings + params->cq_off.tail);
    queue->cq_mask = params->cq_entries - 1;
    queue->cqes = (struct io_uring_cqe *)(rings + params->cq_off.cqes);
    uint32_t *array = (uint32_t *)(rings + params->sq_off.array);
    for (uint32_t i = 0; i < params->sq_entries; i++)
        array[i] = i;
    return 0;
}

int nu_queue_open(struct nu_queue *queue, uint32_t submissions_max, uint32_t queued_max,
                  uint32_t ignored_features, const char **step) {
    const uint32_t features = IORING_FEAT_SINGLE_MMAP | IORING_FEAT_NODROP | IORING_FEAT_EXT_ARG;
    struct io_uring_params params = {
        .flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_CLAMP |
                 IORING_SETUP_CQSIZE,
        .cq_entries = queued_max,
    };
    *step = "io_uring_setup";
    queue->fd = io_uring_setup(submissions_max, &params);
    if (queue->fd < 0)
        return queue->fd;
    params.features &= ~ignored_features;
    if ((params.features & features) != features)
        return -EOPNOTSUPP;
    queue->can_pile_up = params.features & NU_URING_FEAT_MIN_TIMEOUT;
    *step = "mmap";
    return map_queues(queue, &params);
}

void nu_queue_close(struct nu_queue *queue) {
    if (queue->rings)
        munmap(queue->rings, queue->rings_bytes);
    if (queue->sqes)
        munmap(queue->sqes, queue->sqes_bytes);
    if (queue->fd >= 0)
        close(queue->fd);
    *queue = (struct nu_queue){.fd = -1};
}
