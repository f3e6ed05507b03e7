// Rows of activations, what is done to each of them, and their products with weights.
//
// Every output is summed over the inputs in the same order however many rows share a product, so a token's numbers do
// not depend on what else was in its batch. Few rows: the weights are read once, and that is the time it takes. Many
// rows: what has to be done to the weights is done once for all of them. For float32 activations and for 8-bit ones the
// numbers are the same either way; but tokens of a long prompt meet bfloat16 weights that are not exact as bfloat16.
#pragma once

#include <new>
#include <vector>

#include "arena.h"
#include "gemm.h"
#include "math.h"

constexpr int ROWS_PER_PASS = 8;        // activation rows that share one reading of the weights
constexpr int BLOCK_ROWS = 4;           // of them whose sums of 32 outputs stay in registers, for blocks
// How early memory is asked for, as the processor's own guess stops at a page's end. Few rows are read as fast as memory
// gives; with more, each block is worked on for longer and memory should be busy meanwhile.
constexpr int PREFETCH_BYTES = 2048, FAR_PREFETCH_BYTES = 12 << 10;

// out = x over its root mean square (about its mean, with `centred`), times weight + plus, plus bias; n numbers. Returns
// the mean and what was multiplied by.
struct NormParts {
    float mean, inverse;
};
template <class In, class W, class Out>
GF_INLINE NormParts norm_row(const In* x, long n, const W* weight, float plus, const W* bias, float eps, bool centred, Out* out) {
    F16 total = splat(0.f), square = splat(0.f);
    float mean = 0;
    if (centred) {
        for (long i = 0; i < n; i += 16) total += get(x + i, n - i);
        mean = sum(total) / n;
    }
    for (long i = 0; i < n; i += 16) {
        F16 d = get(x + i, n - i) - splat(mean);
        if (centred && n - i < 16) d = select(lanes() < splat_int((int)(n - i)), d, splat(0.f));
        square += d * d;
    }
    const float inverse = 1.f / sqrtf(sum(square) / n + eps);
    for (long i = 0; i < n; i += 16) {
        F16 y = (get(x + i, n - i) - splat(mean)) * splat(inverse) * (get(weight + i, n - i) + splat(plus));
        put(out + i, bias ? y + get(bias + i, n - i) : y, n - i);
    }
    return {mean, inverse};
}

// Turns pairs (i, i + pairs) by angles; `sign` -1 turns back. In place where to == from.
template <class In, class Out>
GF_INLINE void rotate_row(const In* from, const float* cosine, const float* sine, long pairs, Out* to, float sign = 1.f) {
    for (long i = 0; i < pairs; i += 16) {
        const long n = pairs - i;
        F16 a = get(from + i, n), b = get(from + pairs + i, n), c = get(cosine + i, n), s = get(sine + i, n) * splat(sign);
        put(to + i, a * c - b * s, n);
        put(to + pairs + i, b * c + a * s, n);
    }
}

// What a product needs to know of 32 quantised activations beside the quants themselves.
struct Scale {
    float scale;         // of the quants
    float total;         // scale * sum of the quants: what a weight block's minimum is multiplied by
    int32_t less8;       // -8 * sum of the quants, for weights stored with 8 added,
    int32_t less128;     // and with 128 added
};

// Rows of activations: float32, and beside them bfloat16, or 8-bit quants with one scale per 32 inputs.
struct Rows {
    int stride = 0;  // of one row, in inputs: a multiple of 64, zero beyond the last
    float* x = nullptr;           // (row, stride)
    uint16_t* narrow = nullptr;   // (row, stride) in bfloat16
    int8_t* q = nullptr;          // (row, stride)
    Scale* scales = nullptr;  // (row, block)
    float* across = nullptr;  // (row / 16, block, 2, 16): scales and totals of sixteen rows side by side

    int blocks() const { return stride / BLOCK; }
    float* at(int row) const { return x + (size_t)row * stride; }
    // The same from a row on: of tiles, from a whole one.
    Rows from(int row) const {
        const size_t at = (size_t)row * stride;
        return {stride, x + at, narrow + at, q + at, scales + (size_t)row * blocks(), across + (size_t)(row / LANES) * blocks() * 32};
    }

