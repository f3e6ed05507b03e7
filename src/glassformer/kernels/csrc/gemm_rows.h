// The products of one unit of weights with any number of rows, in the way that suits that number.
//
// A few rows: the weights are read once, and that is the time it takes. Many rows: what has to be done to
// the weights is done once for all of them. The numbers are the same either way.
#pragma once

#include "amx_infer.h"

namespace {

// From so many rows on it pays to write down the float32 numbers that blocks stand for.
constexpr int WRITE_FROM = 3 * TOGETHER;

// A unit of blocks as a float32 unit, each weight rounded once as in product_exact.
struct Written {
    Buffer<float> room;
    size_t size = 0;

    Matrix fill(const Matrix& m, int unit) {
        const int blocks = m.cols / BLOCK;
        if (size < (size_t)m.cols * UNIT) {
            size = (size_t)m.cols * UNIT;
            room.reset(static_cast<float*>(allocate(size * sizeof(float))));
            if (!room) size = 0;
        }
        if (!room) return Matrix{};
        float* to = room.get();
        for (int p = 0; p < 2; p++) {
            const uint8_t* q = m.data + (size_t)unit * unit_bytes(m.format, m.cols) + p * panel_bytes(m.format, m.cols);
            const uint8_t* s = q + blocks * quant_bytes(m.format);
            for (int b = 0; b < blocks; b++, q += quant_bytes(m.format), s += scale_bytes(m.format)) {
                F16 d = halves(s), low = m.format == Q4_1 ? halves(s + 32) : d * splat(m.format == Q8_0 ? -128.f : -8.f);
                for (int i = 0; i < 8; i++) {
                    U16 v = m.format == Q8_0 ? load<U16>(q + i * 64) : load<U16>(q + i % 4 * 64) >> (i < 4 ? 0 : 4);
                    for (int j = 0; j < 4; j++, to += 16)
                        store(to, __builtin_convertvector((I16)((v >> (8 * j)) & (m.format == Q8_0 ? 0xff : 0x0f)), F16) * d + low);
                }
            }
        }
        return Matrix{F32, UNIT, m.cols, 0, reinterpret_cast<const uint8_t*>(room.get()), nullptr};
    }
};

// done(first row, rows, results) for some rows at a time, in order.
template <class F>
void unit_products(const Tiles& tiles, const Matrix& matrix, int unit, const Rows& in, int rows, F done) {
    alignas(64) float y[TILE][UNIT];
    int r = 0, from = unit;
    Matrix read = matrix;
#if defined(GF_BYTE_TILES)
    static thread_local Unpacked unpacked;
    if (tiles.on() && rows >= TILES_FROM && matrix.rounds() && unpacked.fill(matrix, unit))
        for (; rows - r >= TILE_FROM; r += TILE) {
            int c = rows - r < TILE ? rows - r : TILE;
            matrix.format == Q4_1 ? product_tiles<true>(unpacked, in, r, y) : product_tiles<false>(unpacked, in, r, y);
            add_bias(matrix, unit, c, y);
            done(r, c, y);
        }
#endif
    if (matrix.format >= Q8_0 && matrix.exact && rows >= WRITE_FROM) {
        static thread_local Written written;
        Matrix floats = written.fill(matrix, unit);
        if (floats.data) read = floats, from = 0;
    }
    for (; r < rows; r += TOGETHER) {
        int c = rows - r < TOGETHER ? rows - r : TOGETHER;
        product(read, from, in, r, c, y);
        add_bias(matrix, unit, c, y);
        done(r, c, y);
    }
}

}  // namespace
