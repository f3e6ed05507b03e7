// Sixteen lanes at a time, on any processor.
//
// The compiler's vector extensions give one source for AVX-512 (one register), AVX2 (two) and ARM
// (four). Only what the extensions cannot say well is written per instruction set: the dot product
// of four 8-bit numbers per lane, and half-precision loads. -DGLASSFORMER_PORTABLE switches those
// off, so that the plain path is testable everywhere.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if !defined(GLASSFORMER_PORTABLE) && (defined(__x86_64__) || defined(__i386__))
#include <immintrin.h>
#endif

#if !defined(GLASSFORMER_PORTABLE) && defined(__AVX512VNNI__) && defined(__AVX512BW__)
#define GF_VNNI 1
#elif !defined(GLASSFORMER_PORTABLE) && defined(__AVX2__)
#define GF_AVX2 1
#endif

#define GF_INLINE static inline __attribute__((always_inline))

typedef float F16 __attribute__((vector_size(64)));      // 16 float32 lanes
typedef int32_t I16 __attribute__((vector_size(64)));    // 16 int32 lanes
typedef uint32_t U16 __attribute__((vector_size(64)));   // 16 uint32 lanes
typedef uint8_t B64 __attribute__((vector_size(64)));    // 16 lanes of four bytes
typedef uint16_t H16 __attribute__((vector_size(32)));   // 16 lanes of two bytes
typedef int8_t S16 __attribute__((vector_size(16)));     // 16 signed bytes

template <class V>
GF_INLINE V load(const void* p) {
    V v;
    memcpy(&v, p, sizeof v);
    return v;
}

template <class V>
GF_INLINE void store(void* p, V v) {
    memcpy(p, &v, sizeof v);
}

