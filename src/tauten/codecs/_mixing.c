#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef TUNE
int32_t P[64];
#define T(i, v) (P[i])
#else
#define T(i, v) (v)
#endif

#if defined(_WIN32)
#define API __declspec(dllexport)
#else
#define API __attribute__((visibility("default")))
#endif

enum {
    ENCODE, DECODE, MEASURE,
    REACH = 2816,      /* squash's domain is [-REACH, REACH], in 1/256 */
    STEPS = 16,        /* slots of one context */
    SIGN = 15,         /* the slot of the sign */
    UNARY = 13,        /* steps of the unary part before the escape */
    INPUTS = 12,       /* most inputs of the mixer: base, bias, contexts */
    CONTEXTS = 10,
    CLASSES = 5,
    BUCKETS = 23,
    SETTINGS = 12
};
enum { TRANSPOSED, SHIFT, LAG, RISE, ROW_FLAGS, COLUMN_FLAGS, SIGNS, LIMIT, RATE, PRIOR };
enum { OK, DAMAGED = -1, NO_MEMORY = -2, NO_ROOM = -3 };

static uint16_t squash_table[2 * REACH + 1];
static int16_t stretch_table[4096];
static uint32_t bits_table[4097];
static uint32_t share_table[1024];

static int64_t down(int64_t x, int n) { return x >= 0 ? x >> n : ~(~x >> n); }

API void tauten_mixing_prepare(void)
{
    uint64_t power = (uint64_t)1 << 24;
    int32_t x, p;
    /* exp(1 / 256) in 2^-30 */
    for (x = 0; x <= REACH; x++) {
        uint32_t above = (uint32_t)((power << 16) / (power + ((uint64_t)1 << 24)));
        if (above > 65535) above = 65535;
        squash_table[REACH + x] = (uint16_t)above;
        squash_table[REACH - x] = (uint16_t)(65536 - above);
        power = (power * 8421440u) >> 23; /* exp(1/256) * 2^23 = 8421440.08 */
    }
    x = -REACH;
    for (p = 0; p < 4096; p++) {
        while (x < REACH && squash_table[REACH + x] < p * 16 + 8) x++;
        stretch_table[p] = (int16_t)x;
    }
    bits_table[0] = 13 << 16;
    for (p = 1; p <= 4096; p++) {
        uint64_t y = (uint64_t)p << 18; /* in [2^18, 2^30] */
        uint32_t log = 0;
        int i;
        while (y < (uint64_t)1 << 30) { y <<= 1; log += 1 << 16; }
        /* log2(4096 / p) = log - log2(y / 2^30) */
        {
            uint32_t part = 0;
            for (i = 15; i >= 0; i--) {
                y = (y * y) >> 30;
                if (y >> 31) { y >>= 1; part |= (uint32_t)1 << i; }
            }
            bits_table[p] = log - part;
        }
    }
    for (p = 0; p < 1024; p++) share_table[p] = 131072u / (2u * (uint32_t)p + 3u);
}

static uint32_t bits_of(uint32_t p) { return p < 4096 ? bits_table[p] + (4u << 16) : bits_table[p >> 4]; }

typedef struct {
    uint8_t *out;
    const uint8_t *in;
    size_t size, place;
    uint32_t low, range, code;
    int fault;
    uint64_t bits;
} Coder;

static void coder_byte_out(Coder *c)
{
    if (c->place >= c->size) { c->fault = NO_ROOM; return; }
    c->out[c->place++] = (uint8_t)(c->low >> 24);
}

static void coder_carry(Coder *c)
{
    size_t i = c->place;
    while (i > 0 && ++c->out[--i] == 0) { }
}

static int coder_bit(Coder *c, uint32_t p, int bit, const int mode)
{
    uint32_t bound;
    if (mode == MEASURE) { c->bits += bits_of(bit ? p : 65536 - p); return bit; }
    bound = (uint32_t)(((uint64_t)c->range * p) >> 16);
    if (mode == ENCODE) {
        if (bit) c->range = bound;
        else {
            uint32_t before = c->low;
            c->low += bound;
            c->range -= bound;
            if (c->low < before) coder_carry(c);
        }
        while (c->range < 1u << 24) { coder_byte_out(c); c->low <<= 8; c->range <<= 8; }
    } else {
        bit = c->code < bound;
        if (bit) c->range = bound;
        else { c->code -= bound; c->range -= bound; }
        while (c->range < 1u << 24) {
            uint32_t next = 0;
            if (c->place < c->size) next = c->in[c->place];
            else if (c->place >= c->size + 3) c->fault = DAMAGED;
            c->place++;
            c->code = (c->code << 8) | next;
            c->range <<= 8;
        }
    }
    return bit;
}

