// Numbers of 8, 16 and 32 bits as sixteen float32 lanes, and back: the types that buffers hold.
//
// `get` and `put` are overloaded by the buffer's type; with a count they touch the first n of sixteen only, and what
// is not there reads as 0.
#pragma once

#include "simd.h"

#if defined(__AVX512BF16__) && defined(GF_VNNI)
#define GF_BF16 1
#endif

GF_INLINE U16 widened(const uint16_t* p) {
#if defined(GF_VNNI)
    return (U16)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
#else
    return __builtin_convertvector(load<H16>(p), U16);
#endif
}

GF_INLINE float bf16_value(uint16_t h) {
    uint32_t bits = (uint32_t)h << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

// float32 to bfloat16, to nearest, ties to even; NaN stays NaN.
GF_INLINE H16 to_bf16(F16 x) {
#if defined(GF_BF16)
    return (H16)_mm512_cvtneps_pbh((__m512)x);
#else
    U16 bits = (U16)x;
    U16 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return __builtin_convertvector((U16)select((I16)(x == x), (F16)rounded, (F16)(bits >> 16 | 0x40u)), H16);
#endif
}

GF_INLINE uint16_t to_bf16_value(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return (uint16_t)(x == x ? (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16 : bits >> 16 | 0x40u);
}

GF_INLINE F16 get(const float* p) { return load<F16>(p); }
GF_INLINE F16 get(const uint16_t* p) { return (F16)(widened(p) << 16); }
GF_INLINE F16 get(const int8_t* p) {
#if defined(GF_VNNI)
    return (F16)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
#else
    return __builtin_convertvector(__builtin_convertvector(load<S16>(p), I16), F16);
#endif
}
GF_INLINE void put(float* p, F16 x) { store(p, x); }
GF_INLINE void put(uint16_t* p, F16 x) { store(p, to_bf16(x)); }
GF_INLINE void put_one(float* p, float x) { *p = x; }
GF_INLINE void put_one(uint16_t* p, float x) { *p = to_bf16_value(x); }

template <class T>
GF_INLINE F16 get(const T* p, long n) {
    if (n >= 16) return get(p);
    T room[16] = {};
    if (n > 0) memcpy(room, p, n * sizeof(T));
    return get(room);
}

template <class T>
GF_INLINE void put(T* p, F16 x, long n) {
    if (n >= 16) return put(p, x);
    T room[16];
    put(room, x);
    if (n > 0) memcpy(p, room, n * sizeof(T));
}

GF_INLINE void add(float* p, F16 x, long n) { put(p, get(p, n) + x, n); }

// n numbers as bytes, each `stride` behind the one before; returns what a byte's 1 stands for.
GF_INLINE float put_bytes(const float* x, int n, int8_t* to, int stride) {
    F16 top = splat(0.f);
    for (int i = 0; i < n; i += 16) top = largest(top, magnitude(get(x + i, n - i)));
    const float most = peak(top);
    const F16 inverse = splat(most > 0 ? 127.f / most : 0.f);
    for (int i = 0; i < n; i += 16) {
        const I16 whole = nearest(get(x + i, n - i) * inverse);
        for (int j = 0; j < 16 && i + j < n; j++) to[(i + j) * stride] = (int8_t)whole[j];
    }
    return most / 127.f;
}
