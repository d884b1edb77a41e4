/* Numbers as lines.
 *
 * A number is kept in three parts, the head and the middle of four digits each and the last digit.
 * So all arithmetic fits 16 bits, sixteen numbers to a 256-bit register, and the parts need little
 * more to be text.
 *
 * The permutation of the mix unique is an unbalanced Feistel network on these parts: in each round
 * one part is moved on, modulo its radix, by a hash of the other two. A round can be undone, since
 * the other two are still there, so it maps different numbers to different numbers, and so do all
 * of them in a row; no table and no cycle walking is needed, for the parts' radixes multiply to
 * 10^9. See Black and Rogaway, "Ciphers with arbitrary finite domains" (2002), method 3.
 */
#define _GNU_SOURCE /* ppoll */
#include "load/load.h"

#include <errno.h>
#include <linux/sockios.h>
#include <poll.h>
#include <stdbool.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "pairs of digits are little-endian");

#define INLINE static inline __attribute__((always_inline))

enum {
    RADIX = 10000, /* of head and middle */
    LAST_RADIX = 10,
    BLOCK = 256 /* numbers made at a time */
};

_Static_assert((uint64_t)RADIX *RADIX *LAST_RADIX == NU_LOAD_DOMAIN, "parts make up the domain");

struct block {
    uint16_t head[BLOCK];
    uint16_t middle[BLOCK];
    uint16_t last[BLOCK];
};

/* A block as text: the five pairs of characters that each line is made of. */
struct text {
    uint16_t pairs[NU_LOAD_LINE_BYTES / 2][BLOCK];
};

/* Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014): the index-th
 * output of splitmix64. */
INLINE uint64_t random_bits(uint64_t seed, uint64_t index) {
    uint64_t bits = seed + (index + 1) * 0x9E3779B97F4A7C15u;
    bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9u;
    bits = (bits ^ bits >> 27) * 0x94D049BB133111EBu;
    return bits ^ bits >> 31;
}

/* Maps 32 random bits to 0 .. bound - 1. */
INLINE uint32_t below(uint32_t bound, uint32_t bits) {
    return (uint32_t)((uint64_t)bits * bound >> 32);
}

int nu_sequence_set(struct nu_sequence *sequence, int mix, uint64_t seed, uint64_t numbers,
                    uint64_t distinct) {
    bool bounded = mix == NU_MIX_UNIQUE || mix == NU_MIX_SEQUENTIAL;
    if (mix < NU_MIX_UNIQUE || mix > NU_MIX_HOT || numbers > (uint64_t)1 << 53)
        return -EINVAL;
    if (bounded && numbers > NU_LOAD_DOMAIN)
        return -EINVAL;
    if (mix == NU_MIX_DUPLICATE &&
        (distinct < 1 || distinct > numbers || distinct > NU_LOAD_DOMAIN))
        return -EINVAL;
    *sequence = (struct nu_sequence){
        .mix = mix, .seed = random_bits(seed, 0), .numbers = numbers, .distinct = distinct};
    for (int i = 0; i < NU_LOAD_ROUNDS; i++) {
        uint64_t bits = random_bits(~sequence->seed, (uint64_t)i);
        sequence->rounds[i] = (struct nu_round){
            .first_factor = (uint16_t)(bits | 1),
            .second_factor = (uint16_t)(bits >> 16 | 1),
            .addend = (uint16_t)(bits >> 32),
            .last_factor = (uint16_t)(bits >> 48 | 1),
        };
    }
    return 0;
}

/* Places: in which order a permuted mix goes through the domain does not matter, so the middle,
 * which has most values for its cost, changes fastest. */
INLINE void place_run(struct block *block, uint64_t index) {
    uint32_t middle = (uint32_t)(index % RADIX);
    uint32_t head = (uint32_t)(index / RADIX % RADIX);
    uint32_t last = (uint32_t)(index / ((uint64_t)RADIX * RADIX));
    uint32_t next_head = (head + 1) % RADIX;
    uint32_t next_last = (last + (head + 1 == RADIX)) % LAST_RADIX;
    int same = RADIX - middle < BLOCK ? (int)(RADIX - middle) : BLOCK;
    int i = 0;
    for (; i < same; i++) {
        block->middle[i] = (uint16_t)(middle + (uint32_t)i);
        block->head[i] = (uint16_t)head;
        block->last[i] = (uint16_t)last;
    }
    for (; i < BLOCK; i++) {
        block->middle[i] = (uint16_t)(i - same);
        block->head[i] = (uint16_t)next_head;
        block->last[i] = (uint16_t)next_last;
    }
}

