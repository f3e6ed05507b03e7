// Float32 products on tiles (AMX): three bfloat16 parts of every number.
//
// A float32 number is the sum of three bfloat16 numbers, exactly: 8 + 8 + 8 bits. So a float32 product is nine bfloat16
// products, of which the three smallest lie below float32's own rounding; the other six, summed in float32, give what a
// float32 product gives, as exactly (Henry, Tang, Heinecke 2019, arXiv:1904.06376), and the tiles do them at more than
// twice its rate. An operand is packed into tiles of 16 rows x 32 inputs, all parts of a tile side by side.
#pragma once

#include "amx.h"
#include "arena.h"
#include "convert.h"
#include "threads.h"

#if defined(GF_AMX_BF16)
constexpr int ROWS = 16, DEPTH = 32;   // of a tile: rows, inputs
constexpr int TILE_BYTES = 1024;

template <int PARTS>
struct OperandOf;  // what an operand holds
template <>
struct OperandOf<3> {
    typedef float type;
};
template <>
struct OperandOf<1> {
    typedef uint16_t type;
};

// 32 numbers, 16 and 16, as their bfloat16 parts, each part one register of 32.
template <int PARTS>
GF_INLINE void split(__m512 low, __m512 high, __m512i* out) {
#pragma GCC unroll 3
    for (int p = 0; p < PARTS; p++) {
        out[p] = (__m512i)_mm512_cvtne2ps_pbh(high, low);
        __m512i l = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(out[p])), 16);
        __m512i h = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(out[p], 1)), 16);
        low = _mm512_sub_ps(low, (__m512)l);
        high = _mm512_sub_ps(high, (__m512)h);
    }
}

GF_INLINE void part(const uint16_t* x, __mmask32 there, __m512i* out) { out[0] = _mm512_maskz_loadu_epi16(there, x); }

GF_INLINE void part(const float* x, __mmask32 there, __m512i* out) {
    __m512 low = _mm512_maskz_loadu_ps((__mmask16)there, x), high = _mm512_maskz_loadu_ps((__mmask16)(there >> 16), x + 16);
    split<3>(low, high, out);
}

// 16 numbers as parts, each in the low half of a 32-bit lane.
template <int PARTS>
GF_INLINE void part16(const typename OperandOf<PARTS>::type* x, __mmask16 there, __m512i* out) {
    if constexpr (PARTS == 1) {
        out[0] = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(there, x));
    } else {
        __m512 rest = _mm512_maskz_loadu_ps(there, x);
        for (int p = 0; p < PARTS; p++) {
            out[p] = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(rest));
            rest = _mm512_sub_ps(rest, (__m512)_mm512_slli_epi32(out[p], 16));
        }
    }
}

GF_INLINE __mmask32 first32(long n) { return n >= 32 ? 0xffffffffu : n <= 0 ? 0u : (1u << n) - 1; }
GF_INLINE __mmask16 first16(long n) { return n >= 16 ? 0xffff : n <= 0 ? 0 : (1u << n) - 1; }

// The left operand: 16 rows as they lie, `depth` inputs of each; rows from `rows` on are zero.
// out: (step, part, row, input).
template <int PARTS>
static void pack_left(const typename OperandOf<PARTS>::type* x, long stride, long rows, long depth, uint8_t* out) {
    for (long k = 0; k < depth; k += DEPTH, out += PARTS * TILE_BYTES)
        for (int r = 0; r < ROWS; r++) {
            __m512i parts[PARTS];
            if (r < rows)
                part(x + r * stride + k, first32(depth - k), parts);
            else
                for (auto& p : parts) p = _mm512_setzero_si512();
            for (int p = 0; p < PARTS; p++) _mm512_store_si512(out + p * TILE_BYTES + r * 64, parts[p]);
        }
}

