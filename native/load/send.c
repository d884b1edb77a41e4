/* Clients that send lines.
 *
 * Readiness is edge-triggered: a client stands in the queue from the edge on until a send() takes
 * less than it was given. Each pass gives every client in the queue one send(), in turn.
 */
#define _GNU_SOURCE /* ppoll */
#include "load/send.h"

#include "base.h"
#include "load/lines.h"
#include "os/clock.h"

#include <errno.h>
#include <linux/sockios.h>
#include <poll.h>
#include <stdbool.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    EVENTS_MAX = 256,
    BUDGET_PER_S = 1000, /* with a rate, the least chunk is what this part of a second allows */
    BURST_PER_S = 10,    /* what the rate allowed is kept for this part of a second */
    SAMPLE_NS = 1000000, /* between the begins of two samples */
    LOOK_NS = 100000,    /* between two checks of samples */
    LOOKS = 16
};

enum sent { SENT_ALL, SENT_PART, SENT_NONE_YET, SENT_LAST };

uint32_t nu_latency_bucket(int64_t latency_ns) {
    uint64_t value = latency_ns > 0 ? (uint64_t)latency_ns : 0;
    if (value < 32)
        return (uint32_t)value;
    uint32_t octave = 63 - (uint32_t)__builtin_clzll(value);
    return (octave - 4) * 32 + (uint32_t)(value >> (octave - 5) & 31);
}

int64_t nu_latency_least_ns(uint32_t bucket) {
    if (bucket < 32)
        return bucket;
    return (int64_t)((uint64_t)(32 + bucket % 32) << (bucket / 32 - 1));
}

/* Bytes in the send queue that the other host has not confirmed; the closing FIN counts as one. */
static uint64_t unacknowledged(int fd) {
    int bytes = 0;
    return ioctl(fd, SIOCOUTQ, &bytes) == 0 && bytes > 0 ? (uint64_t)bytes : 0;
}

static void close_client(struct nu_load *load, struct nu_client *client, int64_t now) {
    /* Closing also ends its watch. An error here would tell nothing about delivery. */
    (void)close(client->fd);
    client->fd = -1;
    load->last_close_ns = now;
    load->open--;
}

static void fail_client(struct nu_load *load, struct nu_client *client, int error, int64_t now) {
    load->connecting -= client->state == NU_CLIENT_CONNECTING;
    load->failed++;
    uint64_t bytes = unacknowledged(client->fd);
    client->unacknowledged = bytes < client->sent ? bytes : client->sent;
    client->state = NU_CLIENT_FAILED;
    client->error = error;
    close_client(load, client, now);
}

/* Learns what the server did: it never says a word, so it can only close. */
static void hear(struct nu_load *load, struct nu_client *client, int64_t now) {
    uint8_t byte;
    ssize_t got = recv(client->fd, &byte, sizeof byte, MSG_DONTWAIT);
    if (got < 0 && errno == EAGAIN)
        return;
    if (got < 0) {
        fail_client(load, client, errno, now);
    } else if (got > 0) {
        fail_client(load, client, EPROTO, now);
    } else if (client->state == NU_CLIENT_DRAINING && unacknowledged(client->fd) <= 1) {
        /* A server that closes with bytes unread resets the connection, so it has read them. */
        client->state = NU_CLIENT_DRAINED;
        client->drained_ns = now;
        load->drained++;
        load->bytes_taken += client->bytes;
        close_client(load, client, now);
    } else {
        fail_client(load, client, 0, now);
    }
}

static void enqueue(struct nu_load *load, struct nu_client *client) {
    if (client->queued)
        return;
    uint32_t place =
        (uint32_t)(((uint64_t)load->queue_first + load->queue_count) % load->client_count);
    load->queue[place] = (uint32_t)(client - load->clients);
    load->queue_count++;
    client->queued = 1;
}

static struct nu_client *dequeue(struct nu_load *load) {
    struct nu_client *client = &load->clients[load->queue[load->queue_first]];
    load->queue_first = load->queue_first + 1 == load->client_count ? 0 : load->queue_first + 1;
    load->queue_count--;
    client->queued = 0;
    return client;
}

