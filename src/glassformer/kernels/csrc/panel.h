// Weight matrices in the order they are read, and their products with rows of activations.
//
// A matrix (rows = outputs, cols = inputs) is cut into units of 32 output rows; one unit is one
// contiguous piece of memory. Inside, the rows' numbers are interleaved so that a vector register
// holds the same input of sixteen outputs: sums never cross lanes, and every output row is summed
// over the inputs in the same order however many activation rows share the product. So a token's
// numbers do not depend on what else was in its batch.
//
// A unit is two panels of 16 rows, which are read side by side: two streams of memory are quicker than one.
//
//   F32   for each input: 16 floats
//   BF16  for each pair of inputs: 16 pairs
//   Q8_0, Q4_0, Q4_1 (GGUF's blocks of 32 inputs): all quants, then all scales; the quants of a block
//         interleaved by four bytes; scales as stored, in half precision. Q8_0's signed bytes have 128
//         added, because the dot product wants unsigned.
#pragma once

#include <cstddef>

#include "simd.h"

enum Format { F32 = 0, BF16 = 1, Q8_0 = 2, Q4_0 = 3, Q4_1 = 4 };
constexpr int UNIT = 32;     // output rows of one unit
constexpr int BLOCK = 32;    // inputs that share a scale
constexpr int TOGETHER = 8;  // activation rows that share one reading of the weights
constexpr int AT_ONCE = 4;   // of them whose sums of 32 outputs stay in registers, for blocks
// Bytes: how early memory is asked for, as the processor's own guess stops at a page's end. Few rows are read as fast
// as memory gives; with more, each block is worked on for longer and memory should be busy meanwhile.
constexpr int AHEAD = 2048, FURTHER = 12 << 10;

struct Matrix {
    int32_t format, rows, cols;
    int32_t exact;        // blocks meet float32 activations, as the float32 numbers they stand for
    const uint8_t* data;  // null: absent
    const float* bias;    // padded to whole units, or null

    int units() const { return data ? (rows + UNIT - 1) / UNIT : 0; }
    bool rounds() const { return data && format >= Q8_0 && !exact; }  // activations to 8 bits
};

GF_INLINE size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }
constexpr size_t quant_bytes(int format) { return format == Q8_0 ? 512 : 256; }  // of a block of a panel
constexpr size_t scale_bytes(int format) { return format == Q4_1 ? 64 : 32; }
GF_INLINE size_t raw_block_bytes(int format) { return format == Q8_0 ? 34 : format == Q4_0 ? 18 : 20; }

GF_INLINE size_t panel_bytes(int format, int cols) {
    if (format == F32) return (size_t)cols * 64;
    if (format == BF16) return (size_t)(cols + 1) / 2 * 64;
    size_t blocks = cols / BLOCK;
    return blocks * quant_bytes(format) + round_up(blocks * scale_bytes(format), 64);
}

GF_INLINE size_t unit_bytes(int format, int cols) { return 2 * panel_bytes(format, cols); }

// One unit from row-major source: floats, bfloat16 bits, or GGUF blocks. Rows beyond the last are 0.
static void pack_unit(const Matrix& m, int unit, const uint8_t* source, uint8_t* out) {
    memset(out, 0, unit_bytes(m.format, m.cols));
    for (int r = 0; r < UNIT && unit * UNIT + r < m.rows; r++) {
        size_t row = (size_t)unit * UNIT + r;
        const int lane = r % 16;
        uint8_t* panel = out + r / 16 * panel_bytes(m.format, m.cols);
        if (m.format == F32) {
            const uint8_t* s = source + row * m.cols * 4;
            for (int k = 0; k < m.cols; k++) memcpy(panel + ((size_t)k * 16 + lane) * 4, s + (size_t)k * 4, 4);
        } else if (m.format == BF16) {
            const uint8_t* s = source + row * m.cols * 2;
            for (int k = 0; k < m.cols; k++)
                memcpy(panel + ((size_t)(k / 2) * 16 + lane) * 4 + k % 2 * 2, s + (size_t)k * 2, 2);
        } else {
            int blocks = m.cols / BLOCK;
            size_t quants = quant_bytes(m.format);
            uint8_t* scales = panel + blocks * quants;
            const uint8_t* s = source + row * blocks * raw_block_bytes(m.format);
            for (int b = 0; b < blocks; b++, s += raw_block_bytes(m.format)) {
                if (m.format == Q4_1) {
                    memcpy(scales + b * 64 + lane * 2, s, 2);
                    memcpy(scales + b * 64 + 32 + lane * 2, s + 2, 2);
                } else {
                    memcpy(scales + b * 32 + lane * 2, s, 2);
                }
                const uint8_t* q = s + (m.format == Q4_1 ? 4 : 2);
                for (size_t i = 0; i < quants / 64; i++) {
                    uint32_t word;
                    memcpy(&word, q + i * 4, 4);
                    if (m.format == Q8_0) word ^= 0x80808080u;
                    memcpy(panel + b * quants + i * 64 + lane * 4, &word, 4);
                }
            }
        }
    }
}

