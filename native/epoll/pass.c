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
        return errno == EINTR ? 0 : -errno;
    pass->count = (uint32_t)count;
    return count;
}

/* Returns false where Python is to decide; the step is then in the pass. */
static bool receive(struct nu_epoll_pass *pass, struct nu_intake *intake, uint32_t connection,
                    int *step) {
    uint8_t *place = intake->arena + pass->receive_start;
    ssize_t size = recv(pass->fd, place, pass->receive_bytes, MSG_DONTWAIT);
    if (size > 0) {
        *step = NU_PASS_TAKEN;
        return nu_intake_take(intake, connection, pass->receive_start, (size_t)size);
    }
    pass->error = size ? errno : 0;
    /* What is still there is reported again. */
    if (pass->error == EAGAIN || pass->error == EINTR)
        return true;
    pass->connection = connection;
    *step = NU_PASS_ENDED;
    return false;
}

int nu_epoll_take(struct nu_epoll_pass *pass, struct nu_intake *intake) {
    const struct epoll_event *events = pass->events;
    nu_intake_begin(intake);
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
