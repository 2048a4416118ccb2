/* Integer matrices by context mixing and binary arithmetic coding; see _mixing.py for the family and its sources.
 *
 * Everything is computed in integers of stated width, tables too, so that every machine codes the same bits.
 * _mixing_twin.py says the same in Python, name for name; a change here is a change there. A negative number is
 * shifted by `down` only, which is defined for it, and no sum can leave its type: probabilities have 22 bits at most,
 * weights 21, inputs 13.
 */
#include "_range_coder.h"

#include <stdlib.h>
#include <string.h>

#if defined(_WIN32)
#define API __declspec(dllexport)
#else
#define API __attribute__((visibility("default")))
#endif

enum { FORMAT = 1 };
enum { TRANSPOSED, SHIFT, LAG, FAR, ROW_FLAGS, COLUMN_FLAGS, SIGNS, LIMIT, RATE, RICH, SETTINGS };
enum {
    STEPS = 16,       /* slots of one context: zero flag, 13 steps of the unary part, unused, sign */
    SIGN = 15,
    UNARY = 13,
    CONTEXTS = 11,    /* of an element in a rich model; a light one has the first five */
    LIGHT = 5,
    SIGN_CONTEXTS = 6,
    LIGHT_SIGN = 3,
    INPUTS = CONTEXTS + 2,
    CLASSES = 5,      /* what is coded: zero flag, sign, first step, second, later ones */
    SELECTED = 8,
    MOST_SEEN = 1023,
    COLUMN_SLOTS = 65536,
    WEIGHT = 1 << 20  /* the greatest weight, 16 */
};

/* To be called once before all else. Gives the number of the format that this file writes. */
API int64_t tauten_mixing_prepare(void)
{
    fill_tables();
    return FORMAT;
}

/* All that is learnt while one matrix is coded. A slot is a probability (22 bits) and a count (10 bits). */
typedef struct {
    Coder coder;
    int32_t *q;
    size_t rows, columns, period, lag, far, rise;
    int shift, signs, limit;
    uint32_t *slots, *table[CONTEXTS + 1];
    uint32_t *mean, *smooth, row_mean, row_count, rows_seen;
    uint16_t *coarse, *fine;
    uint8_t *live_row, *live_column;
    uint32_t base[STEPS], flag[16], low[32], tail[96];
    int32_t first[CLASSES][INPUTS], second[CLASSES][SELECTED][INPUTS];
    uint32_t seen[CLASSES];
    int32_t rate[256];
    /* the element at hand */
    uint32_t *context[CONTEXTS], *sign_context[SIGN_CONTEXTS];
    int32_t lean;
    int select;
} State;

/* A bit's probability, and what learning from it needs. */
typedef struct {
    uint32_t *slot[INPUTS];
    int32_t input[INPUTS], *first, *second;
    uint32_t *seen, mixed;
} Guess;

INLINE void slot_learn(uint32_t *slot, int bit, int limit)
{
    uint32_t n = *slot & 1023;
    int64_t p = *slot >> 10;
    p += down(((bit ? 4194304 : 0) - p) * share_table[n], 16);
    *slot = (uint32_t)p << 10 | (n < (uint32_t)limit ? n + 1 : n);
}

INLINE uint32_t clamp(uint32_t p) { return p < LEAST ? LEAST : p > 65536 - LEAST ? 65536 - LEAST : p; }

/* A bit by one adaptive probability. */
INLINE int plain_bit(State *s, uint32_t *slot, int bit, const int mode)
{
    bit = coder_bit(&s->coder, clamp(*slot >> 16), bit, mode);
    slot_learn(slot, bit, 254);
    return bit;
}

INLINE int raw_bit(State *s, int bit, const int mode) { return coder_bit(&s->coder, 32768, bit, mode); }

