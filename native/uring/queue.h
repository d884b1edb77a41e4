/* One io_uring: its submission and completion queues, mapped and entered.
 *
 * Internal to native/uring/. What is asked of the kernel, and what comes of it, is the caller's.
 */
#ifndef NUMBERS_URING_QUEUE_H
#define NUMBERS_URING_QUEUE_H

#include <linux/io_uring.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The kind of a request: the top byte of its user_data. */
enum nu_request {
    NU_REQUEST_RECEIVE = 1,
    NU_REQUEST_CANCEL,
    NU_REQUEST_LISTENER,
    NU_REQUEST_WAKEUP
};

struct nu_queue {
    int fd;
    void *rings; /* both queues in one mapping */
    size_t rings_bytes;
    struct io_uring_sqe *sqes;
    size_t sqes_bytes;
    const uint32_t *sq_head;
    uint32_t *sq_tail;
    const uint32_t *sq_flags;
    uint32_t sq_mask;
    uint32_t sq_entries;
    uint32_t sq_filled; /* the tail, also of what is not published yet */
    uint32_t *cq_head;
    const uint32_t *cq_tail;
    uint32_t cq_mask;
    bool can_pile_up; /* while the kernel waits: since Linux 6.12 */
    const struct io_uring_cqe *cqes;
    uint32_t in_flight; /* requests that will still complete, cancels left out */
};

/* The pieces of deferred work that Linux runs in one call, or more if more completions are waited
 * for: IO_LOCAL_TW_DEFAULT_MAX in io_uring/io_uring.c. */
enum { NU_RUN_MIN = 20 };

/* Sets the queues up; features that are ignored are taken for missing. Returns 0 or -errno; *step
 * then names the system call that failed. The caller closes the queue in either case. */
int nu_queue_open(struct nu_queue *queue, uint32_t submissions_max, uint32_t queued_max,
                  uint32_t ignored_features, const char **step);

void nu_queue_close(struct nu_queue *queue);

/* Registers `entries` provided buffers, described in memory, as this group. Returns 0 or -errno. */
int nu_queue_register_buffers(struct nu_queue *queue, struct io_uring_buf_ring *memory,
                              uint32_t entries, uint16_t group);

/* Submits what is prepared, makes the kernel run some of its deferred work, and waits for a
 * completion if wait_ns > 0. Returns 0, also where none came in time, or -errno. */
int nu_queue_enter(struct nu_queue *queue, int64_t wait_ns);

/* Submits what is prepared and makes the kernel run all of its deferred work. With pile_up_ns it
 * first lets completions pile up for so long, or until there are more than requests; and if there
 * is none by then, waits for one until wait_ns are over. With in_sockets what comes meanwhile is
 * left in the sockets, however much that is. Returns 0 or -errno. */
int nu_queue_enter_for_all(struct nu_queue *queue, int64_t wait_ns, int64_t pile_up_ns,
                           bool in_sockets);

/* Returns true for the -errno of a call that is worth another try: -EINTR, a signal ended the wait;
 * -EAGAIN, no memory for a request; -EBUSY, completions must be taken first. */
bool nu_error_may_pass(int error);

/* Sleeps for a millisecond, between two tries. */
void nu_pause(void);

/* Returns how many completions can be taken. */
uint32_t nu_queue_count(const struct nu_queue *queue);

/* Takes the next completion; returns false where there is none. */
bool nu_queue_take(struct nu_queue *queue, struct io_uring_cqe *completion);

/* Returns true if the kernel keeps completions that found no room: it moves them into the queue
 * when it is entered. */
bool nu_queue_overflowed(const struct nu_queue *queue);

uint64_t nu_user_data(enum nu_request request, uint32_t index, uint32_t generation);

/* Each prepares one request, and returns false where the queue is full and the kernel takes
 * nothing. */
bool nu_queue_poll(struct nu_queue *queue, int fd, uint64_t user_data);
bool nu_queue_receive(struct nu_queue *queue, int fd, uint16_t group, bool multishot,
                      uint64_t user_data);
/* Completes only where it fails: the request with user_data `target` completes in any case. */
bool nu_queue_cancel(struct nu_queue *queue, uint64_t target, uint64_t user_data);
bool nu_queue_cancel_all(struct nu_queue *queue);

#endif
