// Sixteen lanes at a time, on any processor.
//
// The compiler's vector extensions give one source for AVX-512 (one register), AVX2 (two) and ARM
// (four). Only what the extensions cannot say well is written per instruction set: the dot product
// of four 8-bit numbers per lane, and half-precision loads. -DGLASSFORMER_PORTABLE switches those
// off, so that the plain path is testable everywhere.
#pragma once

#include <cmath>
#include <cstddef>
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
#define GF_NOINLINE static __attribute__((noinline))  // once in the library: less to compile

#if defined(__clang__) || __GNUC__ >= 12
#define GF_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define GF_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, I16{__VA_ARGS__})
#endif

typedef float F16 __attribute__((vector_size(64)));      // 16 float32 lanes
typedef int32_t I16 __attribute__((vector_size(64)));    // 16 int32 lanes
typedef uint32_t U16 __attribute__((vector_size(64)));   // 16 uint32 lanes
typedef uint8_t B64 __attribute__((vector_size(64)));    // 16 lanes of four bytes
typedef uint16_t H16 __attribute__((vector_size(32)));   // 16 lanes of two bytes
typedef int8_t S16 __attribute__((vector_size(16)));     // 16 signed bytes

GF_INLINE constexpr long round_up(long n, long to) { return (n + to - 1) / to * to; }

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

// The sum over lanes in every lane, by halving, so that the order of additions is the same on every processor.
GF_INLINE F16 sum_lanes(F16 v) {
    v += GF_SHUFFLE(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    v += GF_SHUFFLE(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
    v += GF_SHUFFLE(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    v += GF_SHUFFLE(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
    return v;
}
GF_INLINE float sum(F16 v) { return sum_lanes(v)[0]; }

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

// A square of sixteen by sixteen 32-bit words, transposed.
GF_NOINLINE void transpose(I16* v) {
#define GF_EXCHANGE(s, ...)                                            \
    for (int i = 0; i < 16; i++)                                     \
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
