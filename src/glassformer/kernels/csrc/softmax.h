// Softmax of one row of scores, in place: over a span of positions and divided later; whole, with its gradient; as a loss.
#pragma once

#include "convert.h"
#include "math.h"

// Scores become weights in place, zero outside [first, last]; the largest score and the weights' sum
// go to result[0] and [1] (minus infinity and 0 where nothing is seen). ALiBi takes `slope` for each position before last.
static void softmax_span(float* s, int from, int to, int first, int last, float softcap, float slope, float* result) {
    F16 top = splat(-INFINITY);
    for (int p = from; p < to; p += 16) {
        F16 x = load<F16>(s + p - from);
        if (softcap > 0) x = splat(softcap) * hyperbolic_tangent(x / splat(softcap));
        if (slope != 0) x += splat(slope) * __builtin_convertvector(lanes() + splat_int(p - last), F16);
        if (p < first || p + 15 > last) {
            I16 at = lanes() + splat_int(p);
            x = select((at >= splat_int(first)) & (at <= splat_int(last)), x, splat(-INFINITY));
        }
        store(s + p - from, x);
        top = largest(top, x);
    }
    result[0] = peak(top), result[1] = 0;
    if (result[0] == -INFINITY) return;
    F16 most = splat(result[0]), total = splat(0.f);
    for (int p = from; p < to; p += 16) {
        F16 e = exponential(load<F16>(s + p - from) - most);
        store(s + p - from, e);
        total += e;
    }
    result[1] = sum(total);
}

// The sixteen numbers at `i` of `n`, minus infinity beyond the last.
template <class T>
GF_INLINE F16 scores_at(const T* x, long i, long n) {
    return n - i >= 16 ? get(x + i) : select(lanes() < splat_int((int)(n - i)), get(x + i, n - i), splat(-INFINITY));
}

template <class T>
GF_INLINE float top_score(const T* x, long n) {
    F16 top = splat(-INFINITY);
    for (long i = 0; i < n; i += 16) top = largest(top, scores_at(x, i, n));
    return peak(top);
}

// Softmax of x * scale over the first `seen` of `keys` numbers, in place; the others become 0.
template <class T>
static void softmax_row(T* x, long seen, long keys, float scale) {
    const F16 by = splat(scale), top = splat(top_score(x, seen) * scale);
    const auto weight = [=](long i) { return exponential<sizeof(T) == 2>(scores_at(x, i, seen) * by - top); };
    float kept[4096];  // of the first, so that they are computed once
    F16 total = splat(0.f);
    for (long i = 0; i < seen; i += 16) {
        const F16 e = weight(i);
        total += e;
        if (i < 4096) store(kept + i, e);
    }
    const F16 share = splat(1.f / sum(total));
    for (long i = 0; i < seen; i += 16) put(x + i, (i < 4096 ? load<F16>(kept + i) : weight(i)) * share, seen - i);
    memset((void*)(x + seen), 0, (keys - seen) * sizeof(T));
}

// p * (dp - sum(p * dp)) * scale in place of dp: the gradient of scores whose softmax, times scale, is p.
template <class T>
static void softmax_gradient_row(const T* p, T* dp, long keys, float scale) {
    F16 total = splat(0.f);
    for (long i = 0; i < keys; i += 16) total += get(p + i, keys - i) * get(dp + i, keys - i);
    const F16 mean = sum_lanes(total);
    for (long i = 0; i < keys; i += 16)
        put(dp + i, get(p + i, keys - i) * (get(dp + i, keys - i) - mean) * splat(scale), keys - i);
}

// -log softmax(x)[target]; x becomes its gradient. Without a target both are 0.
template <class T>
static float cross_entropy_row(T* x, long vocab, long target) {
    if (target < 0) {
        memset((void*)x, 0, vocab * sizeof(T));
        return 0;
    }
    const float top = top_score(x, vocab);
    F16 total = splat(0.f);
    for (long i = 0; i < vocab; i += 16) total += exponential(scores_at(x, i, vocab) - splat(top));
    const float all = top + logf(sum(total)), own = get(x + target, 1)[0];
    for (long i = 0; i < vocab; i += 16) put(x + i, exponential(get(x + i, vocab - i) - splat(all)), vocab - i);
    put_one(x + target, exponential(splat(own - all))[0] - 1.f);
    return all - own;
}