/* Mix the order-0 estimate with each context's deviation from it. A context not met before says nothing. */
INLINE void guess(State *s, Guess *g, uint32_t **contexts, const int count, int step, int class, const int rich)
{
    uint32_t *base = &s->base[step];
    int32_t origin = stretch_table[*base >> 20];
    int64_t dot;
    int i;
    g->first = s->first[class];
    g->second = s->second[class][s->select];
    g->seen = &s->seen[class];
    g->slot[0] = base;
    g->input[0] = origin;
    g->input[1] = 256;
    for (i = 0; i < count; i++) {
        uint32_t *slot = contexts[i] + step;
        g->slot[i + 2] = slot;
        g->input[i + 2] = *slot ? stretch_table[*slot >> 20] - origin : 0;
    }
    dot = 0;
    for (i = 0; i < count + 2; i++) dot += (int64_t)(g->first[i] + (rich ? g->second[i] : 0)) * g->input[i];
    dot = down(dot, 16);
    g->mixed = squash_table[REACH + (dot > REACH - 1 ? REACH - 1 : dot < 1 - REACH ? 1 - REACH : dot)];
}

INLINE int32_t bounded(int32_t weight) { return weight > WEIGHT ? WEIGHT : weight < -WEIGHT ? -WEIGHT : weight; }

INLINE void learn_bit(State *s, Guess *g, const int count, int bit, const int rich)
{
    uint32_t n = *g->seen, fresh = (*g->slot[0] & ~1023u) | 1u;
    int64_t error = ((int64_t)(bit ? 65536 : 0) - g->mixed) * s->rate[n >> 2];
    int i;
    if (n < MOST_SEEN) *g->seen = n + 1;
    for (i = 0; i < count + 2; i++) {
        int32_t change = (int32_t)down(error * g->input[i] + (1 << 23), 24);
        g->first[i] = bounded(g->first[i] + change);
        if (rich) g->second[i] = bounded(g->second[i] + (int32_t)down(change, 1));
    }
    for (i = 2; i < count + 2; i++) {
        if (!*g->slot[i]) *g->slot[i] = fresh;
        slot_learn(g->slot[i], bit, s->limit);
    }
    slot_learn(g->slot[0], bit, s->limit);
}

INLINE int mixed_bit(State *s, uint32_t **contexts, const int count, int step, int class, int bit, const int mode, const int rich)
{
    Guess g;
    guess(s, &g, contexts, count, step, class, rich);
    bit = coder_bit(&s->coder, clamp(g.mixed), bit, mode);
    learn_bit(s, &g, count, bit, rich);
    return bit;
}

INLINE uint32_t magnitude(int32_t v) { return v < 0 ? 0u - (uint32_t)v : (uint32_t)v; }

/* A magnitude in sixteenths of a step of the unary part; at least 1 where it is not 0. */
INLINE uint32_t scaled(const State *s, int32_t v)
{
    uint64_t u = ((uint64_t)magnitude(v) << 4) >> s->shift;
    return v == 0 ? 0 : u > 4095 ? 4095 : u < 1 ? 1 : (uint32_t)u;
}

INLINE int32_t turned(uint32_t u, int32_t v) { return v < 0 ? -(int32_t)u : (int32_t)u; }

INLINE uint32_t log_of(uint32_t x)
{
#if defined(__GNUC__)
    return 31u - (uint32_t)__builtin_clz(x);
#else
    uint32_t e = 0;
    while (x >>= 1) e++;
    return e;
#endif
}

/* The logarithm of x to base 2 with so many bits after the point, linear between powers. */
INLINE uint32_t level(uint32_t x, const int fraction)
{
    uint32_t e = log_of(x | 1);
    return (e << fraction) + ((uint32_t)(((uint64_t)x << fraction) >> e) & ((1u << fraction) - 1));
}

INLINE uint32_t three(uint32_t u) { return u == 0 ? 0 : u < 32 ? 1 : 2; }
INLINE uint32_t two(uint32_t u) { return u != 0; }
INLINE uint32_t sign_of(int32_t v) { return v == 0 ? 0 : v > 0 ? 1 : 2; }

/* How many contexts each table holds, column and row aside; the last are the signs'. */
static const size_t SIZES[CONTEXTS + 1] = {0, 2, 128, 2048, 4096, 4096, 256, 256, 192, 2048, 64, 384};

INLINE int32_t left_of(const State *s, size_t r, size_t c, size_t n) { return c >= n ? s->q[r * s->columns + c - n] : 0; }

