// Matrix products of packed operands, 32 x 32 sums at a time.
//
// Sums run over k in one order whoever computes them. In bfloat16 there are three ways to the same
// layout: AMX tiles where the processor has them and the system lets us, AVX-512's bfloat16 dot
// products, and plain float32 arithmetic anywhere.
#pragma once

#include <optional>

#include "amx.h"
#include "convert.h"

#if defined(GF_AMX) && defined(GLASSFORMER_BRAIN) && defined(__AMX_BF16__)
#define GF_BRAIN_TILES 1
#endif

// The left operand: row m, column k stands at panel m / 16, row m % 16, and `step` further for every 32 (bfloat16) or
// one (float32) of k.
struct Left {
    const Number* at;
    long row, panel, step;

    static Left rows(const Number* at, long ld) { return {at, ld, SIDE * ld, PAIR == 2 ? EDGE : 1}; }
    static Left tiles(const Number* at, long K) {
        return PAIR == 2 ? Left{at, EDGE, K * SIDE, EDGE * SIDE} : Left{at, 1, K * SIDE, SIDE};
    }
    Left from(long m, long k) const {
        return {at + m / SIDE * panel + (PAIR == 2 ? k / EDGE : k) * step, row, panel, step};
    }
};

// The right operand, in panels.
struct Right {
    const Number* at;
    long panel;

    static Right panels(const Number* at, long K) { return {at, K * SIDE}; }
    Right from(long n, long k) const { return {at + n / SIDE * panel + k * SIDE, panel}; }
};

typedef void (*Multiply)(Left, Right, long, float*);

#if defined(GLASSFORMER_BRAIN)

GF_INLINE F16 low(U16 line) { return (F16)(line << 16); }
GF_INLINE F16 high(U16 line) { return (F16)(line & 0xffff0000u); }

static __attribute__((noinline)) void multiply_plainly(Left a, Right b, long k, float* c) {
    constexpr int ROWS = 4;
    for (int m = 0; m < EDGE; m += ROWS) {
        F16 sums[ROWS][2] = {};
        const Number* rows[ROWS];
        for (int i = 0; i < ROWS; i++) rows[i] = a.at + (m + i) / SIDE * a.panel + (m + i) % SIDE * a.row;
        for (long j = 0; j < k; j += 2) {
            U16 first = load<U16>(b.at + j * SIDE), second = load<U16>(b.at + b.panel + j * SIDE);
            long at = j / EDGE * a.step + j % EDGE;
            for (int i = 0; i < ROWS; i++) {
                F16 x = splat(brain_value(rows[i][at])), y = splat(brain_value(rows[i][at + 1]));
                sums[i][0] = sums[i][0] + x * low(first) + y * high(first);
                sums[i][1] = sums[i][1] + x * low(second) + y * high(second);
            }
        }
        for (int i = 0; i < ROWS; i++)
            for (int half = 0; half < 2; half++) store(c + (m + i) * EDGE + half * SIDE, sums[i][half]);
    }
}

#if defined(GF_VNNI) && defined(__AVX512BF16__)
#define GF_DOT 1
static __attribute__((noinline)) void multiply_by_pairs(Left a, Right b, long k, float* c) {
    constexpr int ROWS = 8;
    for (int m = 0; m < EDGE; m += ROWS) {
        __m512 sums[ROWS][2] = {};
        const Number* rows = a.at + m / SIDE * a.panel + m % SIDE * a.row;
        for (long j = 0; j < k; j += 2) {
            __m512bh first = (__m512bh)load<I16>(b.at + j * SIDE);
            __m512bh second = (__m512bh)load<I16>(b.at + b.panel + j * SIDE);
            long at = j / EDGE * a.step + j % EDGE;
            for (int i = 0; i < ROWS; i++) {
                int32_t pair;
                memcpy(&pair, rows + i * a.row + at, 4);
                __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
                sums[i][0] = _mm512_dpbf16_ps(sums[i][0], x, first);
                sums[i][1] = _mm512_dpbf16_ps(sums[i][1], x, second);
            }
        }
        for (int i = 0; i < ROWS; i++)
            for (int half = 0; half < 2; half++) _mm512_storeu_ps(c + (m + i) * EDGE + half * SIDE, sums[i][half]);
    }
}
#endif