/* True where the connection is made; a failure to connect fails the client. */
static bool connected(struct nu_load *load, struct nu_client *client, uint32_t events,
                      int64_t now) {
    int error = 0;
    socklen_t size = sizeof error;
    if (getsockopt(client->fd, SOL_SOCKET, SO_ERROR, &error, &size) != 0)
        error = errno;
    if (error != 0) {
        fail_client(load, client, error, now);
        return false;
    }
    if (!(events & EPOLLOUT))
        return false;
    client->state = NU_CLIENT_SENDING;
    load->connecting--;
    return true;
}

static void notice(struct nu_load *load, struct nu_client *client, uint32_t events, int64_t now) {
    if (client->state == NU_CLIENT_CONNECTING && !connected(load, client, events, now))
        return;
    if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
        hear(load, client, now);
    if (events & EPOLLOUT && client->state == NU_CLIENT_SENDING)
        enqueue(load, client);
}

/* Waits in nanoseconds, which epoll_wait(2) alone cannot. */
static int wait_for_events(struct nu_load *load, int64_t wait_ns) {
    if (wait_ns > 0) {
        struct pollfd epoll = {.fd = load->epoll_fd, .events = POLLIN};
        struct timespec timeout = {.tv_sec = wait_ns / NU_SECOND_NS,
                                   .tv_nsec = wait_ns % NU_SECOND_NS};
        if (ppoll(&epoll, 1, &timeout, NULL) < 0)
            return -errno;
    }
    struct epoll_event events[EVENTS_MAX];
    int count = epoll_wait(load->epoll_fd, events, EVENTS_MAX, 0);
    if (count < 0)
        return -errno;
    int64_t now = nu_now_ns();
    for (int i = 0; i < count; i++)
        notice(load, &load->clients[events[i].data.u32], events[i].events, now);
    return 0;
}

static int watch(struct nu_load *load, uint32_t index) {
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET,
                                .data.u32 = index};
    return epoll_ctl(load->epoll_fd, EPOLL_CTL_ADD, load->clients[index].fd, &event) == 0 ? 0
                                                                                          : -errno;
}

int nu_load_open(struct nu_load *load) {
    for (uint32_t i = 0; i < load->client_count; i++) {
        if (load->clients[i].state == NU_CLIENT_FAILED) {
            load->failed++;
            continue;
        }
        int result = watch(load, i);
        if (result != 0)
            return result;
        load->open++;
        load->connecting += load->clients[i].state == NU_CLIENT_CONNECTING;
    }
    return 0;
}

int nu_load_connect(struct nu_load *load, int64_t until_ns) {
    for (int64_t left = until_ns - nu_now_ns(); load->connecting > 0 && left > 0;
         left = until_ns - nu_now_ns()) {
        int result = wait_for_events(load, left);
        if (result != 0)
            return result == -EINTR ? 0 : result;
    }
    return 0;
}

static int read_bytes(int fd, uint8_t *out, size_t bytes, uint64_t offset) {
    while (bytes > 0) {
        ssize_t size = pread(fd, out, bytes, (off_t)offset);
        if (size < 0 && errno == EINTR)
            continue;
        if (size <= 0)
            return size < 0 ? -errno : -ENODATA;
        out += size;
        bytes -= (size_t)size;
        offset += (uint64_t)size;
    }
    return 0;
}

/* Reads lines first .. first + count - 1 of all files. Returns 0 or -errno. */
static int read_lines(const struct nu_load *load, uint64_t first, uint64_t count, uint8_t *out) {
    for (uint32_t i = 0; i < load->file_count && count > 0; i++) {
        const struct nu_line_file *file = &load->files[i];
        uint64_t line = first - file->first;
        if (line >= file->count)
            continue;
        uint64_t lines = file->count - line < count ? file->count - line : count;
        int result = read_bytes(file->fd, out, (size_t)lines * NU_LINE_BYTES, line * NU_LINE_BYTES);
        if (result != 0)
            return result;
        out += lines * NU_LINE_BYTES;
        first += lines;
        count -= lines;
    }
    return 0;
}

/* Returns where bytes at .. at + bytes - 1 of what the client sends are, making or reading them if
 * needed; NULL, with *error set to -errno, where they cannot be read. */