INLINE void place(struct block *block, int i, uint32_t index) {
    block->middle[i] = (uint16_t)(index % RADIX);
    block->head[i] = (uint16_t)(index / RADIX % RADIX);
    block->last[i] = (uint16_t)(index / (RADIX * RADIX));
}

/* Of the first i numbers, (i * distinct + numbers - 1) / numbers are new, the first one always;
 * each other one repeats one of these. */
INLINE void place_duplicates(const struct nu_sequence *sequence, struct block *block,
                             uint64_t first) {
    uint64_t numbers = sequence->numbers, distinct = sequence->distinct;
    unsigned __int128 scaled = (unsigned __int128)first * distinct + (numbers - 1);
    uint32_t known = (uint32_t)(scaled / numbers);
    uint64_t rest = (uint64_t)(scaled % numbers);
    for (int i = 0; i < BLOCK; i++) {
        uint32_t bits = (uint32_t)(random_bits(sequence->seed, first + (uint64_t)i) >> 32);
        bool new = rest + distinct >= numbers;
        place(block, i, new ? known : below(known, bits));
        rest += distinct - (new ? numbers : 0);
        known += new;
    }
}

INLINE void place_hot(const struct nu_sequence *sequence, struct block *block, uint64_t first) {
    for (int i = 0; i < BLOCK; i++) {
        uint64_t bits = random_bits(sequence->seed, first + (uint64_t)i);
        block->middle[i] = (uint16_t)below(NU_LOAD_HOT, (uint32_t)(bits >> 32));
        block->head[i] = 0;
        block->last[i] = 0;
    }
}

INLINE void draw_random(const struct nu_sequence *sequence, struct block *block, uint64_t first) {
    for (int i = 0; i < BLOCK; i++) {
        uint64_t bits = random_bits(sequence->seed, first + (uint64_t)i);
        uint64_t scaled = (bits & UINT32_MAX) * RADIX;
        block->head[i] = (uint16_t)(scaled >> 32);
        block->last[i] = (uint16_t)below(LAST_RADIX, (uint32_t)scaled);
        block->middle[i] = (uint16_t)below(RADIX, (uint32_t)(bits >> 32));
    }
}

INLINE void count_up(struct block *block, uint64_t first) {
    for (int i = 0; i < BLOCK; i++) {
        uint32_t number = (uint32_t)first + (uint32_t)i;
        block->head[i] = (uint16_t)(number / (RADIX * LAST_RADIX) % RADIX);
        block->middle[i] = (uint16_t)(number / LAST_RADIX % RADIX);
        block->last[i] = (uint16_t)(number % LAST_RADIX);
    }
}

INLINE uint16_t high_product(uint16_t a, uint16_t b) {
    return (uint16_t)((uint32_t)a * b >> 16);
}

/* Moves `part` on by a hash of the other two parts, modulo its radix. */
INLINE void move(uint16_t *part, const uint16_t *first, const uint16_t *second,
                 struct nu_round round, uint16_t radix) {
    for (int i = 0; i < BLOCK; i++) {
        uint16_t hash = (uint16_t)(first[i] * round.first_factor + second[i] * round.second_factor +
                                   round.addend);
        hash = (uint16_t)((hash ^ hash >> 7) * (uint32_t)round.last_factor);
        uint16_t moved = (uint16_t)(part[i] + high_product(hash, radix));
        uint16_t wrapped = (uint16_t)(moved - radix);
        part[i] = moved < wrapped ? moved : wrapped;
    }
}

INLINE void permute(const struct nu_round *rounds, struct block *block) {
    move(block->head, block->middle, block->last, rounds[0], RADIX);
    move(block->middle, block->head, block->last, rounds[1], RADIX);
    move(block->last, block->head, block->middle, rounds[2], LAST_RADIX);
    move(block->head, block->middle, block->last, rounds[3], RADIX);
    move(block->middle, block->head, block->last, rounds[4], RADIX);
}