#if defined(GF_BRAIN_TILES)
static __attribute__((noinline)) void multiply_tiles(Left a, Right b, long k, float* c) {
    const Number *first = a.at, *second = a.at + a.panel, *left = b.at, *right = b.at + b.panel;
    const long row = a.row * 2;
    settle(a.at), settle(b.at);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (long j = 0; j < k; j += EDGE) {
        _tile_loadd(6, left, 64);
        _tile_loadd(4, first, row);
        _tile_loadd(7, right, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, second, row);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        first += a.step, second += a.step;
        left += EDGE * SIDE, right += EDGE * SIDE;
    }
    _tile_stored(0, c, EDGE * 4);
    _tile_stored(1, c + SIDE, EDGE * 4);
    _tile_stored(2, c + SIDE * EDGE, EDGE * 4);
    _tile_stored(3, c + SIDE * EDGE + SIDE, EDGE * 4);
}
#endif

#else  // float32

static __attribute__((noinline)) void multiply_plainly(Left a, Right b, long k, float* c) {
#if defined(__AVX512F__)
    constexpr int ROWS = 8;
#else
    constexpr int ROWS = 4;
#endif
    for (int m = 0; m < EDGE; m += ROWS) {
        F16 sums[ROWS][2] = {};
        const float* rows = a.at + m / SIDE * a.panel + m % SIDE * a.row;
        const float *left = b.at, *right = b.at + b.panel;
        for (long j = 0; j < k; j++, rows += a.step, left += SIDE, right += SIDE) {
            F16 first = load<F16>(left), second = load<F16>(right);
            for (int i = 0; i < ROWS; i++) {
                F16 x = splat(rows[i * a.row]);
                sums[i][0] += x * first;
                sums[i][1] += x * second;
            }
        }
        for (int i = 0; i < ROWS; i++)
            for (int half = 0; half < 2; half++) store(c + (m + i) * EDGE + half * SIDE, sums[i][half]);
    }
}

#endif

struct Arithmetic {
    Multiply multiply;
    const char* name;
    bool tiles;
};

// The quickest way this processor has, found out once.
static const Arithmetic& arithmetic() {
    static const Arithmetic chosen = [] {
#if defined(GF_BRAIN_TILES)
        if (tiles_there()) return Arithmetic{multiply_tiles, "bfloat16 by AMX tiles", true};
#endif
#if defined(GF_DOT)
        return Arithmetic{multiply_by_pairs, "bfloat16 by AVX-512", false};
#elif defined(GLASSFORMER_BRAIN)
        return Arithmetic{multiply_plainly, "bfloat16 by float32 arithmetic", false};
#else
        return Arithmetic{multiply_plainly, "float32", false};
#endif
    }();
    return chosen;
}

// While it lives, this thread may multiply: where products are made on tiles, its tiles have their shapes.
class Tiles {
#if defined(GF_BRAIN_TILES)
   public:
    Tiles() {
        if (!arithmetic().tiles) return;
        TileShapes shapes;
        shapes.set(0, 8, SIDE, 64);
        setting_.emplace(shapes);
    }

   private:
    std::optional<TileSetting> setting_;
#endif
};

// done(m, n, sums) for every 32 x 32 of the (M, N) product over K. One square is worked on while the tiles make the next.
template <class F>
GF_INLINE void product(long M, long N, long K, Left a, Right b, F done) {
    const Multiply multiply = arithmetic().multiply;
    alignas(64) float c[2][EDGE * EDGE];
    long last_m = -1, last_n = 0;
    int now = 0;
    for (long n = 0; n < N; n += EDGE)
        for (long m = 0; m < M; m += EDGE) {
            multiply(a.from(m, 0), b.from(n, 0), K, c[now]);
            now = !now;
            if (last_m >= 0) done(last_m, last_n, (const float*)c[now]);
            last_m = m, last_n = n;
        }
    done(last_m, last_n, (const float*)c[!now]);
}