typedef struct {
    const int32_t *settings;
    int32_t *q;
    size_t rows, cols, period, lag, lag2, rise;
    int shift, limit;
    Coder coder;
    uint32_t *slots, *column_slots, *row_slots;
    uint32_t *column_mean;
    uint8_t *history;
    int32_t trust[1024];
    uint32_t rows_seen;
    uint32_t row_mean, row_count;
    uint8_t *row_live, *column_live;
    uint32_t base[STEPS * 4];
    uint32_t flags[16], low[8 * 8], tail[128];
    int32_t first[CLASSES * 8][INPUTS], second[64][INPUTS];
    uint32_t seen[CLASSES * 8];
    uint16_t apm[STEPS * 16][BUCKETS + 1];
    int32_t rates[256];
    /* the element at hand */
    uint32_t *context[CONTEXTS], *sign_context[CONTEXTS];
    int select, sign_select, apm_select;
    /* the decision at hand */
    uint32_t *slot[INPUTS];
    int32_t input[INPUTS];
    int inputs;
    int32_t *a, *b;
    uint32_t *seen_here;
    uint16_t *stage;
    uint32_t weight, mixed, probability;
} State;

static uint32_t clamp(uint32_t p) { return p < 16 ? 16 : p > 65520 ? 65520 : p; }

static void slot_update(uint32_t *slot, int bit, int limit)
{
    uint32_t n = *slot & 1023;
    int32_t p = (int32_t)(*slot >> 10);
    p += (int32_t)down(((int64_t)(bit ? 4194304 : 0) - p) * share_table[n], 16);
    *slot = (uint32_t)p << 10 | (n < (uint32_t)limit ? n + 1 : n);
}

static int plain_bit(State *s, uint32_t *slot, int bit, const int mode)
{
    bit = coder_bit(&s->coder, clamp(*slot >> 16), bit, mode);
    slot_update(slot, bit, 254);
    return bit;
}

static int raw_bit(State *s, int bit, const int mode) { return coder_bit(&s->coder, 32768, bit, mode); }

static void predict(State *s, uint32_t **contexts, int count, int step, uint32_t *base, int a, int b)
{
    int32_t origin = stretch_table[*base >> 20];
    int64_t dot;
    int i;
    int32_t x;
    s->a = s->first[a];
    s->b = s->second[b];
    s->seen_here = &s->seen[a];
    s->slot[0] = base;
    s->input[0] = origin;
    s->input[1] = 256;
    dot = (int64_t)(s->a[0] + s->b[0]) * origin + (int64_t)(s->a[1] + s->b[1]) * 256;
    for (i = 0; i < count; i++) {
        uint32_t *slot = contexts[i] + step;
        int32_t in;
        in = *slot ? (int32_t)down((int64_t)(stretch_table[*slot >> 20] - origin) * s->trust[*slot & 1023], 8) : 0;
        s->slot[i + 2] = slot;
        s->input[i + 2] = in;
        dot += (int64_t)(s->a[i + 2] + s->b[i + 2]) * in;
    }
    s->inputs = count + 2;
    dot = down(dot, 16);
    x = dot > REACH - 1 ? REACH - 1 : dot < 1 - REACH ? 1 - REACH : (int32_t)dot;
    s->mixed = squash_table[REACH + x];
    {
        uint32_t at = (uint32_t)(x + REACH) >> 8;
        uint32_t p;
        s->weight = (uint32_t)(x + REACH) & 255;
        s->stage = s->apm[s->apm_select * STEPS + step] + at;
        p = (s->stage[0] * (256 - s->weight) + s->stage[1] * s->weight) >> 8;
        s->probability = clamp((s->mixed * (uint32_t)(16 - T(1, 4)) + p * (uint32_t)T(1, 4)) >> 4);
    }
}

