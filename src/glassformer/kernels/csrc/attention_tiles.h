// Causal attention on tiles, its grid formed 32 queries of a head at a time.
//
// For each piece: scores of 32 queries with every key they may see, a softmax of each row as the
// textbook has it (the greatest score taken off first), and the weights' product with the values.
// Float32 operands are three bfloat16 parts (gemm_parts.h); bfloat16 ones are one.
#pragma once

#include "abi.h"
#include "gemm_parts.h"
#include "math.h"

#ifdef GF_AMX_BF16
constexpr int QUERIES = 32;

template <int PARTS>
struct Attend {
    typedef typename OperandOf<PARTS>::type T;
    const AttentionShape& a;
    const T *q, *k, *v;
    T* out;
    const long depth, steps, columns, spans, tile;  // spans: keys in 32s; tile: bytes of one tile's parts
    uint8_t *keys, *values;

    Attend(const AttentionShape& a, const void* q, const void* k, const void* v, void* out)
        : a(a), q((const T*)q), k((const T*)k), v((const T*)v), out((T*)out), depth(a.d_head),
          steps((depth + DEPTH - 1) / DEPTH), columns((depth + 31) / 32 * 2), spans((a.keys + 31) / 32),
          tile(PARTS * TILE_BYTES) {}

    size_t key_bytes() const { return (size_t)spans * 2 * steps * tile; }
    size_t value_bytes() const { return (size_t)spans * columns * tile; }

    int run(int threads) {
        static thread_local Scratch scratch;
        const long lots = (long)a.batch * a.kv_heads;
        keys = scratch.get(lots * (key_bytes() + value_bytes()));
        if (!keys) return 1;
        values = keys + lots * key_bytes();
        const long blocks = (a.queries + QUERIES - 1) / QUERIES;
        Phase packing, computing;
        std::atomic<int> failed{0};
        together(threads, [&] {
            packing.share((int)(lots * spans), 4, [&](int i) { pack(i / spans, i % spans); });
            static thread_local Scratch own;
            uint8_t* mine = own.get(spans * 32 * (QUERIES * 4 + QUERIES * 2 * PARTS) + 2 * steps * tile);
            if (!mine) failed = 1;
            Tiles on(TileUse::FULL);
            // The longest rows first, so that nobody waits for one begun last.
            computing.share((int)(a.batch * a.heads * blocks), 1, [&](int i) {
                long block = blocks - 1 - i / (a.batch * a.heads), head = i % (a.batch * a.heads);
                if (mine) piece(head / a.heads, head % a.heads, block * QUERIES, mine);
            });
        });
        return failed;
    }

    void pack(long lot, long span) const {
        const long row = lot / a.kv_heads, head = lot % a.kv_heads, first = span * 32, there = a.keys - first;
        for (int half = 0; half < 2; half++)
            pack_right<PARTS>(
                k + row * a.k[0] + head * a.k[1] + (first + half * 16) * a.k[2], a.k[2], there - half * 16, depth,
                keys + lot * key_bytes() + (span * 2 + half) * steps * tile);
        for (long c = 0; c < columns; c++)
            pack_down<PARTS>(
                v + row * a.v[0] + head * a.v[1] + first * a.v[2] + c * 16, a.v[2], there, depth - c * 16,
                values + lot * value_bytes() + (span * columns + c) * tile);
    }

    void piece(long row, long head, long q0, uint8_t* mine) const {
        const long lot = row * a.kv_heads + head / (a.heads / a.kv_heads), rows = a.queries - q0;
        const long slot = a.start + q0, last = slot + (rows < QUERIES ? rows : QUERIES);  // keys below `last` are seen
        const long low = a.window && slot - a.window + 1 > 0 ? (slot - a.window + 1) / 32 : 0, high = (last + 31) / 32;
        uint8_t* query = mine;
        float* grid = (float*)(mine + 2 * steps * tile);  // (query, key)
        uint8_t* weights = (uint8_t*)(grid + QUERIES * spans * 32);  // (span, half, part, query, key)
        const long stride = spans * 32;
        for (int half = 0; half < 2; half++)
            pack_left<PARTS>(
                q + row * a.q[0] + head * a.q[1] + (q0 + half * 16) * a.q[2], a.q[2], rows - half * 16, depth,
                query + half * steps * tile);
        for (long s = low; s < high; s++) {
            const uint8_t* b = keys + lot * key_bytes() + s * 2 * steps * tile;
            clear_sums();
            accumulate<PARTS>(query, query + steps * tile, tile, b, b + steps * tile, tile, steps);
            float* g = grid + s * 32;
            store_sums(g, stride);
        }
        float share[QUERIES];
        for (int r = 0; r < QUERIES; r++)
            share[r] = r < rows ? softmax(grid, stride, r, slot + r, low, high, weights) : none(r, low, high, weights);
        for (long c = 0; c < columns; c += 2) {
            clear_sums();
            const uint8_t* b = values + lot * value_bytes() + (low * columns + c) * tile;
            const uint8_t* w = weights + low * 2 * tile;
            accumulate<PARTS>(w, w + tile, 2 * tile, b, b + tile, columns * tile, high - low);
            alignas(64) float z[QUERIES * 32];
            store_sums(z, 32);
            for (int r = 0; r < QUERIES && r < rows; r++) write(row, head, q0 + r, c * 16, z + r * 32, share[r]);
        }
    }

