/* Appends to a log by write(2) in the thread that makes the lines, or through a ring.
 *
 *   ring_log write|ring|ring-sync|write-sync FILE BATCHES
 *
 * Each batch is made by the server's kernel from random lines, as in a pass of the reactor, and
 * then appended. Through the ring one append is in flight, because several may be carried out in
 * any order; the next batch is made meanwhile, in a second buffer. With -sync an fdatasync follows
 * each append: in the ring linked to it, else in the thread. Prints lines a second, and the
 * processor time of all threads, the ring's workers included, in nanoseconds a line.
 */
#define _GNU_SOURCE
#include "../native/ingest/ingest.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef KERNEL
#define KERNEL nu_ingest_swar
#endif

enum { LINES = 100000, BATCH_BYTES = LINES * NU_LINE_BYTES, ENTRIES = 8 };

struct ring {
    int fd;
    unsigned *sq_tail, *sq_mask, *sq_array, *cq_head, *cq_tail, *cq_mask;
    struct io_uring_sqe *sqes;
    struct io_uring_cqe *cqes;
    unsigned in_flight;
};

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void *pages(size_t bytes) {
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        die("mmap");
    madvise(memory, bytes, MADV_HUGEPAGE);
    return memset(memory, 0, bytes);
}

static double seconds(const struct timeval *time) {
    return (double)time->tv_sec + (double)time->tv_usec / 1e6;
}

static double now_s(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

/* A bijection on 0 to 999,999,999 whose order misses every cache. */
static void make_lines(uint8_t *out, uint64_t first) {
    for (uint64_t i = first; i < first + LINES; i++) {
        char line[16];
        snprintf(line, sizeof line, "%09llu\n", (unsigned long long)(i * 618033989u % 1000000000u));
        memcpy(out, line, NU_LINE_BYTES);
        out += NU_LINE_BYTES;
    }
}

static uint8_t *map_ring(int fd, size_t bytes, off_t offset) {
    int protection = PROT_READ | PROT_WRITE;
    void *memory = mmap(NULL, bytes, protection, MAP_SHARED | MAP_POPULATE, fd, offset);
    if (memory == MAP_FAILED)
        die("mmap of the ring");
    return memory;
}

static struct ring open_ring(void) {
    struct io_uring_params p = {.flags = IORING_SETUP_SINGLE_ISSUER};
    struct ring ring = {.fd = (int)syscall(__NR_io_uring_setup, ENTRIES, &p)};
    if (ring.fd < 0)
        die("io_uring_setup");
    size_t bytes = p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe);
    uint8_t *shared = map_ring(ring.fd, bytes, IORING_OFF_SQ_RING);
    ring.sq_tail = (unsigned *)(shared + p.sq_off.tail);
    ring.sq_mask = (unsigned *)(shared + p.sq_off.ring_mask);
    ring.sq_array = (unsigned *)(shared + p.sq_off.array);
    ring.cq_head = (unsigned *)(shared + p.cq_off.head);
    ring.cq_tail = (unsigned *)(shared + p.cq_off.tail);
    ring.cq_mask = (unsigned *)(shared + p.cq_off.ring_mask);
    ring.cqes = (struct io_uring_cqe *)(shared + p.cq_off.cqes);
    bytes = p.sq_entries * sizeof(struct io_uring_sqe);
    ring.sqes = (struct io_uring_sqe *)map_ring(ring.fd, bytes, IORING_OFF_SQES);
    return ring;
}

static void push(struct ring *ring, struct io_uring_sqe sqe) {
    unsigned index = *ring->sq_tail & *ring->sq_mask;
    ring->sqes[index] = sqe;
    ring->sq_array[index] = index;
    __atomic_store_n(ring->sq_tail, *ring->sq_tail + 1, __ATOMIC_RELEASE);
    ring->in_flight++;
}

/* Waits until nothing is in flight. */
static void await(struct ring *ring) {
    while (ring->in_flight) {
        if (syscall(__NR_io_uring_enter, ring->fd, 0, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0)
            die("io_uring_enter");
        while (*ring->cq_head != __atomic_load_n(ring->cq_tail, __ATOMIC_ACQUIRE)) {
            struct io_uring_cqe *cqe = &ring->cqes[*ring->cq_head & *ring->cq_mask];
            if (cqe->res != (int)cqe->user_data) {
                errno = cqe->res < 0 ? -cqe->res : EIO;
                die("a request failed");
            }
            __atomic_store_n(ring->cq_head, *ring->cq_head + 1, __ATOMIC_RELEASE);
            ring->in_flight--;
        }
    }
}

static void append_through(struct ring *ring, int log, const uint8_t *batch, size_t size,
                           bool sync) {
    unsigned requests = 1;
    push(ring, (struct io_uring_sqe){.opcode = IORING_OP_WRITE,
                                     .flags = sync ? IOSQE_IO_LINK : 0,
                                     .fd = log,
                                     .off = (__u64)-1,
                                     .addr = (uintptr_t)batch,
                                     .len = (__u32)size,
                                     .user_data = size});
    if (sync) {
        push(ring, (struct io_uring_sqe){
                       .opcode = IORING_OP_FSYNC, .fd = log, .fsync_flags = IORING_FSYNC_DATASYNC});
        requests++;
    }
    if (syscall(__NR_io_uring_enter, ring->fd, requests, 0, 0, NULL, 0) != (long)requests)
        die("io_uring_enter");
}

static void append(int log, const uint8_t *batch, size_t size, bool sync) {
    if (write(log, batch, size) != (ssize_t)size)
        die("write");
    if (sync && fdatasync(log))
        die("fdatasync");
}

int main(int count, char **words) {
    if (count != 4)
        return 2;
    bool through_ring = !strncmp(words[1], "ring", 4);
    bool sync = strstr(words[1], "-sync") != NULL;
    int log = open(words[2], O_WRONLY | O_APPEND | O_CREAT | O_TRUNC, 0644);
    uint64_t batches = strtoull(words[3], NULL, 10);
    /* Made ahead: a write in the background must not run while nothing is timed. */
    uint8_t *bitmap = pages(NU_BITMAP_BYTES), *input = pages(batches * BATCH_BYTES);
    uint8_t *buffers[2] = {pages(BATCH_BYTES), pages(BATCH_BYTES)};
    for (uint64_t i = 0; i < batches; i++)
        make_lines(input + i * BATCH_BYTES, i * LINES);
    struct ring ring = {.fd = -1};
    if (log < 0)
        die("open");
    if (through_ring)
        ring = open_ring();
    struct rusage before, after;
    getrusage(RUSAGE_SELF, &before);
    double start_s = now_s();
    for (uint64_t i = 0; i < batches; i++) {
        struct nu_ingest ingest = {bitmap, buffers[i % 2], BATCH_BYTES, 0, 0, 0, 0};
        KERNEL(&ingest, input + i * BATCH_BYTES, 0, BATCH_BYTES);
        if (through_ring) {
            await(&ring);
            append_through(&ring, log, buffers[i % 2], ingest.batch_used, sync);
        } else {
            append(log, buffers[i % 2], ingest.batch_used, sync);
        }
    }
    if (through_ring)
        await(&ring);
    double busy_s = now_s() - start_s;
    getrusage(RUSAGE_SELF, &after);
    double cpu_s = seconds(&after.ru_utime) + seconds(&after.ru_stime) - seconds(&before.ru_utime) -
                   seconds(&before.ru_stime);
    double lines = (double)batches * LINES;
    printf("%s: %.1f M lines/s, %.1f ns of processor a line\n", words[1], lines / busy_s / 1e6,
           cpu_s / lines * 1e9);
    return 0;
}
