// Attention of a few query rows over one sequence's cached keys and values.
//
// Keys lie in panels of sixteen positions, (position / 16, dimension, 16), so that sixteen scores
// come out of one register without sums across lanes; values lie (position, dimension). Every sum
// runs over dimensions or positions in rising order from an aligned start, and masked positions add
// exact zeros. Keys and values in 8 bits have one scale a position: a sum of products with keys is multiplied by it, a
// position's weight by its values'. Long sequences are cut into spans at fixed positions, each with its own largest score
// and sum, merged in order. So a row's result does not depend on the rows computed beside it, nor on
// which thread did which span.
#pragma once

#include "gemm.h"
#include "softmax.h"

constexpr int ALIGN = 32;  // positions the score kernel takes at a time
constexpr int SPAN = 512;  // positions that share a softmax before the merge: their scores stay in the nearest cache

// While one thing is worked on, what is read next is prefetched, line by line: a sequence's keys are too short for the
// processor to guess where they go on.
template <int N, class E>
GF_INLINE void prefetch_lines(const E* from) {
    for (size_t i = 0; i < N; i += 64 / sizeof(E)) __builtin_prefetch(from + i, 0, 2);
}

// What sums with the keys of 16 positions are multiplied by.
template <class E>
GF_INLINE F16 scale_of(float scale, const float* scales, int p) {
    return sizeof(E) == 1 ? splat(scale) * load<F16>(scales + p) : splat(scale);
}

// Scores of 32 positions at a time; `next`: what is read after these keys.
template <class E, int C>
static void score(const E* keys, int width, const float* const* q, int d_head, int from, int to, float scale,
                  const float* scales, float* out, int stride, const E* next) {
    for (int p = from; p < to; p += ALIGN) {
        const E *low = keys + (size_t)p * width, *high = low + (size_t)16 * width;
        F16 a[C], b[C];
        for (int c = 0; c < C; c++) a[c] = b[c] = splat(0.f);
        for (int i = 0; i < d_head; i++, next += ALIGN) {
            prefetch_lines<ALIGN>(next);
            F16 k = get(low + i * 16), l = get(high + i * 16);
            for (int c = 0; c < C; c++) {
                F16 x = splat(q[c][i]);
                a[c] += k * x;
                b[c] += l * x;
            }
        }
        const F16 first = scale_of<E>(scale, scales, p), second = scale_of<E>(scale, scales, p + 16);
        for (int c = 0; c < C; c++) {
            store(out + (size_t)c * stride + p - from, a[c] * first);
            store(out + (size_t)c * stride + p - from + 16, b[c] * second);
        }
    }
}

// out[c][at..] = the weighted sum of 16 * V dimensions of the values.
template <class E, int C, int V>
static void weighted_sum(const E* values, int width, const float* weights, int from, int to, float* const* out, int at,
                const E* next) {
    F16 acc[C][V];
    for (int c = 0; c < C; c++)
        for (int v = 0; v < V; v++) acc[c][v] = splat(0.f);
    const E* row = values + (size_t)from * width + at;
    for (int p = from; p < to; p++, row += width, next += width) {
        prefetch_lines<16 * V>(next + at);
        F16 x[V];
        for (int v = 0; v < V; v++) x[v] = get(row + v * 16);
        for (int c = 0; c < C; c++) {
            F16 w = splat(weights[c * SPAN + p - from]);
            for (int v = 0; v < V; v++) acc[c][v] += x[v] * w;
        }
    }
    for (int c = 0; c < C; c++)
        for (int v = 0; v < V; v++) store(out[c] + at + v * 16, acc[c][v]);
}

// One head's shape and cache, and what its rows may see.
template <class E>
struct Head {
    const E *keys, *values;
    int width, d_head;  // width: d_head rounded up to 16
    int wide;           // the same of a value's dimensions
    int window, chunk;  // latest positions seen, and of how many a row sees its own share; 0 for all
    float scale, softcap;
    const float* slopes;  // ALiBi's, of each row given; null for none
    const E* next;        // keys of which, probably, the same positions are read after these
    const float *key_scales = nullptr, *value_scales = nullptr;  // of each position in 8 bits

    // The weights of positions [from, to) meet values in 8 bits.
    void scale_weights(float* w, int from, int to) const {
        for (int p = from; sizeof(E) == 1 && p < to; p += 16) store(w + p - from, load<F16>(w + p - from) * load<F16>(value_scales + p));
    }
    int first_seen(int position) const {
        const int first = window > 0 && position >= window ? position - window + 1 : 0;
        return chunk > 0 && position / chunk * chunk > first ? position / chunk * chunk : first;
    }
    float slope(int row) const { return slopes ? slopes[row] : 0.f; }
    size_t partial() const { return (size_t)wide + 16; }  // floats: the unscaled sum, then largest score and sum
};

