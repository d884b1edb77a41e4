/* Which features of io_uring work here. Handed to cffi line by line, as ingest.h is. */
#ifndef NUMBERS_URING_FEATURES_H
#define NUMBERS_URING_FEATURES_H

#include <stdint.h>

/* The features of io_uring that a ring needs, in the order in which they are probed. */
enum nu_feature {
    NU_FEATURE_SETUP = 0,   /* io_uring_setup(2) with the flags and features that rings here need */
    NU_FEATURE_WAIT = 1,    /* io_uring_enter(2) that ends after a time (EXT_ARG) */
    NU_FEATURE_BUFFERS = 2, /* a ring of provided buffers */
    NU_FEATURE_POLL = 3,    /* polling a descriptor until it is readable */
    NU_FEATURE_MULTISHOT = 4, /* two chunks received by one request */
    NU_FEATURE_CANCEL = 5,    /* every request ended by one */
    NU_FEATURES = 6
};

/* Probes each of them by itself, on a small ring of its own and a pair of connected stream sockets,
 * which stay the caller's and have nothing to be received. outcomes[feature] becomes 0, or -errno:
 * -ETIME where nothing happened for a second, -ECANCELED where something failed that it needs.
 */
void nu_probe_features(int32_t near, int32_t far, int32_t outcomes[NU_FEATURES]);

#endif