/* Find the contexts of the element in row r and column c. */
INLINE void look(State *s, size_t r, size_t c, const int rich)
{
    const int32_t *up = r ? s->q + (r - 1) * s->columns : s->q;
    int32_t l1 = left_of(s, r, c, 1), l2 = left_of(s, r, c, 2), u1 = r ? up[c] : 0;
    int32_t ul = r && c ? up[c - 1] : 0, ur = r && c + 1 < s->columns ? up[c + 1] : 0;
    int32_t uv = r >= s->rise ? s->q[(r - s->rise) * s->columns + c] : 0;
    uint32_t a1 = scaled(s, l1), a2 = scaled(s, l2), b1 = scaled(s, u1), bl = scaled(s, ul), br = scaled(s, ur);
    uint32_t bv = scaled(s, uv), column = s->mean[c], *signs = s->table[CONTEXTS];
    s->context[0] = s->table[0] + (c % COLUMN_SLOTS) * (2 * STEPS);
    s->context[1] = s->table[1];
    s->context[2] = s->table[2] + level(2 * a1 + a2 + 2 * b1 + bl + br + bv, 2) * STEPS;
    s->context[3] = s->table[3] + (size_t)s->coarse[c] * STEPS;
    s->context[4] = s->table[4] + (level(column, 1) * 64 + level(s->row_mean, 1)) * STEPS;
    s->sign_context[0] = s->context[0];
    s->sign_context[1] = s->context[1];
    s->sign_context[2] = signs + ((sign_of(l1) * 3 + sign_of(u1)) * 3 + sign_of(l2)) * STEPS;
    s->select = 0;
    if (rich) {
        int32_t h0 = 0, hm = 0, hp = 0, g0 = s->far ? left_of(s, r, c, s->far) : 0;
        int density = (int)level(s->smooth[c], 2) + 12 - (int)level(s->rows_seen + 1, 2);
        uint32_t e0, em, ep, f0 = scaled(s, g0), leaning;
        density = density < 0 ? 0 : density > 63 ? 63 : density;
        if (s->lag) {
            h0 = left_of(s, r, c, s->lag);
            hm = left_of(s, r, c, s->lag + 1);
            hp = left_of(s, r, c, s->lag - 1);
        }
        e0 = scaled(s, h0);
        em = scaled(s, hm);
        ep = scaled(s, hp);
        s->lean = 2 * (turned(a1, l1) + turned(e0, h0) + turned(f0, g0)) + turned(a2, l2) + turned(em, hm) + turned(ep, hp);
        leaning = level((uint32_t)(s->lean < 0 ? -s->lean : s->lean), 1);
        s->context[5] = s->table[5] + (size_t)s->fine[c] * STEPS;
        s->context[6] = s->table[6] + (((((three(a1) * 2 + two(a2)) * 3 + three(b1)) * 2 + two(bl)) * 2 + two(br)) * 2 + two(bv)) * STEPS;
        s->context[7] = s->table[7] + ((((three(e0) * 2 + two(em)) * 2 + two(ep)) * 3 + three(a1)) * 3 + three(f0)) * STEPS;
        s->context[8] = s->table[8] + leaning * STEPS;
        s->context[9] = s->table[9] + ((uint32_t)density * 32 + level(2 * (a1 + e0 + f0) + a2 + em + ep, 1)) * STEPS;
        s->context[10] = s->table[10] + (uint32_t)density * STEPS;
        s->sign_context[3] = signs + (32 + ((sign_of(h0) * 3 + sign_of(hm)) * 3 + sign_of(hp)) * 3 + sign_of(l1)) * STEPS;
        s->sign_context[4] = signs + (128 + ((sign_of(uv) * 3 + sign_of(ul)) * 3 + sign_of(ur)) * 3 + sign_of(g0)) * STEPS;
        s->sign_context[5] = signs + (256 + leaning * 2 + (s->lean < 0)) * STEPS;
        s->select = (int)(two(a1) * 4 + two(b1) * 2 + two(e0));
    }
}

