// Softmax of one row of scores over a span of positions, in place, divided later.
#pragma once

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
