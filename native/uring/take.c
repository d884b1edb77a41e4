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

int nu_ring_take(struct nu_ring *ring, struct nu_intake *intake, struct nu_log *log) {
    int step;
    nu_intake_begin(intake);
    do
        step = take(ring, intake);
    while (nu_pass_append(intake, log, step != NU_ROWS_TAKEN) && step == NU_ROWS_TAKEN);
    return step;
}

int nu_ring_serve(struct nu_ring *ring, struct nu_intake *intake, struct nu_log *log,
                  int64_t timeout_ns, int64_t pile_up_ns) {
    int count = nu_ring_pass(ring, timeout_ns, pile_up_ns);
    return count > 0 ? nu_ring_take(ring, intake, log) : count;
}
