/* What io_uring(7) looks like to us. Handed to cffi line by line, as ingest.h is. */
#ifndef NUMBERS_URING_ABI_H
#define NUMBERS_URING_ABI_H

/* The kernel's constants and sizes that a ring uses: queue.c checks them against the headers it is
 * compiled with, the tests against another binding. */
enum nu_uring_abi {
    NU_URING_OP_POLL_ADD = 6,
    NU_URING_OP_ASYNC_CANCEL = 14,
    NU_URING_OP_RECV = 27,
    NU_URING_SETUP_CQSIZE = 8,
    NU_URING_SETUP_CLAMP = 16,
    NU_URING_SETUP_SINGLE_ISSUER = 4096,
    NU_URING_SETUP_DEFER_TASKRUN = 8192,
    NU_URING_FEAT_SINGLE_MMAP = 1,
    NU_URING_FEAT_NODROP = 2,
    NU_URING_FEAT_EXT_ARG = 256,
    NU_URING_FEAT_MIN_TIMEOUT = 32768, /* since Linux 6.12, and newer than many headers */
    NU_URING_ENTER_GETEVENTS = 1,
    NU_URING_ENTER_EXT_ARG = 8,
    NU_URING_REGISTER_PBUF_RING = 22,
    NU_URING_SQE_BUFFER_SELECT = 32,
    NU_URING_SQE_CQE_SKIP_SUCCESS = 64,
    NU_URING_RECV_MULTISHOT = 2,
    NU_URING_CANCEL_ALL = 1,
    NU_URING_CANCEL_ANY = 4,
    NU_URING_SQ_CQ_OVERFLOW = 2,
    NU_URING_CQE_F_BUFFER = 1,
    NU_URING_CQE_F_MORE = 2,
    NU_URING_CQE_BUFFER_SHIFT = 16,
    NU_URING_OFF_SQ_RING = 0,
    NU_URING_OFF_SQES = 268435456,
    NU_URING_SQE_BYTES = 64,
    NU_URING_CQE_BYTES = 16,
    NU_URING_PARAMS_BYTES = 120,
    NU_URING_BUF_BYTES = 16,
    NU_URING_BUF_REG_BYTES = 40,
    NU_URING_GETEVENTS_ARG_BYTES = 24
};

#endif