/* From the zero flag to the magnitude: its contexts know the sign. */
INLINE void turn(State *s, int negative, const int rich)
{
    if (negative) {
        s->context[0] += STEPS;
        s->context[1] += STEPS;
    }
    if (rich) s->context[8] += (size_t)(negative == (s->lean < 0) ? 64 : 128) * STEPS;
}

INLINE void turn_back(State *s, int negative, const int rich)
{
    s->context[0] = s->sign_context[0];
    s->context[1] = s->sign_context[1];
    if (rich) s->context[8] -= (size_t)(negative == (s->lean < 0) ? 64 : 128) * STEPS;
}

/* A number of at least 1 by its length and its bits (Elias 1975), the length and the first bit adaptively. */
static uint32_t escape(State *s, uint32_t e, const int mode)
{
    uint32_t length = mode == DECODE ? 0 : log_of(e), n = 0, k, found = 1;
    while (n < 31 && plain_bit(s, &s->tail[n], n < length, mode)) n++;
    for (k = n; k > 0; k--) {
        int bit = mode == DECODE ? 0 : (int)(e >> (k - 1)) & 1;
        bit = k == n ? plain_bit(s, &s->tail[31 + k], bit, mode) : raw_bit(s, bit, mode);
        found = found << 1 | (uint32_t)bit;
    }
    return found;
}

INLINE int class_of(uint32_t step) { return step < 3 ? (int)step + 1 : 4; }

/* Code one element, whose contexts were looked for; what it is. */
INLINE int32_t element(State *s, int32_t v, const int mode, const int rich)
{
    const int count = rich ? CONTEXTS : LIGHT, sign_count = rich ? SIGN_CONTEXTS : LIGHT_SIGN;
    uint32_t rest = magnitude(v) - 1, high = rest >> s->shift, step, lows = 0;
    uint64_t whole;
    int negative = v < 0, i;
    if (!mixed_bit(s, s->context, count, 0, 0, v != 0, mode, rich)) return 0;
    negative = s->signs ? mixed_bit(s, s->sign_context, sign_count, SIGN, 1, negative, mode, rich) : raw_bit(s, negative, mode);
    turn(s, negative, rich);
    for (step = 1; step <= UNARY; step++)
        if (!mixed_bit(s, s->context, count, (int)step, class_of(step), high >= step, mode, rich)) break;
    whole = step - 1;
    if (step > UNARY) whole += escape(s, high - UNARY + 1, mode) - 1u;
    for (i = s->shift - 1; i >= 0; i--) {
        uint32_t *slot = &s->low[(whole < 3 ? whole : 3) * 8];
        slot = i == s->shift - 1 ? slot : i == s->shift - 2 ? slot + 1 + lows : &s->tail[64 + i];
        lows = lows << 1 | (uint32_t)plain_bit(s, slot, (int)(rest >> i) & 1, mode);
    }
    if (mode != DECODE) return v;
    whole = (whole << s->shift | lows) + 1;
    if (whole > 2147483647u + (uint64_t)negative) {
        s->coder.fault = DAMAGED;
        return 0;
    }
    return negative ? (int32_t)-(int64_t)whole : (int32_t)whole;
}

INLINE uint32_t price_bit(State *s, uint32_t **contexts, const int count, int step, int class, int bit, const int rich)
{
    Guess g;
    guess(s, &g, contexts, count, step, class, rich);
    return bits_of(bit ? clamp(g.mixed) : 65536 - clamp(g.mixed));
}

/* What `element` would take, in 2^-16 bits, without learning from it. */
static uint32_t price(State *s, int32_t v, const int rich)
{
    const int count = rich ? CONTEXTS : LIGHT, sign_count = rich ? SIGN_CONTEXTS : LIGHT_SIGN;
    uint32_t high, step, bits = price_bit(s, s->context, count, 0, 0, v != 0, rich);
    if (!v) return bits;
    bits += s->signs ? price_bit(s, s->sign_context, sign_count, SIGN, 1, v < 0, rich) : 1u << 16;
    high = (magnitude(v) - 1) >> s->shift;
    turn(s, v < 0, rich);
    for (step = 1; step <= UNARY && step <= high + 1; step++)
        bits += price_bit(s, s->context, count, (int)step, class_of(step), high >= step, rich);
    turn_back(s, v < 0, rich);
    if (high >= UNARY) bits += (2 * log_of(high - UNARY + 1) + 1) << 16;
    return bits + ((uint32_t)s->shift << 16);
}