INLINE void make_block(const struct nu_sequence *sequence, uint64_t first, struct block *block) {
    switch (sequence->mix) {
    case NU_MIX_RANDOM:
        draw_random(sequence, block, first);
        return;
    case NU_MIX_SEQUENTIAL:
        count_up(block, first);
        return;
    case NU_MIX_DUPLICATE:
        place_duplicates(sequence, block, first);
        break;
    case NU_MIX_HOT:
        place_hot(sequence, block, first);
        break;
    default:
        place_run(block, first);
    }
    permute(sequence->rounds, block);
}

/* Two digits as characters, the first in the lower byte; 6554 / 2^16 is a tenth, near enough. */
INLINE uint16_t pair(uint16_t value) {
    uint16_t tens = high_product(value, 6554);
    return (uint16_t)((value << 8) - tens * 2559 + 0x3030);
}

/* Four digits as two pairs; 5243 / 2^19 is a hundredth, near enough. */
INLINE void write_pairs(const uint16_t *part, uint16_t *high, uint16_t *low) {
    for (int i = 0; i < BLOCK; i++) {
        uint16_t hundreds = high_product(part[i], 5243) >> 3;
        high[i] = pair(hundreds);
        low[i] = pair((uint16_t)(part[i] - hundreds * 100));
    }
}

INLINE void make_text(const struct block *block, struct text *text) {
    write_pairs(block->head, text->pairs[0], text->pairs[1]);
    write_pairs(block->middle, text->pairs[2], text->pairs[3]);
    for (int i = 0; i < BLOCK; i++)
        text->pairs[4][i] = (uint16_t)(block->last[i] | ('\n' << 8 | '0'));
}

/* Writes the first `count` lines of the text. */
static void weave_portable(const struct text *text, size_t count, uint8_t *out) {
    for (size_t i = 0; i < count; i++)
        for (size_t pair = 0; pair < NU_LOAD_LINE_BYTES / 2; pair++)
            memcpy(out + i * NU_LOAD_LINE_BYTES + pair * 2, &text->pairs[pair][i], 2);
}

void nu_lines_portable(const struct nu_sequence *sequence, uint64_t first, size_t count,
                       uint8_t *out) {
    struct block block;
    struct text text;
    for (size_t done = 0; done < count; done += BLOCK) {
        make_block(sequence, first + done, &block);
        make_text(&block, &text);
        weave_portable(&text, count - done < BLOCK ? count - done : BLOCK,
                       out + done * NU_LOAD_LINE_BYTES);
    }
}

#if defined(__x86_64__)

#define AVX2 __attribute__((target("avx2")))

/* Two lines, 16 bytes written for each: the six too many are the next line's, written later. */
AVX2 INLINE void weave_two(__m128i eights, __m128i ends, uint8_t *out) {
    _mm_storeu_si128((__m128i *)(void *)out, _mm_unpacklo_epi64(eights, ends));
    _mm_storeu_si128((__m128i *)(void *)(out + NU_LOAD_LINE_BYTES),
                     _mm_unpackhi_epi64(eights, ends));
}

/* Eight lines at line `at` of the text, 86 bytes written. */
AVX2 INLINE void weave_eight(const struct text *text, size_t at, uint8_t *out) {
    const __m128i zero = _mm_setzero_si128();
    __m128i pairs[5];
    for (int i = 0; i < 5; i++)
        pairs[i] = _mm_loadu_si128((const __m128i *)(const void *)(text->pairs[i] + at));
    __m128i heads_low = _mm_unpacklo_epi16(pairs[0], pairs[1]);
    __m128i heads_high = _mm_unpackhi_epi16(pairs[0], pairs[1]);
    __m128i middles_low = _mm_unpacklo_epi16(pairs[2], pairs[3]);
    __m128i middles_high = _mm_unpackhi_epi16(pairs[2], pairs[3]);
    __m128i ends_low = _mm_unpacklo_epi16(pairs[4], zero);
    __m128i ends_high = _mm_unpackhi_epi16(pairs[4], zero);
    weave_two(_mm_unpacklo_epi32(heads_low, middles_low), _mm_unpacklo_epi32(ends_low, zero), out);
    weave_two(_mm_unpackhi_epi32(heads_low, middles_low), _mm_unpackhi_epi32(ends_low, zero),
              out + 20);
    weave_two(_mm_unpacklo_epi32(heads_high, middles_high), _mm_unpacklo_epi32(ends_high, zero),
              out + 40);
    weave_two(_mm_unpackhi_epi32(heads_high, middles_high), _mm_unpackhi_epi32(ends_high, zero),
              out + 60);
}

