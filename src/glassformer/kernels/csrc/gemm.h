// out = x · wᵀ + bias in float32, on tiles.
#pragma once

#include "team.h"
#include "amx_ops.h"

#ifdef GF_TILES
constexpr long BLOCK_OUTPUTS = 1024;  // outputs packed at once, at most
constexpr long STRIP = 128;           // rows packed at once, by the thread that needs them: they stay in its cache

// The sums to out, as far as it goes.
static void put(float* out, long stride, long rows, long columns) {
    if (rows >= 32 && columns >= 32) return store_sums(out, stride);
    alignas(64) float grid[32 * 32];
    store_sums(grid, 32);
    for (long r = 0; r < rows && r < 32; r++) memcpy(out + r * stride, grid + r * 32, (columns < 32 ? columns : 32) * 4);
}

static int linear_f32(
    const float* x, long rows, long depth, long stride, const float* w, const float* bias, long outputs, float* out,
    int threads) {
    static thread_local Scratch shared;
    const long steps = (depth + DEPTH - 1) / DEPTH, tile = steps * 3 * TILE_BYTES;
    const long strips = (rows + STRIP - 1) / STRIP;
    // Few strips are cut into groups of outputs, so that every thread has work.
    const long groups = strips >= 4 * threads ? 1 : (4 * threads + strips - 1) / strips;
    uint8_t* right = shared.get(((outputs < BLOCK_OUTPUTS ? outputs : BLOCK_OUTPUTS) + 31) / 32 * 2 * tile);
    if (!right) return 1;
    std::atomic<int> failed{0};
    for (long n = 0; n < outputs; n += BLOCK_OUTPUTS) {
        const long wide = outputs - n < BLOCK_OUTPUTS ? outputs - n : BLOCK_OUTPUTS, pairs = (wide + 31) / 32;
        const long group = (pairs + groups - 1) / groups, lots = (pairs + group - 1) / group;
        Phase packing, computing;
        together(threads, [&] {
            static thread_local Scratch own;
            uint8_t* left = own.get(STRIP / ROWS * tile);
            if (!left) failed = 1;
            packing.share((int)pairs * 2, 2, [&](int i) {
                pack_right<3>(w + (n + i * ROWS) * depth, depth, wide - i * ROWS, depth, right + i * tile);
            });
            Tiles on;
            computing.share((int)(strips * lots), 1, [&](int piece) {
                const long first = piece / lots * STRIP, here = rows - first < STRIP ? rows - first : STRIP;
                const long from = piece % lots * group, to = from + group < pairs ? from + group : pairs;
                if (!left) return;
                for (long r = 0; r < (here + 31) / 32 * 32; r += ROWS)
                    pack_left<3>(x + (first + r) * stride, stride, here - r, depth, left + r / ROWS * tile);
                for (long pair = from; pair < to; pair++) {
                    const uint8_t* b = right + pair * 2 * tile;
                    const long column = n + pair * 32;
                    alignas(64) float begin[32] = {};
                    if (bias)
                        for (long i = 0; i < 32 && column + i < outputs; i++) begin[i] = bias[column + i];
                    for (long r = 0; r < here; r += 32) {
                        const uint8_t* a = left + r / ROWS * tile;
                        begin_sums(begin);
                        accumulate<3>(a, a + tile, 3 * TILE_BYTES, b, b + tile, 3 * TILE_BYTES, steps);
                        put(out + (first + r) * outputs + column, outputs, here - r, outputs - column);
                    }
                }
            });
        });
    }
    return failed;
}
#endif
