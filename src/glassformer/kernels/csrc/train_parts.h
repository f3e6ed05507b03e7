// The passes over rows between products: norms, activations, and their gradients.
#pragma once

#include "scratch.h"

GF_INLINE F16 root_inverse(F16 x) {
#if defined(GF_VNNI)
    F16 y = (F16)_mm512_rsqrt14_ps((__m512)x);
    return y * (splat(1.5f) - splat(0.5f) * x * y * y);
#else
    F16 y;
    for (int i = 0; i < SIDE; i++) y[i] = 1.f / sqrtf(x[i]);
    return y;
#endif
}

// Rows over their root mean square (about the mean, for layer norm), times a weight: into the left operand `out`.
GF_APART void norm_rows(const Model& m, const float* x, const Vector& w, const Vector& b, long rows, float* scale, float* mean,
                      Number* out) {
    const long width = m.z.width, d = m.s.d_model;
    const bool centred = m.s.layer_norm;
    for (long r = 0; r < rows; r++, x += width, out += width) {
        F16 about = splat(0.f), square = splat(0.f);
        if (centred) {
            for (long i = 0; i < width; i += SIDE) about += load<F16>(x + i);
            about = fold_sum(about) * splat(1.f / d);
        }
        for (long i = 0; i < width; i += SIDE) {
            F16 v = load<F16>(x + i) - about;
            if (i + SIDE > d) v = select(lanes() < splat_int((int)(d - i)), v, splat(0.f));  // padding is not part of it
            square += v * v;
        }
        F16 inverse = root_inverse(fold_sum(square) * splat(1.f / d) + splat(m.s.eps));
        scale[r] = inverse[0], mean[r] = about[0];
        for (long i = 0; i < width; i += SIDE) {
            F16 y = (load<F16>(x + i) - about) * inverse * load<F16>(w.at + i);
            if (centred) y += load<F16>(b.at + i);
            put(out + i, y);
        }
    }
}

// From the gradient `dn` of the norm's output: adds that of its input to `d`, and those of weight and bias to theirs.
GF_APART void norm_back(const Model& m, const float* dn, const float* x, const Vector& w, const Vector& b, long rows,
                      const float* scale, const float* mean, float* d, float* partial) {
    const long width = m.z.width;
    const bool centred = m.s.layer_norm;
    const F16 share = splat(1.f / m.s.d_model);
    float *g_w = partial + w.partial, *g_b = partial + b.partial;
    for (long r = 0; r < rows; r++, x += width, dn += width, d += width) {
        F16 along = splat(0.f), sum = splat(0.f), inverse = splat(scale[r]), about = splat(mean[r]);
        for (long i = 0; i < width; i += SIDE) {
            F16 unit = (load<F16>(x + i) - about) * inverse, up = load<F16>(dn + i);
            store(g_w + i, load<F16>(g_w + i) + up * unit);
            if (centred) store(g_b + i, load<F16>(g_b + i) + up);
            up *= load<F16>(w.at + i);
            along += up * unit;
            sum += up;
        }
        along = fold_sum(along) * share;
        sum = centred ? fold_sum(sum) * share : splat(0.f);
        for (long i = 0; i < width; i += SIDE) {
            F16 unit = (load<F16>(x + i) - about) * inverse;
            F16 up = load<F16>(dn + i) * load<F16>(w.at + i) - sum - unit * along;
            store(d + i, load<F16>(d + i) + up * inverse);
        }
    }
}

// The gradient of a bias: the sum of rows.
GF_APART void bias_back(const Vector& bias, const Number* d, long ld, long rows, float* partial) {
    if (!bias.there()) return;
    float* g = partial + bias.partial;
    for (long r = 0; r < rows; r++)
        for (long i = 0; i < bias.size(); i += SIDE) store(g + i, load<F16>(g + i) + get(d + r * ld + i));
}

GF_INLINE F16 with_bias(const Vector& bias, long at, F16 x) { return bias.there() ? x + load<F16>(bias.at + at) : x; }

// An activation and its slope. Only these two are trained here.
GF_INLINE F16 activated(int kind, F16 x, F16& slope) {
    const F16 one = splat(1.f);
    if (kind == SILU) {
        F16 open = reciprocal(one + power_of_e(-x));
        slope = open * (one + x * (one - open));
        return x * open;
    }
    // GELU by tanh: x s(2u), u = sqrt(2/pi) (x + 0.044715 x^3)
    const F16 rate = splat(0.7978845608f), cube = splat(0.044715f);
    F16 u = rate * (x + cube * x * x * x);
    F16 open = reciprocal(one + power_of_e(splat(-2.f) * u));
    slope = open + x * open * (one - open) * splat(2.f) * rate * (one + splat(3.f) * cube * x * x);
    return x * open;
}