AVX2 static void lines_avx2(const struct nu_sequence *sequence, uint64_t first, size_t count,
                            uint8_t *out) {
    struct block block;
    struct text text;
    size_t done = 0;
    /* One line more is needed behind the block, to take the bytes written too many. */
    for (; count - done > BLOCK; done += BLOCK) {
        make_block(sequence, first + done, &block);
        make_text(&block, &text);
        for (size_t i = 0; i < BLOCK; i += 8)
            weave_eight(&text, i, out + (done + i) * NU_LOAD_LINE_BYTES);
    }
    make_block(sequence, first + done, &block);
    make_text(&block, &text);
    weave_portable(&text, count - done, out + done * NU_LOAD_LINE_BYTES);
}

int nu_lines_avx2(const struct nu_sequence *sequence, uint64_t first, size_t count, uint8_t *out) {
    if (!__builtin_cpu_supports("avx2"))
        return -ENOTSUP;
    lines_avx2(sequence, first, count, out);
    return 0;
}

#else

int nu_lines_avx2(const struct nu_sequence *sequence, uint64_t first, size_t count, uint8_t *out) {
    (void)sequence, (void)first, (void)count, (void)out;
    return -ENOTSUP;
}

#endif

void nu_lines(const struct nu_sequence *sequence, uint64_t first, size_t count, uint8_t *out) {
    if (nu_lines_avx2(sequence, first, count, out) != 0)
        nu_lines_portable(sequence, first, count, out);
}

/* Sending.
 *
 * Readiness is edge-triggered: a client stands in the queue from the edge on until a send() takes
 * less than it was given. Each pass gives every client in the queue one send(), in turn.
 */

enum {
    EVENTS_MAX = 256,
    BUDGET_PER_S = 1000, /* with a rate, the least piece is what this part of a second allows */
    BURST_PER_S = 10,    /* what the rate allowed is kept for this part of a second */
    SAMPLE_NS = 1000000, /* between the begins of two samples */
    LOOK_NS = 100000,    /* between two looks at samples */
    LOOKS = 16
};

enum sent { SENT_ALL, SENT_PART, SENT_NONE_YET, SENT_LAST };

static const int64_t second_ns = 1000000000;

static int64_t now_ns(void) {
    struct timespec now;
    /* Cannot fail: the clock exists and the pointer is valid. */
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * second_ns + now.tv_nsec;
}

uint32_t nu_latency_bucket(int64_t latency_ns) {
    uint64_t value = latency_ns > 0 ? (uint64_t)latency_ns : 0;
    if (value < 32)
        return (uint32_t)value;
    uint32_t octave = 63 - (uint32_t)__builtin_clzll(value);
    return (octave - 4) * 32 + (uint32_t)(value >> (octave - 5) & 31);
}

int64_t nu_latency_least_ns(uint32_t bucket) {
    if (bucket < 32)
        return bucket;
    return (int64_t)((uint64_t)(32 + bucket % 32) << (bucket / 32 - 1));
}

/* Bytes in the send queue that the other host has not confirmed; the closing FIN counts as one. */
static uint64_t unacknowledged(int fd) {
    int bytes = 0;
    return ioctl(fd, SIOCOUTQ, &bytes) == 0 && bytes > 0 ? (uint64_t)bytes : 0;
}

static void close_client(struct nu_load *load, struct nu_client *client, int64_t now) {
    /* Closing also ends its watch. An error here would tell nothing about delivery. */
    (void)close(client->fd);
    client->fd = -1;
    load->last_close_ns = now;
    load->open--;
}

