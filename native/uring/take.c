/* What a pass has received, taken in without a return to Python for each connection. */
#define _GNU_SOURCE
#include "log/pass.h"
#include "uring/connections.h"

static int take(struct nu_ring *ring, struct nu_intake *intake, struct nu_log *log) {
    struct nu_ring_results *results = ring->results;
    while (results->next < results->count || nu_ring_receive_more(ring)) {
        const struct nu_completion *row = &ring->completions[results->next];
        if (row->kind != NU_RECEIVED)
            return NU_ROWS_OTHER;
        /* Of a slot that is used again there is no row before the next pass. */
        bool left_out = ring->connections[row->connection].end == NU_DISCONNECTED;
        if (!left_out && !nu_pass_has_room(intake, log))
            return NU_ROWS_TAKEN;
        results->next++;
        if (!left_out && !nu_intake_take(intake, row->connection, row->start, row->size))
            return NU_ROWS_TAKEN;
    }
    return NU_ROWS_OVER;
}

int nu_ring_take(struct nu_ring *ring, struct nu_intake *intake, struct nu_log *log) {
    nu_intake_begin(intake);
    int step = take(ring, intake, log);
    nu_pass_end(intake, log, step == NU_ROWS_TAKEN);
    return step;
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
        int step = take(ring, intake, log);
        goes_on = nu_pass_end(intake, log, step == NU_ROWS_TAKEN);
        if (step != NU_ROWS_OVER)
            return step;
        timeout_ns = pile_up_ns = 0;
    } while (goes_on && !has_failed(ring->results) &&
             intake->taken_bytes - before_bytes >= ring->bulk_pass_bytes);
    return NU_ROWS_OVER;
}