static void update(State *s, int bit)
{
    int64_t error = (int64_t)(bit ? 65536 : 0) - s->mixed;
    uint32_t n = *s->seen_here;
    int i;
    error *= s->rates[n >> 2];
    if (n < 1023) *s->seen_here = n + 1;
    for (i = 0; i < s->inputs; i++) {
        int32_t change = (int32_t)down(error * s->input[i] + (1 << 23), 24);
        int32_t a = s->a[i] + change, b = s->b[i] + down(change, T(2, 0));
        s->a[i] = a > 1 << 20 ? 1 << 20 : a < -(1 << 20) ? -(1 << 20) : a;
        s->b[i] = b > 1 << 20 ? 1 << 20 : b < -(1 << 20) ? -(1 << 20) : b;
    }
    for (i = 2; i < s->inputs; i++) {
        if (!*s->slot[i]) *s->slot[i] = (T(11, 0) ? s->mixed << 16 : *s->slot[0] & ~(uint32_t)1023) | (uint32_t)T(0, 2);
        slot_update(s->slot[i], bit, s->limit);
    }
    slot_update(s->slot[0], bit, s->limit);
    {
        uint16_t *near = s->stage + (s->weight > 127);
        int32_t p = *near;
        p += (int32_t)down((int64_t)(bit ? 65535 : 0) - p, T(3, 6));
        *near = (uint16_t)p;
    }
}

static int mixed_bit(State *s, uint32_t **contexts, int count, int step, uint32_t *base, int a, int b, int bit, const int mode)
{
    predict(s, contexts, count, step, base, a, b);
    bit = coder_bit(&s->coder, s->probability, bit, mode);
    update(s, bit);
    return bit;
}

static uint32_t magnitude(int32_t v) { return v < 0 ? 0u - (uint32_t)v : (uint32_t)v; }

static int32_t at(const State *s, size_t r, size_t c, size_t up, size_t left)
{
    /* left may be SIZE_MAX for one to the right */
    if (up > r || (left != SIZE_MAX && left > c) || c - left >= s->cols) return 0;
    return s->q[(r - up) * s->cols + (c - left)];
}

static uint32_t scaled(const State *s, int32_t v)
{
    uint64_t u = ((uint64_t)magnitude(v) << 4) >> s->shift;
    return v == 0 ? 0 : u > 4095 ? 4095 : u < 1 ? 1 : (uint32_t)u;
}

static uint32_t log_of(uint32_t x)
{
#if defined(__GNUC__)
    return x ? 31u - (uint32_t)__builtin_clz(x) : 0;
#else
    uint32_t e = 0;
    while (x >>= 1) e++;
    return e;
#endif
}

static uint32_t level(uint32_t x, int fraction)
{
    uint32_t e = log_of(x | 1);
    return (e << fraction) + ((uint32_t)(((uint64_t)x << fraction) >> e) & ((1u << fraction) - 1));
}

static uint32_t three(uint32_t u) { return u == 0 ? 0 : u < 32 ? 1 : 2; }
static uint32_t two(uint32_t u) { return u != 0; }
static uint32_t sign_of(int32_t v) { return v == 0 ? 0 : v > 0 ? 1 : 2; }

static const uint32_t SIZES[CONTEXTS] = {0, 0, 64, 4096, 256, 256, 2048, 4096, 4096, 1024};