static void fail_client(struct nu_load *load, struct nu_client *client, int error, int64_t now) {
    load->connecting -= client->state == NU_CLIENT_CONNECTING;
    load->failed++;
    uint64_t bytes = unacknowledged(client->fd);
    client->unacknowledged = bytes < client->sent ? bytes : client->sent;
    client->state = NU_CLIENT_FAILED;
    client->error = error;
    close_client(load, client, now);
}

/* Learns what the server did: it never says a word, so it can only close. */
static void hear(struct nu_load *load, struct nu_client *client, int64_t now) {
    uint8_t byte;
    ssize_t got = recv(client->fd, &byte, sizeof byte, MSG_DONTWAIT);
    if (got < 0 && errno == EAGAIN)
        return;
    if (got < 0) {
        fail_client(load, client, errno, now);
    } else if (got > 0) {
        fail_client(load, client, EPROTO, now);
    } else if (client->state == NU_CLIENT_DRAINING && unacknowledged(client->fd) <= 1) {
        /* A server that closes with bytes unread resets the connection, so it has read them. */
        client->state = NU_CLIENT_DRAINED;
        client->drained_ns = now;
        load->drained++;
        load->bytes_taken += client->bytes;
        close_client(load, client, now);
    } else {
        fail_client(load, client, 0, now);
    }
}

static void enqueue(struct nu_load *load, struct nu_client *client) {
    if (client->queued)
        return;
    uint32_t place =
        (uint32_t)(((uint64_t)load->queue_first + load->queue_count) % load->client_count);
    load->queue[place] = (uint32_t)(client - load->clients);
    load->queue_count++;
    client->queued = 1;
}

static struct nu_client *dequeue(struct nu_load *load) {
    struct nu_client *client = &load->clients[load->queue[load->queue_first]];
    load->queue_first = load->queue_first + 1 == load->client_count ? 0 : load->queue_first + 1;
    load->queue_count--;
    client->queued = 0;
    return client;
}

/* True where the connection is made; a failure to connect fails the client. */
static bool connected(struct nu_load *load, struct nu_client *client, uint32_t events,
                      int64_t now) {
    int error = 0;
    socklen_t size = sizeof error;
    if (getsockopt(client->fd, SOL_SOCKET, SO_ERROR, &error, &size) != 0)
        error = errno;
    if (error != 0) {
        fail_client(load, client, error, now);
        return false;
    }
    if (!(events & EPOLLOUT))
        return false;
    client->state = NU_CLIENT_SENDING;
    load->connecting--;
    return true;
}

static void notice(struct nu_load *load, struct nu_client *client, uint32_t events, int64_t now) {
    if (client->state == NU_CLIENT_CONNECTING && !connected(load, client, events, now))
        return;
    if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
        hear(load, client, now);
    if (events & EPOLLOUT && client->state == NU_CLIENT_SENDING)
        enqueue(load, client);
}

/* Waits in nanoseconds, which epoll_wait(2) alone cannot. */
static int wait_for_events(struct nu_load *load, int64_t wait_ns) {
    if (wait_ns > 0) {
        struct pollfd epoll = {.fd = load->epoll_fd, .events = POLLIN};
        struct timespec timeout = {.tv_sec = wait_ns / second_ns, .tv_nsec = wait_ns % second_ns};
        if (ppoll(&epoll, 1, &timeout, NULL) < 0)
            return -errno;
    }
    struct epoll_event events[EVENTS_MAX];
    int count = epoll_wait(load->epoll_fd, events, EVENTS_MAX, 0);
    if (count < 0)
        return -errno;
    int64_t now = now_ns();
    for (int i = 0; i < count; i++)
        notice(load, &load->clients[events[i].data.u32], events[i].events, now);
    return 0;
}

static int watch(struct nu_load *load, uint32_t index) {
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET,
                                .data.u32 = index};
    return epoll_ctl(load->epoll_fd, EPOLL_CTL_ADD, load->clients[index].fd, &event) == 0 ? 0
                                                                                          : -errno;
}

