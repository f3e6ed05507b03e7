// Functions of sixteen numbers at once, each written once: exponent, hyperbolic tangent, activations and their slopes.
#pragma once

#include "simd.h"

// 1 / x for x of ordinary size, within two units in the last place.
GF_INLINE F16 reciprocal(F16 x) {
#if defined(GF_VNNI)
    F16 r = (F16)_mm512_rcp14_ps((__m512)x);
    return r * (splat(2.f) - x * r);
#else
    return splat(1.f) / x;
#endif
}

// e^x within about two units in the last place, or with BRIEF to the digits that bfloat16 keeps. Exactly 0 below -87,
// so that a masked score vanishes and nothing is subnormal (the processor is slow there); NaN stays NaN.
template <bool BRIEF = false>
GF_INLINE F16 exponential(F16 x) {
    const I16 alive = ~(x <= splat(-87.f));
#if defined(GF_VNNI)
    const F16 y = (F16)_mm512_max_ps(_mm512_set1_ps(-87.f), _mm512_min_ps(_mm512_set1_ps(88.f), (__m512)x));
    const F16 n = (F16)_mm512_roundscale_ps((__m512)(y * splat(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    const F16 y = select(x > splat(88.f), splat(88.f), select(alive, x, splat(-87.f)));
    const I16 whole = nearest(y * splat(1.44269504f));
    const F16 n = __builtin_convertvector(whole, F16);
#endif
    F16 r = y - n * splat(0.693359375f);  // log 2 in two parts, the first of which n multiplies exactly
    r = r - n * splat(-2.12194440e-4f);
    F16 p = splat(8.3333333e-3f);  // Taylor's series: |r| <= 0.347, so r^8/8! is below float32's rounding
    if (!BRIEF) {
        p = splat(1.9841270e-4f);
        p = p * r + splat(1.3888889e-3f);
        p = p * r + splat(8.3333333e-3f);
    }
    p = p * r + splat(4.1666667e-2f);
    p = p * r + splat(1.6666667e-1f);
    p = p * r + splat(0.5f);
    p = p * r + splat(1.f);
    p = p * r + splat(1.f);
#if defined(GF_VNNI)
    return (F16)((I16)_mm512_scalef_ps((__m512)p, (__m512)n) & alive);
#else
    return (F16)((I16)(p * (F16)((whole + splat_int(127)) << 23)) & alive);
#endif
}

GF_INLINE F16 hyperbolic_tangent(F16 x) {
    F16 s = x * x;
    F16 small = splat(62.f / 2835.f);
    small = small * s + splat(-17.f / 315.f);
    small = small * s + splat(2.f / 15.f);
    small = small * s + splat(-1.f / 3.f);
    small = x + x * s * small;
    F16 y = smallest(largest(x, splat(-20.f)), splat(20.f));
    F16 large = splat(1.f) - splat(2.f) / (splat(1.f) + exponential(y + y));
    return select(magnitude(x) < splat(0.25f), small, large);
}

enum Activation { GELU = 0, GELU_TANH = 1, SILU = 2, RELU = 3, RELU2 = 4, QUICK_GELU = 5 };

// 1 / (1 + e^-x)
template <bool BRIEF = false>
GF_INLINE F16 sigmoid(F16 x) { return reciprocal(splat(1.f) + exponential<BRIEF>(-x)); }

// sqrt(2/pi) (x + 0.044715 x^3): GELU by tanh is x sigmoid(2u), as (1 + tanh u) / 2 = sigmoid(2u).
GF_INLINE F16 gelu_argument(F16 x) { return splat(0.7978845608f) * (x + splat(0.044715f) * x * x * x); }

GF_INLINE F16 activate(int kind, F16 x) {
    switch (kind) {
        case SILU: return x * sigmoid(x);
        case GELU_TANH: return x * sigmoid(splat(2.f) * gelu_argument(x));
        case QUICK_GELU: return x * sigmoid(splat(1.702f) * x);
        case RELU: return largest(x, splat(0.f));
        case RELU2: {
            F16 r = largest(x, splat(0.f));
            return r * r;
        }
        default: {
            float a[16];
            store(a, x);
            for (float& v : a) v = 0.5f * v * (1.f + erff(v * 0.70710678f));
            return load<F16>(a);
        }
    }
}

// SILU or GELU by tanh, and its slope.
template <bool BRIEF>
GF_INLINE F16 activate(int kind, F16 x, F16& slope) {
    const F16 one = splat(1.f);
    if (kind == SILU) {
        F16 open = sigmoid<BRIEF>(x);
        slope = open * (one + x * (one - open));
        return x * open;
    }
    F16 open = sigmoid<BRIEF>(splat(2.f) * gelu_argument(x));
    slope = open + x * open * (one - open) * splat(2.f * 0.7978845608f) * (one + splat(3.f * 0.044715f) * x * x);
    return x * open;
}
