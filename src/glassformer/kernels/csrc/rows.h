// What a layer does to each row between its products, in one pass over it: torch takes several, each
// through memory. Float32 or bfloat16 in and out, float32 between, on any processor.
#pragma once

#include "team.h"

// The next sixteen, of which n are there.
GF_INLINE F16 get(const float* p, long n) {
    if (n >= 16) return load<F16>(p);
    float a[16] = {};
    memcpy(a, p, n * 4);
    return load<F16>(a);
}

GF_INLINE F16 get(const uint16_t* p, long n) {
    if (n >= 16) return brain(p);
    uint16_t a[16] = {};
    memcpy(a, p, n * 2);
    return brain(a);
}

GF_INLINE void set(float* p, F16 x, long n) { memcpy(p, &x, n >= 16 ? 64 : n * 4); }

GF_INLINE void set(uint16_t* p, F16 x, long n) {
    H16 h = to_brain(x);
    memcpy(p, &h, n >= 16 ? 32 : n * 2);
}

// x / sqrt(mean(x²) + eps) * (weight + plus)
template <class T>
static void rms_norm(const T* x, long rows, long d, const T* weight, float plus, float eps, T* out, int threads) {
    rows_together(threads, rows, 1 + 16384 / d, [=](long r) {
        const T* from = x + r * d;
        F16 squares = splat(0.f);
        for (long i = 0; i < d; i += 16) {
            F16 v = get(from + i, d - i);
            squares += v * v;
        }
        const F16 by = splat(1.f / sqrtf(sum(squares) / (float)d + eps));
        for (long i = 0; i < d; i += 16)
            set(out + r * d + i, get(from + i, d - i) * by * (get(weight + i, d - i) + splat(plus)), d - i);
    });
}

// act(gate) * up, or act(gate) where there is no up.
template <class T>
static void gated(const T* gate, const T* up, long n, int kind, T* out, int threads) {
    const long row = 4096;
    rows_together(threads, (n + row - 1) / row, 4, [=](long r) {
        for (long i = r * row, to = i + row < n ? i + row : n; i < to; i += 16) {
            F16 y = activate(kind, get(gate + i, to - i));
            if (up) y *= get(up + i, to - i);
            set(out + i, y, to - i);
        }
    });
}

// Turns pairs (i, i + pairs) of every head; cosines and sines are (position, pair), one row per `heads` heads.
template <class T>
static void rotate(
    const T* x, long positions, long heads, long d, long stride, const float* cosines, const float* sines, long pairs, T* out,
    int threads) {
    rows_together(threads, positions, 1 + 16384 / (heads * d), [=](long p) {
        const float *cosine = cosines + p * pairs, *sine = sines + p * pairs;
        for (long h = 0; h < heads; h++) {
            const T* from = x + p * stride + h * d;
            T* to = out + (p * heads + h) * d;
            for (long i = 0; i < pairs; i += 16) {
                long n = pairs - i;
                F16 a = get(from + i, n), b = get(from + pairs + i, n), c = get(cosine + i, n), s = get(sine + i, n);
                set(to + i, a * c - b * s, n);
                set(to + pairs + i, b * c + a * s, n);
            }
            memcpy(to + 2 * pairs, from + 2 * pairs, (d - 2 * pairs) * sizeof(T));
        }
    });
}
