// Products of the many rows of a long prompt with a unit of blocks: its weights are rounded to 8 bits with one scale an
// output when they are read, so that a block's sum is multiplied by its activations' scale only.
//
// With a scale per 32 weights, a third of the time goes into scaling. This rounds weights once more, by 1/254 of an
// output's largest at most, so it is for prompts of models that are not exact.
#pragma once

#include "amx.h"
#include "rows.h"

// Whether rows of a prompt meet this matrix so. The tiles of AMX scale blocks beside their products.
GF_INLINE bool rescales(const Matrix& m) { return m.rounds() && !tiles_there(); }

// A unit's weights with 128 added, and their scales.
struct Rescaled {
    Buffer<uint8_t> quants;  // (line, panel, 16, 4 inputs)
    alignas(64) float scale[UNIT];
    size_t size = 0;

    bool fill(const Matrix& m, int unit) {
        const size_t blocks = m.cols / BLOCK;
        if (blocks > size) {
            quants.reset(static_cast<uint8_t*>(allocate(blocks * BLOCK * UNIT)));
            size = quants ? blocks : 0;
        }
        if (!quants) return false;
        with_blocks(m.format, [&](auto b) {
            for (int p = 0; p < 2; p++) fill_panel(b, m.unit(unit) + p * panel_bytes(m.format, m.cols), p, blocks);
        });
        return true;
    }

private:
    template <class B>
    void fill_panel(B b, const uint8_t* q, int panel, size_t blocks) {
        constexpr int FORMAT = B::quants == 512 ? Q8_0 : B::minima ? Q4_1 : Q4_0;
        constexpr float most = FORMAT == Q8_0 ? 255 : 15;
        const uint8_t* s = q + blocks * b.quants;
        F16 top = splat(0.f);  // no weight is larger
        for (size_t n = 0; n < blocks; n++) {
            const F16 d = halves(s + n * b.scales), low = lowest<FORMAT>(s + n * b.scales, d);
            top = largest(top, largest(magnitude(low), magnitude(d * splat(most) + low)));
        }
        store(scale + panel * LANES, top / splat(127.f));
        const F16 inverse = select(top > splat(0.f), splat(127.f) / top, splat(0.f));
        uint8_t* to = quants.get() + panel * 64;
        for (size_t n = 0; n < blocks; n++, q += b.quants, s += b.scales, to += BLOCK * UNIT) {
            const F16 d = halves(s), step = d * inverse, low = lowest<FORMAT>(s, d) * inverse + splat(128.f);
            for (int i = 0; i < 8; i++) {
                const U16 four = (U16)quants_of<FORMAT>(q, i);
                U16 bytes = (U16)splat_int(0);
#pragma GCC unroll 4
                for (int j = 0; j < 4; j++) {
                    const F16 x = __builtin_convertvector((I16)(four >> (8 * j) & 0xffu), F16);
                    bytes |= (U16)nearest(x * step + low) << (8 * j);
                }
                store(to + i * 128, bytes);
            }
        }
    }
};

// out[0 .. ROWS_PER_PASS) for rows from `first` on, which must be there, if only as room.
static void product_rescaled(const Rescaled& unit, int cols, const Rows& in, int first, float (*out)[UNIT]) {
    constexpr int R = ROWS_PER_PASS;
    const int blocks = cols / BLOCK;
    const size_t stride = in.stride, row_blocks = in.blocks();
    const uint8_t* w = unit.quants.get();
    const int8_t* x = in.q + first * stride;
    const Scale* scales = in.scales + first * row_blocks;
    F16 low[R], high[R];
    for (int r = 0; r < R; r++) low[r] = high[r] = splat(0.f);
    for (int b = 0; b < blocks; b++, w += BLOCK * UNIT, x += BLOCK, scales++) {
        I16 t[R], u[R];
        for (int r = 0; r < R; r++) t[r] = u[r] = splat_int(scales[r * row_blocks].less128);
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            const B64 v = load<B64>(w + i * 128), z = load<B64>(w + i * 128 + 64);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                int32_t four;
                memcpy(&four, x + r * stride + i * 4, 4);
                t[r] = dot4(t[r], v, four), u[r] = dot4(u[r], z, four);
            }
        }
        for (int r = 0; r < R; r++) {
            const F16 a = splat(scales[r * row_blocks].scale);
            low[r] += __builtin_convertvector(t[r], F16) * a;
            high[r] += __builtin_convertvector(u[r], F16) * a;
        }
    }
    for (int r = 0; r < R; r++) {
        store(out[r], low[r] * load<F16>(unit.scale));
        store(out[r] + LANES, high[r] * load<F16>(unit.scale + LANES));
    }
}