    // Row r's scores become weights, not yet divided by their sum; returns 1 / sum.
    float softmax(const float* grid, long stride, int r, long slot, long low, long high, uint8_t* weights) const {
        const float* g = grid + r * stride;
        const long from = a.window && slot - a.window + 1 > 0 ? slot - a.window + 1 : 0, to = slot + 1;
        const bool any = (from + 31) / 32 <= to / 32;  // spans that are seen whole: from `whole` to `rest`
        const long whole = any ? (from + 31) / 32 : low, rest = any ? to / 32 : low;
        __m512 top = _mm512_set1_ps(-INFINITY), total = _mm512_setzero_ps();
        auto greatest = [&](long s, __mmask32 there) {
            top = _mm512_mask_max_ps(top, (__mmask16)there, top, _mm512_loadu_ps(g + s * 32));
            top = _mm512_mask_max_ps(top, (__mmask16)(there >> 16), top, _mm512_loadu_ps(g + s * 32 + 16));
        };
        for (long s = low; s < whole; s++) greatest(s, seen(s * 32, from, to));
        for (long s = whole; s < rest; s++) greatest(s, 0xffffffffu);
        for (long s = rest; s < high; s++) greatest(s, seen(s * 32, from, to));
        const __m512 scale = _mm512_set1_ps(a.scale), most = _mm512_set1_ps(_mm512_reduce_max_ps(top));
        auto weigh = [&](long s, __mmask32 there) {
            __m512 low = _mm512_loadu_ps(g + s * 32), high = _mm512_loadu_ps(g + s * 32 + 16);
            low = _mm512_maskz_mov_ps((__mmask16)there, (__m512)exponential((F16)_mm512_mul_ps(_mm512_sub_ps(low, most), scale)));
            high = _mm512_maskz_mov_ps((__mmask16)(there >> 16), (__m512)exponential((F16)_mm512_mul_ps(_mm512_sub_ps(high, most), scale)));
            __m512i parts[PARTS];
            if constexpr (PARTS == 1) {  // the sum is of what the product will see
                parts[0] = (__m512i)_mm512_cvtne2ps_pbh(high, low);
                low = (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(parts[0])), 16);
                high = (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(parts[0], 1)), 16);
                total = _mm512_add_ps(total, _mm512_add_ps(low, high));
            } else {
                total = _mm512_add_ps(total, _mm512_add_ps(low, high));
                split<PARTS>(low, high, parts);
            }
            uint8_t* w = weights + (s * 2 + r / 16) * tile + r % 16 * 64;
            for (int p = 0; p < PARTS; p++) _mm512_store_si512(w + p * TILE_BYTES, parts[p]);
        };
        for (long s = low; s < whole; s++) weigh(s, seen(s * 32, from, to));
        for (long s = whole; s < rest; s++) weigh(s, 0xffffffffu);
        for (long s = rest; s < high; s++) weigh(s, seen(s * 32, from, to));
        return 1.f / _mm512_reduce_add_ps(total);
    }

    // Which of the 32 keys from j on lie in [from, to).
    static __mmask32 seen(long j, long from, long to) {
        return first32(to - j) & ~first32(from - j);
    }

    // A row that is not there weighs nothing.
    float none(int r, long low, long high, uint8_t* weights) const {
        for (long s = low; s < high; s++)
            for (int p = 0; p < PARTS; p++)
                _mm512_store_si512(weights + (s * 2 + r / 16) * tile + p * TILE_BYTES + r % 16 * 64, _mm512_setzero_si512());
        return 0.f;
    }

    void write(long row, long head, long query, long first, const float* z, float share) const {
        T* to = out + row * a.out[0] + head * a.out[1] + query * a.out[2] + first;
        for (long c = 0; c < 32 && first + c < depth; c += 16) {
            __m512 x = _mm512_mul_ps(_mm512_loadu_ps(z + c), _mm512_set1_ps(share));
            __mmask16 there = first16(depth - first - c);
            if constexpr (PARTS == 1)
                _mm256_mask_storeu_epi16(to + c, there, (__m256i)_mm512_cvtneps_pbh(x));
            else
                _mm512_mask_storeu_ps(to + c, there, x);
        }
    }
};
#endif