/* Let the columns around c, in a picture or a row, know of an element that is not 0. */
static void spread(State *s, size_t c)
{
    static const uint32_t bell[5] = {2, 3, 4, 3, 2};
    size_t i, j, n = s->lag ? 5 : 1;
    for (j = 0; j < n; j++)
        for (i = 0; i < (s->lag ? 5u : 9u); i++) {
            size_t to = s->lag ? c + i + j * s->lag - 2 - 2 * s->lag : c + i - 4; /* below 0 is beyond the last too */
            uint32_t more = s->lag ? 16 * bell[i] * bell[j] : 64 * (uint32_t)(i < 4 ? i + 1 : 9 - i);
            if (to < s->columns && s->smooth[to] < 1u << 31) s->smooth[to] += more;
        }
}

/* What column and row have come to hold: in a rich model how often, in a light one how much. */
INLINE void learn(State *s, size_t c, int32_t v, const int rich)
{
    uint32_t size = scaled(s, v), n = s->rows_seen < 255 ? s->rows_seen : 255;
    int64_t u;
    if (rich && size > 16) size = 16;
    if (rich && size) spread(s, c);
    u = (int64_t)size << 8;
    s->mean[c] = (uint32_t)(s->mean[c] + down((u - s->mean[c]) * share_table[n], 16));
    s->row_mean = (uint32_t)(s->row_mean + down((u - s->row_mean) * share_table[s->row_count], 16));
    if (s->row_count < 255) s->row_count++;
}

/* Every element of a live row and column; `told` takes the bits of each (width 1) or of its alternatives (width 3). */
INLINE void scan(State *s, float *told, size_t width, const int mode, const int rich)
{
    size_t r, c;
    int k;
    for (r = 0; r < s->rows; r++) {
        if (!s->live_row[r]) continue;
        if (s->row_count > 10) s->row_count = 10;
        for (k = 0; k < 2 * STEPS; k++) {
            uint32_t n = s->table[1][k] & 1023;
            if (n > 10) s->table[1][k] -= n - 10;
        }
        for (c = 0; c < s->columns; c++) {
            size_t place = r * s->columns + c;
            int32_t v = s->q[place];
            uint64_t before = s->coder.bits;
            if (!s->live_column[c]) continue;
            look(s, r, c, rich);
            if (mode == MEASURE && width == 3) {
                told[place * 3] = (float)price(s, 0, rich) / 65536.0f;
                told[place * 3 + 1] = (float)price(s, v > 0 ? v - 1 : v < 0 ? v + 1 : 0, rich) / 65536.0f;
                told[place * 3 + 2] = (float)price(s, v, rich) / 65536.0f;
            }
            v = element(s, v, mode, rich);
            if (s->coder.fault) return;
            if (mode == MEASURE && width == 1) told[place] = (float)(s->coder.bits - before) / 65536.0f;
            if (mode == DECODE) s->q[place] = v;
            learn(s, c, v, rich);
        }
        s->rows_seen++;
    }
}

/* Each setting: whether it is the usual one, and if not, its bits; of a setting that has one bit, none. */
static void header(State *s, int32_t *settings, const int mode)
{
    static const int widths[SETTINGS] = {1, 5, 12, 12, 1, 1, 1, 2, 2, 1};
    static const int usual[SETTINGS] = {0, 0, 0, 0, 0, 0, 1, 0, 3, 1};
    int i, j;
    for (i = 0; i < SETTINGS; i++) {
        int differs = coder_bit(&s->coder, 8192, settings[i] != usual[i], mode);
        int32_t found = widths[i] > 1 ? 0 : !usual[i];
        for (j = differs && widths[i] > 1 ? widths[i] - 1 : -1; j >= 0; j--)
            found |= raw_bit(s, (int)(settings[i] >> j) & 1, mode) << j;
        if (mode != DECODE) continue;
        settings[i] = differs ? found : usual[i];
        if (differs && found == usual[i]) s->coder.fault = DAMAGED;
    }
}