template <class E, int C>
static void attend_span(const Head<E>& h, const float* const* q, const int* position, int span, float* const* out) {
    alignas(64) static thread_local float scores[4 * SPAN];
    int lowest = position[0], highest = position[0];
    for (int c = 1; c < C; c++) {
        lowest = position[c] < lowest ? position[c] : lowest;
        highest = position[c] > highest ? position[c] : highest;
    }
    int from = span * SPAN, end = from + SPAN, first = h.first_seen(lowest) / ALIGN * ALIGN;
    if (first > from) from = first;
    if (end > highest + 1) end = highest + 1;
    for (int c = 0; c < C; c++) out[c][h.wide] = -INFINITY, out[c][h.wide + 1] = 0;
    if (from >= end) return;
    int to = (int)((end + ALIGN - 1) / ALIGN * ALIGN);
    const size_t start = (size_t)from * h.wide;
    score<E, C>(h.keys, h.width, q, h.d_head, from, to, h.scale, h.key_scales, scores, SPAN, h.values + start);
    for (int c = 0; c < C; c++) {
        softmax_span(scores + c * SPAN, from, to, h.first_seen(position[c]), position[c], h.softcap, h.slope(c), out[c] + h.wide);
        h.scale_weights(scores + c * SPAN, from, to);
    }
    int at = 0;
    for (; at + 64 <= h.wide; at += 64) weighted_sum<E, C, 4>(h.values, h.wide, scores, from, end, out, at, h.next + start);
    for (; at < h.wide; at += 16) weighted_sum<E, C, 1>(h.values, h.wide, scores, from, end, out, at, h.next + start);
}

// One span of up to four rows: out[c] gets what merge() needs.
template <class E>
static void attend(const Head<E>& h, const float* const* q, const int* position, int count, int span, float* const* out) {
    switch (count) {
        case 1: return attend_span<E, 1>(h, q, position, span, out);
        case 2: return attend_span<E, 2>(h, q, position, span, out);
        case 3: return attend_span<E, 3>(h, q, position, span, out);
        default: return attend_span<E, 4>(h, q, position, span, out);
    }
}

// Many rows of one sequence: the same numbers as above, in an order that reads what is near. Keys and values
// are made float32 once for all rows, a piece at a time; a piece stays in the nearest cache while every row
// uses it. Rows go several at a time; missing ones repeat the last, which writes the same numbers again.
constexpr int PREFILL_ROWS = 96;      // rows at most,
constexpr int PREFILL_FROM = 9;  // and at least
constexpr int SCORE_ROWS = 12;    // of them whose sums of 32 positions stay in registers
constexpr int SUM_ROWS = 6;      // of them whose sums of 64 dimensions do
constexpr int WIDEST_HEAD = 512;    // dimensions of a head
constexpr int SUM_POSITIONS = 64;  // of values that are mixed before the next rows' turn

GF_INLINE const float* as_floats(const float* from, size_t, float*) { return from; }
template <class E>
GF_INLINE const float* as_floats(const E* from, size_t n, float* room) {
    for (size_t i = 0; i < n; i += 16) store(room + i, get(from + i));
    return room;
}

// 32 positions' scores of SCORE_ROWS rows, whose queries lie (dimension, row).
static void score_on(const float* keys, int width, const float* q, int d_head, F16 first, F16 second, float* const* out) {
    const float* high = keys + (size_t)16 * width;
    F16 a[SCORE_ROWS], b[SCORE_ROWS];
    for (int c = 0; c < SCORE_ROWS; c++) a[c] = b[c] = splat(0.f);
    for (int i = 0; i < d_head; i++, q += SCORE_ROWS) {
        F16 k = load<F16>(keys + i * 16), l = load<F16>(high + i * 16);
        for (int c = 0; c < SCORE_ROWS; c++) {
            F16 x = splat(q[c]);
            a[c] += k * x;
            b[c] += l * x;
        }
    }
    for (int c = 0; c < SCORE_ROWS; c++) {
        store(out[c], a[c] * first);
        store(out[c] + 16, b[c] * second);
    }
}

template <int V>
static void weighted_sum_on(const float* values, int width, const float* const* weights, int count, float* const* out, int at) {
    F16 acc[SUM_ROWS][V];
    for (int c = 0; c < SUM_ROWS; c++)
        for (int v = 0; v < V; v++) acc[c][v] = load<F16>(out[c] + at + v * 16);
    const float* row = values + at;
    for (int p = 0; p < count; p++, row += width) {
        F16 x[V];
        for (int v = 0; v < V; v++) x[v] = load<F16>(row + v * 16);
        for (int c = 0; c < SUM_ROWS; c++) {
            F16 w = splat(weights[c][p]);
            for (int v = 0; v < V; v++) acc[c][v] += x[v] * w;
        }
    }
    for (int c = 0; c < SUM_ROWS; c++)
        for (int v = 0; v < V; v++) store(out[c] + at + v * 16, acc[c][v]);
}