    void quantise(int row, int block, const float* from) const {
        int8_t* to = q + (size_t)row * stride + block * BLOCK;
        F16 a = load<F16>(from), c = load<F16>(from + 16);
        float top = peak(largest(magnitude(a), magnitude(c))), scale = top / 127.f;
        F16 inverse = splat(top > 0 ? 127.f / top : 0.f);
        I16 i = nearest(a * inverse), j = nearest(c * inverse);
        store(to, __builtin_convertvector(i, S16));
        store(to + 16, __builtin_convertvector(j, S16));
        int32_t total = sum(i + j);
        scales[(size_t)row * blocks() + block] = Scale{scale, scale * (float)total, -8 * total, -128 * total};
        float* side = across + ((size_t)(row / 16) * blocks() + block) * 32 + row % 16;
        side[0] = scale, side[16] = scale * (float)total;
    }

    void quantise(int row) const {
        for (int b = 0; b < blocks(); b++) quantise(row, b, at(row) + b * BLOCK);
    }

    // 32 inputs in bfloat16.
    void narrow_block(int row, int block, const float* from) const {
        uint16_t* to = narrow + (size_t)row * stride + block * BLOCK;
        put(to, load<F16>(from)), put(to + 16, load<F16>(from + 16));
    }
    void narrow_row(int row) const {
        for (int b = 0; b < blocks(); b++) narrow_block(row, b, at(row) + b * BLOCK);
    }
};

// Rows with their memory, all zero.
struct RowBuffers {
    Buffer<float> x;
    Buffer<uint16_t> narrow;
    Buffer<int8_t> q;
    Buffer<Scale> scales;
    Buffer<float> across;
    Rows rows;

    bool make(int count, int cols) {
        rows.stride = (int)round_up(cols, 64);
        size_t n = (size_t)round_up(count, UNIT) * rows.stride;  // products take 32 rows, though some be nobody's
        x = zeros<float>(n), narrow = zeros<uint16_t>(n), q = zeros<int8_t>(n);
        scales = zeros<Scale>(n / BLOCK), across = zeros<float>(n / BLOCK * 2);
        rows.x = x.get(), rows.narrow = narrow.get(), rows.q = q.get(), rows.scales = scales.get();
        rows.across = across.get();
        return x && narrow && q && scales && across;
    }
};

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

