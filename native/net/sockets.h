/* Connected sockets, where they are accepted and where they are closed.
 *
 * This header is the whole contract between C and Python, as ingest.h is.
 */
#ifndef NUMBERS_URING_SOCKETS_H
#define NUMBERS_URING_SOCKETS_H

#include <stdint.h>

enum nu_peer_sizes {
    NU_PEER_BYTES = 28 /* of a sockaddr_in6: the longest address of a listener's clients */
};

/* Accepts one client, which has its listener's options; its descriptor is non-blocking if that is
 * asked for. Copies its address to `peer`, which has room for NU_PEER_BYTES: a sockaddr_in, a
 * sockaddr_in6, or one whose family is AF_UNIX and whose rest means nothing. Returns the
 * descriptor, or -errno of accept(2): -EAGAIN where no client waits. */
int nu_accept(int listener_fd, int non_blocking, uint8_t *peer);

/* Closes a connection. Its client sees a reset; or with orderly a FIN, if it was received from to
 * the end. */
void nu_close(int fd, int orderly);

#endif
