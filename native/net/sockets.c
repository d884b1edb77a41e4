#define _GNU_SOURCE
#include "net/sockets.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

_Static_assert(NU_PEER_BYTES == sizeof(struct sockaddr_in6), "the longest address of a listener");

static bool resets_at_close(int fd) {
    struct linger linger = {0};
    socklen_t bytes = sizeof linger;
    return !getsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, &bytes) && linger.l_onoff;
}

/* Gives a connection its listener's options where it does not have them: a connection takes them
 * over when it is established, and a service manager's listener may have had some before it had
 * these options. */
static void take_over_options(int listener_fd, int fd) {
    static const int options[][2] = {
        {SOL_SOCKET, SO_LINGER},     {SOL_SOCKET, SO_OOBINLINE},   {SOL_SOCKET, SO_KEEPALIVE},
        {IPPROTO_TCP, TCP_KEEPIDLE}, {IPPROTO_TCP, TCP_KEEPINTVL}, {IPPROTO_TCP, TCP_KEEPCNT},
    };
    if (resets_at_close(fd) || !resets_at_close(listener_fd))
        return;
    for (size_t i = 0; i < sizeof options / sizeof options[0]; i++) {
        struct linger value; /* the longest of them */
        socklen_t bytes = sizeof value;
        if (!getsockopt(listener_fd, options[i][0], options[i][1], &value, &bytes))
            setsockopt(fd, options[i][0], options[i][1], &value, bytes);
    }
}

int nu_accept(int listener_fd, int non_blocking, uint8_t *peer) {
    struct sockaddr_in6 address = {0};
    socklen_t bytes = sizeof address;
    int flags = SOCK_CLOEXEC | (non_blocking ? SOCK_NONBLOCK : 0);
    int fd = accept4(listener_fd, (struct sockaddr *)&address, &bytes, flags);
    if (fd < 0)
        return -errno;
    if (address.sin6_family != AF_UNIX)
        take_over_options(listener_fd, fd);
    memcpy(peer, &address, NU_PEER_BYTES);
    return fd;
}

void nu_close(int fd, int orderly) {
    const struct linger close_with_fin = {0, 0};
    /* Without effect on a unix socket. Where it is refused, the client sees a reset. */
    if (orderly)
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &close_with_fin, sizeof close_with_fin);
    /* Linux frees a descriptor whatever close(2) says. */
    close(fd);
}