static void look(State *s, size_t r, size_t c)
{
    int32_t l1 = at(s, r, c, 0, 1), l2 = at(s, r, c, 0, 2), u1 = at(s, r, c, 1, 0);
    int32_t ul = at(s, r, c, 1, 1), ur = at(s, r, c, 1, SIZE_MAX), uv = at(s, r, c, s->rise, 0);
    int32_t h0 = 0, hm = 0, hp = 0, g0 = 0;
    uint32_t a1 = scaled(s, l1), a2 = scaled(s, l2), b1 = scaled(s, u1), bl = scaled(s, ul), br = scaled(s, ur);
    uint32_t bv = scaled(s, uv), e0, em, ep, f0, near, row_near, beside, column = s->column_mean[c], row = s->row_mean;
    uint32_t id[CONTEXTS], *slots = s->slots;
    uint32_t position = s->period > 1 ? (uint32_t)(c % s->period) : 0;
    int i;
    if (s->lag) { h0 = at(s, r, c, 0, s->lag); hm = at(s, r, c, 0, s->lag + 1); hp = at(s, r, c, 0, s->lag - 1); }
    if (s->lag2) { g0 = at(s, r, c, 0, s->lag2); }
    e0 = scaled(s, h0); em = scaled(s, hm); ep = scaled(s, hp); f0 = scaled(s, g0);
    near = 2 * a1 + a2 + 2 * b1 + bl + br + bv;
    row_near = 2 * a1 + a2 + 2 * e0 + em + ep + 2 * f0;
    beside = (c > 0 ? s->column_mean[c - 1] : 0) + (c + 1 < s->cols ? s->column_mean[c + 1] : 0);
    if (s->lag) beside += (c >= s->lag ? s->column_mean[c - s->lag] : 0) + (c + s->lag < s->cols ? s->column_mean[c + s->lag] : 0);
    else beside *= 2;
    beside >>= 2;
    id[2] = level(near, 2) & 63;
    id[3] = level(column, 1) * 64 + level(row, 1);
    id[4] = ((((three(a1) * 2 + two(a2)) * 3 + three(b1)) * 2 + two(bl)) * 2 + two(br)) * 2 + two(bv);
    id[5] = (((three(e0) * 2 + two(em)) * 2 + two(ep)) * 3 + three(a1)) * 3 + three(f0);
    id[6] = level(beside, 1) * 32 + level(row_near, 1);
    id[7] = level(column, 1) * 64 + level(near + row_near, 1);
    id[8] = (position & 255) * 16 + level(row_near + near, 0);
    id[9] = (s->history[c] & 63u) * 16 + (level(row, 0) > 15 ? 15 : level(row, 0));
    s->context[0] = s->column_slots + (c & 65535) * STEPS;
    s->context[1] = s->row_slots;
    for (i = 2; i < CONTEXTS; i++) {
        s->context[i] = slots + (size_t)id[i] * STEPS;
        slots += (size_t)SIZES[i] * STEPS;
    }
    s->sign_context[0] = s->context[0];
    s->sign_context[1] = s->context[1];
    s->sign_context[2] = slots + ((sign_of(l1) * 3 + sign_of(u1)) * 3 + sign_of(l2)) * STEPS;
    s->sign_context[3] = slots + (32 + ((sign_of(h0) * 3 + sign_of(hm)) * 3 + sign_of(hp)) * 3 + sign_of(l1)) * STEPS;
    s->sign_context[4] = slots + (128 + ((sign_of(uv) * 3 + sign_of(ul)) * 3 + sign_of(ur)) * 3 + sign_of(g0)) * STEPS;
    s->select = (int)(two(a1) + two(b1) + two(e0));
    if (T(13, 0) == 1) { uint32_t l = log_of(s->rows_seen + 1) / 2; s->select = (int)(l > 3 ? 3 : l); }
    if (T(13, 0) == 2) s->select = 0;
    s->apm_select = T(14, 0) == 1 ? 0 : T(14, 0) == 2 ? (int)(level(column, 0) & 15) : (int)(two(a1) + two(b1) + two(e0));
}

