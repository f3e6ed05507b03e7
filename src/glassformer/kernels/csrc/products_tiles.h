// Products of many rows of activations in 8 bits with a unit of blocks, by the tiles of AMX.
#pragma once

#include "amx.h"
#include "rows.h"

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
        if (!quants || !scales) {
            size = 0;
            return false;
        }
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
