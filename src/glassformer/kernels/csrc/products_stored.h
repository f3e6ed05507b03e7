// The product of one row of activations with blocks that lie as a file has them.
#pragma once

#include "rows.h"

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