int nu_load_open(struct nu_load *load) {
    for (uint32_t i = 0; i < load->client_count; i++) {
        if (load->clients[i].state == NU_CLIENT_FAILED) {
            load->failed++;
            continue;
        }
        int result = watch(load, i);
        if (result != 0)
            return result;
        load->open++;
        load->connecting += load->clients[i].state == NU_CLIENT_CONNECTING;
    }
    return 0;
}

int nu_load_connect(struct nu_load *load, int64_t until_ns) {
    for (int64_t left = until_ns - now_ns(); load->connecting > 0 && left > 0;
         left = until_ns - now_ns()) {
        int result = wait_for_events(load, left);
        if (result != 0)
            return result == -EINTR ? 0 : result;
    }
    return 0;
}

/* Returns where bytes at .. at + bytes - 1 of what the client sends are, making them if needed. */
static const uint8_t *lines_at(struct nu_load *load, const struct nu_client *client, uint64_t at,
                               size_t bytes) {
    if (load->prepared != NULL)
        return load->prepared + client->first * NU_LOAD_LINE_BYTES + at;
    uint32_t index = (uint32_t)(client - load->clients);
    uint32_t slot = index % load->piece_count;
    struct nu_piece *piece = &load->pieces[slot];
    uint8_t *made = load->arena + slot * load->piece_bytes;
    if (piece->client != index || at < piece->start || at + bytes > piece->stop) {
        uint64_t line = at / NU_LOAD_LINE_BYTES;
        uint64_t left = client->bytes / NU_LOAD_LINE_BYTES - line;
        uint64_t room = load->piece_bytes / NU_LOAD_LINE_BYTES;
        uint64_t count = left < room ? left : room;
        nu_lines(load->sequence, client->first + line, count, made);
        *piece = (struct nu_piece){.client = index,
                                   .start = line * NU_LOAD_LINE_BYTES,
                                   .stop = (line + count) * NU_LOAD_LINE_BYTES};
    }
    return made + (at - piece->start);
}

static double quantum_bytes(const struct nu_load *load) {
    double bytes = (double)load->bytes_per_s / BUDGET_PER_S;
    return bytes < NU_LOAD_LINE_BYTES ? NU_LOAD_LINE_BYTES : bytes;
}

static void refill_budget(struct nu_load *load, int64_t now) {
    if (load->budget_ns != 0)
        load->budget_bytes +=
            (double)(now - load->budget_ns) * (double)load->bytes_per_s / (double)second_ns;
    load->budget_ns = now;
    double most = (double)load->bytes_per_s / BURST_PER_S;
    if (most < quantum_bytes(load))
        most = quantum_bytes(load);
    if (load->budget_bytes > most)
        load->budget_bytes = most;
}

/* How many of the bytes at `at` the rate allows now, in whole lines where not all; 0 for not yet.
 */
static size_t affordable(const struct nu_load *load, uint64_t at, size_t bytes) {
    if (load->bytes_per_s == 0 || load->budget_bytes >= (double)bytes)
        return bytes;
    if (load->budget_bytes < quantum_bytes(load))
        return 0;
    size_t allowed = (size_t)load->budget_bytes;
    return allowed - (size_t)((at + allowed) % NU_LOAD_LINE_BYTES);
}

/* Begun on time, whether earlier ones have ended or not: else slow times would count too little. */
static void start_sample(struct nu_load *load, const struct nu_client *client, int64_t now) {
    if (now - load->sample_start_ns < SAMPLE_NS || load->sample_count == NU_LOAD_SAMPLES)
        return;
    load->samples[load->sample_count++] = (struct nu_sample){
        .client = (uint32_t)(client - load->clients), .sent = client->sent, .begin_ns = now};
    load->sample_start_ns = now;
}

/* True where the sample needs no further look. Failed clients' tell nothing. */
static bool end_sample(struct nu_load *load, const struct nu_sample *sample) {
    const struct nu_client *client = &load->clients[sample->client];
    if (client->state == NU_CLIENT_FAILED)
        return true;
    int64_t end_ns = client->drained_ns;
    if (client->state != NU_CLIENT_DRAINED) {
        uint64_t waiting = unacknowledged(client->fd);
        if (client->state == NU_CLIENT_DRAINING && waiting > 0)
            waiting--;
        if (client->sent - waiting < sample->sent)
            return false;
        end_ns = now_ns();
    }
    int64_t latency_ns = end_ns - sample->begin_ns;
    load->acknowledged[nu_latency_bucket(latency_ns)]++;
    if (latency_ns > load->acknowledged_max_ns)
        load->acknowledged_max_ns = latency_ns;
    return true;
}

