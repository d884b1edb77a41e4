/* A libFuzzer target: how streams are cut, and mixed, does not matter to an intake.
 *
 * An input's first bytes cut the others into the pieces of several connections. Each connection's
 * stream, taken in piece by piece with its tail in between, must come to the verdict, the numbers
 * and the tail that a kernel finds in the whole. Arena, tails and batch are allocated to the byte,
 * for AddressSanitizer to see any step beyond.
 */
#include "check.h"
#include "ingest/pieces.h"

#include <stdbool.h>
#include <string.h>

enum { CONNECTIONS = 3, CUT_BYTES = 2, CUTS_MAX = 12, TAIL_BYTES = NU_LINE_BYTES - 1 };
enum { GATHER_BYTES = 48, GATHER_PIECE_BYTES = 24, COMPLETE_MAX = 4 };

struct stream {
    uint8_t *bytes;
    size_t size;
    int verdict;
};

static uint8_t *bitmap;

static void *allocate(size_t bytes) {
    void *memory = calloc(bytes + 1, 1);
    CHECK(memory != NULL);
    return memory;
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    bitmap = allocate(NU_BITMAP_BYTES);
    return 0;
}

/* Clears the bits of all numbers at multiples of ten bytes. */
static void forget(const struct stream *stream) {
    for (size_t at = 0; at + NU_LINE_BYTES <= stream->size; at += NU_LINE_BYTES) {
        uint32_t number = 0;
        for (int i = 0; i < TAIL_BYTES; i++)
            number = number * 10 + (uint32_t)(stream->bytes[at + (size_t)i] - '0') % 10;
        bitmap[number >> 3] = 0;
    }
}

/* Ends the call after this piece where that `ends` it, or a pass would. */
static void take(struct nu_intake *intake, struct stream *stream, uint32_t connection,
                 const uint8_t *piece, size_t size, bool ends) {
    /* The piece ends where the memory ends, and the tail has room in front of it and no more. */
    uint8_t *arena = malloc(TAIL_BYTES + size);
    CHECK(arena != NULL);
    memset(arena, '9', TAIL_BYTES);
    memcpy(arena + TAIL_BYTES, piece, size);
    memcpy(stream->bytes + stream->size, piece, size);
    stream->size += size;
    intake->arena = arena;
    size_t start = TAIL_BYTES - intake->tails[connection].size;
    uint64_t before = intake->taken_bytes;
    uint32_t complete = intake->complete_count;
    CHECK(nu_intake_has_room(intake));
    bool goes_on = nu_intake_take(intake, connection, TAIL_BYTES, size);
    stream->verdict = intake->verdict;
    CHECK(intake->taken_bytes == before + size && intake->connection == connection);
    CHECK(goes_on == (intake->verdict == NU_MORE && before + size < intake->call_bytes_max &&
                      intake->complete_count < COMPLETE_MAX));
    /* What is rejected comes behind what was taken in. */
    CHECK(intake->complete_count == complete + (intake->rejected_start > start));
    CHECK(intake->rejected_start <= intake->rejected_stop);
    CHECK(intake->rejected_stop == TAIL_BYTES + size);
    free(arena);
    if (ends || !goes_on) {
        nu_intake_end(intake);
        CHECK(intake->gathered_bytes == 0);
        nu_intake_begin(intake);
    }
}

/* Checks what was taken in against the whole stream. */
static uint64_t check(const struct nu_intake *intake, const struct stream *stream,
                      uint32_t connection) {
    struct nu_ingest whole = {.bitmap = bitmap, .batch_bytes = stream->size};
    whole.batch = allocate(stream->size);
    int verdict = intake->kernel(&whole, stream->bytes, 0, stream->size);
    const struct nu_tail *tail = &intake->tails[connection];
    CHECK(stream->verdict == verdict);
    /* All its numbers are known by now. */
    CHECK(whole.unique == 0);
    CHECK(tail->size == (verdict == NU_MORE ? stream->size - whole.consumed : 0));
    CHECK(memcmp(tail->bytes, stream->bytes + whole.consumed, tail->size) == 0);
    free(whole.batch);
    return whole.duplicate;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 1 || size < 1 + CUT_BYTES * (size_t)(data[0] % CUTS_MAX))
        return -1;
    struct stream streams[CONNECTIONS] = {0};
    struct nu_ingest ingest = {.bitmap = bitmap, .batch_bytes = size};
    struct nu_intake intake = {.ingest = &ingest, .call_bytes_max = 128};
    uint32_t complete[COMPLETE_MAX];
    intake.kernel = data[0] & 128 ? nu_ingest_scalar : nu_ingest_swar;
    intake.complete = complete;
    intake.complete_max = COMPLETE_MAX;
    intake.tails = malloc(CONNECTIONS * sizeof *intake.tails);
    ingest.batch = malloc(size);
    intake.gathered = malloc(GATHER_BYTES);
    intake.gather_bytes_max = GATHER_BYTES;
    intake.gather_piece_bytes_max = GATHER_PIECE_BYTES;
    CHECK(intake.tails && ingest.batch && intake.gathered);
    memset(intake.tails, 0, CONNECTIONS * sizeof *intake.tails);
    for (int i = 0; i < CONNECTIONS; i++)
        streams[i].bytes = allocate(size);

    const uint8_t *cut = data + 1, *piece = cut + CUT_BYTES * (data[0] % CUTS_MAX);
    for (const uint8_t *first = piece; cut < first; cut += CUT_BYTES) {
        struct stream *stream = &streams[cut[0] % CONNECTIONS];
        size_t left = (size_t)(data + size - piece);
        size_t bytes = cut[1] < left ? cut[1] : left;
        if (bytes && stream->verdict == NU_MORE) {
            take(&intake, stream, cut[0] % CONNECTIONS, piece, bytes, cut[0] & 128);
            piece += bytes;
        }
    }
    nu_intake_end(&intake);
    uint64_t lines = 0;
    for (uint32_t i = 0; i < CONNECTIONS; i++)
        lines += check(&intake, &streams[i], i);
    CHECK(ingest.unique + ingest.duplicate == lines);
    CHECK(ingest.batch_used == ingest.unique * NU_LINE_BYTES);
    for (int i = 0; i < CONNECTIONS; i++) {
        forget(&streams[i]);
        free(streams[i].bytes);
    }
    free(intake.gathered);
    free(intake.tails);
    free(ingest.batch);
    return 0;
}
