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

#include "simd.h"

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

#define GF_APART static __attribute__((noinline))  // once in the library: less to compile

GF_INLINE long round_to(long n, long to) { return (n + to - 1) / to * to; }

#if defined(GF_VNNI)
GF_INLINE U16 widened(const uint16_t* p) { return (U16)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)); }
#else
GF_INLINE U16 widened(const uint16_t* p) { return __builtin_convertvector(load<H16>(p), U16); }
#endif

#if defined(GLASSFORMER_BRAIN)
GF_INLINE F16 get(const Number* p) { return (F16)(widened(p) << 16); }
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
    if (n >= SIDE) return (F16)(widened(p) << 16);
    uint16_t room[SIDE] = {};
    if (n > 0) memcpy(room, p, n * 2);
    return (F16)(widened(room) << 16);
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

// e^x, to the digits that the products keep; 0 far below.
GF_INLINE F16 power_of_e(F16 x) {
#if defined(GF_VNNI)
    // what would not be a normal number is 0: the processor is slow where numbers are not normal
    const __mmask16 alive = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(-87.f), _CMP_NLE_UQ);
    x = (F16)_mm512_max_ps(_mm512_set1_ps(-87.f), _mm512_min_ps(_mm512_set1_ps(88.f), (__m512)x));  // NaN stays NaN
    const __m512 n = _mm512_roundscale_ps((__m512)x * _mm512_set1_ps(1.44269504f), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    F16 r = x - (F16)n * splat(0.693359375f) - (F16)n * splat(-2.12194440e-4f);
#if defined(GLASSFORMER_BRAIN)
    F16 p = splat(8.3333333e-3f);
#else
    F16 p = splat(1.9841270e-4f);
    p = p * r + splat(1.3888889e-3f);
    p = p * r + splat(8.3333333e-3f);
#endif
    p = p * r + splat(4.1666667e-2f);
    p = p * r + splat(1.6666667e-1f);
    p = p * r + splat(0.5f);
    p = p * r + splat(1.f);
    p = p * r + splat(1.f);
    return (F16)_mm512_maskz_scalef_ps(alive, (__m512)p, n);
#else
    return exponential(x);
#endif
}

// A square of sixteen by sixteen 32-bit words, turned over its diagonal.
GF_APART void turn_over(I16* v) {
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
#if defined(GLASSFORMER_BRAIN) && defined(GF_VNNI)
    alignas(64) static const uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                   8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    __m512i both = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i*)row));
    both = _mm512_inserti64x4(both, _mm256_loadu_si256((const __m256i*)(row + ld)), 1);
    return (I16)_mm512_permutexvar_epi16(_mm512_load_si512(order), both);
#elif defined(GLASSFORMER_BRAIN)
    return (I16)(widened(row) | (widened(row + ld) << 16));
#else
    (void)ld;
    return load<I16>(row);
#endif
}

// Row-major rows k (count of them, from k0 of K) become panels.
GF_APART void to_panels(const Number* rows, long ld, long count, long columns, Number* out, long K, long k0) {
    for (long p = 0; p < columns / SIDE; p++) {
        Number* to = out + p * K * SIDE + k0 * SIDE;
        const Number* from = rows + p * SIDE;
        for (long k = 0; k < count; k += PAIR) store(to + k * SIDE, line_of(from + k * ld, ld));
    }
}

// The same rows k become tiles, in which columns are rows.
GF_APART void to_tiles(const Number* rows, long ld, long count, long columns, Number* out, long K, long k0) {
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
GF_APART void turn_to_panels(const Number* rows, long ld, long columns, long K, Number* out) {
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
