// Products of up to ROWS_PER_PASS rows of activations with a unit of packed weights, in every format: the weights
// are read once, and that is the time it takes.
#pragma once

#include "rows.h"

constexpr int BLOCK_ROWS = 4;           // of them whose sums of 32 outputs stay in registers, for blocks
// How early memory is asked for, as the processor's own guess stops at a page's end. Few rows are read as fast as memory
// gives; with more, each block is worked on for longer and memory should be busy meanwhile.
constexpr int PREFETCH_BYTES = 2048, FAR_PREFETCH_BYTES = 12 << 10;

// Asks for what lies FAR_PREFETCH_BYTES bytes beyond the bytes of a unit from `at` on.
GF_INLINE void prefetch_far(const uint8_t* unit, size_t at, size_t bytes) {
    for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch(unit + FAR_PREFETCH_BYTES + at + i, 0, 2);
}

// Asks for what both panels of a unit will read PREFETCH_BYTES bytes after `at`: beyond a panel's end, for the next
// unit's. Into the second cache: the first is too small for that, and takes fewer requests at a time.
GF_INLINE void prefetch(const uint8_t* unit, size_t panel, size_t at, int bytes) {
    size_t to = at + PREFETCH_BYTES;
    to += to >= panel ? panel : 0;
    for (int i = 0; i < bytes; i += 64) __builtin_prefetch(unit + to + i, 0, 2), __builtin_prefetch(unit + to + panel + i, 0, 2);
}

// The same of a unit of blocks, from block b on: quants, beyond their end the next unit's, and the next unit's scales.
template <int FORMAT>
GF_INLINE void prefetch_blocks(const uint8_t* unit, size_t panel, int blocks, int b) {
    constexpr int quants = Blocks<FORMAT>::quants, width = Blocks<FORMAT>::scales;
    const size_t all = (size_t)blocks * quants;
    size_t to = (size_t)b * quants + PREFETCH_BYTES;
    to += to >= all ? 2 * panel - all : 0;
    for (int i = 0; i < quants; i += 64) __builtin_prefetch(unit + to + i, 0, 2), __builtin_prefetch(unit + to + panel + i, 0, 2);
    const uint8_t* scales = unit + 2 * panel + all + b * width;
    if (b * width % 64 == 0) __builtin_prefetch(scales, 0, 2), __builtin_prefetch(scales + panel, 0, 2);
}

// out[c][0..31] = unit * activations of row first + c, for C rows.
template <int C>
static void product_f32(const uint8_t* unit, int cols, const Rows& rows, int first, float (*out)[UNIT]) {
    F16 low[C], high[C];
    const float* x[C];
    const size_t panel = panel_bytes(F32, cols);
    for (int c = 0; c < C; c++) {
        low[c] = high[c] = splat(0.f);
        x[c] = rows.x + (size_t)(first + c) * rows.stride;
    }
    for (int k = 0; k < cols; k++) {
        prefetch(unit, panel, (size_t)k * 64, 64);
        F16 w = load<F16>(unit + (size_t)k * 64), v = load<F16>(unit + panel + (size_t)k * 64);
        for (int c = 0; c < C; c++) {
            F16 a = splat(x[c][k]);
            low[c] += w * a;
            high[c] += v * a;
        }
    }
    for (int c = 0; c < C; c++) {
        store(out[c], low[c]);
        store(out[c] + 16, high[c]);
    }
}

template <int C>
static void product_bf16(const uint8_t* unit, int cols, const Rows& rows, int first, float (*out)[UNIT]) {
    F16 low[C], high[C];
    const float* x[C];
    const size_t panel = panel_bytes(BF16, cols);
    for (int c = 0; c < C; c++) {
        low[c] = high[c] = splat(0.f);
        x[c] = rows.x + (size_t)(first + c) * rows.stride;
    }
    for (int k = 0; k < cols; k += 2) {  // an odd last input is paired with zeros on both sides
        prefetch(unit, panel, (size_t)k * 32, 64);
        U16 w = load<U16>(unit + (size_t)k * 32), v = load<U16>(unit + panel + (size_t)k * 32);
        F16 w0 = (F16)(w << 16), w1 = (F16)(w & 0xffff0000u);
        F16 v0 = (F16)(v << 16), v1 = (F16)(v & 0xffff0000u);
        for (int c = 0; c < C; c++) {
            F16 a = splat(x[c][k]), b = splat(x[c][k + 1]);
            low[c] += w0 * a;
            high[c] += v0 * a;
            low[c] += w1 * b;
            high[c] += v1 * b;
        }
    }
    for (int c = 0; c < C; c++) {
        store(out[c], low[c]);
        store(out[c] + 16, high[c]);
    }
}