GF_INLINE F16 splat(float x) { return F16{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }
GF_INLINE I16 splat_int(int32_t x) { return I16{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }
GF_INLINE I16 lanes() { return I16{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}; }

GF_INLINE F16 select(I16 mask, F16 yes, F16 no) { return (F16)(((I16)yes & mask) | ((I16)no & ~mask)); }
GF_INLINE F16 largest(F16 a, F16 b) { return select(a > b, a, b); }
GF_INLINE F16 smallest(F16 a, F16 b) { return select(a < b, a, b); }
GF_INLINE F16 magnitude(F16 a) { return (F16)((I16)a & splat_int(0x7fffffff)); }

// Halving, so that the order of additions is the same on every processor.
GF_INLINE float sum(F16 v) {
    float a[16];
    store(a, v);
    for (int width = 8; width; width /= 2)
        for (int i = 0; i < width; i++) a[i] += a[i + width];
    return a[0];
}

GF_INLINE int32_t sum(I16 v) {
#if defined(GF_VNNI)
    return _mm512_reduce_add_epi32((__m512i)v);
#else
    int32_t a[16], total = 0;
    store(a, v);
    for (int i = 0; i < 16; i++) total += a[i];
    return total;
#endif
}

GF_INLINE float peak(F16 v) {
#if defined(GF_VNNI)
    return _mm512_reduce_max_ps((__m512)v);
#else
    float a[16];
    store(a, v);
    for (int width = 8; width; width /= 2)
        for (int i = 0; i < width; i++) a[i] = a[i] > a[i + width] ? a[i] : a[i + width];
    return a[0];
#endif
}

// Nearest integer (ties to even) of |x| < 2^22, by adding and removing 1.5 * 2^23.
GF_INLINE I16 nearest(F16 x) { return (I16)(x + splat(12582912.f)) - (I16)splat(12582912.f); }

// Sixteen halves to float32: shift the bits into place and repair the exponent's bias by a product,
// which is right for subnormals too. Scales and cached values are finite.
GF_INLINE F16 halves(const void* p) {
#if (defined(GF_VNNI) || defined(GF_AVX2)) && defined(__AVX512F__)
    return (F16)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#else
    U16 bits = __builtin_convertvector(load<H16>(p), U16);
    F16 size = (F16)((bits & 0x7fffu) << 13) * splat(0x1p112f);
    return (F16)((U16)size | ((bits & 0x8000u) << 16));
#endif
}

GF_INLINE float half_value(uint16_t h) {
    uint32_t bits = (uint32_t)(h & 0x7fffu) << 13;
    float size;
    memcpy(&size, &bits, 4);
    size *= 0x1p112f;
    return h & 0x8000u ? -size : size;
}

// The lowest four bits of each lane as a number; what is above them does not matter.
GF_INLINE F16 low_nibble(U16 bits) {
#if defined(GF_VNNI)
    const F16 numbers = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return (F16)_mm512_permutexvar_ps((__m512i)bits, (__m512)numbers);
#else
    return __builtin_convertvector((I16)(bits & 15u), F16);
#endif
}

GF_INLINE F16 brain(const void* p) { return (F16)(__builtin_convertvector(load<H16>(p), U16) << 16); }

GF_INLINE float brain_value(uint16_t h) {
    uint32_t bits = (uint32_t)h << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

// float32 to bfloat16, to nearest, ties to even (finite values).
GF_INLINE H16 to_brain(F16 x) {
    U16 bits = (U16)x;
    return __builtin_convertvector((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16, H16);
}

GF_INLINE uint16_t to_brain_value(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// Per lane: total + sum of four products of unsigned bytes `w` with the four signed bytes in `a`.
GF_INLINE I16 dot4(I16 total, B64 w, int32_t a) {
#if defined(GF_VNNI)
    return (I16)_mm512_dpbusd_epi32((__m512i)total, (__m512i)w, _mm512_set1_epi32(a));
#elif defined(GF_AVX2)
    // maddubs adds pairs in 16 bits, where 255 * 127 * 2 would not fit: halve the range of w by its
    // top bit, 127 * 127 * 2 does.
    const __m256i ones = _mm256_set1_epi16(1), x = _mm256_set1_epi32(a);
    const __m256i low_bits = _mm256_set1_epi8(0x7f), top_bit = _mm256_set1_epi8((char)0x80);
    __m256i* t = (__m256i*)&total;
    const __m256i* v = (const __m256i*)&w;
    for (int i = 0; i < 2; i++) {
        __m256i low = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_and_si256(v[i], low_bits), x), ones);
        // The top bit weighs 128: maddubs of 128 * 127 * 2 fits 16 bits (32,512).
        __m256i top = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_and_si256(v[i], top_bit), x), ones);
        t[i] = _mm256_add_epi32(t[i], _mm256_add_epi32(low, top));
    }
    return total;
#else
    int8_t x[4];
    memcpy(x, &a, 4);
    U16 words = (U16)w;
    total += (I16)(words & 0xffu) * x[0] + (I16)((words >> 8) & 0xffu) * x[1];
    total += (I16)((words >> 16) & 0xffu) * x[2] + (I16)(words >> 24) * x[3];
    return total;
#endif
}

// The same where w is known to be below 128.
GF_INLINE I16 dot4_small(I16 total, B64 w, int32_t a) {
#if defined(GF_AVX2)
    const __m256i ones = _mm256_set1_epi16(1), x = _mm256_set1_epi32(a);
    __m256i* t = (__m256i*)&total;
    const __m256i* v = (const __m256i*)&w;
    for (int i = 0; i < 2; i++)
        t[i] = _mm256_add_epi32(t[i], _mm256_madd_epi16(_mm256_maddubs_epi16(v[i], x), ones));
    return total;
#else
    return dot4(total, w, a);
#endif
}

// e^x within about 2 units in the last place; exactly 0 below -87, so that a masked score vanishes.
GF_INLINE F16 exponential(F16 x) {
    I16 alive = x > splat(-87.f);
    F16 y = smallest(largest(x, splat(-87.f)), splat(88.f));
    I16 n = nearest(y * splat(1.44269504f));
    F16 whole = __builtin_convertvector(n, F16);
    F16 r = y - whole * splat(0.693359375f);
    r = r - whole * splat(-2.12194440e-4f);
    F16 p = splat(1.9841270e-4f);  // Taylor's series: |r| <= 0.347, so r^8/8! is below float32's rounding
    p = p * r + splat(1.3888889e-3f);
    p = p * r + splat(8.3333333e-3f);
    p = p * r + splat(4.1666667e-2f);
    p = p * r + splat(1.6666667e-1f);
    p = p * r + splat(0.5f);
    p = p * r + splat(1.f);
    p = p * r + splat(1.f);
    F16 power = (F16)((n + splat_int(127)) << 23);
    return (F16)((I16)(p * power) & alive);
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

enum Activation { GELU = 0, GELU_TANH = 1, SILU = 2, RELU = 3, RELU2 = 4 };

GF_INLINE F16 activate(int kind, F16 x) {
    switch (kind) {
        case SILU:
            return x / (splat(1.f) + exponential(-x));
        case GELU_TANH: {  // (1 + tanh u) / 2 = 1 / (1 + e^(-2u))
            F16 u = splat(0.7978845608f) * (x + splat(0.044715f) * x * x * x);
            return x / (splat(1.f) + exponential(splat(-2.f) * u));
        }
        case RELU:
            return largest(x, splat(0.f));
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