/* Looks at some of the samples, at others the next time: a look costs a system call. */
static void look_at_samples(struct nu_load *load, uint32_t looks, int64_t now) {
    load->sample_look_ns = now;
    for (; looks > 0 && load->sample_count > 0; looks--) {
        if (load->sample_next >= load->sample_count)
            load->sample_next = 0;
        struct nu_sample *sample = &load->samples[load->sample_next];
        if (end_sample(load, sample))
            *sample = load->samples[--load->sample_count];
        else
            load->sample_next++;
    }
}

static enum sent finish_client(struct nu_load *load, struct nu_client *client, int64_t now) {
    if (shutdown(client->fd, SHUT_WR) != 0)
        fail_client(load, client, errno, now);
    else
        client->state = NU_CLIENT_DRAINING;
    return SENT_LAST;
}

static enum sent send_piece(struct nu_load *load, struct nu_client *client, int64_t now) {
    uint64_t at = client->sent;
    uint64_t left = client->bytes - at;
    if (left == 0)
        return finish_client(load, client, now);
    uint64_t whole = load->send_bytes - at % load->send_bytes;
    size_t bytes = affordable(load, at, (size_t)(whole < left ? whole : left));
    if (bytes == 0)
        return SENT_NONE_YET;
    ssize_t sent =
        send(client->fd, lines_at(load, client, at, bytes), bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0 && errno == EAGAIN)
        return SENT_PART;
    if (sent < 0) {
        fail_client(load, client, errno, now);
        return SENT_LAST;
    }
    client->sent += (uint64_t)sent;
    client->last_send_ns = now;
    load->bytes_sent += (uint64_t)sent;
    load->budget_bytes -= (double)sent;
    start_sample(load, client, now);
    if (client->sent == client->bytes)
        return finish_client(load, client, now);
    return (size_t)sent < bytes ? SENT_PART : SENT_ALL;
}

/* One piece for each client in the queue. Returns how long, in ns, the rate asks to wait. */
static int64_t send_pass(struct nu_load *load, int64_t until_ns) {
    for (uint32_t left = load->queue_count; left > 0; left--) {
        int64_t now = now_ns();
        if (now >= until_ns)
            return 0;
        if (now - load->sample_look_ns >= LOOK_NS)
            look_at_samples(load, LOOKS, now);
        if (load->bytes_per_s != 0)
            refill_budget(load, now);
        struct nu_client *client = &load->clients[load->queue[load->queue_first]];
        enum sent sent = SENT_LAST;
        if (client->state == NU_CLIENT_SENDING)
            sent = send_piece(load, client, now);
        if (sent == SENT_NONE_YET)
            return (int64_t)((quantum_bytes(load) - load->budget_bytes) /
                             (double)load->bytes_per_s * (double)second_ns) +
                   1;
        dequeue(load);
        if (sent == SENT_ALL)
            enqueue(load, client);
    }
    return 0;
}

int nu_load_run(struct nu_load *load, int64_t until_ns) {
    while (load->open > 0) {
        int64_t pause_ns = send_pass(load, until_ns);
        int64_t now = now_ns();
        if (now >= until_ns)
            return 0;
        /* Before and after each sleep, so that a sleep hides no more than its own time. */
        if (load->queue_count == 0 || pause_ns > 0)
            look_at_samples(load, LOOKS, now);
        int64_t wait_ns = until_ns - now;
        if (load->queue_count > 0 && pause_ns < wait_ns)
            wait_ns = pause_ns;
        if (load->sample_count > 0 && wait_ns > LOOK_NS)
            wait_ns = LOOK_NS;
        int result = wait_for_events(load, wait_ns);
        if (result != 0)
            return result == -EINTR ? 0 : result;
        if (load->queue_count == 0)
            look_at_samples(load, LOOKS, now_ns());
    }
    look_at_samples(load, NU_LOAD_SAMPLES, now_ns());
    return 0;
}
