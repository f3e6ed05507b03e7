// Matrix products of packed operands, 32 x 32 sums at a time.
//
// Sums run over k in one order whoever computes them. There are several ways to the same layout: AMX tiles where the
// processor has them and the system lets us, AVX-512's bfloat16 dot products, and plain float32 arithmetic anywhere.
// Sizes of operands are whole multiples of UNIT, padded with 0; T is float or uint16_t (bfloat16).
#pragma once

#include "amx.h"
#include "panel.h"

// The left operand: row m, column k stands at panel m / 16, row m % 16, and `step` further for every 32 (bfloat16) or
// one (float32) of k.
template <class T>
struct Left {
    const T* at;
    long row, panel, step;

    static constexpr long deep = LINE<T> == 2 ? UNIT : 1;  // inputs of a step
    // Plain row-major, `ld` numbers a row.
    static Left rows(const T* at, long ld) { return {at, ld, LANES * ld, deep}; }
    // As to_tiles leaves it.
    static Left tiles(const T* at, long K) { return {at, LINE<T> == 2 ? UNIT : 1, K * LANES, deep * LANES}; }
    Left from(long m, long k) const { return {at + m / LANES * panel + k / deep * step, row, panel, step}; }
};

// The right operand, in panels of K inputs.
template <class T>
struct Right {
    const T* at;
    long panel;

    static Right panels(const T* at, long K) { return {at, K * LANES}; }
    Right from(long n, long k) const { return {at + n / LANES * panel + k * LANES, panel}; }
};

#if defined(GF_BF16)
constexpr bool FAST_BF16 = true;  // products of bfloat16 are quicker than those of float32
#else
constexpr bool FAST_BF16 = false;
#endif

// c (32, 32) = left (32, k) x right (k, 32).
template <class T>
using Multiply = void (*)(Left<T>, Right<T>, long k, float* c);

#if defined(GF_VNNI)
constexpr int ROWS_AT_ONCE = 8;  // whose sums of 32 stay in registers
#else
constexpr int ROWS_AT_ONCE = 4;
#endif

// By float32 arithmetic, on any processor.
template <class T>
GF_NOINLINE void multiply_plainly(Left<T> a, Right<T> b, long k, float* c) {
    constexpr int ROWS = ROWS_AT_ONCE;
    for (int m = 0; m < UNIT; m += ROWS) {
        F16 sums[ROWS][2] = {};
        const T* rows = a.at + m / LANES * a.panel + m % LANES * a.row;
        for (long j = 0; j < k; j += LINE<T>) {
            const T* left = rows + j / a.deep * a.step + j % a.deep;
            if constexpr (LINE<T> == 1) {
                F16 first = load<F16>(b.at + j * LANES), second = load<F16>(b.at + b.panel + j * LANES);
#pragma GCC unroll 8
                for (int i = 0; i < ROWS; i++) {
                    F16 x = splat(left[i * a.row]);
                    sums[i][0] += x * first;
                    sums[i][1] += x * second;
                }
            } else {
                U16 first = load<U16>(b.at + j * LANES), second = load<U16>(b.at + b.panel + j * LANES);
#pragma GCC unroll 8
                for (int i = 0; i < ROWS; i++) {
                    F16 x = splat(bf16_value(left[i * a.row])), y = splat(bf16_value(left[i * a.row + 1]));
                    sums[i][0] = sums[i][0] + x * (F16)(first << 16) + y * (F16)(first & 0xffff0000u);
                    sums[i][1] = sums[i][1] + x * (F16)(second << 16) + y * (F16)(second & 0xffff0000u);
                }
            }
        }
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; i++)
            for (int half = 0; half < 2; half++) store(c + (m + i) * UNIT + half * LANES, sums[i][half]);
    }
}

