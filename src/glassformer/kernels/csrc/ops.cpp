// The operations of ops_abi.py, which says what each takes.
#include "attention_tiles.h"
#include "orthogonal.h"
#include "rows.h"
#include "sampling.h"

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

// The slopes of `gated` times dy: into `dgate`, and into `dup` where there is an `up`. SILU and GELU by tanh.
template <class T>
static void gated_gradient(const T* dy, const T* gate, const T* up, long n, int kind, T* dgate, T* dup, int threads) {
    const long row = 4096;
    rows_together(threads, (n + row - 1) / row, 4, [=](long r) {
        for (long i = r * row, to = i + row < n ? i + row : n; i < to; i += 16) {
            F16 slope, d = get(dy + i, to - i), y = activate<false>(kind, get(gate + i, to - i), slope);
            if (up) put(dup + i, d * y, to - i), d *= get(up + i, to - i);
            put(dgate + i, d * slope, to - i);
        }
    });
}

// -log softmax(row)[target] of each row, into `loss`; the row becomes its gradient. A row without a target counts nothing.
template <class T>
static void cross_entropy(T* logits, long rows, long vocab, const int64_t* targets, float* loss, int threads) {
    rows_together(threads, rows, 1, [=](long r) { loss[r] = cross_entropy_row(logits + r * vocab, vocab, targets[r]); });
}

// Softmax of scores * scale, in place: row r is the query r % queries of the last `queries` among `keys` positions, and
// sees none behind itself.
template <class T>
static void causal_softmax(T* scores, long rows, long queries, long keys, float scale, int threads) {
    rows_together(threads, rows, 16, [=](long r) {
        softmax_row(scores + r * keys, keys - queries + r % queries + 1, keys, scale);
    });
}

template <class T>
static void softmax_gradient(const T* weights, T* upstream, long rows, long keys, float scale, int threads) {
    rows_together(threads, rows, 16, [=](long r) { softmax_gradient_row(weights + r * keys, upstream + r * keys, keys, scale); });
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

// CALL with T the numbers that `bf16` says.
#define GF_EITHER(CALL)            \
    if (bf16) {                    \
        typedef uint16_t T;        \
        CALL;                      \
    } else {                       \
        typedef float T;           \
        CALL;                      \
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
    GF_EITHER(rms_norm((const T*)x, rows, d, (const T*)weight, plus, eps, (T*)out, threads))
}

void gk_gated(const void* gate, const void* up, long n, int kind, void* out, int bf16, int threads) {
    GF_EITHER(gated((const T*)gate, (const T*)up, n, kind, (T*)out, threads))
}

void gk_rotate(
    const void* x, long positions, long heads, long d, long stride, const float* cosines, const float* sines, long pairs,
    void* out, int bf16, int threads) {
    GF_EITHER(rotate((const T*)x, positions, heads, d, stride, cosines, sines, pairs, (T*)out, threads))
}

void gk_gated_gradient(
    const void* dy, const void* gate, const void* up, long n, int kind, void* dgate, void* dup, int bf16, int threads) {
    GF_EITHER(gated_gradient((const T*)dy, (const T*)gate, (const T*)up, n, kind, (T*)dgate, (T*)dup, threads))
}

void gk_cross_entropy(void* x, long rows, long vocab, const int64_t* targets, float* loss, int bf16, int threads) {
    GF_EITHER(cross_entropy((T*)x, rows, vocab, targets, loss, threads))
}

void gk_causal_softmax(void* x, long rows, long queries, long keys, float scale, int bf16, int threads) {
    GF_EITHER(causal_softmax((T*)x, rows, queries, keys, scale, threads))
}

void gk_softmax_gradient(const void* p, void* d, long rows, long keys, float scale, int bf16, int threads) {
    GF_EITHER(softmax_gradient((const T*)p, (T*)d, rows, keys, scale, threads))
}

double gk_weight_sum(const float* x, long n, float by) { return Weights(x, n, by).sums(nullptr); }

long gk_draw(const float* x, long n, float by, double share) { return draw_row(x, n, by, share); }

long gk_largest(const float* x, long n, long count, int32_t* out) { return largest_of(x, n, count, out); }

int gk_newton_schulz(void* x, long count, long rows, long columns, const float* rules, int rounds, int threads) {
    return FAST_BF16 ? newton_schulz((uint16_t*)x, count, rows, columns, (const float(*)[3])rules, rounds, threads) : 1;
}
}
