/* The monotonic clock in nanoseconds. */
#ifndef NUMBERS_URING_CLOCK_H
#define NUMBERS_URING_CLOCK_H

#include <stdint.h>
#include <time.h>

enum { NU_SECOND_NS = 1000000000 };

static inline int64_t nu_now_ns(void) {
    struct timespec now = {0};
    /* Cannot fail: the clock exists and the pointer is valid. */
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * NU_SECOND_NS + now.tv_nsec;
}

#endif
