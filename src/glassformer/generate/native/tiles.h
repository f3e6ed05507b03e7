// Products of blocks with many rows on the processor's 8-bit tiles (AMX), equal to those of matrix.h to
// the bit.
//
// A tile product sums 16 rows x 16 outputs over one block of 32 inputs in 32-bit integers, which is exact
// in any order; what follows, block by block, is the float arithmetic of product_quant in its order. So a
// row gets the same numbers here as alone. A unit's weights are unpacked to signed bytes once for all rows.
//
// Linux gives a process the tiles when it asks, and a thread's shape of them has to be set before use.
// -DGLASSFORMER_NO_AMX leaves this out.
#pragma once

#include "memory.h"

#if defined(GF_VNNI) && defined(__AMX_INT8__) && defined(__linux__) && !defined(GLASSFORMER_NO_AMX)
#define GF_AMX 1
#include <sys/syscall.h>
#include <unistd.h>
#endif

constexpr int TILE = 16;  // rows, and outputs, of one tile
// So many rows are worth unpacking the weights for. After them, from so many on a tile beats the dot products,
// though it be not full.
constexpr int TILES_FROM = 16, TILE_FROM = 6;

#if defined(GF_AMX)

namespace {

// The compiler's tile instructions do not all say that they read memory (GCC 12): what they read is written
// before this.
GF_INLINE void settle() { asm volatile("" ::: "memory"); }

bool tiles_there() {
    static const bool there = syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0;
    return there;
}

// While it lives, this thread's tiles have our shape. What it had before is set again after: other libraries
// remember what they set.
class Tiles {
   public:
    explicit Tiles(bool wanted) : on_(wanted && tiles_there()) {
        if (!on_) return;
        _tile_storeconfig(&before_);
        settle();
        Config ours{};
        ours.palette = 1;
        for (int t = 0; t < 4; t++) ours.bytes[t] = 64, ours.rows[t] = TILE;  // sums
        for (int t = 4; t < 6; t++) ours.bytes[t] = BLOCK, ours.rows[t] = TILE;  // activations
        for (int t = 6; t < 8; t++) ours.bytes[t] = 64, ours.rows[t] = BLOCK / 4;  // weights
        settle();
        _tile_loadconfig(&ours);
    }
    ~Tiles() {
        if (!on_) return;
        settle();
        before_.palette ? _tile_loadconfig(&before_) : _tile_release();
    }
    bool on() const { return on_; }

   private:
    struct alignas(64) Config {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    };
    bool on_;
    Config before_;
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
            for (int b = 0; b < blocks; b++, q += quant_bytes(m.format), to += 512, scale += 32, s += lows ? 64 : 32) {
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
    settle();
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