/* Which rows or columns hold anything, each by the two before it and the one that lies `lag` before. */
static void flags(State *s, uint8_t *live, size_t n, size_t lag, uint32_t *slots, const int mode)
{
    size_t i;
    for (i = 0; i < n && !s->coder.fault; i++) {
        int id = (i ? live[i - 1] : 1) * 4 + (i > 1 ? live[i - 2] : 1) * 2 + (lag && i >= lag ? live[i - lag] : 1);
        live[i] = (uint8_t)plain_bit(s, &slots[id], live[i], mode);
    }
}

static int reserve(State *s)
{
    size_t k, total = 0, sizes[CONTEXTS + 1];
    memcpy(sizes, SIZES, sizeof(sizes));
    sizes[0] = 2 * (s->columns < COLUMN_SLOTS ? s->columns : COLUMN_SLOTS);
    for (k = 0; k <= CONTEXTS; k++) total += sizes[k];
    s->slots = calloc(total * STEPS, sizeof(uint32_t));
    s->mean = calloc(2 * s->columns, sizeof(uint32_t));
    s->coarse = malloc(2 * s->columns * sizeof(uint16_t));
    s->live_row = malloc(s->rows + s->columns);
    if (!s->slots || !s->mean || !s->coarse || !s->live_row) return 0;
    s->smooth = s->mean + s->columns;
    s->fine = s->coarse + s->columns;
    s->live_column = s->live_row + s->rows;
    s->table[0] = s->slots;
    for (k = 0; k < CONTEXTS; k++) s->table[k + 1] = s->table[k] + sizes[k] * STEPS;
    return 1;
}

static void start(State *s, const int32_t *settings)
{
    static const int limits[4] = {255, 1020, 60, 127}, rates[4] = {3, 6, 12, 24}, floors[4] = {1, 2, 4, 8};
    size_t c;
    int k, i;
    for (c = 0; c < s->columns; c++) { /* columns that lie together: in a kernel, in a picture, in a row */
        size_t x = s->lag ? c % s->lag : 0, y = s->lag ? c / s->lag : c;
        if (s->period > 1) {
            s->coarse[c] = (uint16_t)(c / s->period % 2048);
            s->fine[c] = (uint16_t)(c % s->period % 4096);
        } else if (s->lag) {
            s->coarse[c] = (uint16_t)(x / 2 % 32 * 64 + y / 8 % 64);
            s->fine[c] = (uint16_t)((x + 1) / 2 % 64 * 64 + (y + 1) / 2 % 64);
        } else {
            s->coarse[c] = (uint16_t)(y / 16 % 2048);
            s->fine[c] = (uint16_t)((y + 1) / 2 % 4096);
        }
    }
    for (k = 0; k < STEPS; k++) s->base[k] = 1u << 31;
    s->base[0] = 1000u << 20;
    for (k = 0; k < 16; k++) s->flag[k] = 1u << 31;
    for (k = 0; k < 32; k++) s->low[k] = 1u << 31;
    for (k = 0; k < 96; k++) s->tail[k] = 1u << 31;
    for (k = 0; k < CLASSES; k++)
        for (i = 0; i < INPUTS; i++) s->first[k][i] = i == 0 ? 65536 : i == 1 ? 0 : 8000;
    for (k = 0; k < 256; k++) s->rate[k] = floors[settings[RATE]] * 40 + rates[settings[RATE]] * 1600 / (k + 32);
    s->limit = limits[settings[LIMIT]];
    s->signs = settings[SIGNS];
}