// The right operand from outputs' rows (a weight, keys): 16 rows, their inputs in pairs down the tile.
// out: (step, part, pair, row).
template <int PARTS>
static void pack_right(const typename OperandOf<PARTS>::type* w, long stride, long rows, long depth, uint8_t* out) {
    for (long k = 0; k < depth; k += DEPTH, out += PARTS * TILE_BYTES) {
        I16 grid[PARTS][16];
        for (int r = 0; r < ROWS; r++) {
            __m512i parts[PARTS];
            if (r < rows)
                part(w + r * stride + k, first32(depth - k), parts);
            else
                for (auto& p : parts) p = _mm512_setzero_si512();
            for (int p = 0; p < PARTS; p++) grid[p][r] = (I16)parts[p];
        }
        for (int p = 0; p < PARTS; p++) {
            transpose(grid[p]);
            for (int i = 0; i < 16; i++) store(out + p * TILE_BYTES + i * 64, grid[p][i]);
        }
    }
}

// One tile of the right operand from inputs' rows (values): 32 rows of which `rows` are there, 16 columns.
template <int PARTS>
static void pack_down(const typename OperandOf<PARTS>::type* v, long stride, long rows, long columns, uint8_t* out) {
    for (int i = 0; i < 16; i++) {
        __m512i even[PARTS], odd[PARTS];
        __mmask16 there = first16(columns);
        part16<PARTS>(v + 2 * i * stride, 2 * i < rows ? there : 0, even);
        part16<PARTS>(v + (2 * i + 1) * stride, 2 * i + 1 < rows ? there : 0, odd);
        for (int p = 0; p < PARTS; p++)
            _mm512_store_si512(out + p * TILE_BYTES + i * 64, _mm512_or_si512(even[p], _mm512_slli_epi32(odd[p], 16)));
    }
}

// Tiles 0 to 3 hold 32 × 32 sums: 0 and 1 the first sixteen rows, 2 and 3 the others.
GF_INLINE void clear_sums() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

// Every row begins as the 32 numbers given.
GF_INLINE void begin_sums(const float* row) {
    compiler_fence(row);
    _tile_loadd(0, row, 0);
    _tile_loadd(1, row + 16, 0);
    _tile_loadd(2, row, 0);
    _tile_loadd(3, row + 16, 0);
}

GF_INLINE void store_sums(float* out, long stride) {
    _tile_stored(0, out, stride * 4);
    _tile_stored(1, out + 16, stride * 4);
    _tile_stored(2, out + 16 * stride, stride * 4);
    _tile_stored(3, out + 16 * stride + 16, stride * 4);
}

GF_INLINE void load_left(const uint8_t* a0, const uint8_t* a1, int part) {
    _tile_loadd(4, a0 + part * TILE_BYTES, 64);
    _tile_loadd(5, a1 + part * TILE_BYTES, 64);
}

GF_INLINE void load_right(const uint8_t* b0, const uint8_t* b1, int part) {
    _tile_loadd(6, b0 + part * TILE_BYTES, 64);
    _tile_loadd(7, b1 + part * TILE_BYTES, 64);
}

GF_INLINE void multiply() {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
}

// The sums += a pair of left tiles × a pair of right tiles over `steps` steps; a step's parts lie
// together, `left` and `right` bytes from one step to the next.
template <int PARTS>
GF_INLINE void accumulate(
    const uint8_t* a0, const uint8_t* a1, long left, const uint8_t* b0, const uint8_t* b1, long right, long steps) {
    compiler_fence(a0);
    compiler_fence(b0);
    for (long k = 0; k < steps; k++, a0 += left, a1 += left, b0 += right, b1 += right) {
        load_left(a0, a1, 0);
        if constexpr (PARTS == 3) {  // in an order that loads least
            load_right(b0, b1, 2), multiply();
            load_right(b0, b1, 1), multiply();
            load_left(a0, a1, 1), multiply();
            load_right(b0, b1, 0), multiply();
            load_left(a0, a1, 2), multiply();
            load_left(a0, a1, 0), multiply();
        } else {
            load_right(b0, b1, 0), multiply();
        }
    }
}

// out = x · wᵀ + bias in float32.
constexpr long BLOCK_OUTPUTS = 1024;  // outputs packed at once, at most
constexpr long STRIP = 128;           // rows packed at once, by the thread that needs them: they stay in its cache

// The sums to out, as far as it goes.
static void store_part(float* out, long stride, long rows, long columns) {
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
            Tiles on(TileUse::FULL);
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
                        store_part(out + (first + r) * outputs + column, outputs, here - r, outputs - column);
                    }
                }
            });
        });
    }
    return failed;
}
#endif
