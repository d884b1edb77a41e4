#include "ingest/pieces.h"

#include <string.h>

void nu_intake_begin(struct nu_intake *intake) {
    intake->taken_bytes = 0;
    intake->verdict = NU_MORE;
    intake->complete_count = 0;
}

bool nu_intake_take(struct nu_intake *intake, uint32_t connection, size_t start, size_t size) {
    struct nu_tail *tail = &intake->tails[connection];
    size_t stop = start + size;
    start -= tail->size;
    memcpy(intake->arena + start, tail->bytes, tail->size);
    int verdict = intake->kernel(intake->ingest, intake->arena, start, stop);
    start += intake->ingest->consumed;

    tail->size = verdict == NU_MORE ? (uint8_t)(stop - start) : 0;
    memcpy(tail->bytes, intake->arena + start, tail->size);
    if (intake->complete && intake->ingest->consumed)
        intake->complete[intake->complete_count++] = connection;
    intake->taken_bytes += size;
    intake->connection = connection;
    intake->verdict = verdict;
    intake->rejected_start = (uint32_t)start;
    intake->rejected_stop = (uint32_t)stop;
    return verdict == NU_MORE && intake->taken_bytes < intake->call_bytes_max;
}