INLINE int run(State *s, int32_t *settings, float *told, size_t width, const int mode)
{
    size_t r, c, root = 1;
    header(s, settings, mode);
    s->shift = (int)settings[SHIFT];
    s->lag = settings[LAG] > 1 ? (size_t)settings[LAG] : 0;
    s->far = (size_t)settings[FAR];
    s->rise = 2;
    if (settings[TRANSPOSED]) {
        size_t rows = s->rows;
        s->rows = s->columns;
        s->columns = rows;
        if (s->period > 1) s->rise = s->period;
        s->period = 1;
    } else if (s->period > 1) {
        while (root < 64 && root * root < s->period) root++;
        if (!s->lag && root * root == s->period) s->lag = root;
        if (!s->far) s->far = s->period;
    }
    if (!reserve(s)) return NO_MEMORY;
    start(s, settings);
    memset(s->live_row, 1, s->rows + s->columns);
    if (mode == DECODE) {
        memset(s->q, 0, s->rows * s->columns * sizeof(int32_t));
    } else {
        if (settings[ROW_FLAGS]) memset(s->live_row, 0, s->rows);
        if (settings[COLUMN_FLAGS]) memset(s->live_column, 0, s->columns);
        for (r = 0; r < s->rows; r++)
            for (c = 0; c < s->columns; c++)
                if (s->q[r * s->columns + c]) s->live_row[r] = s->live_column[c] = 1;
    }
    if (settings[ROW_FLAGS]) flags(s, s->live_row, s->rows, s->rise > 2 ? s->rise : 0, s->flag, mode);
    if (settings[COLUMN_FLAGS]) flags(s, s->live_column, s->columns, s->lag, s->flag + 8, mode);
    if (!s->coder.fault) {
        if (settings[RICH]) scan(s, told, width, mode, 1);
        else scan(s, told, width, mode, 0);
    }
    return s->coder.fault;
}

static State *open_state(const int32_t *q, size_t rows, size_t columns, size_t period)
{
    State *s = calloc(1, sizeof(State));
    if (s) {
        s->q = (int32_t *)(uintptr_t)q; /* written to by the decoder only, whose caller gave it to be written */
        s->rows = rows;
        s->columns = columns;
        s->period = period;
        s->coder.range = 0xffffffffu;
    }
    return s;
}

static void close_state(State *s)
{
    free(s->slots);
    free(s->mean);
    free(s->coarse);
    free(s->live_row);
    free(s);
}

/* The bytes written to `out`, which has room for so many; or a fault. `q` lies transposed if the settings say so. */
API int64_t tauten_mixing_encode(const int32_t *q, size_t rows, size_t columns, size_t period, int32_t *settings, uint8_t *out, size_t room)
{
    State *s = open_state(q, rows, columns, period);
    int64_t found;
    if (!s) return NO_MEMORY;
    s->coder.out = out;
    s->coder.size = room;
    found = run(s, settings, NULL, 0, ENCODE);
    if (!found) { /* the one number in reach whose bytes after the first are zeros, and left out */
        if ((s->coder.low += 0xffffffu) < 0xffffffu) coder_carry(&s->coder);
        if (s->coder.place < room) out[s->coder.place++] = (uint8_t)(s->coder.low >> 24);
        else s->coder.fault = NO_ROOM;
        found = s->coder.fault ? s->coder.fault : (int64_t)s->coder.place;
    }
    close_state(s);
    return found;
}

/* What `encode` would write, in 2^-16 bits; or a fault. */
API int64_t tauten_mixing_measure(const int32_t *q, size_t rows, size_t columns, size_t period, int32_t *settings, float *told, size_t width)
{
    State *s = open_state(q, rows, columns, period);
    int64_t found;
    if (!s) return NO_MEMORY;
    found = run(s, settings, told, width, MEASURE);
    if (!found) found = (int64_t)s->coder.bits;
    close_state(s);
    return found;
}

/* Fill `q`, which lies transposed if the settings found say so; 0 or a fault. */
API int64_t tauten_mixing_decode(const uint8_t *data, size_t size, size_t rows, size_t columns, size_t period, int32_t *settings, int32_t *q)
{
    State *s = open_state(q, rows, columns, period);
    int64_t found;
    if (!s) return NO_MEMORY;
    s->coder.in = data;
    s->coder.size = size;
    for (; s->coder.place < 4; s->coder.place++)
        s->coder.code = s->coder.code << 8 | (s->coder.place < size ? data[s->coder.place] : 0u);
    found = run(s, settings, NULL, 0, DECODE);
    if (!found && (s->coder.place != size + 3 || s->coder.code >= 1u << 24)) found = DAMAGED;
    close_state(s);
    return found;
}
