// The passes over rows between products, and their gradients.
#pragma once

#include "train_model.h"

// Rows of the stream, normed, into the left operand `out`; what each was normed by into scale and mean.
GF_NOINLINE void norm_rows(const Model& m, const float* x, const Vector& w, const Vector& b, long rows, float* scale, float* mean,
                           Operand* out) {
    const long width = m.z.width;
    for (long r = 0; r < rows; r++, x += width, out += width) {
        const NormParts parts = norm_row(x, m.s.d_model, w.at, 0.f, b.there() ? b.at : nullptr, m.s.eps, m.s.layer_norm, out);
        scale[r] = parts.inverse, mean[r] = parts.mean;
        for (long i = m.s.d_model; i < width; i++) out[i] = 0;  // padding
    }
}

// From the gradient `dn` of the norm's output: adds that of its input to `d`, and those of weight and bias to theirs.
GF_NOINLINE void norm_back(const Model& m, const float* dn, const float* x, const Vector& w, const Vector& b, long rows,
                      const float* scale, const float* mean, float* d, float* partial) {
    const long width = m.z.width;
    const bool centred = m.s.layer_norm;
    const F16 share = splat(1.f / m.s.d_model);
    float *g_w = partial + w.partial, *g_b = partial + b.partial;
    for (long r = 0; r < rows; r++, x += width, dn += width, d += width) {
        F16 along = splat(0.f), sum = splat(0.f), inverse = splat(scale[r]), about = splat(mean[r]);
        for (long i = 0; i < width; i += LANES) {
            F16 unit = (load<F16>(x + i) - about) * inverse, up = load<F16>(dn + i);
            store(g_w + i, load<F16>(g_w + i) + up * unit);
            if (centred) store(g_b + i, load<F16>(g_b + i) + up);
            up *= load<F16>(w.at + i);
            along += up * unit;
            sum += up;
        }
        along = sum_lanes(along) * share;
        sum = centred ? sum_lanes(sum) * share : splat(0.f);
        for (long i = 0; i < width; i += LANES) {
            F16 unit = (load<F16>(x + i) - about) * inverse;
            F16 up = load<F16>(dn + i) * load<F16>(w.at + i) - sum - unit * along;
            store(d + i, load<F16>(d + i) + up * inverse);
        }
    }
}

// The gradient of a bias: the sum of rows.
GF_NOINLINE void bias_back(const Vector& bias, const Operand* d, long ld, long rows, float* partial) {
    if (!bias.there()) return;
    float* g = partial + bias.partial;
    for (long r = 0; r < rows; r++)
        for (long i = 0; i < bias.size(); i += LANES) store(g + i, load<F16>(g + i) + get(d + r * ld + i));
}

GF_INLINE F16 with_bias(const Vector& bias, long at, F16 x) { return bias.there() ? x + load<F16>(bias.at + at) : x; }
