/* One pass: a line's number is made, and stored behind the others of its partition.
 *
 * Few partitions have the end of their area in the cache, and it is written to in order; sorting
 * lines by partition first would read them twice to no gain.
 */
#include "cluster/pack.h"

#include "base.h"

#include <errno.h>
#include <string.h>

/* Eight digits in three steps, pairs, then fours, then all: Lemire, "Quickly parsing eight digits"
 * (2018). The ninth follows. */
NU_INLINE uint32_t number_of(const uint8_t *line) {
    uint64_t digits;
    memcpy(&digits, line, sizeof digits);
    digits -= 0x3030303030303030u;
    digits = digits * 10 + (digits >> 8);
    const uint64_t mask = 0x000000FF000000FFu;
    uint64_t high = (digits & mask) * (100 + ((uint64_t)1000000 << 32));
    uint64_t low = (digits >> 16 & mask) * (1 + ((uint64_t)10000 << 32));
    return (uint32_t)((high + low) >> 32) * 10 + (uint32_t)(line[8] - '0');
}

/* Lemire, Kaser and Kurz, "Faster remainder by direct computation" (2019), theorem 1: exact for
 * every 32-bit number and every divisor from 2 on, the reciprocal having 64 bits. */
NU_INLINE uint32_t partition_of(uint64_t reciprocal, uint32_t number) {
    return (uint32_t)((unsigned __int128)reciprocal * number >> 64);
}

int nu_pack_set(struct nu_pack *pack, uint32_t width, uint32_t partitions, uint32_t area_numbers,
                uint32_t *areas, uint32_t *used) {
    if (width < 2 || area_numbers == 0 || (uint64_t)width * partitions < NU_NUMBERS)
        return -EINVAL;
    *pack = (struct nu_pack){
        .reciprocal = UINT64_MAX / width + 1,
        .partitions = partitions,
        .area_numbers = area_numbers,
        .areas = areas,
        .used = used,
    };
    memset(used, 0, partitions * sizeof *used);
    return 0;
}

size_t nu_pack_lines(struct nu_pack *pack, const uint8_t *lines, size_t count) {
    const uint64_t reciprocal = pack->reciprocal;
    const size_t area_numbers = pack->area_numbers;
    uint32_t *areas = pack->areas, *used = pack->used;
    for (size_t i = 0; i < count; i++) {
        uint32_t number = number_of(lines + i * NU_LINE_BYTES);
        uint32_t partition = partition_of(reciprocal, number);
        uint32_t at = used[partition];
        if (at == area_numbers)
            return i;
        areas[partition * area_numbers + at] = number;
        used[partition] = at + 1;
    }
    return count;
}