static int32_t element(State *s, int32_t v, const int mode)
{
    uint32_t m = magnitude(v), rest, high, j, lows;
    int negative = v < 0, i;
    if (!mixed_bit(s, s->context, CONTEXTS, 0, &s->base[0], 0, s->select, m != 0, mode)) return 0;
    if (s->settings[SIGNS]) negative = mixed_bit(s, s->sign_context, 5, SIGN, &s->base[SIGN], 1, 32, negative, mode);
    else negative = raw_bit(s, negative, mode);
    rest = m - 1;
    high = rest >> s->shift;
    for (j = 1; j <= UNARY; j++) {
        int more = mixed_bit(s, s->context, CONTEXTS, (int)j, &s->base[j], j == 1 ? 2 : j == 2 ? 3 : 4, (j == 1 ? 4 : j == 2 ? 8 : 12) + s->select, high >= j, mode);
        if (!more) break;
    }
    if (mode == DECODE) high = j - 1;
    if (j > UNARY) {
        uint64_t e = (uint64_t)high - UNARY + 1;
        uint32_t n = mode == DECODE ? 0 : log_of((uint32_t)e), k;
        for (k = 0; k < 31; k++) if (!plain_bit(s, &s->tail[k], k < n, mode)) break;
        n = k;
        if (mode == DECODE) e = 1;
        for (; k > 0; k--) {
            int bit = (int)(e >> (k - 1)) & 1;
            if (k == n) bit = plain_bit(s, &s->tail[32 + k], bit, mode); else bit = raw_bit(s, bit, mode);
            if (mode == DECODE) e = e << 1 | (uint64_t)bit;
        }
        if (mode == DECODE) {
            e += UNARY - 1;
            if (e << s->shift > 2147483647u) { s->coder.fault = DAMAGED; return 0; }
            high = (uint32_t)e;
        }
    }
    lows = 0;
    for (i = s->shift - 1; i >= 0; i--) {
        int bit = (int)(rest >> i) & 1;
        uint32_t h = high < 3 ? high : 3;
        if (i == s->shift - 1) bit = plain_bit(s, &s->low[h * 8], bit, mode);
        else if (i == s->shift - 2) bit = plain_bit(s, &s->low[h * 8 + 1 + lows], bit, mode);
        else bit = plain_bit(s, &s->tail[64 + i], bit, mode);
        lows = lows << 1 | (uint32_t)bit;
    }
    if (mode == DECODE) {
        uint64_t whole = ((uint64_t)high << s->shift | lows) + 1;
        if (whole > 2147483647u + (uint64_t)negative) { s->coder.fault = DAMAGED; return 0; }
        return negative ? (int32_t)(-(int64_t)whole) : (int32_t)whole;
    }
    return v;
}

static uint32_t price_bit(State *s, uint32_t **contexts, int count, int step, int a, int b, int bit)
{
    predict(s, contexts, count, step, &s->base[step], a, b);
    return bits_of(bit ? s->probability : 65536 - s->probability);
}

static uint32_t price(State *s, int32_t v)
{
    uint32_t m = magnitude(v), bits, high, j;
    bits = price_bit(s, s->context, CONTEXTS, 0, 0, s->select, m != 0);
    if (!m) return bits;
    if (s->settings[SIGNS]) bits += price_bit(s, s->sign_context, 5, SIGN, 1, 32, v < 0);
    else bits += 65536;
    high = (m - 1) >> s->shift;
    for (j = 1; j <= UNARY && j <= high + 1; j++)
        bits += price_bit(s, s->context, CONTEXTS, (int)j, j == 1 ? 2 : j == 2 ? 3 : 4, (j == 1 ? 4 : j == 2 ? 8 : 12) + s->select, high >= j);
    if (high >= UNARY) bits += (2 * log_of(high - UNARY + 1) + 1) << 16;
    return bits + ((uint32_t)s->shift << 16);
}

static void learn(State *s, size_t c, int32_t v)
{
    uint32_t u = scaled(s, v) << 8;
    uint32_t n = s->rows_seen - 1 < (uint32_t)T(4, 255) ? s->rows_seen - 1 : (uint32_t)T(4, 255);
    s->history[c] = (uint8_t)(s->history[c] << 1 | (v != 0));
    s->column_mean[c] = (uint32_t)((int64_t)s->column_mean[c] + down(((int64_t)u - s->column_mean[c]) * share_table[n], 16));
    s->row_mean = (uint32_t)((int64_t)s->row_mean + down(((int64_t)u - s->row_mean) * share_table[s->row_count], 16));
    if (s->row_count < (uint32_t)T(5, 255)) s->row_count++;
}

static void header(State *s, int32_t *settings, const int mode)
{
    static const int widths[SETTINGS] = {1, 5, 16, 16, 1, 1, 1, 2, 2, 2};
    static const int usual[SETTINGS] = {0, 0, 0, 0, 0, 0, 1, 1, 1, 0};
    int i, j;
    for (i = 0; i <= PRIOR; i++) {
        int differs = coder_bit(&s->coder, 8192, settings[i] != usual[i], mode);
        if (mode == DECODE) settings[i] = differs ? 0 : usual[i];
        if (differs) for (j = widths[i] - 1; j >= 0; j--) {
            int bit = raw_bit(s, (settings[i] >> j) & 1, mode);
            if (mode == DECODE) settings[i] |= bit << j;
        }
    }
}

