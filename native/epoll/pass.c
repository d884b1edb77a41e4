#include "epoll/epoll.h"
#include "ingest/pieces.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/socket.h>

_Static_assert(sizeof(struct epoll_event) <= NU_EPOLL_EVENT_BYTES, "room for each event");

int nu_epoll_wait(struct nu_epoll_pass *pass, int timeout_ms) {
    pass->count = pass->next = 0;
    int count = epoll_wait(pass->epoll_fd, pass->events, (int)pass->events_max, timeout_ms);
    if (count < 0)
        return -errno;
    pass->count = (uint32_t)count;
    return count;
}

int64_t nu_epoll_receive(struct nu_epoll_pass *pass, int32_t fd, uint8_t *arena) {
    ssize_t size = recv(fd, arena + pass->receive_start, pass->receive_bytes, MSG_DONTWAIT);
    pass->error = size < 0 ? errno : 0;
    if (!pass->error) {
        pass->failures[fd] = 0;
        return size;
    }
    /* What is still there is reported again: without a bound that might never end. */
    bool may_pass = pass->error == EAGAIN || pass->error == EINTR;
    return may_pass && ++pass->failures[fd] < pass->failures_max ? -1 : 0;
}

/* Returns false where Python is to decide; the step is then in the pass. */
static bool receive(struct nu_epoll_pass *pass, struct nu_intake *intake, uint32_t connection,
                    int *step) {
    int64_t size = nu_epoll_receive(pass, pass->fd, intake->arena);
    if (size > 0) {
        *step = NU_PASS_TAKEN;
        return nu_intake_take(intake, connection, pass->receive_start, (size_t)size);
    }
    if (size < 0)
        return true;
    pass->connection = connection;
    *step = NU_PASS_ENDED;
    return false;
}

static int take(struct nu_epoll_pass *pass, struct nu_intake *intake) {
    const struct epoll_event *events = pass->events;
    while (pass->next < pass->count) {
        if (!nu_intake_has_room(intake))
            return NU_PASS_TAKEN;
        pass->fd = events[pass->next++].data.fd;
        int32_t connection = -1;
        if ((uint32_t)pass->fd < pass->descriptors)
            connection = pass->connections[pass->fd];
        if (connection < 0)
            return NU_PASS_OTHER;
        int step;
        if (!receive(pass, intake, (uint32_t)connection, &step))
            return step;
    }
    return NU_PASS_OVER;
}

int nu_epoll_take(struct nu_epoll_pass *pass, struct nu_intake *intake) {
    nu_intake_begin(intake);
    int step = take(pass, intake);
    nu_intake_end(intake);
    return step;
}
