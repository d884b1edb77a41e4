/* A ring's queue without a kernel: requests are noted, and end as the test says.
 *
 * Linked in the place of native/uring/queue.c, behind the same header, so every result that Linux
 * could give a request can be tried.
 */
#include "uring/queue.h"

#include <errno.h>
#include <string.h>

enum { SCRIPTED_MAX = 64 };

static struct {
    uint64_t requests[SCRIPTED_MAX]; /* their user_data */
    uint32_t request_count;
    struct io_uring_cqe completions[SCRIPTED_MAX];
    uint32_t completion_count;
    uint32_t enters;
    int enter_error;
    uint32_t enter_errors;
    bool refuses; /* to take requests */
} script;

/* For the test. */

void scripted_reset(void) {
    memset(&script, 0, sizeof script);
}

uint32_t scripted_enters(void) {
    return script.enters;
}

/* The next `times` enters fail. */
void scripted_fail(int error, uint32_t times) {
    script.enter_error = error;
    script.enter_errors = times;
}

void scripted_refuse(int refuses) {
    script.refuses = refuses;
}

/* Returns how many requests of this kind are under way. */
uint32_t scripted_requests(uint32_t kind) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < script.request_count; i++)
        count += script.requests[i] >> 56 == kind;
    return count;
}

static void add_completion(uint64_t user_data, int32_t result, uint32_t flags) {
    struct io_uring_cqe *completion = &script.completions[script.completion_count++];
    memset(completion, 0, sizeof *completion);
    completion->user_data = user_data;
    completion->res = result;
    completion->flags = flags;
}

static void drop_request(uint32_t i) {
    script.requests[i] = script.requests[--script.request_count];
}

/* Completes the first request of this kind with a result; with F_MORE it stays under way. Returns
 * false where there is none. */
int scripted_complete(uint32_t kind, int32_t result, uint32_t flags) {
    for (uint32_t i = 0; i < script.request_count; i++)
        if (script.requests[i] >> 56 == kind) {
            add_completion(script.requests[i], result, flags);
            if (!(flags & IORING_CQE_F_MORE))
                drop_request(i);
            return 1;
        }
    return 0;
}

/* Adds a completion that belongs to no request. */
void scripted_stray(uint64_t user_data, int32_t result, uint32_t flags) {
    add_completion(user_data, result, flags);
}

/* The queue. */

int nu_queue_open(struct nu_queue *queue, uint32_t submissions_max, uint32_t queued_max,
                  uint32_t ignored_features, const char **step) {
    (void)queue, (void)submissions_max, (void)queued_max, (void)ignored_features, (void)step;
    return 0;
}

void nu_queue_close(struct nu_queue *queue) {
    (void)queue;
}

int nu_queue_register_buffers(struct nu_queue *queue, struct io_uring_buf_ring *memory,
                              uint32_t entries, uint16_t group) {
    (void)queue, (void)memory, (void)entries, (void)group;
    return 0;
}

bool nu_error_may_pass(int error) {
    return error == -EINTR || error == -EAGAIN || error == -EBUSY;
}

void nu_pause(void) {
}

int nu_queue_enter(struct nu_queue *queue, int64_t wait_ns) {
    (void)queue, (void)wait_ns;
    script.enters++;
    if (script.enter_errors) {
        script.enter_errors--;
        return script.enter_error;
    }
    return 0;
}

int nu_queue_enter_for_all(struct nu_queue *queue, int64_t wait_ns, int64_t pile_up_ns,
                           bool in_sockets) {
    (void)pile_up_ns, (void)in_sockets;
    return nu_queue_enter(queue, wait_ns);
}

uint32_t nu_queue_count(const struct nu_queue *queue) {
    (void)queue;
    return script.completion_count;
}

uint64_t nu_user_data(enum nu_request request, uint32_t index, uint32_t generation) {
    return (uint64_t)request << 56 | (uint64_t)(generation & 0xFFFFFF) << 32 | index;
}

static bool add_request(struct nu_queue *queue, uint64_t user_data) {
    if (script.refuses || script.request_count == SCRIPTED_MAX)
        return false;
    script.requests[script.request_count++] = user_data;
    queue->in_flight++;
    return true;
}

bool nu_queue_poll(struct nu_queue *queue, int fd, uint64_t user_data) {
    (void)fd;
    return add_request(queue, user_data);
}

bool nu_queue_receive(struct nu_queue *queue, int fd, uint16_t group, bool multishot,
                      uint64_t user_data) {
    (void)fd, (void)group, (void)multishot;
    return add_request(queue, user_data);
}

bool nu_queue_cancel(struct nu_queue *queue, uint64_t target, uint64_t user_data) {
    (void)queue;
    if (script.refuses)
        return false;
    for (uint32_t i = 0; i < script.request_count; i++)
        if (script.requests[i] == target) {
            add_completion(target, -ECANCELED, 0);
            drop_request(i);
            return true;
        }
    add_completion(user_data, -ENOENT, 0);
    return true;
}

bool nu_queue_cancel_all(struct nu_queue *queue) {
    (void)queue;
    if (script.refuses)
        return false;
    while (script.request_count) {
        add_completion(script.requests[0], -ECANCELED, 0);
        drop_request(0);
    }
    return true;
}

bool nu_queue_take(struct nu_queue *queue, struct io_uring_cqe *completion) {
    if (!script.completion_count)
        return false;
    memcpy(completion, &script.completions[0], sizeof *completion);
    script.completion_count--;
    memmove(&script.completions[0], &script.completions[1],
            script.completion_count * sizeof *completion);
    bool is_cancel = completion->user_data >> 56 == NU_REQUEST_CANCEL;
    if (!is_cancel && !(completion->flags & IORING_CQE_F_MORE))
        queue->in_flight--;
    return true;
}

bool nu_queue_overflowed(const struct nu_queue *queue) {
    (void)queue;
    return false;
}