static void flags(State *s, uint8_t *live, size_t n, size_t lag, uint32_t *slots, const int mode)
{
    size_t i;
    for (i = 0; i < n; i++) {
        uint32_t id = (i > 0 ? live[i - 1] : 1u) * 4u + (i > 1 ? live[i - 2] : 1u) * 2u + (lag && i >= lag ? live[i - lag] : 1u);
        live[i] = (uint8_t)plain_bit(s, &slots[id], live[i], mode);
    }
}

static int run(State *s, int32_t *settings, float *told, size_t width, const int mode)
{
    static const int limits[4] = {60, 255, 1000, 30}, rates[4] = {3, 6, 12, 24}, floors[4] = {1, 2, 4, 8};
    size_t r, c, i, total = 0;
    uint64_t before;
    int fault = OK, k, n;
    header(s, settings, mode);
    if (settings[TRANSPOSED]) { size_t t = s->rows; s->rows = s->cols; s->cols = t; }
    s->settings = settings;
    s->shift = settings[SHIFT];
    s->lag = (size_t)settings[LAG];
    s->lag2 = 0;
    s->rise = settings[RISE] ? (size_t)settings[RISE] : 2;
    s->limit = limits[settings[LIMIT]];
    if (!s->lag && s->period > 1 && !settings[TRANSPOSED]) {
        size_t w = 1;
        s->lag = s->period;
        while (w * w < s->period) w++;
        if (w * w == s->period) s->lag2 = w;
    }
    if (settings[TRANSPOSED] && !settings[RISE] && s->period > 1) s->rise = s->period;
    if (settings[TRANSPOSED]) s->period = 1;
    n = CONTEXTS;
    for (k = 0; k < n; k++) total += SIZES[k];
    total += 256;
    s->slots = calloc((total + 1 + (s->cols < 65536 ? s->cols : 65536)) * STEPS, sizeof(uint32_t));
    s->column_mean = calloc(s->cols, sizeof(uint32_t));
    s->history = calloc(s->cols, 1);
    s->row_live = malloc(s->rows + s->cols);
    if (!s->slots || !s->column_mean || !s->row_live) fault = NO_MEMORY;
    else {
        s->column_live = s->row_live + s->rows;
        s->row_slots = s->slots + total * STEPS;
        s->column_slots = s->row_slots + STEPS;
        for (k = 0; k < STEPS; k++) s->base[k] = (uint32_t)1 << 31;
        s->base[0] = (uint32_t)T(6, 400) << 20;
        for (k = 0; k < 16; k++) s->flags[k] = (uint32_t)1 << 31;
        for (k = 0; k < 64; k++) s->low[k] = (uint32_t)1 << 31;
        for (k = 0; k < 128; k++) s->tail[k] = (uint32_t)1 << 31;
        for (k = 0; k < CLASSES * 8; k++) {
            int w;
            for (w = 0; w < INPUTS; w++) s->first[k][w] = w == 0 ? 65536 : w == 1 ? 0 : T(7, 16000);
            s->seen[k] = 0;
        }
        for (k = 0; k < 1024; k++) s->trust[k] = 256 * (k + 1) / (k + 1 + T(12, 0));
        memset(s->second, 0, sizeof(s->second));
        for (k = 0; k < STEPS * 16; k++) for (i = 0; i <= BUCKETS; i++) {
            int x = ((int)i << 8);
            s->apm[k][i] = squash_table[x > 2 * REACH ? 2 * REACH : x];
        }
        for (k = 0; k < 256; k++) s->rates[k] = floors[settings[RATE]] * T(8, 40) + rates[settings[RATE]] * T(9, 800) / (k + 4);
        if (mode == DECODE) memset(s->q, 0, s->rows * s->cols * sizeof(int32_t));
        memset(s->row_live, 1, s->rows + s->cols);
        if (mode != DECODE) {
            if (settings[ROW_FLAGS]) memset(s->row_live, 0, s->rows);
            if (settings[COLUMN_FLAGS]) memset(s->column_live, 0, s->cols);
            for (r = 0; r < s->rows; r++) for (c = 0; c < s->cols; c++) if (s->q[r * s->cols + c]) s->row_live[r] = s->column_live[c] = 1;
        }
        if (settings[ROW_FLAGS]) flags(s, s->row_live, s->rows, s->rise > 2 ? s->rise : 0, s->flags, mode);
        if (settings[COLUMN_FLAGS]) flags(s, s->column_live, s->cols, s->lag, s->flags + 8, mode);
        for (r = 0; r < s->rows && !s->coder.fault; r++) {
            if (!s->row_live[r]) continue;
            if (s->row_count > (uint32_t)T(10, 10)) s->row_count = (uint32_t)T(10, 10);
            for (k = 0; k < STEPS; k++) {
                uint32_t m = s->row_slots[k] & 1023;
                if (m > (uint32_t)T(10, 10)) s->row_slots[k] -= m - (uint32_t)T(10, 10);
            }
            s->rows_seen++;
            for (c = 0; c < s->cols; c++) {
                int32_t *v = &s->q[r * s->cols + c], w;
                if (!s->column_live[c]) continue;
                look(s, r, c);
                if (mode == MEASURE && width == 3) {
                    float *here = told + (r * s->cols + c) * 3;
                    here[0] = (float)price(s, 0) / 65536.0f;
                    here[2] = *v ? (float)price(s, *v) / 65536.0f : here[0];
                    here[1] = *v > 1 || *v < -1 ? (float)price(s, *v > 0 ? *v - 1 : *v + 1) / 65536.0f : here[0];
                }
                before = s->coder.bits;
                w = element(s, *v, mode);
                if (mode == MEASURE && width == 1) told[r * s->cols + c] = (float)(s->coder.bits - before) / 65536.0f;
                if (mode == DECODE) *v = w;
                if (s->coder.fault) break;
                learn(s, c, w);
            }
        }
        fault = s->coder.fault;
    }
    free(s->slots);
    free(s->column_mean);
    free(s->history);
    free(s->row_live);
    return fault;
}

