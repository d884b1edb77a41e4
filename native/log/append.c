#include "log/pass.h"
#include "os/clock.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct nu_log {
    pthread_mutex_t mutex;
    bool allowed; /* since then nu_log_stop was not called */
    struct nu_log_file file;
    struct nu_log_end end;
    /* Read by others without the mutex. */
    uint64_t lines;
    int64_t write_ns;
};

struct nu_log *nu_log_new(void) {
    struct nu_log *log = calloc(1, sizeof *log);
    if (log && pthread_mutex_init(&log->mutex, NULL)) {
        free(log);
        return NULL;
    }
    return log;
}

void nu_log_free(struct nu_log *log) {
    if (!log)
        return;
    pthread_mutex_destroy(&log->mutex);
    free(log);
}

void nu_log_allow(struct nu_log *log, const struct nu_log_file *file) {
    pthread_mutex_lock(&log->mutex);
    log->file = *file;
    log->end = (struct nu_log_end){.end_bytes = file->end_bytes, .as_expected = true};
    log->allowed = true;
    pthread_mutex_unlock(&log->mutex);
}

bool nu_log_stop(struct nu_log *log, struct nu_log_end *end) {
    pthread_mutex_lock(&log->mutex);
    bool allowed = log->allowed;
    if (allowed)
        *end = log->end;
    log->allowed = false;
    pthread_mutex_unlock(&log->mutex);
    return allowed;
}

uint64_t nu_log_lines(const struct nu_log *log) {
    return __atomic_load_n(&log->lines, __ATOMIC_ACQUIRE);
}

int64_t nu_log_write_ns(const struct nu_log *log) {
    return __atomic_load_n(&log->write_ns, __ATOMIC_ACQUIRE);
}

/* Returns false also where others have changed the file, or where it has no name any more. */
static bool is_ours(struct nu_log *log) {
    struct stat state;
    if (fstat(log->file.fd, &state)) {
        log->end.fstat_error = errno;
        return false;
    }
    return state.st_nlink && (uint64_t)state.st_size == log->end.end_bytes;
}

/* Notes that so many bytes of the batch are in the file, and takes its whole lines away. */
static void written(struct nu_log *log, struct nu_ingest *ingest, size_t size) {
    size_t torn_bytes = size % NU_LINE_BYTES, whole_bytes = size - torn_bytes;
    if (whole_bytes)
        memcpy(log->end.last_line, ingest->batch + whole_bytes - NU_LINE_BYTES, NU_LINE_BYTES);
    ingest->batch_used -= whole_bytes;
    if (ingest->batch_used)
        memmove(ingest->batch, ingest->batch + whole_bytes, ingest->batch_used);
    log->end.end_bytes += size;
    log->end.lines += whole_bytes / NU_LINE_BYTES;
    log->end.torn_bytes = (uint32_t)torn_bytes;
    memcpy(log->end.torn, ingest->batch, torn_bytes);
    __atomic_store_n(&log->lines, log->lines + whole_bytes / NU_LINE_BYTES, __ATOMIC_RELEASE);
}

/* Cuts an unfinished line off, as Python does: another process may append at any time. If one has
 * done so since the file was looked at, our line does not end where it would be cut. */
static void cut_torn(struct nu_log *log) {
    struct nu_log_end *end = &log->end;
    uint64_t end_bytes = end->end_bytes - end->torn_bytes;
    if (!end->torn_bytes || !is_ours(log) || ftruncate(log->file.fd, (off_t)end_bytes))
        return;
    end->end_bytes = end_bytes;
    end->torn_bytes = 0;
}

/* Returns false where the next append is Python's. */
static bool append(struct nu_log *log, struct nu_ingest *ingest) {
    if (!is_ours(log))
        return false;
    int64_t begin_ns = nu_now_ns();
    ssize_t size = write(log->file.fd, ingest->batch, ingest->batch_used);
    if (size < 0)
        log->end.write_error = errno;
    int64_t taken_ns = nu_now_ns() - begin_ns;
    __atomic_store_n(&log->write_ns, log->write_ns + taken_ns, __ATOMIC_RELEASE);
    if (size > 0)
        written(log, ingest, (size_t)size);
    cut_torn(log);
    return !ingest->batch_used && taken_ns < log->file.slow_ns;
}

bool nu_log_append(struct nu_log *log, struct nu_ingest *ingest) {
    if (!ingest->batch_used)
        return true;
    pthread_mutex_lock(&log->mutex);
    if (log->allowed && log->end.as_expected)
        log->end.as_expected = append(log, ingest);
    pthread_mutex_unlock(&log->mutex);
    return !ingest->batch_used;
}

/* Everything that was taken in is known to be numbers. */
static bool append_batch(struct nu_intake *intake, struct nu_log *log) {
    nu_intake_end(intake);
    return log && nu_log_append(log, intake->ingest);
}

bool nu_pass_has_room(struct nu_intake *intake, struct nu_log *log) {
    return nu_intake_has_room(intake) || append_batch(intake, log);
}

bool nu_pass_end(struct nu_intake *intake, struct nu_log *log, bool taken) {
    if (!taken)
        return append_batch(intake, log) && nu_intake_may_go_on(intake);
    nu_intake_end(intake);
    return false;
}
