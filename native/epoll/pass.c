#include "log/pass.h"
#include "epoll/epoll.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/socket.h>

_Static_assert(sizeof(struct epoll_event) <= NU_EPOLL_EVENT_BYTES, "room for each event");

static int look(struct nu_epoll_pass *pass, int timeout_ms) {
    pass->count = pass->next = pass->bulk_count = pass->bulk_next = 0;
    int count = epoll_wait(pass->epoll_fd, pass->events, (int)pass->events_max, timeout_ms);
    if (count < 0)
        return -errno;
    pass->count = (uint32_t)count;
    return count;
}

static int32_t connection_of(const struct nu_epoll_pass *pass, int32_t fd) {
    return (uint32_t)fd < pass->descriptors ? pass->connections[fd] : -1;
}

static void note_size(struct nu_epoll_pass *pass, uint32_t connection, size_t size) {
    pass->bulk_left_bytes -= (int64_t)size;
    if (size < pass->bulk_bytes)
        pass->rounds[connection] = 0;
    else if (!pass->rounds[connection])
        pass->rounds[connection] = pass->round;
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
        note_size(pass, connection, (size_t)size);
        *step = NU_PASS_TAKEN;
        return nu_intake_take(intake, connection, pass->receive_start, (size_t)size);
    }
    if (size < 0)
        return true;
    pass->connection = connection;
    *step = NU_PASS_ENDED;
    return false;
}

static bool has_turn(const struct nu_epoll_pass *pass, int32_t connection) {
    return connection >= 0 && pass->rounds[connection] != pass->round;
}

/* Begins a new round where all that are ready have had their turns in this one. */
static void begin_turns(struct nu_epoll_pass *pass) {
    const struct epoll_event *events = pass->events;
    for (uint32_t i = 0; i < pass->bulk_count; i++)
        if (has_turn(pass, connection_of(pass, events[i].data.fd)))
            return;
    pass->round++;
}

/* Receives from those that are quiet, and puts the others off. Returns NU_PASS_OVER, or where
 * Python is to decide. */
static int take_quiet(struct nu_epoll_pass *pass, struct nu_intake *intake, struct nu_log *log) {
    struct epoll_event *events = pass->events;
    int step;
    while (pass->next < pass->count) {
        if (!nu_pass_has_room(intake, log))
            return NU_PASS_TAKEN;
        pass->fd = events[pass->next++].data.fd;
        int32_t connection = connection_of(pass, pass->fd);
        if (connection >= 0 && pass->rounds[connection]) {
            events[pass->bulk_count++].data.fd = pass->fd;
            continue;
        }
        pass->quiet = true;
        if (connection < 0)
            return NU_PASS_OTHER;
        if (!receive(pass, intake, (uint32_t)connection, &step))
            return step;
    }
    return NU_PASS_OVER;
}

/* Receives from some of those that were put off. */
static int take_bulk(struct nu_epoll_pass *pass, struct nu_intake *intake, struct nu_log *log) {
    const struct epoll_event *events = pass->events;
    int step;
    if (!pass->bulk_next) {
        if (!pass->again)
            begin_turns(pass);
        uint64_t share_bytes = (uint64_t)pass->bulk_count * pass->bulk_share_bytes;
        uint64_t least_bytes = pass->bulk_look_bytes;
        pass->bulk_left_bytes = (int64_t)(share_bytes > least_bytes ? share_bytes : least_bytes);
    }
    while (pass->bulk_next < pass->bulk_count && pass->bulk_left_bytes > 0) {
        if (!nu_pass_has_room(intake, log))
            return NU_PASS_TAKEN;
        pass->fd = events[pass->bulk_next++].data.fd;
        int32_t connection = connection_of(pass, pass->fd);
        if (!has_turn(pass, connection))
            continue;
        pass->rounds[connection] = pass->round;
        if (!receive(pass, intake, (uint32_t)connection, &step))
            return step;
    }
    return NU_PASS_OVER;
}

static int take(struct nu_epoll_pass *pass, struct nu_intake *intake, struct nu_log *log) {
    for (;;) {
        int step = take_quiet(pass, intake, log);
        if (step == NU_PASS_OVER && !(pass->again && pass->quiet))
            step = take_bulk(pass, intake, log);
        if (step != NU_PASS_OVER || pass->quiet || pass->bulk_left_bytes > 0)
            return step;
        pass->again = true;
        /* What fails here fails again in the next wait, or was of no importance. */
        if (look(pass, 0) <= 0)
            return NU_PASS_OVER;
    }
}

int nu_epoll_take(struct nu_epoll_pass *pass, struct nu_intake *intake, struct nu_log *log) {
    nu_intake_begin(intake);
    int step = take(pass, intake, log);
    nu_pass_end(intake, log, step == NU_PASS_TAKEN);
    return step;
}

int nu_epoll_pass(struct nu_epoll_pass *pass, struct nu_intake *intake, struct nu_log *log,
                  int timeout_ms) {
    uint64_t before_bytes;
    bool goes_on;
    pass->ready = 0;
    nu_intake_begin(intake);
    do {
        pass->again = pass->quiet = false;
        int ready = look(pass, timeout_ms);
        /* What fails behind a pass fails again in the next wait. */
        if (ready <= 0)
            return pass->ready ? NU_PASS_OVER : ready;
        pass->ready += (uint32_t)ready;
        before_bytes = intake->taken_bytes;
        int step = take(pass, intake, log);
        goes_on = nu_pass_end(intake, log, step == NU_PASS_TAKEN);
        if (step != NU_PASS_OVER)
            return step;
        timeout_ms = 0;
    } while (goes_on && intake->taken_bytes - before_bytes >= pass->bulk_pass_bytes);
    return NU_PASS_OVER;
}