#if defined(GF_BF16)
// By AVX-512's dot products of pairs.
GF_NOINLINE void multiply_by_pairs(Left<uint16_t> a, Right<uint16_t> b, long k, float* c) {
    constexpr int ROWS = ROWS_AT_ONCE;
    for (int m = 0; m < UNIT; m += ROWS) {
        __m512 sums[ROWS][2] = {};
        const uint16_t* rows = a.at + m / LANES * a.panel + m % LANES * a.row;
        for (long j = 0; j < k; j += 2) {
            __m512bh first = (__m512bh)load<I16>(b.at + j * LANES);
            __m512bh second = (__m512bh)load<I16>(b.at + b.panel + j * LANES);
            const uint16_t* left = rows + j / UNIT * a.step + j % UNIT;
#pragma GCC unroll 8
            for (int i = 0; i < ROWS; i++) {
                int32_t two;
                memcpy(&two, left + i * a.row, 4);
                __m512bh x = (__m512bh)_mm512_set1_epi32(two);
                sums[i][0] = _mm512_dpbf16_ps(sums[i][0], x, first);
                sums[i][1] = _mm512_dpbf16_ps(sums[i][1], x, second);
            }
        }
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; i++)
            for (int half = 0; half < 2; half++) _mm512_storeu_ps(c + (m + i) * UNIT + half * LANES, sums[i][half]);
    }
}
#endif

#if defined(GF_AMX_BF16)
// On tiles, all eight of them full.
GF_NOINLINE void multiply_tiles(Left<uint16_t> a, Right<uint16_t> b, long k, float* c) {
    const uint16_t *first = a.at, *second = a.at + a.panel, *left = b.at, *right = b.at + b.panel;
    const long row = a.row * 2;
    compiler_fence(a.at), compiler_fence(b.at);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (long j = 0; j < k; j += UNIT) {
        _tile_loadd(6, left, 64);
        _tile_loadd(4, first, row);
        _tile_loadd(7, right, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, second, row);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        first += a.step, second += a.step;
        left += UNIT * LANES, right += UNIT * LANES;
    }
    _tile_stored(0, c, UNIT * 4);
    _tile_stored(1, c + LANES, UNIT * 4);
    _tile_stored(2, c + LANES * UNIT, UNIT * 4);
    _tile_stored(3, c + LANES * UNIT + LANES, UNIT * 4);
}
#endif

template <class T>
struct Arithmetic {
    Multiply<T> multiply;
    const char* name;
    TileUse tiles;  // that a thread must have set when it multiplies
};

// The quickest way this processor has, found out once.
template <class T>
static const Arithmetic<T>& arithmetic() {
    static const Arithmetic<T> chosen = [] {
        if constexpr (LINE<T> == 1) {
            return Arithmetic<T>{multiply_plainly<T>, "float32", TileUse::NONE};
        } else {
#if defined(GF_AMX_BF16)
            if (tiles_there()) return Arithmetic<T>{multiply_tiles, "bfloat16 by AMX tiles", TileUse::FULL};
#endif
#if defined(GF_BF16)
            return Arithmetic<T>{multiply_by_pairs, "bfloat16 by AVX-512", TileUse::NONE};
#else
            return Arithmetic<T>{multiply_plainly<T>, "bfloat16 by float32 arithmetic", TileUse::NONE};
#endif
        }
    }();
    return chosen;
}

// done(m, n, sums) for every 32 x 32 of the (M, N) product over K, or for those down from the diagonal. One square is
// worked on while the tiles make the next.
template <bool LOWER = false, class T, class F>
GF_INLINE void product(long M, long N, long K, Left<T> a, Right<T> b, F done) {
    const Multiply<T> multiply = arithmetic<T>().multiply;
    alignas(64) float c[2][UNIT * UNIT];
    long last_m = -1, last_n = 0;
    int now = 0;
    for (long n = 0; n < N; n += UNIT)
        for (long m = LOWER ? n : 0; m < M; m += UNIT) {
            multiply(a.from(m, 0), b.from(n, 0), K, c[now]);
            now = !now;
            if (last_m >= 0) done(last_m, last_n, (const float*)c[now]);
            last_m = m, last_n = n;
        }
    done(last_m, last_n, (const float*)c[!now]);
}