// Up to BLOCK_ROWS rows: both panels at once, so that each activation is fetched once for 32 outputs. One row
// fewer than ROWS_PER_PASS is computed as ROWS_PER_PASS rows (`Rows` and `out` have the room): that spares compiling it apart.
template <int FORMAT, int C>
static void product_quant(const uint8_t* unit, int cols, const Rows& rows, int first, float (*out)[UNIT]) {
    constexpr size_t quants = Blocks<FORMAT>::quants, width = Blocks<FORMAT>::scales;
    const int blocks = cols / BLOCK;
    const size_t bytes = panel_bytes(FORMAT, cols);
    if constexpr (C + 1 >= ROWS_PER_PASS) {
        product_panel<FORMAT, ROWS_PER_PASS>(unit, cols, rows, first, out, 0);
        product_panel<FORMAT, ROWS_PER_PASS>(unit + bytes, cols, rows, first, out, 16);
    } else if constexpr (C > BLOCK_ROWS) {
        product_quant<FORMAT, BLOCK_ROWS>(unit, cols, rows, first, out);
        product_quant<FORMAT, C - BLOCK_ROWS>(unit, cols, rows, first + BLOCK_ROWS, out + BLOCK_ROWS);
    } else {
        const size_t stride = rows.stride, row_blocks = rows.blocks();
        const uint8_t *q = unit, *s = unit + blocks * quants;
        const int8_t* x = rows.q + first * stride;
        const Scale* scales = rows.scales + first * row_blocks;
        F16 low[C], high[C];
        for (int c = 0; c < C; c++) low[c] = high[c] = splat(0.f);
        for (int b = 0; b < blocks; b++, q += quants, s += width, x += BLOCK, scales++) {
            I16 t[C], u[C];
            prefetch(unit, bytes, b * quants, quants);
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
        C > BLOCK_ROWS ? prefetch_far(unit, 2 * b * read, 2 * read) : prefetch(unit, bytes, b * B::quants, B::quants);
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

static void few_rows(const Matrix& m, int unit, const Rows& rows, int first, int count, float (*out)[UNIT]) {
    const uint8_t* data = m.unit(unit);
    switch (count) {
        case 1: product_any<1>(m, data, rows, first, out); break;
        case 2: product_any<2>(m, data, rows, first, out); break;
        case 3: product_any<3>(m, data, rows, first, out); break;
        case 4: product_any<4>(m, data, rows, first, out); break;
        case 5: product_any<5>(m, data, rows, first, out); break;
        case 6: product_any<6>(m, data, rows, first, out); break;
        case 7: product_any<7>(m, data, rows, first, out); break;
        default: product_any<8>(m, data, rows, first, out); break;
    }
}

#if defined(GF_AMX_INT8)
// A unit for the tiles: per panel and block 32 x 16 signed bytes, and the scales in float32.
struct Unpacked {
    int blocks = 0;
    bool lows = false;  // blocks have a minimum
    Buffer<int8_t> quants;
    Buffer<float> scales;  // (panel, block, 32): 16 scales, 16 minima
    size_t size = 0;

    bool fill(const Matrix& m, int unit) {
        blocks = m.cols / BLOCK, lows = m.format == Q4_1;
        if ((size_t)blocks > size) {
            size = blocks;
            quants.reset(static_cast<int8_t*>(allocate(size * 2 * 512)));
            scales.reset(static_cast<float*>(allocate(size * 2 * 32 * sizeof(float))));
        }
        if (!quants || !scales) return size = 0;
        with_blocks(m.format, [&](auto b) {
            constexpr int FORMAT = b.quants == 512 ? Q8_0 : b.minima ? Q4_1 : Q4_0;
            int8_t* to = quants.get();
            float* scale = scales.get();
            for (int p = 0; p < 2; p++) {
                const uint8_t* q = m.unit(unit) + p * panel_bytes(m.format, m.cols);
                const uint8_t* s = q + blocks * b.quants;
                for (int n = 0; n < blocks; n++, q += b.quants, s += b.scales, to += 512, scale += 32) {
                    for (int i = 0; i < 8; i++) store(to + i * 64, quants_of<FORMAT>(q, i) - (uint8_t)b.offset);
                    store(scale, halves(s));
                    if (lows) store(scale + 16, halves(s + 32));
                }
            }
        });
        return true;
    }
};

// Two blocks' sums, into tiles 0 and 1. (A last odd block is done twice.)
GF_INLINE void sum_blocks(const int8_t* x, size_t stride, const int8_t* w, int b, int blocks) {
    const int c = b + 1 < blocks ? b + 1 : b;
    _tile_loadd(4, x + b * BLOCK, stride);
    _tile_loadd(6, w + (size_t)b * 512, 64);
    _tile_zero(0);
    _tile_dpbssd(0, 4, 6);
    _tile_loadd(5, x + c * BLOCK, stride);
    _tile_loadd(7, w + (size_t)c * 512, 64);
    _tile_zero(1);
    _tile_dpbssd(1, 5, 7);
}

// out[c][0..31] for sixteen rows from `first` on, which must be there, if only as room. Sums take a while to
// come, so two blocks' are made while those of the two before are scaled.
template <bool LOWS>
void product_tiles(const Unpacked& unit, const Rows& rows, int first, float (*out)[UNIT]) {
    alignas(64) I16 sums[2][2][16];
    const int blocks = unit.blocks;
    const size_t stride = rows.stride;
    const int8_t* x = rows.q + first * stride;
    const float* side = rows.across + (size_t)(first / 16) * rows.blocks() * 32;
    compiler_fence(rows.q), compiler_fence(unit.quants.get());
    for (int p = 0; p < 2; p++) {
        const int8_t* w = unit.quants.get() + (size_t)p * blocks * 512;
        const float* d = unit.scales.get() + (size_t)p * blocks * 32;
        F16 y[16];
#pragma GCC unroll 16
        for (int c = 0; c < 16; c++) y[c] = splat(0.f);
        for (int b = -2, turn = 0; b < blocks; b += 2, turn ^= 1) {
            const bool more = b + 2 < blocks;
            if (more) sum_blocks(x, stride, w, b + 2, blocks);
            for (int i = b < 0 ? 0 : b; i < b + 2 && i < blocks; i++) {
                const float* at = side + i * 32;
                const I16* sum = sums[turn][i - b];
                F16 scale = load<F16>(d + i * 32), low = load<F16>(d + i * 32 + 16);
#pragma GCC unroll 16
                for (int c = 0; c < 16; c++) {
                    y[c] += __builtin_convertvector(sum[c], F16) * (scale * splat(at[c]));
                    if (LOWS) y[c] += low * splat(at[c + 16]);
                }
            }
            if (more) {
                _tile_stored(0, sums[turn ^ 1][0], 64);
                _tile_stored(1, sums[turn ^ 1][1], 64);
            }
        }
#pragma GCC unroll 16
        for (int c = 0; c < 16; c++) store(out[c] + p * 16, y[c]);
    }
}
#endif

// From so many rows on: weights are unpacked for 8-bit tiles, of which from so many rows on one is used; blocks are
// written as float32 numbers; products are of bfloat16 activations.
constexpr int TILES_FROM = 25, TILE_FROM = 6, WRITE_FROM = 3 * ROWS_PER_PASS;

// Rows of one kind that lie together: tokens of a prompt, of which at least PROMPT_TOKENS came at once, or others. What a
// token is depends on its own sequence only, so others in the batch do not change its numbers.
struct Segment {
    int first, count;
    bool prompt;
};
typedef std::vector<Segment> Segments;

// One more row.
static void append(Segments& to, int row, bool prompt) {
    if (to.empty() || to.back().prompt != prompt) to.push_back({row, 0, prompt});
    to.back().count++;
}
constexpr int PROMPT_TOKENS = 64;

// Whether rows of a prompt meet this matrix in bfloat16.
GF_INLINE bool narrows(const Matrix& m) { return FAST_BF16 && m.data && !m.exact && m.format == BF16; }

#if defined(GF_VNNI)
// Words of four stored blocks of 4 bits, and where each lies in two registers that hold them all, one after the other:
// quants block by block; of each block its scale, eight times. (A minimum is the word after.)
template <int FORMAT>
struct FourBlocks {
    static constexpr int words = Blocks<FORMAT>::stored / 2;  // of a block
    alignas(64) uint16_t quants[32], scales[32];
    FourBlocks() {
        for (int i = 0; i < 32; i++) quants[i] = (uint16_t)(i / 8 * words + words - 8 + i % 8), scales[i] = (uint16_t)(i / 8 * words);
    }
};

// One activation row times a unit of 4-bit blocks that lie as a file has them: what the packed unit gives, to the bit,
// without packing it. Four blocks of sixteen rows at a time; there must be whole ones.
template <int FORMAT>
GF_NOINLINE void product_stored(const Matrix& m, int unit, const Rows& in, float* out) {
    static const FourBlocks<FORMAT> order;
    const int blocks = m.cols / BLOCK, step = 8 * FourBlocks<FORMAT>::words;
    const size_t bytes = row_bytes(FORMAT, m.cols);
    const __m512i quants = _mm512_load_si512(order.quants), scales = _mm512_load_si512(order.scales), nibble = _mm512_set1_epi8(15);
    const __m512i one = _mm512_set1_epi16(1), none = _mm512_setzero_si512(), least = _mm512_add_epi16(scales, one);
    // Of what is read after this unit as much as is read of it, a line at a time: many at once would hold up the loads.
    const uint8_t* next = unit + 1 < m.units() ? m.data + (size_t)(unit + 1) * UNIT * bytes : m.after;
    F16 y[2] = {splat(0.f), splat(0.f)};
    for (int b = 0; b < blocks; b += 4) {
        const __m512i a = _mm512_loadu_si512(in.q + b * BLOCK), c = _mm512_loadu_si512(in.q + b * BLOCK + 64);
        const __m512i lows = _mm512_permutex2var_epi64(a, _mm512_setr_epi64(0, 1, 4, 5, 8, 9, 12, 13), c);
        const __m512i highs = _mm512_permutex2var_epi64(a, _mm512_setr_epi64(2, 3, 6, 7, 10, 11, 14, 15), c);
        for (int p = 0; p < 2; p++) {
            const uint8_t* from = m.data + ((size_t)unit * UNIT + p * LANES) * bytes + (size_t)b / 4 * step;
            __m512i group[4], d[2], low[2];  // sums of four rows, by block; scales and minima of eight: (block, row)
#pragma GCC unroll 4
            for (int g = 0; g < 4; g++) {
                __m512i t[4];
#pragma GCC unroll 4
                for (int i = 0; i < 4; i++, from += bytes, next += 64) {
                    __builtin_prefetch(next, 0, 2);
                    const __m128i rest = FORMAT == Q4_0 ? _mm_loadl_epi64((const __m128i*)(from + 64)) : _mm_loadu_si128((const __m128i*)(from + 64));
                    const __m512i v = _mm512_loadu_si512(from), w = _mm512_castsi128_si512(rest);
                    const __m512i q = _mm512_permutex2var_epi16(v, quants, w);
                    const __mmask32 mine = 0x01010101u << (g % 2 * 4 + i);
                    d[g / 2] = mine == 0x01010101u ? _mm512_permutexvar_epi16(scales, v) : _mm512_mask_permutexvar_epi16(d[g / 2], mine, scales, v);
                    if (FORMAT == Q4_1) low[g / 2] = mine == 0x01010101u ? _mm512_permutexvar_epi16(least, v) : _mm512_mask_permutexvar_epi16(low[g / 2], mine, least, v);
                    t[i] = _mm512_dpbusd_epi32(none, _mm512_and_si512(q, nibble), lows);
                    t[i] = _mm512_dpbusd_epi32(t[i], _mm512_and_si512(_mm512_srli_epi16(q, 4), nibble), highs);
                }
                // Four sums of each block, row by row, become one. None needs more than 16 bits.
                const __m512i ab = _mm512_dpwssd_epi32(none, _mm512_packs_epi32(t[0], t[1]), one);
                const __m512i cd = _mm512_dpwssd_epi32(none, _mm512_packs_epi32(t[2], t[3]), one);
                group[g] = _mm512_dpwssd_epi32(none, _mm512_packs_epi32(ab, cd), one);
            }
            for (int i = LANES * 64; i < LANES * step; i += 64, next += 64) __builtin_prefetch(next, 0, 2);
            const __m512i e = _mm512_shuffle_i32x4(group[0], group[1], 0x44), f = _mm512_shuffle_i32x4(group[2], group[3], 0x44);
            const __m512i g = _mm512_shuffle_i32x4(group[0], group[1], 0xee), h = _mm512_shuffle_i32x4(group[2], group[3], 0xee);
            const __m512i sums[4] = {_mm512_shuffle_i32x4(e, f, 0x88), _mm512_shuffle_i32x4(e, f, 0xdd),
                                     _mm512_shuffle_i32x4(g, h, 0x88), _mm512_shuffle_i32x4(g, h, 0xdd)};
            const __m512i even = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), odd = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
            auto block = [&](const __m512i* of, int i) {  // of sixteen rows
                const __m512i pair = _mm512_permutex2var_epi64(of[0], i < 2 ? even : odd, of[1]);
                return (F16)_mm512_cvtph_ps(i % 2 ? _mm512_extracti64x4_epi64(pair, 1) : _mm512_castsi512_si256(pair));
            };
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) {
                const Scale& at = in.scales[b + i];
                const I16 t = (I16)sums[i] + splat_int(FORMAT == Q4_0 ? at.less8 : 0);
                y[p] += __builtin_convertvector(t, F16) * (block(d, i) * splat(at.scale));
                if (FORMAT == Q4_1) y[p] += block(low, i) * splat(at.total);
            }
        }
    }
    store(out, y[0]), store(out + 16, y[1]);
}
#endif

// done(first row, rows, results) for some rows at a time, in order.
template <class F>
void unit_products(const Matrix& given, int number, const Rows& in, const Segments& segments, F done) {
    alignas(64) float y[UNIT][UNIT];
    Matrix matrix = given;
    int unit = number;
    if (given.stored) {
#if defined(GF_VNNI)
        const bool one = segments.back().first + segments.back().count == 1, whole = given.rows - number * UNIT >= UNIT;
        if (one && whole && given.rounds() && given.format != Q8_0 && given.cols % (4 * BLOCK) == 0) {
            given.format == Q4_0 ? product_stored<Q4_0>(given, number, in, y[0]) : product_stored<Q4_1>(given, number, in, y[0]);
            add_bias(given, number, 1, y);
            return done(0, 1, y);
        }
#endif
        static thread_local Scratch packed;
        uint8_t* to = packed.get(given.unit_bytes() + FAR_PREFETCH_BYTES);
        if (!to) throw std::bad_alloc();
        pack_unit(given, number, given.data, to);
        matrix.data = to, matrix.rows = UNIT, unit = 0;
        if (given.bias) matrix.bias += number * UNIT;
    }
    if (narrows(matrix)) {
        const Arithmetic<uint16_t>& way = arithmetic<uint16_t>();
        const Tiles tiles(way.tiles);
        const long K = round_up(matrix.cols, 32);
        const auto panels = Right<uint16_t>::panels((const uint16_t*)matrix.unit(unit), K);
        for (const Segment& s : segments)
            for (int r = s.first, end = s.first + s.count, c; r < end; r += c) {
                const int most = s.prompt ? UNIT : ROWS_PER_PASS;
                c = end - r < most ? end - r : most;
                if (s.prompt)
                    way.multiply(Left<uint16_t>::rows(in.narrow + (size_t)r * in.stride, in.stride), panels, K, y[0]);
                else
                    few_rows(matrix, unit, in, r, c, y);
                add_bias(matrix, unit, c, y);
                done(r, c, y);
            }
        return;
    }
    const int rows = segments.empty() ? 0 : segments.back().first + segments.back().count;
    int r = 0, from = unit;
    Matrix read = matrix;
#if defined(GF_AMX_INT8)
    static thread_local Unpacked unpacked;
    if (matrix.rounds() && rows >= TILES_FROM && tiles_there() && unpacked.fill(matrix, unit)) {
        const Tiles tiles(TileUse::BYTES);
        for (; rows - r >= TILE_FROM; r += 16) {
            int c = rows - r < 16 ? rows - r : 16;
            matrix.format == Q4_1 ? product_tiles<true>(unpacked, in, r, y) : product_tiles<false>(unpacked, in, r, y);
            add_bias(matrix, unit, c, y);
            done(r, c, y);
        }
    }
#endif
    if (matrix.format >= Q8_0 && matrix.exact && rows >= WRITE_FROM) {
        static thread_local Scratch numbers;
        if (uint8_t* floats = numbers.get((size_t)matrix.cols * UNIT * sizeof(float))) {
            dequantise_unit(matrix, unit, reinterpret_cast<float*>(floats));
            read = Matrix{F32, UNIT, matrix.cols, 1, floats, nullptr}, from = 0;
        }
    }
    for (; r < rows; r += ROWS_PER_PASS) {
        int c = rows - r < ROWS_PER_PASS ? rows - r : ROWS_PER_PASS;
        few_rows(read, from, in, r, c, y);
        add_bias(matrix, unit, c, y);
        done(r, c, y);
    }
}
