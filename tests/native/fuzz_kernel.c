/* A libFuzzer target: any bytes give MORE, INVALID or TERMINATE, and all variants agree.
 *
 * The first bytes of an input say what the others are placed between: so many lines before and
 * after them, how many different ones, how far apart, which byte of all that to spoil, and where in
 * memory it lies. So the fuzzer need not find whole lines by itself to reach the depths of the
 * window. Input and batch are allocated anew, to the byte, for AddressSanitizer to see any step
 * beyond.
 */
#include "check.h"
#include "ingest/ingest.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

typedef int ingest_fn(struct nu_ingest *ingest, const uint8_t *arena, size_t start, size_t stop);

enum { HEADER_BYTES = 7, VARIANTS_MAX = 6, RUNS_BETWEEN_SWEEPS = 100000 };

struct stream {
    uint8_t *arena;
    size_t start;
    size_t stop;
};

struct outcome {
    int verdict;
    struct nu_ingest ingest;
};

static uint8_t *bitmap;

static void *allocate(size_t bytes) {
    void *memory = malloc(bytes);
    CHECK(memory != NULL);
    return memory;
}

static bool is_number(const uint8_t *line) {
    for (int i = 0; i < NU_LINE_BYTES - 1; i++)
        if (line[i] < '0' || line[i] > '9')
            return false;
    return line[NU_LINE_BYTES - 1] == '\n';
}

static uint32_t number_of(const uint8_t *line) {
    uint32_t number = 0;
    for (int i = 0; i < NU_LINE_BYTES - 1; i++)
        number = number * 10 + (uint32_t)(line[i] - '0');
    return number;
}

static uint8_t *put_line(uint8_t *place, uint32_t number) {
    place[NU_LINE_BYTES - 1] = '\n';
    for (int i = NU_LINE_BYTES - 2; i >= 0; i--, number /= 10)
        place[i] = (uint8_t)('0' + number % 10);
    return place + NU_LINE_BYTES;
}

static uint8_t *put_lines(uint8_t *place, uint32_t count, uint32_t distinct, uint32_t step) {
    for (uint32_t i = 0; i < count; i++)
        place = put_line(place, i * i % distinct * step);
    return place;
}

static struct stream make_stream(const uint8_t *data, size_t size) {
    uint32_t before = data[0], after = data[1] % 128, distinct = data[2] % 128 + 1;
    uint32_t step = data[2] < 128 ? 7654321 : 1; /* apart, or many in the same word */
    size_t start = data[3] % 32;
    size_t free_bytes = size - HEADER_BYTES;
    size_t bytes = (before + after) * (size_t)NU_LINE_BYTES + free_bytes;
    uint8_t *arena = allocate(start + bytes);
    uint8_t *place = put_lines(arena + start, before, distinct, step);
    memcpy(place, data + HEADER_BYTES, free_bytes);
    put_lines(place + free_bytes, after, distinct, step);
    if (bytes > 0)
        arena[start + (data[4] << 8 | data[5]) % bytes] ^= data[6];
    return (struct stream){arena, start, start + bytes};
}

/* Checks that exactly the bits of the numbers taken in are set, and clears them. */
static void check_and_clear_bits(const struct stream *stream, size_t consumed) {
    const uint8_t *lines = stream->arena + stream->start;
    size_t size = stream->stop - stream->start;
    for (size_t at = 0; at + NU_LINE_BYTES <= consumed; at += NU_LINE_BYTES)
        if (is_number(lines + at)) {
            uint32_t number = number_of(lines + at);
            CHECK(bitmap[number >> 3] >> (number & 7) & 1);
        }
    for (size_t at = 0; at + NU_LINE_BYTES <= consumed; at += NU_LINE_BYTES)
        if (is_number(lines + at)) {
            uint32_t number = number_of(lines + at);
            bitmap[number >> 3] &= (uint8_t)~(1u << (number & 7));
        }
    for (size_t at = 0; at + NU_LINE_BYTES <= size; at++)
        if (is_number(lines + at))
            CHECK(bitmap[number_of(lines + at) >> 3] == 0);
}

static void check_no_bit_is_left(void) {
    CHECK(bitmap[0] == 0 && memcmp(bitmap, bitmap + 1, NU_BITMAP_BYTES - 1) == 0);
}

static struct outcome run(ingest_fn *variant, const struct stream *stream, size_t used) {
    size_t size = stream->stop - stream->start;
    struct nu_ingest ingest = {.bitmap = bitmap, .batch_bytes = used + size, .batch_used = used};
    ingest.batch = allocate(ingest.batch_bytes);
    memset(ingest.batch, 0xA5, ingest.batch_bytes);

    if (size > 0) {
        struct nu_ingest without_room = ingest;
        without_room.batch_bytes--;
        struct nu_ingest unchanged = without_room;
        CHECK(variant(&without_room, stream->arena, stream->start, stream->stop) == -ENOBUFS);
        CHECK(memcmp(&without_room, &unchanged, sizeof unchanged) == 0);
    }
    int verdict = variant(&ingest, stream->arena, stream->start, stream->stop);
    check_and_clear_bits(stream, ingest.consumed);

    CHECK(verdict == NU_MORE || verdict == NU_INVALID || verdict == NU_TERMINATE);
    CHECK(ingest.consumed <= size && ingest.consumed % NU_LINE_BYTES == 0);
    CHECK(verdict != NU_MORE || size - ingest.consumed < NU_LINE_BYTES);
    CHECK(ingest.unique + ingest.duplicate + (verdict == NU_TERMINATE) ==
          ingest.consumed / NU_LINE_BYTES);
    CHECK(ingest.batch_used == used + ingest.unique * NU_LINE_BYTES);
    for (size_t i = 0; i < used; i++)
        CHECK(ingest.batch[i] == 0xA5);
    return (struct outcome){verdict, ingest};
}

static void check_same(const struct outcome *one, const struct outcome *other) {
    CHECK(one->verdict == other->verdict);
    CHECK(one->ingest.consumed == other->ingest.consumed);
    CHECK(one->ingest.unique == other->ingest.unique);
    CHECK(one->ingest.duplicate == other->ingest.duplicate);
    CHECK(one->ingest.batch_used == other->ingest.batch_used);
    CHECK(memcmp(one->ingest.batch, other->ingest.batch, one->ingest.batch_used) == 0);
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    bitmap = calloc(NU_BITMAP_BYTES, 1);
    CHECK(bitmap != NULL);
    return atexit(check_no_bit_is_left);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static unsigned runs;
    if (size < HEADER_BYTES)
        return -1;
    ingest_fn *variants[VARIANTS_MAX] = {nu_ingest_scalar, nu_ingest_swar, nu_ingest_scalar_shared,
                                         nu_ingest_swar_shared};
    int count = 4;
    if (nu_cpu_has_avx2()) {
        variants[count++] = nu_ingest_avx2;
        variants[count++] = nu_ingest_avx2_shared;
    }

    struct stream stream = make_stream(data, size);
    struct outcome outcomes[VARIANTS_MAX];
    for (int i = 0; i < count; i++) {
        outcomes[i] = run(variants[i], &stream, data[3] / 32);
        check_same(&outcomes[0], &outcomes[i]);
    }
    for (int i = 0; i < count; i++)
        free(outcomes[i].ingest.batch);
    free(stream.arena);
    if (++runs % RUNS_BETWEEN_SWEEPS == 0)
        check_no_bit_is_left();
    return 0;
}
