// The operations of ops_abi.py, which says what each takes.
#include "attention_tiles.h"
#include "orthogonal.h"
#include "rows.h"

// What a layer does to each row between its products, in one pass over it: torch takes several, each through memory.

// x / sqrt(mean(x²) + eps) * (weight + plus), of `rows` rows of d
template <class T>
static void rms_norm(const T* x, long rows, long d, const T* weight, float plus, float eps, T* out, int threads) {
    rows_together(threads, rows, 1 + 16384 / d, [=](long r) {
        norm_row(x + r * d, d, weight, plus, (const T*)nullptr, eps, false, out + r * d);
    });
}

// act(gate) * up, or act(gate) where there is no up.
template <class T>
static void gated(const T* gate, const T* up, long n, int kind, T* out, int threads) {
    const long row = 4096;
    rows_together(threads, (n + row - 1) / row, 4, [=](long r) {
        for (long i = r * row, to = i + row < n ? i + row : n; i < to; i += 16) {
            F16 y = activate(kind, get(gate + i, to - i));
            if (up) y *= get(up + i, to - i);
            put(out + i, y, to - i);
        }
    });
}

// Turns pairs (i, i + pairs) of every head; cosines and sines are (position, pair), one row per `heads` heads.
template <class T>
static void rotate(
    const T* x, long positions, long heads, long d, long stride, const float* cosines, const float* sines, long pairs, T* out,
    int threads) {
    rows_together(threads, positions, 1 + 16384 / (heads * d), [=](long p) {
        for (long h = 0; h < heads; h++) {
            const T* from = x + p * stride + h * d;
            T* to = out + (p * heads + h) * d;
            rotate_row(from, cosines + p * pairs, sines + p * pairs, pairs, to);
            memcpy(to + 2 * pairs, from + 2 * pairs, (d - 2 * pairs) * sizeof(T));
        }
    });
}

// Each of `count` matrices (rows, columns), sizes in whole UNITs, by one thread. Returns how many had no memory.
static int newton_schulz(uint16_t* x, long count, long rows, long columns, const float (*rules)[3], int rounds, int threads) {
    std::atomic<int> failed{0};
    rows_together(threads, count, 1, [&](long i) {
        static thread_local Scratch kept;
        uint16_t *from = x + i * rows * columns, *next = nullptr;
        OrthogonalScratch<uint16_t> scratch;
        for (int pass = 0; pass < 2; pass++) {
            Arena a{pass ? kept.at() : nullptr};
            next = a.take<uint16_t>(rows * columns);
            scratch.lay_out(a, rows * rows, rows * columns);
            if (!pass && !kept.get(a.used)) {
                failed++;
                return;
            }
        }
        const Tiles tiles(arithmetic<uint16_t>().tiles);
        uint16_t* const home = from;
        orthogonalise(rows, columns, rules, rounds, from, next, scratch);
        if (from != home) memcpy(home, from, rows * columns * sizeof(uint16_t));
    });
    return failed;
}

#pragma GCC visibility push(default)
extern "C" {

int gf_sizes(int32_t* out, int room) { return sizes_of<AttentionShape>(out, room); }

void gk_threads(void* region) { parallel_region = (Parallel)region; }

int gk_tiles() {
#ifdef GF_AMX_BF16
    return tiles_there();
#else
    return 0;
#endif
}

int gk_linear(
    const float* x, long rows, long depth, long stride, const float* w, const float* bias, long outputs, float* out,
    int threads) {
#ifdef GF_AMX_BF16
    return linear_f32(x, rows, depth, stride, w, bias, outputs, out, threads);
#else
    return 1;
#endif
}

int gk_attention(const AttentionShape* a, const void* q, const void* k, const void* v, void* out, int threads) {
#ifdef GF_AMX_BF16
    return a->bf16 ? Attend<1>(*a, q, k, v, out).run(threads) : Attend<3>(*a, q, k, v, out).run(threads);
#else
    return 1;
#endif
}

void gk_rms_norm(
    const void* x, long rows, long d, const void* weight, float plus, float eps, void* out, int bf16, int threads) {
    if (bf16)
        rms_norm((const uint16_t*)x, rows, d, (const uint16_t*)weight, plus, eps, (uint16_t*)out, threads);
    else
        rms_norm((const float*)x, rows, d, (const float*)weight, plus, eps, (float*)out, threads);
}

void gk_gated(const void* gate, const void* up, long n, int kind, void* out, int bf16, int threads) {
    if (bf16)
        gated((const uint16_t*)gate, (const uint16_t*)up, n, kind, (uint16_t*)out, threads);
    else
        gated((const float*)gate, (const float*)up, n, kind, (float*)out, threads);
}

void gk_rotate(
    const void* x, long positions, long heads, long d, long stride, const float* cosines, const float* sines, long pairs,
    void* out, int bf16, int threads) {
    if (bf16)
        rotate((const uint16_t*)x, positions, heads, d, stride, cosines, sines, pairs, (uint16_t*)out, threads);
    else
        rotate((const float*)x, positions, heads, d, stride, cosines, sines, pairs, (float*)out, threads);
}

int gk_newton_schulz(void* x, long count, long rows, long columns, const float* rules, int rounds, int threads) {
    return FAST_BF16 ? newton_schulz((uint16_t*)x, count, rows, columns, (const float(*)[3])rules, rounds, threads) : 1;
}
}
