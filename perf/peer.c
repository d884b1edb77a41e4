/* What the server is measured against: the least that a C program can do with the same bytes.
 *
 *   peer discard PORT        receives and throws away: the ceiling of the sockets
 *   peer ingest PORT         receives and runs the kernel, writes nothing
 *   peer serve PORT LOG      receives, runs the kernel, appends to LOG before each wait
 *
 * Prints "listening on 127.0.0.1:PORT" on standard error; SIGTERM ends it. It does as much of the
 * protocol as a load needs: a connection is closed at its end or at an invalid line. perf/bench.py
 * passes the server's kernel and its sizes, so that only the language differs; and, for a second
 * build, those of an earlier kernel, which stay as they are.
 */
#define _GNU_SOURCE
#include "../native/ingest/ingest.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#if !defined KERNEL || !defined NU_RECEIVE_BYTES || !defined NU_BATCH_BYTES
#error "perf/bench.py builds this"
#endif

enum { HEADROOM_BYTES = 16, CONNECTIONS_MAX = 65536, EVENTS = 1024 };

struct tail {
    uint8_t bytes[NU_LINE_BYTES];
    size_t size;
};

static struct tail tails[CONNECTIONS_MAX];
static volatile sig_atomic_t stopped;

static void stop(int number) {
    (void)number;
    stopped = 1;
}

static void die(const char *what) {
    perror(what);
    exit(3);
}

static int listen_on(int port) {
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    int on = 1;
    if (listener < 0 || setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) ||
        bind(listener, (struct sockaddr *)&address, size) || listen(listener, 4096) ||
        getsockname(listener, (struct sockaddr *)&address, &size))
        die("cannot listen");
    fprintf(stderr, "listening on 127.0.0.1:%d\n", ntohs(address.sin_port));
    return listener;
}

/* Without a log the batch is thrown away. */
static void flush(int log, struct nu_ingest *ingest) {
    size_t written = log < 0 ? ingest->batch_used : 0;
    while (written < ingest->batch_used) {
        ssize_t size = write(log, ingest->batch + written, ingest->batch_used - written);
        if (size < 0)
            die("cannot write");
        written += (size_t)size;
    }
    ingest->batch_used = 0;
}

/* Takes in one piece; false where the connection has to be closed. */
static bool take(struct nu_ingest *ingest, uint8_t *arena, int fd, size_t size) {
    struct tail *tail = &tails[fd];
    size_t start = HEADROOM_BYTES - tail->size;
    size_t stop_at = HEADROOM_BYTES + size;
    memcpy(arena + start, tail->bytes, tail->size);
    if (KERNEL(ingest, arena, start, stop_at) != NU_MORE)
        return false;
    tail->size = stop_at - start - ingest->consumed;
    memcpy(tail->bytes, arena + start + ingest->consumed, tail->size);
    return true;
}

static void accept_all(int epoll, int listener) {
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
        if (fd < 0)
            return;
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
        if (fd >= CONNECTIONS_MAX || epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event))
            die("cannot serve a connection");
        tails[fd].size = 0;
    }
}

static void serve(int listener, struct nu_ingest *ingest, int log) {
    static uint8_t arena[HEADROOM_BYTES + NU_RECEIVE_BYTES];
    struct epoll_event events[EVENTS];
    int epoll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener};
    if (epoll < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event))
        die("cannot set up epoll");
    while (!stopped) {
        flush(log, ingest);
        int ready = epoll_wait(epoll, events, EVENTS, -1);
        for (int i = 0; i < ready; i++) {
            int fd = events[i].data.fd;
            if (fd == listener) {
                accept_all(epoll, listener);
                continue;
            }
            ssize_t size = recv(fd, arena + HEADROOM_BYTES, NU_RECEIVE_BYTES, 0);
            if (size < 0 && errno == EAGAIN)
                continue;
            if (size <= 0 || (ingest->bitmap && !take(ingest, arena, fd, (size_t)size)))
                close(fd);
            if (ingest->batch_bytes - ingest->batch_used < NU_RECEIVE_BYTES + HEADROOM_BYTES)
                flush(log, ingest);
        }
    }
    flush(log, ingest);
}

static uint8_t *pages(size_t bytes) {
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        die("no memory");
    madvise(memory, bytes, MADV_HUGEPAGE);
    memset(memory, 0, bytes);
    return memory;
}

int main(int count, char **words) {
    if (count < 3 || (!strcmp(words[1], "serve") && count < 4)) {
        fprintf(stderr, "usage: peer discard|ingest|serve PORT [LOG]\n");
        return 2;
    }
    struct sigaction action = {.sa_handler = stop};
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    sigaction(SIGTERM, &action, NULL);
    signal(SIGPIPE, SIG_IGN);

    struct nu_ingest ingest = {.batch_bytes = NU_BATCH_BYTES};
    int log = -1;
    if (strcmp(words[1], "discard") != 0) {
        ingest.bitmap = pages(NU_BITMAP_BYTES);
        ingest.batch = pages(NU_BATCH_BYTES);
    }
    if (!strcmp(words[1], "serve"))
        log = open(words[3], O_WRONLY | O_APPEND | O_CREAT | O_TRUNC, 0644);
    serve(listen_on(atoi(words[2])), &ingest, log);
    return 0;
}
