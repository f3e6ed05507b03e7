// Products of blocks with many rows on the processor's 8-bit tiles (AMX), equal to those of matrix.h to
// the bit.
//
// A tile product sums 16 rows x 16 outputs over one block of 32 inputs in 32-bit integers, which is exact
// in any order; what follows, block by block, is the float arithmetic of product_quant in its order. So a
// row gets the same numbers here as alone. A unit's weights are unpacked to signed bytes once for all rows.
//
// -DGLASSFORMER_NO_AMX leaves this out.
#pragma once

#include <optional>

#include "amx.h"
#include "arena.h"

#if defined(GF_AMX) && defined(GF_VNNI) && defined(__AMX_INT8__)
#define GF_BYTE_TILES 1
#endif

constexpr int TILE = 16;  // rows, and outputs, of one tile
// So many rows are worth unpacking the weights for. After them, from so many on a tile beats the dot products,
// though it be not full.
constexpr int TILES_FROM = 25, TILE_FROM = 6;

#if defined(GF_BYTE_TILES)

namespace {

// While it lives, this thread's tiles have our shapes.
class Tiles {
   public:
    explicit Tiles(bool wanted) {
        if (!wanted || !tiles_there()) return;
        TileShapes shapes;
        shapes.set(0, 4, TILE, 64);        // sums
        shapes.set(4, 6, TILE, BLOCK);     // activations
        shapes.set(6, 8, BLOCK / 4, 64);   // weights
        setting_.emplace(shapes);
    }
    bool on() const { return setting_.has_value(); }

   private:
    std::optional<TileSetting> setting_;
};

// A unit for the tiles: per panel and block 32 x 16 signed bytes, and the scales in float32.
struct Unpacked {
    int blocks = 0;
    bool lows = false;  // blocks have a minimum
    Buffer<int8_t> quants;
    Buffer<float> scales;  // (panel, block, 32): 16 scales, 16 minima
    size_t room = 0;

    bool fill(const Matrix& m, int unit) {
        blocks = m.cols / BLOCK, lows = m.format == Q4_1;
        if ((size_t)blocks > room) {
            room = blocks;
            quants.reset(static_cast<int8_t*>(allocate(room * 2 * 512)));
            scales.reset(static_cast<float*>(allocate(room * 2 * 32 * sizeof(float))));
        }
        if (!quants || !scales) return room = 0;
        for (int p = 0; p < 2; p++) {
            const uint8_t* q = m.data + (size_t)unit * unit_bytes(m.format, m.cols) + p * panel_bytes(m.format, m.cols);
            const uint8_t* s = q + blocks * quant_bytes(m.format);
            int8_t* to = quants.get() + (size_t)p * blocks * 512;
            float* scale = scales.get() + (size_t)p * blocks * 32;
            for (int b = 0; b < blocks; b++, q += quant_bytes(m.format), to += 512, scale += 32, s += scale_bytes(m.format)) {
                for (int i = 0; i < 8; i++) {
                    if (m.format == Q8_0) {
                        store(to + i * 64, load<U16>(q + i * 64) ^ 0x80808080u);
                        continue;
                    }
                    U16 pair = load<U16>(q + i % 4 * 64);
                    B64 four = (B64)((i < 4 ? pair : pair >> 4) & 0x0f0f0f0fu);
                    store(to + i * 64, m.format == Q4_0 ? four - 8 : four);
                }
                store(scale, halves(s));
                if (lows) store(scale + 16, halves(s + 32));
            }
        }
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
    alignas(64) I16 sums[2][2][TILE];
    const int blocks = unit.blocks;
    const size_t stride = rows.stride;
    const int8_t* x = rows.q + first * stride;
    const float* side = rows.across + (size_t)(first / TILE) * rows.blocks() * 32;
    settle(rows.q), settle(unit.quants.get());
    for (int p = 0; p < 2; p++) {
        const int8_t* w = unit.quants.get() + (size_t)p * blocks * 512;
        const float* d = unit.scales.get() + (size_t)p * blocks * 32;
        F16 y[TILE];
#pragma GCC unroll 16
        for (int c = 0; c < TILE; c++) y[c] = splat(0.f);
        for (int b = -2, turn = 0; b < blocks; b += 2, turn ^= 1) {
            const bool more = b + 2 < blocks;
            if (more) sum_blocks(x, stride, w, b + 2, blocks);
            for (int i = b < 0 ? 0 : b; i < b + 2 && i < blocks; i++) {
                const float* at = side + i * 32;
                const I16* sum = sums[turn][i - b];
                F16 scale = load<F16>(d + i * 32), low = load<F16>(d + i * 32 + 16);
#pragma GCC unroll 16
                for (int c = 0; c < TILE; c++) {
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
        for (int c = 0; c < TILE; c++) store(out[c] + p * 16, y[c]);
    }
}

}  // namespace

#else

namespace {

class Tiles {
   public:
    explicit Tiles(bool) {}
    bool on() const { return false; }
};

}  // namespace

#endif
