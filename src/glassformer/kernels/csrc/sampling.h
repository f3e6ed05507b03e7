// Choosing among a row of logits: the sum of their weights, one of them by a uniform number, the largest ones in order.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "softmax.h"

// Weights are e^((x - top) * by); each stretch is summed in float32, what comes of stretches in float64.
static const long STRETCH = 256, MOST_STRETCHES = 4096;

struct Weights {
    const float* x;
    long n;
    float by;
    F16 top;

    Weights(const float* x, long n, float by) : x(x), n(n), by(by), top(splat(top_score(x, n))) {}
    F16 at(long i) const { return exponential((scores_at(x, i, n) - top) * splat(by)); }
    long end(long stretch) const { return std::min(n, (stretch + 1) * STRETCH); }

    // The running sum of stretches, in `reached` where there is room; returns the whole.
    double sums(double* reached) const {
        double all = 0;
        for (long s = 0; s * STRETCH < n; s++) {
            F16 total = splat(0.f);
            for (long i = s * STRETCH; i < end(s); i += 16) total += at(i);
            all += sum(total);
            if (reached) reached[s] = all;
        }
        return all;
    }
};

// The first of n <= STRETCH * MOST_STRETCHES logits at which the weights' running sum passes `share` of the whole.
static long draw_row(const float* x, long n, float by, double share) {
    const Weights weights(x, n, by);
    double reached[MOST_STRETCHES];
    const double aim = share * weights.sums(reached);
    const long stretches = (n + STRETCH - 1) / STRETCH;
    const long s = std::min((long)(std::upper_bound(reached, reached + stretches, aim) - reached), stretches - 1);
    double at = s ? reached[s - 1] : 0;
    float w[16];
    for (long i = s * STRETCH; i < weights.end(s); i += 16) {
        store(w, weights.at(i));
        for (long j = 0; j < std::min(16L, n - i); j++)
            if ((at += w[j]) > aim) return i + j;
    }
    for (long i = (weights.end(s) - 1) / 16 * 16; i >= 0; i -= 16) {  // the end of a stretch, by rounding: the last before
        store(w, weights.at(i));
        for (long j = 15; j >= 0; j--)
            if (w[j] > 0) return i + j;
    }
    return 0;
}

// Indices of the `count` <= n largest numbers, largest first, the lower index first among equals. Returns how many there
// are: fewer where some are not numbers.
//
// The largest of each of 2 * count groups or more are found first: what is below the count-th of those is not looked at.
static long largest_of(const float* x, long n, long count, int32_t* out) {
    const long groups = round_up(2 * count, 16);
    float least = -INFINITY;
    if (2 * groups <= n) {
        std::vector<float> tops(groups, -INFINITY);
        for (long i = 0, g = 0; i < n; i += 16, g = g + 16 < groups ? g + 16 : 0)
            store(&tops[g], largest(scores_at(x, i, n), load<F16>(&tops[g])));  // in this order no NaN is kept
        std::nth_element(tops.begin(), tops.begin() + count - 1, tops.end(), std::greater<float>());
        least = tops[count - 1];
    }
    std::vector<std::pair<float, int32_t>> found;
    for (long i = 0; i < n; i += 16) {
        const F16 v = scores_at(x, i, n);
        if (!(peak(largest(v, splat(-INFINITY))) >= least)) continue;
        for (long j = 0; j < std::min(16L, n - i); j++)
            if (v[j] >= least) found.push_back({-v[j], (int32_t)(i + j)});
    }
    const long there = std::min(count, (long)found.size());
    std::partial_sort(found.begin(), found.begin() + there, found.end());
    for (long i = 0; i < there; i++) out[i] = found[i].second;
    return there;
}