struct PrefillScratch {
    alignas(64) float scores[PREFILL_ROWS][SPAN];
    alignas(64) float queries[PREFILL_ROWS * WIDEST_HEAD];  // (row / SCORE_ROWS, dimension, SCORE_ROWS)
    alignas(64) float floats[SUM_POSITIONS * WIDEST_HEAD];
    // For products in bfloat16, whose depth is padded to whole tiles:
    alignas(64) uint16_t narrow_queries[PREFILL_ROWS * WIDEST_HEAD];  // (row, dimension)
    alignas(64) uint16_t narrow_keys[UNIT * WIDEST_HEAD];             // two panels of 16 positions
    alignas(64) uint16_t narrow_weights[PREFILL_ROWS * SPAN];         // (row, position)
    alignas(64) uint16_t narrow_values[SPAN * WIDEST_HEAD];           // panels of 16 dimensions
};

// `position` rises; out[c] gets what merge() needs.
template <class E>
static void attend_prefill(const Head<E>& h, const float* const* q, const int* position, int count, int span,
                        float* const* out, PrefillScratch& scratch) {
    const int from = span * SPAN, highest = position[count - 1];
    int first = h.first_seen(position[0]) / ALIGN * ALIGN, end = from + SPAN < highest + 1 ? from + SPAN : highest + 1;
    if (first < from) first = from;
    for (int c = 0; c < count; c++) {
        for (int i = 0; i < h.wide; i++) out[c][i] = 0;
        out[c][h.wide] = -INFINITY, out[c][h.wide + 1] = 0;
    }
    if (first >= end) return;
    // The last position that the rows from c on, n of them, see here, rounded up to what is scored at a time.
    auto until = [&](int c, int n) {
        int last = position[c + n <= count ? c + n - 1 : count - 1] + 1;
        return ((last < end ? last : end) + ALIGN - 1) / ALIGN * ALIGN;
    };
    float* y[SCORE_ROWS];
    for (int c = 0; c < count; c += SCORE_ROWS)
        for (int i = 0; i < h.d_head; i++)
            for (int j = 0; j < SCORE_ROWS; j++)
                scratch.queries[c * h.d_head + i * SCORE_ROWS + j] = q[c + j < count ? c + j : count - 1][i];
    for (int p = first; p < end; p += ALIGN) {
        const float* keys = as_floats(h.keys + (size_t)p * h.width, (size_t)ALIGN * h.width, scratch.floats);
        const F16 first = scale_of<E>(h.scale, h.key_scales, p), second = scale_of<E>(h.scale, h.key_scales, p + 16);
        for (int c = 0; c < count; c += SCORE_ROWS) {
            if (p >= until(c, SCORE_ROWS)) continue;
            for (int i = 0; i < SCORE_ROWS; i++) y[i] = scratch.scores[c + i < count ? c + i : count - 1] + p - from;
            score_on(keys, h.width, scratch.queries + c * h.d_head, h.d_head, first, second, y);
        }
    }
    for (int c = 0; c < count; c++) {
        int to = until(c / SCORE_ROWS * SCORE_ROWS, SCORE_ROWS);
        if (first >= to) continue;
        softmax_span(scratch.scores[c] + first - from, first, to, h.first_seen(position[c]), position[c], h.softcap, h.slope(c), out[c] + h.wide);
        h.scale_weights(scratch.scores[c] + first - from, first, to);
    }
    const float* w[SUM_ROWS];
    float* z[SUM_ROWS];
    for (int p = first; p < end; p += SUM_POSITIONS) {
        int n = end - p < SUM_POSITIONS ? end - p : SUM_POSITIONS;
        const float* values = as_floats(h.values + (size_t)p * h.wide, (size_t)n * h.wide, scratch.floats);
        for (int c = 0; c < count; c += SUM_ROWS) {
            int seen = until(c, SUM_ROWS) - p;
            if (seen <= 0) continue;
            for (int i = 0; i < SUM_ROWS; i++) {
                int row = c + i < count ? c + i : count - 1;
                w[i] = scratch.scores[row] + p - from, z[i] = out[row];
            }
            int at = 0, m = seen < n ? seen : n;
            for (; at + 64 <= h.wide; at += 64) weighted_sum_on<4>(values, h.wide, w, m, z, at);
            for (; at < h.wide; at += 16) weighted_sum_on<1>(values, h.wide, w, m, z, at);
        }
    }
}

