// Attention of a few query rows over one sequence's cached keys and values.
//
// Keys lie in panels of sixteen positions, (position / 16, dimension, 16), so that sixteen scores
// come out of one register without sums across lanes; values lie (position, dimension). Every sum
// runs over dimensions or positions in rising order from an aligned start, and masked positions add
// exact zeros, so a row's result does not depend on the rows computed beside it.
#pragma once

#include "vectors.h"

constexpr int ALIGN = 32;  // positions the score kernel takes at a time

GF_INLINE F16 load_cached(const float* p) { return load<F16>(p); }
GF_INLINE F16 load_cached(const uint16_t* p) { return brain(p); }
GF_INLINE void put(float* p, float x) { *p = x; }
GF_INLINE void put(uint16_t* p, float x) { *p = to_brain_value(x); }

template <class E, int C>
static void score(const E* keys, int width, const float* const* q, int d_head, int from, int to, float scale,
                  float* out, int stride) {
    for (int p = from; p < to; p += ALIGN) {
        const E *low = keys + (size_t)p * width, *high = low + (size_t)16 * width;
        F16 a[C], b[C];
        for (int c = 0; c < C; c++) a[c] = b[c] = splat(0.f);
        for (int i = 0; i < d_head; i++) {
            F16 k = load_cached(low + i * 16), l = load_cached(high + i * 16);
            for (int c = 0; c < C; c++) {
                F16 x = splat(q[c][i]);
                a[c] += k * x;
                b[c] += l * x;
            }
        }
        for (int c = 0; c < C; c++) {
            store(out + (size_t)c * stride + p - from, a[c] * splat(scale));
            store(out + (size_t)c * stride + p - from + 16, b[c] * splat(scale));
        }
    }
}

template <class E, int C, int V>
static void mix(const E* values, int width, const float* weights, int stride, int from, int to, float* const* out,
                const float* inverse, int at) {
    F16 acc[C][V];
    for (int c = 0; c < C; c++)
        for (int v = 0; v < V; v++) acc[c][v] = splat(0.f);
    const E* row = values + (size_t)from * width + at;
    for (int p = from; p < to; p++, row += width) {
        F16 x[V];
        for (int v = 0; v < V; v++) x[v] = load_cached(row + v * 16);
        for (int c = 0; c < C; c++) {
            F16 w = splat(weights[(size_t)c * stride + p - from]);
            for (int v = 0; v < V; v++) acc[c][v] += x[v] * w;
        }
    }
    for (int c = 0; c < C; c++)
        for (int v = 0; v < V; v++) store(out[c] + at + v * 16, acc[c][v] * splat(inverse[c]));
}

// Scores become weights in place, zero outside [first, last]; returns 1 / their sum.
static float soften(float* s, int from, int to, int first, int last, float softcap) {
    F16 top = splat(-INFINITY);
    for (int p = from; p < to; p += 16) {
        F16 x = load<F16>(s + p - from);
        if (softcap > 0) x = splat(softcap) * hyperbolic_tangent(x / splat(softcap));
        if (p < first || p + 15 > last) {
            I16 at = lanes() + splat_int(p);
            x = select((at >= splat_int(first)) & (at <= splat_int(last)), x, splat(-INFINITY));
        }
        store(s + p - from, x);
        top = largest(top, x);
    }
    F16 most = splat(peak(top)), total = splat(0.f);
    for (int p = from; p < to; p += 16) {
        F16 e = exponential(load<F16>(s + p - from) - most);
        store(s + p - from, e);
        total += e;
    }
    return 1.f / sum(total);
}

template <class E, int C>
static void attend_rows(const E* keys, const E* values, int width, int d_head, const float* const* q, float* const* out,
                        const int* position, int window, float scale, float softcap, float* scratch, int stride) {
    int lowest = position[0], highest = position[0];
    for (int c = 1; c < C; c++) {
        lowest = position[c] < lowest ? position[c] : lowest;
        highest = position[c] > highest ? position[c] : highest;
    }
    int first = window > 0 && lowest - window + 1 > 0 ? lowest - window + 1 : 0;
    int from = first / ALIGN * ALIGN, to = (highest / ALIGN + 1) * ALIGN;
    score<E, C>(keys, width, q, d_head, from, to, scale, scratch, stride);
    float inverse[C];
    for (int c = 0; c < C; c++) {
        int start = window > 0 && position[c] - window + 1 > 0 ? position[c] - window + 1 : 0;
        inverse[c] = soften(scratch + (size_t)c * stride, from, to, start, position[c], softcap);
    }
    int at = 0;
    for (; at + 64 <= width; at += 64) mix<E, C, 4>(values, width, scratch, stride, from, highest + 1, out, inverse, at);
    for (; at < width; at += 16) mix<E, C, 1>(values, width, scratch, stride, from, highest + 1, out, inverse, at);
}

// `count` rows, at most four at a time. `scratch` holds 4 * stride floats, stride >= the longest row
// rounded up to ALIGN. Each out row has room for `width` floats (d_head rounded up to 16).
template <class E>
static void attend(const E* keys, const E* values, int width, int d_head, const float* const* q, float* const* out,
                   const int* position, int count, int window, float scale, float softcap, float* scratch, int stride) {
    for (int i = 0; i < count; i += 4) {
        auto run = count - i >= 4   ? attend_rows<E, 4>
                   : count - i == 3 ? attend_rows<E, 3>
                   : count - i == 2 ? attend_rows<E, 2>
                                    : attend_rows<E, 1>;
        run(keys, values, width, d_head, q + i, out + i, position + i, window, scale, softcap, scratch, stride);
    }
}
