/* The kernels of ingest and of a cluster on a processor that has no Python to test them with.
 *
 * The fuzzer's target plays inputs that are made up here, with the memory that it allocates in
 * front of a page that can't be touched. Prints what is wrong and ends with a signal, or returns 0.
 */
#include <stdlib.h>

static void *guarded_malloc(size_t bytes);
static void guarded_free(void *memory);
#define malloc guarded_malloc
#define free guarded_free
#include "fuzz_kernel.c"
#undef malloc
#undef free

#include "cluster/collect.h"
#include "cluster/pack.h"

#include <sys/mman.h>
#include <unistd.h>

enum { PLACES = 8, PLACE_BYTES = 1 << 16, INPUTS = 6000, SPOILED_LINES = 20 };

static struct {
    uint8_t *guard; /* the first byte that can't be touched */
    void *memory;   /* what is in use, up to there */
} places[PLACES];

static void *guarded_malloc(size_t bytes) {
    for (int i = 0; bytes <= PLACE_BYTES && i < PLACES; i++)
        if (!places[i].memory)
            return places[i].memory = places[i].guard - bytes;
    return NULL;
}

static void guarded_free(void *memory) {
    for (int i = 0; i < PLACES; i++)
        if (places[i].memory == memory)
            places[i].memory = NULL;
}

static void make_places(void) {
    size_t page_bytes = (size_t)sysconf(_SC_PAGESIZE);
    for (int i = 0; i < PLACES; i++) {
        uint8_t *memory = mmap(NULL, PLACE_BYTES + page_bytes, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(memory != MAP_FAILED);
        places[i].guard = memory + PLACE_BYTES;
        CHECK(mprotect(places[i].guard, page_bytes, PROT_NONE) == 0);
    }
}

/* splitmix64, by Sebastiano Vigna. */
static uint64_t random_bits(void) {
    static uint64_t state;
    uint64_t bits = state += 0x9e3779b97f4a7c15;
    bits = (bits ^ bits >> 30) * 0xbf58476d1ce4e5b9;
    bits = (bits ^ bits >> 27) * 0x94d049bb133111eb;
    return bits ^ bits >> 31;
}

/* Lines before and after up to two lines' length of anything, at any address. */
static void play_random_inputs(void) {
    for (int i = 0; i < INPUTS; i++) {
        uint8_t input[HEADER_BYTES + 2 * NU_LINE_BYTES];
        size_t size = HEADER_BYTES + random_bits() % (2 * NU_LINE_BYTES + 1);
        for (size_t j = 0; j < size; j++)
            input[j] = (uint8_t)random_bits();
        uint64_t kind = random_bits() % 4;
        if (kind != 0)
            input[6] = 0; /* no byte is spoiled */
        if (kind == 1)
            memcpy(input + HEADER_BYTES, "terminate\nterminate\n", size - HEADER_BYTES);
        if (kind > 1)
            memcpy(input + HEADER_BYTES, "012345678\n999999999\n", size - HEADER_BYTES);
        LLVMFuzzerTestOneInput(input, size);
    }
}

/* Each byte of each line of two blocks and some more lines, with each of its other values. */
static void play_each_spoiled_byte(void) {
    for (unsigned at = 0; at < SPOILED_LINES * NU_LINE_BYTES; at++)
        for (unsigned flip = 1; flip < 256; flip++) {
            uint8_t input[HEADER_BYTES] = {SPOILED_LINES, 0, 17, (uint8_t)(flip % 32), 0, 0, 0};
            input[5] = (uint8_t)at;
            input[6] = (uint8_t)flip;
            LLVMFuzzerTestOneInput(input, sizeof input);
        }
}

/* Lines to packed numbers, and those to lines again, each once. */
static void pack_and_collect(uint32_t width, uint32_t count) {
    enum { PARTITIONS_MAX = 16 };
    const uint32_t partitions = (NU_NUMBERS + width - 1) / width;
    uint32_t *numbers = calloc(count, sizeof *numbers), used[PARTITIONS_MAX];
    uint32_t *areas = calloc((size_t)partitions * count, sizeof *areas);
    CHECK(numbers && areas && partitions <= PARTITIONS_MAX);
    uint8_t *lines = guarded_malloc((size_t)count * NU_LINE_BYTES);
    for (uint32_t i = 0; i < count; i++) {
        numbers[i] =
            i % 3 ? (uint32_t)(random_bits() % NU_NUMBERS) : i / 6 * 199999999 % NU_NUMBERS;
        put_line(lines + (size_t)i * NU_LINE_BYTES, numbers[i]);
    }
    struct nu_pack pack;
    CHECK(nu_pack_set(&pack, width, partitions, count, areas, used) == 0);
    CHECK(nu_pack_lines(&pack, lines, count) == count);

    for (uint32_t partition = 0; partition < partitions; partition++) {
        const uint32_t *area = areas + (size_t)partition * count;
        uint32_t end = (partition + 1) * width < NU_NUMBERS ? (partition + 1) * width : NU_NUMBERS;
        uint32_t packed_count = 0, unique = 0;
        uint8_t *packed = guarded_malloc(used[partition] * sizeof *area);
        uint8_t *batch = guarded_malloc(used[partition] * (size_t)NU_LINE_BYTES);
        struct nu_collect collect = {.bitmap = bitmap,
                                     .batch = batch,
                                     .batch_bytes = used[partition] * (size_t)NU_LINE_BYTES,
                                     .first = partition * width,
                                     .end = end};
        memcpy(packed, area, used[partition] * sizeof *area);
        CHECK(nu_collect(&collect, packed, used[partition]) == 0);
        for (uint32_t i = 0; i < count; i++) {
            if (numbers[i] / width != partition)
                continue;
            CHECK(area[packed_count++] == numbers[i]);
            uint8_t *byte = &bitmap[numbers[i] >> 3], bit = (uint8_t)(1u << (numbers[i] & 7));
            if (*byte & bit)
                CHECK(number_of(batch + (size_t)unique++ * NU_LINE_BYTES) == numbers[i]);
            *byte &= (uint8_t)~bit;
        }
        CHECK(packed_count == used[partition]);
        CHECK(collect.unique == unique && collect.duplicate == packed_count - unique);
        CHECK(collect.batch_used == unique * (size_t)NU_LINE_BYTES);
        guarded_free(packed);
        guarded_free(batch);
    }
    guarded_free(lines);
    free(numbers);
    free(areas);
}

int main(void) {
    make_places();
    LLVMFuzzerInitialize(NULL, NULL);
    play_random_inputs();
    play_each_spoiled_byte();
    for (uint32_t count = 1; count < 200; count++)
        pack_and_collect(count % 2 ? 62500000 : 99999989, count);
    return 0;
}