// One row back as floats: how tokens are embedded, and how packing is tested.
static void unpack_row(const Matrix& m, int row, float* out) {
    const uint8_t* unit = m.data + (size_t)(row / UNIT) * unit_bytes(m.format, m.cols);
    const int lane = row % 16;
    const uint8_t* panel = unit + row % UNIT / 16 * panel_bytes(m.format, m.cols);
    if (m.format == F32) {
        for (int k = 0; k < m.cols; k++) memcpy(out + k, panel + ((size_t)k * 16 + lane) * 4, 4);
        return;
    }
    if (m.format == BF16) {
        for (int k = 0; k < m.cols; k++) {
            uint16_t h;
            memcpy(&h, panel + ((size_t)(k / 2) * 16 + lane) * 4 + k % 2 * 2, 2);
            out[k] = brain_value(h);
        }
        return;
    }
    int blocks = m.cols / BLOCK;
    size_t quants = quant_bytes(m.format);
    const uint8_t* scales = panel + blocks * quants;
    for (int b = 0; b < blocks; b++) {
        uint16_t half, low = 0;
        memcpy(&half, scales + b * scale_bytes(m.format) + lane * 2, 2);
        if (m.format == Q4_1) memcpy(&low, scales + b * 64 + 32 + lane * 2, 2);
        float d = half_value(half), base = half_value(low);
        for (int k = 0; k < BLOCK; k++) {
            int at = m.format == Q8_0 ? k : k % 16;
            int q = panel[b * quants + at / 4 * 64 + lane * 4 + at % 4];
            if (m.format == Q8_0)
                q -= 128;
            else
                q = (k < 16 ? q & 15 : q >> 4) - (m.format == Q4_0 ? 8 : 0);
            out[b * BLOCK + k] = d * q + base;
        }
    }
}

// What a product needs to know of 32 quantised activations beside the quants themselves.
struct Scale {
    float scale;         // of the quants
    float total;         // scale * sum of the quants: what a weight block's minimum is multiplied by
    int32_t less8;       // -8 * sum of the quants, for weights stored with 8 added,
    int32_t less128;     // and with 128 added
};

// Rows of activations: float32, and beside them 8-bit quants with one scale per 32 inputs.
struct Rows {
    int stride = 0;  // of one row, in inputs: a multiple of 64, zero beyond the last
    float* x = nullptr;
    int8_t* q = nullptr;
    Scale* scales = nullptr;  // (row, block)
    float* across = nullptr;  // (row / 16, block, 2, 16): scales and totals of sixteen rows side by side

    int blocks() const { return stride / BLOCK; }
    float* at(int row) const { return x + (size_t)row * stride; }

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
};

// Asks for what lies `FURTHER` bytes beyond the bytes of a unit from `at` on.
GF_INLINE void ask_further(const uint8_t* unit, size_t at, size_t bytes) {
    for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch(unit + FURTHER + at + i, 0, 2);
}

