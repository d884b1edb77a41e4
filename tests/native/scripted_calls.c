/* epoll_wait(2) and recv(2) as a test plays them, for native/epoll/ built with their names. */
#include <errno.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/socket.h>

/* Returns the number of descriptors that are ready, and puts them into `fds`. */
static int (*wait_hook)(int32_t *fds, int fds_max);
/* Returns what recv(2) does, or -errno. */
static int (*receive_hook)(int fd, uint8_t *place, int bytes);

void scripted_hooks(int (*wait)(int32_t *, int), int (*receive)(int, uint8_t *, int)) {
    wait_hook = wait;
    receive_hook = receive;
}

int scripted_wait(int epoll, struct epoll_event *events, int events_max, int timeout_ms) {
    int32_t fds[64];
    int count = wait_hook(fds, events_max < 64 ? events_max : 64);
    (void)epoll, (void)timeout_ms;
    if (count < 0) {
        errno = -count;
        return -1;
    }
    for (int i = 0; i < count; i++)
        events[i] = (struct epoll_event){.events = EPOLLIN, .data.fd = fds[i]};
    return count;
}

ssize_t scripted_receive(int fd, void *place, size_t bytes, int flags) {
    int size = receive_hook(fd, place, (int)bytes);
    (void)flags;
    if (size >= 0)
        return size;
    errno = -size;
    return -1;
}