static const uint8_t *lines_at(struct nu_load *load, const struct nu_client *client, uint64_t at,
                               size_t bytes, int *error) {
    if (load->prepared != NULL)
        return load->prepared + (client->first * NU_LINE_BYTES + at);
    uint32_t index = (uint32_t)(client - load->clients);
    uint32_t slot = index % load->chunk_count;
    struct nu_chunk *chunk = &load->chunks[slot];
    uint8_t *made = load->arena + slot * load->chunk_bytes;
    if (chunk->client != index || at < chunk->start || at + bytes > chunk->stop) {
        uint64_t line = at / NU_LINE_BYTES;
        uint64_t left = client->bytes / NU_LINE_BYTES - line;
        uint64_t room = load->chunk_bytes / NU_LINE_BYTES;
        uint64_t count = left < room ? left : room;
        chunk->client = UINT32_MAX;
        if (load->file_count == 0)
            nu_lines(load->sequence, client->first + line, count, made);
        else if ((*error = read_lines(load, client->first + line, count, made)) != 0)
            return NULL;
        *chunk = (struct nu_chunk){
            .client = index, .start = line * NU_LINE_BYTES, .stop = (line + count) * NU_LINE_BYTES};
    }
    return made + (at - chunk->start);
}

static double quantum_bytes(const struct nu_load *load) {
    double bytes = (double)load->bytes_per_s / BUDGET_PER_S;
    return bytes < NU_LINE_BYTES ? NU_LINE_BYTES : bytes;
}

static void refill_budget(struct nu_load *load, int64_t now) {
    if (load->budget_ns != 0)
        load->budget_bytes +=
            (double)(now - load->budget_ns) * (double)load->bytes_per_s / (double)NU_SECOND_NS;
    load->budget_ns = now;
    double most = (double)load->bytes_per_s / BURST_PER_S;
    if (most < quantum_bytes(load))
        most = quantum_bytes(load);
    if (load->budget_bytes > most)
        load->budget_bytes = most;
}

/* How many of the bytes at `at` the rate allows now, in whole lines where not all; 0 for not yet.
 */
static size_t affordable(const struct nu_load *load, uint64_t at, size_t bytes) {
    if (load->bytes_per_s == 0 || load->budget_bytes >= (double)bytes)
        return bytes;
    if (load->budget_bytes < quantum_bytes(load))
        return 0;
    size_t allowed = (size_t)load->budget_bytes;
    return allowed - (size_t)((at + allowed) % NU_LINE_BYTES);
}

/* Begun on time, whether earlier ones have ended or not: else slow times would count too little. */
static void start_sample(struct nu_load *load, const struct nu_client *client, int64_t now) {
    if (now - load->sample_start_ns < SAMPLE_NS || load->sample_count == NU_LOAD_SAMPLES)
        return;
    load->samples[load->sample_count++] = (struct nu_sample){
        .client = (uint32_t)(client - load->clients), .sent = client->sent, .begin_ns = now};
    load->sample_start_ns = now;
}

/* True if the sample is finished. Those of failed clients are dropped. */
static bool end_sample(struct nu_load *load, const struct nu_sample *sample) {
    const struct nu_client *client = &load->clients[sample->client];
    if (client->state == NU_CLIENT_FAILED)
        return true;
    int64_t end_ns = client->drained_ns;
    if (client->state != NU_CLIENT_DRAINED) {
        uint64_t waiting = unacknowledged(client->fd);
        if (client->state == NU_CLIENT_DRAINING && waiting > 0)
            waiting--;
        if (client->sent - waiting < sample->sent)
            return false;
        end_ns = nu_now_ns();
    }
    int64_t latency_ns = end_ns - sample->begin_ns;
    load->acknowledged[nu_latency_bucket(latency_ns)]++;
    if (latency_ns > load->acknowledged_max_ns)
        load->acknowledged_max_ns = latency_ns;
    return true;
}

/* Checks some of the samples, others the next time: a check costs a system call. */
static void check_samples(struct nu_load *load, uint32_t checks, int64_t now) {
    load->sample_look_ns = now;
    for (; checks > 0 && load->sample_count > 0; checks--) {
        if (load->sample_next >= load->sample_count)
            load->sample_next = 0;
        struct nu_sample *sample = &load->samples[load->sample_next];
        if (end_sample(load, sample))
            *sample = load->samples[--load->sample_count];
        else
            load->sample_next++;
    }
}

/* Gives the client, which has sent its lines or has no time left, more of them: the next block;
 * after the time, the rest of the line that it has begun; after the last block, nothing. */
