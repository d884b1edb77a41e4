/* epoll_wait(2), recv(2) and write(2) as a test plays them, for sources built with their names. */
#include <errno.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/socket.h>

/* Returns the number of descriptors that are ready, and puts them into `fds`. */
static int (*wait_hook)(int32_t *fds, int fds_max);
/* Returns what recv(2) does, or -errno. */
static int (*receive_hook)(int fd, uint8_t *place, int bytes);

/* Returns what write(2) does, or -errno. */
static int (*write_hook)(int fd, const uint8_t *data, int bytes);

void scripted_hooks(int (*wait)(int32_t *, int), int (*receive)(int, uint8_t *, int),
                    int (*write)(int, const uint8_t *, int)) {
    wait_hook = wait;
    receive_hook = receive;
    write_hook = write;
}

static ssize_t result(int size) {
    if (size >= 0)
        return size;
    errno = -size;
    return -1;
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
    (void)flags;
    return result(receive_hook(fd, place, (int)bytes));
}

ssize_t scripted_write(int fd, const void *data, size_t bytes) {
    return result(write_hook(fd, data, (int)bytes));
}
