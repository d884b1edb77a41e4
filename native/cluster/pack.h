/* Lines of numbers split by range, each range's numbers packed as little-endian 32-bit integers.
 *
 * Like ingest.h, this header is handed to cffi line by line: see native/build_ffi.py.
 */
#ifndef NUMBERS_URING_PACK_H
#define NUMBERS_URING_PACK_H

#include <stddef.h>
#include <stdint.h>

/* Number n belongs to partition n / width. Set by nu_pack_set, but for used: the code that
 * takes numbers out of an area sets it back to 0. */
struct nu_pack {
    uint64_t reciprocal; /* of width, as a fraction of 2^64, rounded up */
    uint32_t partitions;
    uint32_t area_numbers; /* room of each area */
    uint32_t *areas;       /* partitions * area_numbers, one area behind the other */
    uint32_t *used;        /* numbers in each area; partitions of them */
};

/* Sets all fields; the areas begin empty. Returns 0, or -EINVAL where width is below 2, an area has
 * no room, or numbers of the domain would belong to none of the partitions. */
int nu_pack_set(struct nu_pack *pack, uint32_t width, uint32_t partitions, uint32_t area_numbers,
                uint32_t *areas, uint32_t *used);

/* Appends `count` lines, each nine digits and one more byte, to the areas of their numbers.
 *
 * Stops in front of the first line whose area is full. Returns how many lines were taken; what the
 * lines hold is the caller's promise, and nothing beyond them is read. */
size_t nu_pack_lines(struct nu_pack *pack, const uint8_t *lines, size_t count);

#endif
