/* What a pass has received, taken in without a return to Python for each connection. */
#define _GNU_SOURCE
#include "log/pass.h"
#include "uring/connections.h"

static int take(struct nu_ring *ring, struct nu_intake *intake) {
    struct nu_ring_results *results = ring->results;
    while (results->next < results->count || nu_ring_receive_more(ring)) {
        const struct nu_completion *row = &ring->completions[results->next];
        if (row->kind != NU_RECEIVED)
            return NU_ROWS_OTHER;
        /* Of a slot that is used again there is no row before the next pass. */
        bool left_out = ring->connections[row->connection].end == NU_DISCONNECTED;
        if (!left_out && !nu_intake_has_room(intake))
            return NU_ROWS_TAKEN;
        results->next++;
        if (!left_out && !nu_intake_take(intake, row->connection, row->start, row->size))
            return NU_ROWS_TAKEN;
    }
    return NU_ROWS_OVER;
}

/* Returns the step, and whether the same call may go on behind it. */
static int take_and_append(struct nu_ring *ring, struct nu_intake *intake, struct nu_log *log,
                           bool *goes_on) {
    int step;
    do {
        step = take(ring, intake);
        *goes_on = nu_pass_append(intake, log, step != NU_ROWS_TAKEN);
    } while (*goes_on && step == NU_ROWS_TAKEN);
    return step;
}

int nu_ring_take(struct nu_ring *ring, struct nu_intake *intake, struct nu_log *log) {
    bool goes_on;
    nu_intake_begin(intake);
    return take_and_append(ring, intake, log, &goes_on);
}

static bool has_failed(const struct nu_ring_results *results) {
    return results->accept_errno || results->receive_errno || results->ring_errno;
}

int nu_ring_serve(struct nu_ring *ring, struct nu_intake *intake, struct nu_log *log,
                  int64_t timeout_ns, int64_t pile_up_ns) {
    uint64_t before_bytes;
    bool goes_on;
    nu_intake_begin(intake);
    do {
        int count = nu_ring_pass(ring, timeout_ns, pile_up_ns);
        if (count <= 0)
            return count;
        before_bytes = intake->taken_bytes;
        int step = take_and_append(ring, intake, log, &goes_on);
        if (step != NU_ROWS_OVER)
            return step;
        timeout_ns = pile_up_ns = 0;
    } while (goes_on && !has_failed(ring->results) &&
             intake->taken_bytes - before_bytes >= ring->bulk_pass_bytes);
    return NU_ROWS_OVER;
}