// N blocks of one panel with C rows: y[c] += their products. Integer sums of several blocks run side by side,
// because each waits for its own last dot product; the float additions keep the blocks' order.
template <int FORMAT, int C, int N>
GF_INLINE void add_blocks(const uint8_t* q, const uint8_t* s, const int8_t* x, size_t stride, const Scale* scales,
                          size_t row_blocks, F16* y) {
    constexpr size_t width = Blocks<FORMAT>::scales;
    I16 t[N][C];
    for (int n = 0; n < N; n++)
        for (int c = 0; c < C; c++) {
            const Scale* at = scales + c * row_blocks + n;
            t[n][c] = splat_int(FORMAT == Q8_0 ? at->less128 : FORMAT == Q4_0 ? at->less8 : 0);
        }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
#pragma GCC unroll 2
        for (int n = 0; n < N; n++) {
            B64 w = quants_of<FORMAT>(q + n * Blocks<FORMAT>::quants, i);
#pragma GCC unroll 8
            for (int c = 0; c < C; c++) {
                int32_t four;
                memcpy(&four, x + c * stride + n * BLOCK + i * 4, 4);
                t[n][c] = FORMAT == Q8_0 ? dot4(t[n][c], w, four) : dot4_small(t[n][c], w, four);
            }
        }
#pragma GCC unroll 2
    for (int n = 0; n < N; n++) {
        F16 d = halves(s + n * width), low = FORMAT == Q4_1 ? halves(s + n * width + 32) : d;
#pragma GCC unroll 8
        for (int c = 0; c < C; c++) {
            const Scale* at = scales + c * row_blocks + n;
            y[c] += __builtin_convertvector(t[n][c], F16) * (d * splat(at->scale));
            if (FORMAT == Q4_1) y[c] += low * splat(at->total);
        }
    }
}

// As many rows as share a reading, or nearly: one panel after the other, so that the weights are unpacked once for all.
template <int FORMAT, int C>
static void product_panel(const uint8_t* panel, int cols, const Rows& rows, int first, float (*out)[UNIT], int lane) {
    constexpr size_t quants = Blocks<FORMAT>::quants, width = Blocks<FORMAT>::scales;
    const int blocks = cols / BLOCK;
    const size_t stride = rows.stride, row_blocks = rows.blocks();
    const uint8_t *q = panel, *s = panel + blocks * quants;
    const int8_t* x = rows.q + first * stride;
    const Scale* scales = rows.scales + first * row_blocks;
    F16 y[C];
    for (int c = 0; c < C; c++) y[c] = splat(0.f);
    int b = 0;
    for (; b + 2 <= blocks; b += 2, q += 2 * quants, s += 2 * width, x += 2 * BLOCK, scales += 2) {
        prefetch_far(panel, b * (quants + width), 2 * (quants + width));
        add_blocks<FORMAT, C, 2>(q, s, x, stride, scales, row_blocks, y);
    }
    if (b < blocks) add_blocks<FORMAT, C, 1>(q, s, x, stride, scales, row_blocks, y);
    for (int c = 0; c < C; c++) store(out[c] + lane, y[c]);
}

// Up to BLOCK_ROWS rows: both panels at once, so that each activation is fetched once for 32 outputs.
template <int FORMAT, int C>
static void product_quant(const uint8_t* unit, int cols, const Rows& rows, int first, float (*out)[UNIT]) {
    constexpr size_t quants = Blocks<FORMAT>::quants, width = Blocks<FORMAT>::scales;
    const int blocks = cols / BLOCK;
    const size_t bytes = panel_bytes(FORMAT, cols);
    if constexpr (C > BLOCK_ROWS) {
        product_panel<FORMAT, C>(unit, cols, rows, first, out, 0);
        product_panel<FORMAT, C>(unit + bytes, cols, rows, first, out, 16);
    } else {
        const size_t stride = rows.stride, row_blocks = rows.blocks();
        const uint8_t *q = unit, *s = unit + blocks * quants;
        const int8_t* x = rows.q + first * stride;
        const Scale* scales = rows.scales + first * row_blocks;
        F16 low[C], high[C];
        for (int c = 0; c < C; c++) low[c] = high[c] = splat(0.f);
        for (int b = 0; b < blocks; b++, q += quants, s += width, x += BLOCK, scales++) {
            I16 t[C], u[C];
            prefetch_blocks<FORMAT>(unit, bytes, blocks, b);
            for (int c = 0; c < C; c++) {
                const Scale* at = scales + c * row_blocks;
                t[c] = u[c] = splat_int(FORMAT == Q8_0 ? at->less128 : FORMAT == Q4_0 ? at->less8 : 0);
            }
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++) {
                B64 v = quants_of<FORMAT>(q, i), w = quants_of<FORMAT>(q + bytes, i);
                for (int c = 0; c < C; c++) {
                    int32_t four;
                    memcpy(&four, x + c * stride + i * 4, 4);
                    t[c] = FORMAT == Q8_0 ? dot4(t[c], v, four) : dot4_small(t[c], v, four);
                    u[c] = FORMAT == Q8_0 ? dot4(u[c], w, four) : dot4_small(u[c], w, four);
                }
            }
            F16 d = halves(s), e = halves(s + bytes);
            for (int c = 0; c < C; c++) {
                const Scale* at = scales + c * row_blocks;
                low[c] += __builtin_convertvector(t[c], F16) * (d * splat(at->scale));
                high[c] += __builtin_convertvector(u[c], F16) * (e * splat(at->scale));
                if (FORMAT == Q4_1) {
                    low[c] += halves(s + 32) * splat(at->total);
                    high[c] += halves(s + bytes + 32) * splat(at->total);
                }
            }
        }
        for (int c = 0; c < C; c++) {
            store(out[c], low[c]);
            store(out[c] + 16, high[c]);
        }
    }
}

