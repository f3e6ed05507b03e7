// The numbers that matrix products take, and the two orders they are packed in.
//
// One library is compiled for each precision. With GLASSFORMER_BRAIN operands are bfloat16, else
// float32; sums are float32 in both. Sizes of operands are whole multiples of EDGE, padded with 0.
//
//   rows     plain row-major, the left operand that a pass over rows has just written
//   panels   16 columns at a time; a line of 64 bytes holds one k (float32) or two (bfloat16) of
//            all 16: the right operand
//   tiles    16 rows at a time, for a left operand whose k runs over tokens: in bfloat16 blocks of
//            16 rows x 32 k, in float32 the same as panels
//
// Panels and tiles of k = 0 ... K-1 take K * 16 numbers for every 16 columns or rows.
#pragma once

#include <cstddef>

#include "vectors.h"

#if defined(GLASSFORMER_BRAIN)
typedef uint16_t Number;
constexpr int PAIR = 2;  // k's in a line
#else
typedef float Number;
constexpr int PAIR = 1;
#endif
constexpr int SIDE = 16;
constexpr int EDGE = 32;

#if defined(__clang__) || __GNUC__ >= 12
#define GF_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define GF_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, I16{__VA_ARGS__})
#endif

GF_INLINE long round_to(long n, long to) { return (n + to - 1) / to * to; }

#if defined(GLASSFORMER_BRAIN)
GF_INLINE F16 get(const Number* p) { return brain(p); }
GF_INLINE float get_one(const Number* p) { return brain_value(*p); }
GF_INLINE void put(Number* p, F16 x) {
#if defined(GF_VNNI) && defined(__AVX512BF16__)
    store(p, _mm512_cvtneps_pbh((__m512)x));
#else
    store(p, to_brain(x));
#endif
}
#else
GF_INLINE F16 get(const Number* p) { return load<F16>(p); }
GF_INLINE float get_one(const Number* p) { return *p; }
GF_INLINE void put(Number* p, F16 x) { store(p, x); }
#endif

// The first n of sixteen, 0 beyond.
template <class T>
GF_INLINE F16 some(const T* p, long n);
template <>
inline F16 some<float>(const float* p, long n) {
    if (n >= SIDE) return load<F16>(p);
    F16 v = splat(0.f);
    if (n > 0) memcpy(&v, p, n * sizeof(float));
    return v;
}
template <>
inline F16 some<uint16_t>(const uint16_t* p, long n) {
    if (n >= SIDE) return brain(p);
    uint16_t room[SIDE] = {};
    if (n > 0) memcpy(room, p, n * 2);
    return brain(room);
}

GF_INLINE void put_some(Number* p, long n, F16 x) {
    if (n >= SIDE) return put(p, x);
    Number room[SIDE];
    put(room, x);
    if (n > 0) memcpy(p, room, n * sizeof(Number));
}

GF_INLINE void add_some(float* p, long n, F16 x) {
    if (n >= SIDE) return store(p, load<F16>(p) + x);
    for (long i = 0; i < n; i++) p[i] += x[i];
}

GF_INLINE void store_some(float* p, long n, F16 x) {
    if (n >= SIDE) return store(p, x);
    if (n > 0) memcpy(p, &x, n * sizeof(float));
}

// The sum over lanes, by halving; the largest lane.
GF_INLINE F16 fold_sum(F16 v) {
    v += GF_SHUFFLE(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    v += GF_SHUFFLE(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
    v += GF_SHUFFLE(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    v += GF_SHUFFLE(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
    return v;
}
GF_INLINE float total(F16 v) { return fold_sum(v)[0]; }

// 1 / x for x of ordinary size.
GF_INLINE F16 reciprocal(F16 x) {
#if defined(GF_VNNI)
    F16 r = (F16)_mm512_rcp14_ps((__m512)x);
    return r * (splat(2.f) - x * r);
#else
    return splat(1.f) / x;
#endif
}

// A square of sixteen by sixteen 32-bit words, turned over its diagonal.
GF_INLINE void turn_over(I16* v) {
#define GF_EXCHANGE(s, ...)                                            \
    for (int i = 0; i < SIDE; i++)                                     \
        if (!(i & s)) {                                                \
            I16 a = v[i], b = v[i + s];                                \
            v[i] = GF_SHUFFLE(a, b, GF_FIRST_##s);                     \
            v[i + s] = GF_SHUFFLE(a, b, GF_SECOND_##s);                \
        }
#define GF_FIRST_8 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23
#define GF_SECOND_8 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31
#define GF_FIRST_4 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27
#define GF_SECOND_4 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31
#define GF_FIRST_2 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29
#define GF_SECOND_2 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31
#define GF_FIRST_1 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30
#define GF_SECOND_1 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31
    GF_EXCHANGE(8)
    GF_EXCHANGE(4)
    GF_EXCHANGE(2)
    GF_EXCHANGE(1)
#undef GF_EXCHANGE
}

// One line of a panel: sixteen columns of one row, or of two rows side by side.
GF_INLINE I16 line_of(const Number* row, long ld) {
#if defined(GLASSFORMER_BRAIN)
    U16 first = __builtin_convertvector(load<H16>(row), U16);
    U16 second = __builtin_convertvector(load<H16>(row + ld), U16);
    return (I16)(first | (second << 16));
#else
    (void)ld;
    return load<I16>(row);
#endif
}

// Row-major rows k (count of them, from k0 of K) become panels.
static inline void to_panels(const Number* rows, long ld, long count, long columns, Number* out, long K, long k0) {
    for (long p = 0; p < columns / SIDE; p++) {
        Number* to = out + p * K * SIDE + k0 * SIDE;
        const Number* from = rows + p * SIDE;
        for (long k = 0; k < count; k += PAIR) store(to + k * SIDE, line_of(from + k * ld, ld));
    }
}

// The same rows k become tiles, in which columns are rows.
static inline void to_tiles(const Number* rows, long ld, long count, long columns, Number* out, long K, long k0) {
#if defined(GLASSFORMER_BRAIN)
    for (long p = 0; p < columns / SIDE; p++) {
        Number* to = out + p * K * SIDE + k0 * SIDE;
        const Number* from = rows + p * SIDE;
        for (long k = 0; k < count; k += EDGE) {
            I16 square[SIDE];
            for (int i = 0; i < SIDE; i++) square[i] = line_of(from + (k + 2 * i) * ld, ld);
            turn_over(square);
            for (int i = 0; i < SIDE; i++) store(to + k * SIDE + i * EDGE, square[i]);
        }
    }
#else
    to_panels(rows, ld, count, columns, out, K, k0);
#endif
}

// Row-major (columns, K): every row becomes a column of a panel.
static inline void turn_to_panels(const Number* rows, long ld, long columns, long K, Number* out) {
    constexpr int STEP = SIDE * PAIR;
    for (long p = 0; p < columns / SIDE; p++) {
        Number* to = out + p * K * SIDE;
        const Number* from = rows + p * SIDE * ld;
        for (long k = 0; k < K; k += STEP) {
            I16 square[SIDE];
            for (int i = 0; i < SIDE; i++) square[i] = load<I16>(from + i * ld + k);
            turn_over(square);
            for (int i = 0; i < SIDE; i++) store(to + k * SIDE + i * SIDE * PAIR, square[i]);
        }
    }
}
