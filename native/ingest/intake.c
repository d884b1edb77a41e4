#include "ingest/pieces.h"
#include "ingest/window.h"

#include <string.h>

void nu_intake_begin(struct nu_intake *intake) {
    intake->taken_bytes = 0;
    intake->verdict = NU_MORE;
    intake->complete_count = 0;
}

void nu_intake_end(struct nu_intake *intake) {
    /* Without a verdict: these are numbers, and there is room for them. */
    if (intake->gathered_bytes)
        (void)intake->kernel(intake->ingest, intake->gathered, 0, intake->gathered_bytes);
    intake->gathered_bytes = 0;
}

bool nu_intake_may_go_on(const struct nu_intake *intake) {
    if (intake->complete && intake->complete_count == intake->complete_max)
        return false;
    return intake->verdict == NU_MORE && intake->taken_bytes < intake->call_bytes_max;
}

/* Gathers the lines of arena[start..stop), and returns how many bytes they have; or -1, with
 * nothing done, where it is not small, or something else than numbers. */
static int64_t gather(struct nu_intake *intake, size_t start, size_t stop) {
    if (stop - start > intake->gather_piece_bytes_max)
        return -1;
    const uint8_t *first = intake->arena + start, *line = first, *end = intake->arena + stop;
    uint32_t number;
    while (end - line >= NU_LINE_BYTES && parse_line(line, &number))
        line += NU_LINE_BYTES;
    if (judge(line, (size_t)(end - line)) != NU_MORE)
        return -1;
    size_t bytes = (size_t)(line - first);
    if (bytes > intake->gather_bytes_max - intake->gathered_bytes)
        nu_intake_end(intake);
    memcpy(intake->gathered + intake->gathered_bytes, first, bytes);
    intake->gathered_bytes += (uint32_t)bytes;
    return (int64_t)bytes;
}

bool nu_intake_take(struct nu_intake *intake, uint32_t connection, size_t start, size_t size) {
    struct nu_tail *tail = &intake->tails[connection];
    size_t stop = start + size;
    if (intake->unwritten)
        __atomic_store_n(intake->unwritten, 1, __ATOMIC_RELEASE);
    start -= tail->size;
    memcpy(intake->arena + start, tail->bytes, tail->size);
    int verdict = NU_MORE;
    int64_t consumed = gather(intake, start, stop);
    if (consumed < 0) {
        nu_intake_end(intake);
        verdict = intake->kernel(intake->ingest, intake->arena, start, stop);
        consumed = (int64_t)intake->ingest->consumed;
    }
    start += (size_t)consumed;

    tail->size = verdict == NU_MORE ? (uint8_t)(stop - start) : 0;
    memcpy(tail->bytes, intake->arena + start, tail->size);
    if (intake->complete && consumed)
        intake->complete[intake->complete_count++] = connection;
    intake->taken_bytes += size;
    intake->connection = connection;
    intake->verdict = verdict;
    intake->rejected_start = (uint32_t)start;
    intake->rejected_stop = (uint32_t)stop;
    return nu_intake_may_go_on(intake);
}