// Blocks as the float32 numbers they stand for, times float32 activations: what product_f32 gives, to the bit, for a
// sixth of the bytes.
template <int FORMAT, int C>
static void product_exact(const uint8_t* unit, int cols, const Rows& rows, int first, float (*out)[UNIT]) {
    typedef Blocks<FORMAT> B;
    const int blocks = cols / BLOCK;
    const size_t bytes = panel_bytes(FORMAT, cols);
    const uint8_t *q = unit, *s = unit + blocks * B::quants;
    F16 low[C], high[C];
    const float* x[C];
    for (int c = 0; c < C; c++) {
        low[c] = high[c] = splat(0.f);
        x[c] = rows.x + (size_t)(first + c) * rows.stride;
    }
    for (int b = 0; b < blocks; b++, q += B::quants, s += B::scales) {
        constexpr int read = B::quants + B::scales;
        C > BLOCK_ROWS ? prefetch_far(unit, 2 * b * read, 2 * read) : prefetch_blocks<FORMAT>(unit, bytes, blocks, b);
        const F16 d = halves(s), e = halves(s + bytes);
        F16 other[BLOCK];
        dequantise_block<FORMAT>(q + bytes, e, lowest<FORMAT>(s + bytes, e), [&](int k, F16 w) { other[k] = w; });
        dequantise_block<FORMAT>(q, d, lowest<FORMAT>(s, d), [&](int k, F16 w) {
            for (int c = 0; c < C; c++) {
                F16 a = splat(x[c][b * BLOCK + k]);
                low[c] += w * a;
                high[c] += other[k] * a;
            }
        });
    }
    for (int c = 0; c < C; c++) {
        store(out[c], low[c]);
        store(out[c] + 16, high[c]);
    }
}

template <int C>
static void product_any(const Matrix& m, const uint8_t* unit, const Rows& rows, int first, float (*out)[UNIT]) {
    switch (m.format) {
        case F32: return product_f32<C>(unit, m.cols, rows, first, out);
        case BF16: return product_bf16<C>(unit, m.cols, rows, first, out);
        case Q8_0:
            if (m.exact) return product_exact<Q8_0, C>(unit, m.cols, rows, first, out);
            return product_quant<Q8_0, C>(unit, m.cols, rows, first, out);
        case Q4_0:
            if (m.exact) return product_exact<Q4_0, C>(unit, m.cols, rows, first, out);
            return product_quant<Q4_0, C>(unit, m.cols, rows, first, out);
        default:
            if (m.exact) return product_exact<Q4_1, C>(unit, m.cols, rows, first, out);
            return product_quant<Q4_1, C>(unit, m.cols, rows, first, out);
    }
}

GF_INLINE void add_bias(const Matrix& m, int unit, int count, float (*out)[UNIT]) {
    if (!m.bias) return;
    for (int c = 0; c < count; c++)
        for (int i = 0; i < UNIT; i++) out[c][i] += m.bias[unit * UNIT + i];
}

// Rows go by eight or by up to four; seven are computed as eight (`rows` and `out` have the room).
static void few_rows(const Matrix& m, int unit, const Rows& rows, int first, int count, float (*out)[UNIT]) {
    const uint8_t* data = m.unit(unit);
    for (int left = count, c; left > 0; left -= c, first += c, out += c) {
        c = left >= 7 ? 8 : left >= 4 ? 4 : left;
        switch (c) {
            case 1: product_any<1>(m, data, rows, first, out); break;
            case 2: product_any<2>(m, data, rows, first, out); break;
            case 3: product_any<3>(m, data, rows, first, out); break;
            case 4: product_any<4>(m, data, rows, first, out); break;
            default: product_any<8>(m, data, rows, first, out); break;
        }
    }
}