// Asks for what both panels of a unit will read `AHEAD` bytes after `at`: beyond a panel's end, for the next
// unit's. Into the second cache: the first is too small for that, and takes fewer requests at a time.
GF_INLINE void ask(const uint8_t* unit, size_t panel, size_t at, int bytes) {
    size_t to = at + AHEAD;
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
        ask(unit, panel, (size_t)k * 64, 64);
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
        ask(unit, panel, (size_t)k * 32, 64);
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

template <int FORMAT>
GF_INLINE B64 unpack(const uint8_t* q, int i) {
    if (FORMAT == Q8_0) return load<B64>(q + i * 64);
    U16 pair = load<U16>(q + i % 4 * 64);
    return (B64)((i < 4 ? pair : pair >> 4) & 0x0f0f0f0fu);
}

// N blocks of one panel with C rows: y[c] += their products. Integer sums of several blocks run side by side,
// because each waits for its own last dot product; the float additions keep the blocks' order.
template <int FORMAT, int C, int N>
GF_INLINE void add_blocks(const uint8_t* q, const uint8_t* s, const int8_t* x, size_t stride, const Scale* scales,
                          size_t row_blocks, F16* y) {
    constexpr size_t width = scale_bytes(FORMAT);
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
            B64 w = unpack<FORMAT>(q + n * quant_bytes(FORMAT), i);
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
    constexpr size_t quants = quant_bytes(FORMAT), width = scale_bytes(FORMAT);
    const int blocks = cols / BLOCK;
    const size_t stride = rows.stride, row_blocks = rows.blocks();
    const uint8_t *q = panel, *s = panel + blocks * quants;
    const int8_t* x = rows.q + first * stride;
    const Scale* scales = rows.scales + first * row_blocks;
    F16 y[C];
    for (int c = 0; c < C; c++) y[c] = splat(0.f);
    int b = 0;
    for (; b + 2 <= blocks; b += 2, q += 2 * quants, s += 2 * width, x += 2 * BLOCK, scales += 2) {
        ask_further(panel, b * (quants + width), 2 * (quants + width));
        add_blocks<FORMAT, C, 2>(q, s, x, stride, scales, row_blocks, y);
    }
    if (b < blocks) add_blocks<FORMAT, C, 1>(q, s, x, stride, scales, row_blocks, y);
    for (int c = 0; c < C; c++) store(out[c] + lane, y[c]);
}

// Up to AT_ONCE rows: both panels at once, so that each activation is fetched once for 32 outputs. One row
// fewer than TOGETHER is computed as TOGETHER rows (`Rows` and `out` have the room): that spares compiling it apart.
template <int FORMAT, int C>
static void product_quant(const uint8_t* unit, int cols, const Rows& rows, int first, float (*out)[UNIT]) {
    constexpr size_t quants = quant_bytes(FORMAT), width = scale_bytes(FORMAT);
    const int blocks = cols / BLOCK;
    const size_t bytes = panel_bytes(FORMAT, cols);
    if constexpr (C + 1 >= TOGETHER) {
        product_panel<FORMAT, TOGETHER>(unit, cols, rows, first, out, 0);
        product_panel<FORMAT, TOGETHER>(unit + bytes, cols, rows, first, out, 16);
    } else if constexpr (C > AT_ONCE) {
        product_quant<FORMAT, AT_ONCE>(unit, cols, rows, first, out);
        product_quant<FORMAT, C - AT_ONCE>(unit, cols, rows, first + AT_ONCE, out + AT_ONCE);
    } else {
        const size_t stride = rows.stride, row_blocks = rows.blocks();
        const uint8_t *q = unit, *s = unit + blocks * quants;
        const int8_t* x = rows.q + first * stride;
        const Scale* scales = rows.scales + first * row_blocks;
        F16 low[C], high[C];
        for (int c = 0; c < C; c++) low[c] = high[c] = splat(0.f);
        for (int b = 0; b < blocks; b++, q += quants, s += width, x += BLOCK, scales++) {
            I16 t[C], u[C];
            ask(unit, bytes, b * quants, quants);
            for (int c = 0; c < C; c++) {
                const Scale* at = scales + c * row_blocks;
                t[c] = u[c] = splat_int(FORMAT == Q8_0 ? at->less128 : FORMAT == Q4_0 ? at->less8 : 0);
            }
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++) {
                B64 v = unpack<FORMAT>(q, i), w = unpack<FORMAT>(q + bytes, i);
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

// What stands in the lowest bits of each lane: eight of them, or four, whatever is above.
template <int FORMAT>
GF_INLINE F16 stored_number(U16 bits) {
    return FORMAT == Q8_0 ? __builtin_convertvector((I16)(bits & 0xffu), F16) : low_nibble(bits);
}

// Blocks as the float32 numbers they stand for, times float32 activations: what product_f32 gives, to
// the bit, for a sixth of the bytes. A half-precision scale times 8 bits is exact in float32, so
// each weight is rounded once, by the addition, as when the block is dequantised.
template <int FORMAT, int C>
static void product_exact(const uint8_t* unit, int cols, const Rows& rows, int first, float (*out)[UNIT]) {
    const int blocks = cols / BLOCK;
    constexpr size_t quants = quant_bytes(FORMAT), width = scale_bytes(FORMAT);
    const size_t bytes = panel_bytes(FORMAT, cols);
    const uint8_t *q = unit, *s = unit + blocks * quants;
    F16 low[C], high[C];
    const float* x[C];
    for (int c = 0; c < C; c++) {
        low[c] = high[c] = splat(0.f);
        x[c] = rows.x + (size_t)(first + c) * rows.stride;
    }
    for (int b = 0; b < blocks; b++, q += quants, s += width) {
        C > AT_ONCE ? ask_further(unit, 2 * b * (quants + width), 2 * (quants + width)) : ask(unit, bytes, b * quants, quants);
        F16 d = halves(s), e = halves(s + bytes);
        F16 d0 = FORMAT == Q4_1 ? halves(s + 32) : d * splat(FORMAT == Q8_0 ? -128.f : -8.f);
        F16 e0 = FORMAT == Q4_1 ? halves(s + bytes + 32) : e * splat(FORMAT == Q8_0 ? -128.f : -8.f);
        for (int i = 0; i < 8; i++) {
            U16 v, w;
            if (FORMAT == Q8_0) {
                v = load<U16>(q + i * 64), w = load<U16>(q + bytes + i * 64);
            } else {
                v = load<U16>(q + i % 4 * 64), w = load<U16>(q + bytes + i % 4 * 64);
                if (i >= 4) v >>= 4, w >>= 4;
            }
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) {
                F16 weight = stored_number<FORMAT>(v >> (8 * j)) * d + d0, other = stored_number<FORMAT>(w >> (8 * j)) * e + e0;
                for (int c = 0; c < C; c++) {
                    F16 a = splat(x[c][b * BLOCK + i * 4 + j]);
                    low[c] += weight * a;
                    high[c] += other * a;
                }
            }
        }
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

static void product(const Matrix& m, int unit, const Rows& rows, int first, int count, float (*out)[UNIT]) {
    const uint8_t* data = m.data + (size_t)unit * unit_bytes(m.format, m.cols);
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