static void take_block(struct nu_load *load, struct nu_client *client, int64_t now) {
    uint64_t begun = (client->sent + NU_LINE_BYTES - 1) / NU_LINE_BYTES;
    if (now >= load->stop_ns) {
        client->bytes = begun * NU_LINE_BYTES;
        return;
    }
    uint64_t left = load->lines - load->lines_taken;
    uint64_t lines = left < load->block_lines ? left : load->block_lines;
    client->first = load->lines_taken - begun;
    client->bytes += lines * NU_LINE_BYTES;
    load->lines_taken += lines;
}

static enum sent finish_client(struct nu_load *load, struct nu_client *client, int64_t now) {
    if (shutdown(client->fd, SHUT_WR) != 0)
        fail_client(load, client, errno, now);
    else
        client->state = NU_CLIENT_DRAINING;
    return SENT_LAST;
}

static enum sent send_chunk(struct nu_load *load, struct nu_client *client, int64_t now) {
    uint64_t at = client->sent;
    if (load->block_lines != 0 && (at == client->bytes || now >= load->stop_ns))
        take_block(load, client, now);
    uint64_t left = client->bytes - at;
    if (left == 0)
        return finish_client(load, client, now);
    uint64_t whole = load->send_bytes - at % load->send_bytes;
    size_t bytes = affordable(load, at, (size_t)(whole < left ? whole : left));
    if (bytes == 0)
        return SENT_NONE_YET;
    int error = 0;
    const uint8_t *lines = lines_at(load, client, at, bytes, &error);
    if (lines == NULL) {
        fail_client(load, client, error, now);
        return SENT_LAST;
    }
    ssize_t sent = send(client->fd, lines, bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0 && errno == EAGAIN)
        return SENT_PART;
    if (sent < 0) {
        fail_client(load, client, errno, now);
        return SENT_LAST;
    }
    client->sent += (uint64_t)sent;
    client->last_send_ns = now;
    load->bytes_sent += (uint64_t)sent;
    load->budget_bytes -= (double)sent;
    start_sample(load, client, now);
    if (client->sent == client->bytes && load->block_lines == 0)
        return finish_client(load, client, now);
    return (size_t)sent < bytes ? SENT_PART : SENT_ALL;
}

/* One chunk for each client in the queue. Returns how long, in ns, the rate asks to wait. */
static int64_t send_pass(struct nu_load *load, int64_t until_ns) {
    for (uint32_t left = load->queue_count; left > 0; left--) {
        int64_t now = nu_now_ns();
        if (now >= until_ns)
            return 0;
        if (now - load->sample_look_ns >= LOOK_NS)
            check_samples(load, LOOKS, now);
        if (load->bytes_per_s != 0)
            refill_budget(load, now);
        struct nu_client *client = &load->clients[load->queue[load->queue_first]];
        enum sent sent = SENT_LAST;
        if (client->state == NU_CLIENT_SENDING)
            sent = send_chunk(load, client, now);
        if (sent == SENT_NONE_YET)
            return (int64_t)((quantum_bytes(load) - load->budget_bytes) /
                             (double)load->bytes_per_s * (double)NU_SECOND_NS) +
                   1;
        dequeue(load);
        if (sent == SENT_ALL)
            enqueue(load, client);
    }
    return 0;
}

int nu_load_run(struct nu_load *load, int64_t until_ns) {
    while (load->open > 0) {
        int64_t pause_ns = send_pass(load, until_ns);
        int64_t now = nu_now_ns();
        if (now >= until_ns)
            return 0;
        /* Before and after each sleep, so that a sleep hides no more than its own time. */
        if (load->queue_count == 0 || pause_ns > 0)
            check_samples(load, LOOKS, now);
        int64_t wait_ns = until_ns - now;
        if (load->queue_count > 0 && pause_ns < wait_ns)
            wait_ns = pause_ns;
        if (load->sample_count > 0 && wait_ns > LOOK_NS)
            wait_ns = LOOK_NS;
        int result = wait_for_events(load, wait_ns);
        if (result != 0)
            return result == -EINTR ? 0 : result;
        if (load->queue_count == 0)
            check_samples(load, LOOKS, nu_now_ns());
    }
    check_samples(load, NU_LOAD_SAMPLES, nu_now_ns());
    return 0;
}
