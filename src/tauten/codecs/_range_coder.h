/* The binary range coder of _mixing.c, and the tables that turn probabilities into logarithms and back.
 *
 * Tables are computed in integers, so that every machine has the same. _range_coder.py says all of it in Python.
 */
#ifndef TAUTEN_RANGE_CODER_H
#define TAUTEN_RANGE_CODER_H

#include <stdint.h>
#include <stddef.h>

#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline))
#else
#define INLINE static inline
#endif

enum { ENCODE, DECODE, MEASURE };
enum { OK, DAMAGED = -1, NO_MEMORY = -2, NO_ROOM = -3 };
enum {
    REACH = 2816, /* squash's domain is [-REACH, REACH], in 1/256 */
    LEAST = 16    /* the least probability, in 2^-16 */
};

static uint16_t squash_table[2 * REACH + 1];
static int16_t stretch_table[4096];
static uint32_t bits_table[4097];
static uint32_t share_table[1024];

INLINE int64_t down(int64_t x, int n) { return x >= 0 ? x >> n : ~(~x >> n); }

static void fill_tables(void)
{
    uint64_t power = (uint64_t)1 << 24; /* exp(x / 256) in 2^-24 */
    int32_t x, p, i;
    for (x = 0; x <= REACH; x++) {
        uint64_t above = (power << 16) / (power + ((uint64_t)1 << 24));
        squash_table[REACH + x] = (uint16_t)(above > 65535 ? 65535 : above);
        squash_table[REACH - x] = (uint16_t)(above > 65535 ? 1 : 65536 - above);
        power = (power * 8421440) >> 23; /* exp(1 / 256) * 2^23 */
    }
    x = -REACH;
    for (p = 0; p < 4096; p++) {
        while (x < REACH && squash_table[REACH + x] < p * 16 + 8) x++;
        stretch_table[p] = (int16_t)x;
    }
    bits_table[0] = 13u << 16;
    for (p = 1; p <= 4096; p++) { /* 12 - log2(p) in 2^-16, bit by bit: squaring a number doubles its logarithm */
        uint64_t y = (uint64_t)p << 18;
        uint32_t whole = 0, part = 0;
        for (; y < (uint64_t)1 << 30; y <<= 1) whole += 1u << 16;
        for (i = 15; i >= 0; i--) {
            y = (y * y) >> 30;
            if (y >> 31) {
                y >>= 1;
                part |= 1u << i;
            }
        }
        bits_table[p] = whole - part;
    }
    for (p = 0; p < 1024; p++) share_table[p] = 131072u / (2u * (uint32_t)p + 3u); /* 1 / (p + 1.5) in 2^-16 */
}

/* What a bit of probability p (2^-16) takes, in 2^-16 bits. */
INLINE uint32_t bits_of(uint32_t p) { return p < 4096 ? bits_table[p] + (4u << 16) : bits_table[p >> 4]; }

/* The binary range coder: 32 bits, with carry (after Martin 1979, Schindler 1998). */
typedef struct {
    uint8_t *out;
    const uint8_t *in;
    size_t size, place;
    uint32_t low, range, code;
    int fault;
    uint64_t bits;
} Coder;

static void coder_shift_out(Coder *c)
{
    do {
        if (c->place < c->size) c->out[c->place++] = (uint8_t)(c->low >> 24);
        else c->fault = NO_ROOM;
        c->low <<= 8;
        c->range <<= 8;
    } while (c->range < 1u << 24);
}

static void coder_shift_in(Coder *c)
{
    do { /* three bytes beyond the end are read as zeros: the encoder left them out */
        if (c->place >= c->size + 3) c->fault = DAMAGED;
        c->code = c->code << 8 | (c->place < c->size ? c->in[c->place] : 0u);
        c->place++;
        c->range <<= 8;
    } while (c->range < 1u << 24);
}

static void coder_carry(Coder *c)
{
    size_t i = c->place;
    while (i > 0 && ++c->out[--i] == 0) { }
}

INLINE int coder_bit(Coder *c, uint32_t p, int bit, const int mode)
{
    uint32_t bound;
    if (mode == MEASURE) {
        c->bits += bits_of(bit ? p : 65536 - p);
        return bit;
    }
    bound = (uint32_t)(((uint64_t)c->range * p) >> 16);
    if (mode == DECODE) bit = c->code < bound;
    if (bit) {
        c->range = bound;
    } else {
        c->range -= bound;
        if (mode == DECODE) c->code -= bound;
        else if ((c->low += bound) < bound) coder_carry(c);
    }
    if (c->range < 1u << 24) {
        if (mode == DECODE) coder_shift_in(c);
        else coder_shift_out(c);
    }
    return bit;
}

#endif
