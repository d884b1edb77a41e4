/* The load generator: clients that send the lines of a sequence.
 *
 * Like ingest.h, this header is handed to cffi line by line: see native/build_ffi.py.
 */
#ifndef NUMBERS_URING_SEND_H
#define NUMBERS_URING_SEND_H

#include "lines.h"

#include <stddef.h>
#include <stdint.h>

enum nu_send_limits {
    NU_LOAD_LATENCIES = 2048, /* buckets, see nu_latency_bucket */
    NU_LOAD_SAMPLES = 1024    /* under way at once */
};

enum nu_client_state {
    NU_CLIENT_CONNECTING,
    NU_CLIENT_SENDING,
    NU_CLIENT_DRAINING, /* all is sent and its direction closed; the server's close is awaited */
    NU_CLIENT_DRAINED,  /* the server has closed, orderly and after everything was delivered */
    NU_CLIENT_FAILED
};

/* One connection. The caller sets fd and state, without blocks also first and bytes, and the rest
 * to 0. */
struct nu_client {
    int fd; /* non-blocking; closed, and set to -1, once drained or failed */
    int state;
    int error; /* of the failed: an errno, 0 where the server closed too early, or -errno where a
                * file could not be read: -ENODATA where it is shorter than it was */
    int queued;
    uint64_t first;          /* place of its first number in the sequence; with blocks, modulo 2^64,
                              * what to add to the place of a line among those that it sends */
    uint64_t bytes;          /* to send in all; with blocks, up to the end of the last one */
    uint64_t sent;           /* bytes that send() took */
    uint64_t unacknowledged; /* of the failed: sent bytes that the server's host did not confirm */
    int64_t last_send_ns;    /* begin of the last send() */
    int64_t drained_ns;      /* when the server's close was seen */
};

/* Lines that are sent: `count` whole lines from the start of an open file. */
struct nu_line_file {
    int fd;
    uint64_t first; /* how many lines the files before it have */
    uint64_t count;
};

/* Lines made ahead for one client: bytes start .. stop - 1 of what it sends. */
struct nu_chunk {
    uint32_t client;
    uint64_t start;
    uint64_t stop;
};

/* A send() of which the confirmation by the server's host is awaited. */
struct nu_sample {
    uint32_t client;
    uint64_t sent; /* what the client had sent when it returned */
    int64_t begin_ns;
};

/* A run. Times are CLOCK_MONOTONIC, in nanoseconds. */
struct nu_load {
    /* Set by the caller. Either `prepared` holds all lines of the sequence, or it is NULL and
     * `chunks` (with client = UINT32_MAX) and `arena` hold chunk_count chunks of chunk_bytes each,
     * a multiple of 10 and at least send_bytes + 18. With file_count > 0 chunks are read from the
     * files, and there is no sequence. */
    int epoll_fd;
    const struct nu_sequence *sequence;
    const struct nu_line_file *files;
    uint32_t file_count;
    const uint8_t *prepared;
    struct nu_chunk *chunks;
    uint8_t *arena;
    uint32_t chunk_count;
    uint64_t chunk_bytes;
    struct nu_client *clients;
    uint32_t *queue; /* as long as clients */
    uint32_t client_count;
    uint64_t send_bytes;  /* the most for one send() */
    uint64_t bytes_per_s; /* for all clients; 0: no limit */
    uint64_t block_lines; /* 0: each client sends the part that it has. Else clients take blocks of
                           * this size in turn, so that what is sent is a prefix of the sequence */
    uint64_t lines;       /* with blocks: how many there are to take */
    int64_t stop_ns;      /* with blocks: after this time no client begins another line */

    /* What has come of it so far. */
    uint32_t connecting; /* clients, as are the next three */
    uint32_t open;       /* neither drained nor failed, the connecting included */
    uint32_t drained;
    uint32_t failed;
    uint64_t bytes_sent;
    uint64_t bytes_taken;  /* by servers that closed orderly: all of the drained clients' */
    int64_t last_close_ns; /* when the last client was drained or failed */
    uint64_t acknowledged[NU_LOAD_LATENCIES];
    int64_t acknowledged_max_ns;

    /* Its own. */
    uint64_t lines_taken; /* by clients, in blocks */
    uint32_t queue_first;
    uint32_t queue_count;
    double budget_bytes;
    int64_t budget_ns;
    struct nu_sample samples[NU_LOAD_SAMPLES]; /* in no order */
    uint32_t sample_count;
    uint32_t sample_next;    /* the first to check next time */
    int64_t sample_start_ns; /* of the youngest */
    int64_t sample_look_ns;
};

/* Has all clients watched that are not failed, and counts them. Returns 0 or -errno. */
int nu_load_open(struct nu_load *load);

/* Waits until no client is connecting any more, or the time has come. Returns 0 or -errno. */
int nu_load_connect(struct nu_load *load, int64_t until_ns);

/* Sends until no client is open any more, the time has come or a signal does. The first call starts
 * the rate. Returns 0 or -errno; what becomes of a client is no error here. */
int nu_load_run(struct nu_load *load, int64_t until_ns);

/* The bucket of `acknowledged` for a time, and the least time of a bucket: 32 to the octave. */
uint32_t nu_latency_bucket(int64_t latency_ns);
int64_t nu_latency_least_ns(uint32_t bucket);

#endif