/* Bytes written, or a negative fault. */
API int64_t tauten_mixing_encode(const int32_t *q, size_t rows, size_t cols, size_t period, int32_t *settings, uint8_t *out, size_t room)
{
    State *s = calloc(1, sizeof(State));
    int64_t fault;
    if (!s) return NO_MEMORY;
    s->q = (int32_t *)(uintptr_t)q;
    s->rows = rows; s->cols = cols; s->period = period;
    s->coder.out = out; s->coder.size = room; s->coder.range = 0xffffffffu;
    fault = run(s, settings, NULL, 0, ENCODE);
    if (!fault) {
        uint32_t before = s->coder.low;
        s->coder.low += 0xffffffu;
        if (s->coder.low < before) coder_carry(&s->coder);
        coder_byte_out(&s->coder);
        fault = s->coder.fault ? s->coder.fault : (int64_t)s->coder.place;
    }
    free(s);
    return fault;
}

API int64_t tauten_mixing_measure(const int32_t *q, size_t rows, size_t cols, size_t period, int32_t *settings, float *told, size_t width)
{
    State *s = calloc(1, sizeof(State));
    int64_t fault;
    if (!s) return NO_MEMORY;
    s->q = (int32_t *)(uintptr_t)q;
    s->rows = rows; s->cols = cols; s->period = period;
    fault = run(s, settings, told, width, MEASURE);
    if (!fault) fault = (int64_t)s->coder.bits;
    free(s);
    return fault;
}

API int64_t tauten_mixing_decode(const uint8_t *data, size_t size, size_t rows, size_t cols, size_t period, int32_t *settings, int32_t *q)
{
    State *s = calloc(1, sizeof(State));
    int64_t fault;
    int i;
    if (!s) return NO_MEMORY;
    s->q = q;
    s->rows = rows; s->cols = cols; s->period = period;
    s->coder.in = data; s->coder.size = size; s->coder.range = 0xffffffffu;
    for (i = 0; i < 4; i++) {
        s->coder.code = s->coder.code << 8 | (s->coder.place < size ? data[s->coder.place] : 0u);
        s->coder.place++;
    }
    fault = run(s, settings, NULL, 0, DECODE);
    if (!fault && (s->coder.place != size + 3 || s->coder.code >= 1u << 24)) fault = DAMAGED;
    free(s);
    return fault;
}