// The same in bfloat16 products, quicker but not equal to a decoded token's numbers: queries and weights are rounded, as
// keys and values are in the cache. For prompts of models that are not exact.
GF_NOINLINE void attend_narrow(const Head<uint16_t>& h, const float* const* q, const int* position, int count, int span,
                               float* const* out, PrefillScratch& scratch) {
    const Arithmetic<uint16_t>& way = arithmetic<uint16_t>();
    const Tiles tiles(way.tiles);
    const int from = span * SPAN, highest = position[count - 1], depth = (int)round_up(h.width, UNIT);
    int first = h.first_seen(position[0]) / ALIGN * ALIGN, end = from + SPAN < highest + 1 ? from + SPAN : highest + 1;
    if (first < from) first = from;
    for (int c = 0; c < count; c++) {
        for (int i = 0; i < h.wide; i++) out[c][i] = 0;
        out[c][h.wide] = -INFINITY, out[c][h.wide + 1] = 0;
    }
    if (first >= end) return;
    auto until = [&](int c) {  // the last position that 32 rows from c on see here, rounded up
        int last = position[c + UNIT <= count ? c + UNIT - 1 : count - 1] + 1;
        return (int)round_up(last < end ? last : end, ALIGN);
    };
    typedef Left<uint16_t> Rows;
    typedef Right<uint16_t> Panels;
    alignas(64) float square[UNIT * UNIT];
    const F16 scale = splat(h.scale);
    for (int c = 0; c < count; c++)
        for (int i = 0; i < depth; i += 16) put(scratch.narrow_queries + c * depth + i, get(q[c] + i, h.d_head - i));
    memset(scratch.narrow_keys, 0, UNIT * depth * sizeof(uint16_t));
    for (int p = first; p < end; p += UNIT) {
        for (int half = 0; half < 2; half++) {
            const uint16_t* keys = h.keys + (size_t)(p + half * 16) * h.width;  // (dimension, 16 positions)
            for (int i = 0; i < h.width; i += 2) store(scratch.narrow_keys + (half * depth + i) * 16, line_of(keys + i * 16, 16));
        }
        for (int c = 0; c < count; c += UNIT) {
            if (p >= until(c)) continue;
            way.multiply(Rows::rows(scratch.narrow_queries + c * depth, depth), Panels::panels(scratch.narrow_keys, depth), depth, square);
            for (int i = 0; i < UNIT && c + i < count; i++)
                for (int half = 0; half < UNIT; half += 16)
                    store(scratch.scores[c + i] + p - from + half, load<F16>(square + i * UNIT + half) * scale);
        }
    }
    for (int c = 0; c < count; c++) {
        const int to = until(c / UNIT * UNIT);
        float* scores = scratch.scores[c] + first - from;
        softmax_span(scores, first, to, h.first_seen(position[c]), position[c], h.softcap, h.slope(c), out[c] + h.wide);
        const bool none = out[c][h.wide] == -INFINITY;
        for (int p = 0; p < to - first; p += 16) put(scratch.narrow_weights + c * SPAN + p, none ? splat(0.f) : load<F16>(scores + p));
    }
    const long K = round_up(end - first, UNIT);
    to_panels(h.values + (size_t)first * h.wide, h.wide, K, h.wide, scratch.narrow_values, K, 0);
    if (h.wide % UNIT) memset(scratch.narrow_values + K * h.wide, 0, K * 16 * sizeof(uint16_t));
    for (int c = 0; c < count; c += UNIT) {
        if (until(c) <= first) continue;
        for (int at = 0; at < h.wide; at += UNIT) {
            way.multiply(Rows::rows(scratch.narrow_weights + c * SPAN, SPAN), Panels::panels(scratch.narrow_values + at * K, K), until(c) - first, square);
            for (int i = 0; i < UNIT && c + i < count; i++)
                memcpy(out[c + i] + at, square + i * UNIT, (h.wide - at < UNIT ? h.wide - at : UNIT) * sizeof(float));
        }
    }
}

// The spans of one row, each `stride` floats after the one before, become its result of n numbers; a sink of this score
// takes its share of the weights and gives nothing (minus infinity for none).
static void merge(const float* parts, size_t stride, int spans, int wide, int n, float sink, float* out) {
    float top = sink;
    for (int s = 0; s < spans; s++) top = parts[s * stride + wide] > top ? parts[s * stride + wide] : top;
    float total = sink == -INFINITY ? 0.f : exponential(splat(sink - top))[0];
    for (int i = 0; i < n; i++) out[i] = 0;
    for (int s = 0; s < spans; s++) {
        const float* part = parts + s * stride;
        if (part[wide] == -INFINITY) continue;
        float weight = exponential(splat(part[wide] - top))[0];
        total += weight * part[wide + 1];
        for (int i = 0; i < n; i++) out[i] += weight * part[i];
    }
    for (int i = 0; i < n; i++) out[i] *= 1.f / total;
}
