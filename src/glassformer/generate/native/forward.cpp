// A decoder-only transformer's forward pass over some tokens, each with its own sequence (slot) and
// position, in one call. Prefill is many tokens of one slot, decode one token of each slot; both are
// the same call and give each token the same numbers.
//
// It knows the shapes it is told and the buffers it is given; it does not know checkpoints,
// sampling or requests. Python owns weights and names; this file owns the cache and the threads.

#include <cstdlib>
#include <memory>
#include <vector>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "attention.h"
#include "matrix.h"
#include "pool.h"

extern "C" {

struct Shape {
    int32_t vocab, d_model, n_layers, n_heads, n_kv_heads, d_head, d_ff;
    int32_t rotary, activation, layer_norm, parallel, slots, capacity, brain_cache, rows;
    float eps, score_scale, score_softcap, logit_softcap, embedding_scale;
};

struct NormWeights {
    const float *weight, *bias;  // weight null: no such norm
};

struct Layer {
    Matrix q, k, v, o, gate, up, down;
    NormWeights ln1, ln2, ln1_post, ln2_post, q_norm, k_norm;
    int32_t window, table;  // window 0: all positions; table: which rotary table
};

struct Parts {
    Matrix embed, unembed, pos_embed;
    NormWeights final_norm;
    const float *cosines, *sines;  // (table, capacity, rotary / 2)
};

}  // extern "C"

namespace {

void* allocate(size_t bytes) {
    size_t align = bytes >= (1u << 21) ? (1u << 21) : 64;
    void* p = nullptr;
    if (posix_memalign(&p, align, round_up(bytes ? bytes : 64, align) + 8192)) return nullptr;
#if defined(__linux__)
    if (align > 64) madvise(p, bytes, MADV_HUGEPAGE);
#endif
    return p;
}

struct Free {
    void operator()(void* p) const { free(p); }
};
template <class T>
using Buffer = std::unique_ptr<T[], Free>;

template <class T>
Buffer<T> zeros(size_t n) {
    T* p = static_cast<T*>(allocate(n * sizeof(T)));
    if (p) memset((void*)p, 0, n * sizeof(T));
    return Buffer<T>(p);
}

std::mutex pool_use;  // one forward pass at a time in a process
std::unique_ptr<Pool> pool;

Pool& team(int threads) {
    if (pool && !pool->alive()) (void)pool.release();  // a fork's child has none of the threads
    if (!pool || pool->size() != threads) {
        pool.reset();
        pool = std::make_unique<Pool>(threads);
    }
    return *pool;
}

struct RowBuffers {
    Buffer<float> x;
    Buffer<int8_t> q;
    Buffer<Scale> scales;
    Rows rows;

    bool make(int count, int cols) {
        rows.stride = (int)round_up(cols, 64);
        size_t n = (size_t)count * rows.stride;
        x = zeros<float>(n);
        q = zeros<int8_t>(n);
        scales = zeros<Scale>(n / BLOCK);
        rows.x = x.get(), rows.q = q.get(), rows.scales = scales.get();
        return x && q && scales;
    }
};

struct Model {
    Shape s;
    Parts parts;
    std::vector<Layer> layers;
    int width = 0;                     // of a cached head: d_head rounded up to 16
    void *keys = nullptr, *values = nullptr;  // (layer, slot, kv_head, ...), from calloc: untouched pages cost nothing
    RowBuffers attention_in, feed_in, mixed, hidden, last;
    Buffer<float> residual, query, key, value, part;
    std::vector<Phase> phases;

    ~Model() {
        free(keys);
        free(values);
    }

    size_t head_size() const { return (size_t)s.capacity * width; }
    size_t element() const { return s.brain_cache ? 2 : 4; }
    size_t cache_at(int layer, int slot, int head) const {
        return (((size_t)layer * s.slots + slot) * s.n_kv_heads + head) * head_size();
    }
};

void normalise(const Shape& s, const NormWeights& w, const float* x, float* out, int n, bool layer_norm) {
    // d_model may not be a multiple of 16: buffers are padded with zeros, sums stop at n.
    F16 total = splat(0.f);
    float mean = 0;
    int whole = n / 16 * 16;
    float rest = 0;
    if (layer_norm) {
        for (int i = 0; i < whole; i += 16) total += load<F16>(x + i);
        for (int i = whole; i < n; i++) rest += x[i];
        mean = (sum(total) + rest) / n;
        total = splat(0.f), rest = 0;
    }
    for (int i = 0; i < whole; i += 16) {
        F16 d = load<F16>(x + i) - splat(mean);
        total += d * d;
    }
    for (int i = whole; i < n; i++) rest += (x[i] - mean) * (x[i] - mean);
    float inverse = 1.f / sqrtf((sum(total) + rest) / n + s.eps);
    for (int i = 0; i < n; i++) {
        float y = (x[i] - mean) * inverse * w.weight[i];
        out[i] = w.bias ? y + w.bias[i] : y;
    }
}

struct Run {
    Model& m;
    int count;
    const int32_t *tokens, *slots, *positions;
    int n_out;
    const int32_t* out_rows;
    float* logits;
    struct Group {
        int first, count;
    };
    std::vector<Group> groups;  // rows of one slot at successive positions: they share a reading of the cache

    void make_groups() {
        int most = 16 / (m.s.n_heads / m.s.n_kv_heads);
        if (most < 1) most = 1;
        for (int r = 0; r < count;) {
            int n = 1;
            while (n < most && r + n < count && slots[r + n] == slots[r] && positions[r + n] == positions[r] + n) n++;
            groups.push_back({r, n});
            r += n;
        }
    }
};

// One thread's walk through the phases; all threads walk the same phases in the same order.
struct Walk {
    Run& run;
    Pool& threads;
    const Shape& s;
    Model& m;
    float* scratch;  // of this thread: scores of four rows
    int scratch_stride = 0, phase = 0;

    Walk(Run& r, Pool& p) : run(r), threads(p), s(r.m.s), m(r.m) {
        static thread_local std::vector<float> room;
        for (int i = 0; i < run.count; i++)
            scratch_stride = run.positions[i] > scratch_stride ? run.positions[i] : scratch_stride;
        scratch_stride = (scratch_stride / ALIGN + 1) * ALIGN;
        if (room.size() < 4 * (size_t)scratch_stride) room.resize(4 * (size_t)scratch_stride);
        scratch = room.data();
    }

    template <class F>
    void share(int n, int grab, F work) {
        m.phases[phase++].share(n, grab, work);
    }

    // Small work per row between the products: a few rows are one piece.
    template <class F>
    void each_row(int n, F work) {
        int grab = n <= 4 ? n : n <= 64 ? 1 : 4;
        share(n, grab > 0 ? grab : 1, work);
    }

    int grab(int units) const {
        int n = units / (threads.size() * 4);
        return run.count > 8 || n < 1 ? 1 : n;
    }

    // Products of one input with up to three matrices; done(which, unit, first row, rows, results).
    template <class F>
    void products(const Matrix* const* matrices, int n, const Rows& in, int rows, F done) {
        int total = 0;
        for (int i = 0; i < n; i++) total += matrices[i]->units();
        share(total, grab(total), [&](int unit) {
            int which = 0;
            while (unit >= matrices[which]->units()) unit -= matrices[which++]->units();
            alignas(64) float y[TOGETHER][UNIT];
            for (int r = 0; r < rows; r += TOGETHER) {
                int c = rows - r < TOGETHER ? rows - r : TOGETHER;
                product(*matrices[which], unit, in, r, c, y);
                done(which, unit, r, c, y);
            }
        });
    }

    void norm_into(const NormWeights& w, const float* x, const RowBuffers& to, int row, bool quantise) {
        normalise(s, w, x, to.rows.x + (size_t)row * to.rows.stride, s.d_model, s.layer_norm);
        if (quantise) to.rows.quantise(row);
    }

    float* residual(int row) { return m.residual.get() + (size_t)row * m.feed_in.rows.stride; }

    void embed(int row) {
        float* x = residual(row);
        unpack_row(m.parts.embed, run.tokens[row], x);
        if (s.embedding_scale > 0)
            for (int i = 0; i < s.d_model; i++) x[i] *= s.embedding_scale;
        if (m.parts.pos_embed.data) {
            float* p = m.part.get() + (size_t)row * m.feed_in.rows.stride;
            unpack_row(m.parts.pos_embed, run.positions[row], p);
            for (int i = 0; i < s.d_model; i++) x[i] += p[i];
        }
    }

    void before_attention(const Layer& layer, int row) {
        bool quantise = layer.q.quantised() || layer.k.quantised() || layer.v.quantised();
        norm_into(layer.ln1, residual(row), m.attention_in, row, quantise);
        if (s.parallel) before_feed(layer, row);
    }

    void before_feed(const Layer& layer, int row) {
        norm_into(layer.ln2, residual(row), m.feed_in, row, layer.up.quantised() || layer.gate.quantised());
    }

    void add_normed(const NormWeights& w, int row) {
        float *p = m.part.get() + (size_t)row * m.feed_in.rows.stride, *x = residual(row);
        normalise(s, w, p, p, s.d_model, s.layer_norm);
        for (int i = 0; i < s.d_model; i++) x[i] += p[i];
    }

    void turn(const Layer& layer, int row, float* x, const NormWeights& norm) {
        if (norm.weight) normalise(s, norm, x, x, s.d_head, false);
        int half = s.rotary / 2;
        size_t at = ((size_t)layer.table * s.capacity + run.positions[row]) * half;
        const float *cosine = m.parts.cosines + at, *sine = m.parts.sines + at;
        for (int i = 0; i < half; i++) {
            float a = x[i], b = x[i + half];
            x[i] = a * cosine[i] - b * sine[i];
            x[i + half] = b * cosine[i] + a * sine[i];
        }
    }

    template <class E>
    void remember(const Layer& layer, int index, int row) {
        int q_width = (int)round_up(s.n_heads * s.d_head, UNIT), k_width = (int)round_up(s.n_kv_heads * s.d_head, UNIT);
        for (int h = 0; h < s.n_heads; h++)
            turn(layer, row, m.query.get() + (size_t)row * q_width + h * s.d_head, layer.q_norm);
        int p = run.positions[row];
        for (int h = 0; h < s.n_kv_heads; h++) {
            float* k = m.key.get() + (size_t)row * k_width + h * s.d_head;
            const float* v = m.value.get() + (size_t)row * k_width + h * s.d_head;
            turn(layer, row, k, layer.k_norm);
            size_t base = m.cache_at(index, run.slots[row], h);
            E* keys = static_cast<E*>(m.keys) + base + (size_t)(p / 16) * 16 * m.width + p % 16;
            E* values = static_cast<E*>(m.values) + base + (size_t)p * m.width;
            for (int i = 0; i < s.d_head; i++) {
                put(keys + i * 16, k[i]);
                put(values + i, v[i]);
            }
        }
    }

    template <class E>
    void attend_group(const Layer& layer, int index, const Run::Group& g, int kv_head) {
        int q_width = (int)round_up(s.n_heads * s.d_head, UNIT), share = s.n_heads / s.n_kv_heads;
        const float* q[256];
        float* out[256];
        int position[256];
        alignas(64) float wide[4][512];
        size_t base = m.cache_at(index, run.slots[g.first], kv_head);
        const E *keys = static_cast<const E*>(m.keys) + base, *values = static_cast<const E*>(m.values) + base;
        int n = 0;
        for (int r = g.first; r < g.first + g.count; r++)
            for (int h = kv_head * share; h < (kv_head + 1) * share; h++, n++) {
                q[n] = m.query.get() + (size_t)r * q_width + h * s.d_head;
                out[n] = m.mixed.rows.x + (size_t)r * m.mixed.rows.stride + h * s.d_head;
                position[n] = run.positions[r];
            }
        bool direct = m.width == s.d_head;  // otherwise results pass through a padded row
        for (int i = 0; i < n; i += 4) {
            int c = n - i < 4 ? n - i : 4;
            float* padded[4] = {wide[0], wide[1], wide[2], wide[3]};
            attend<E>(keys, values, m.width, s.d_head, q + i, direct ? out + i : padded, position + i, c, layer.window,
                      s.score_scale, s.score_softcap, scratch, scratch_stride);
            if (!direct)
                for (int j = 0; j < c; j++) memcpy(out[i + j], wide[j], s.d_head * sizeof(float));
        }
    }

    // A part's output, to the residual stream or, when a norm comes first, to `part`.
    void deliver(bool normed, int unit, int first, int rows, float (*y)[UNIT]) {
        int stride = m.feed_in.rows.stride, from = unit * UNIT, n = s.d_model - from < UNIT ? s.d_model - from : UNIT;
        float* base = (normed ? m.part.get() : m.residual.get()) + from;
        for (int c = 0; c < rows; c++) {
            float* to = base + (size_t)(first + c) * stride;
            for (int i = 0; i < n; i++) to[i] = normed ? y[c][i] : to[i] + y[c][i];
        }
    }

    void attention(const Layer& layer, int index) {
        const Matrix* qkv[3] = {&layer.q, &layer.k, &layer.v};
        float* to[3] = {m.query.get(), m.key.get(), m.value.get()};
        products(qkv, 3, m.attention_in.rows, run.count, [&](int which, int unit, int first, int rows, float(*y)[UNIT]) {
            size_t width = round_up(qkv[which]->rows, UNIT);
            for (int c = 0; c < rows; c++) memcpy(to[which] + (first + c) * width + unit * UNIT, y[c], sizeof y[c]);
        });
        each_row(run.count, [&](int r) {
            if (s.brain_cache)
                remember<uint16_t>(layer, index, r);
            else
                remember<float>(layer, index, r);
        });
        share((int)run.groups.size() * s.n_kv_heads, 1, [&](int i) {
            const Run::Group& g = run.groups[run.groups.size() - 1 - i / s.n_kv_heads];  // the longest first
            if (s.brain_cache)
                attend_group<uint16_t>(layer, index, g, i % s.n_kv_heads);
            else
                attend_group<float>(layer, index, g, i % s.n_kv_heads);
        });
        if (layer.o.quantised()) each_row(run.count, [&](int r) { m.mixed.rows.quantise(r); });
        const Matrix* o = &layer.o;
        bool post = layer.ln1_post.weight != nullptr;
        products(&o, 1, m.mixed.rows, run.count, [&](int, int unit, int first, int rows, float(*y)[UNIT]) {
            deliver(post, unit, first, rows, y);
        });
    }

    void feed_forward(const Layer& layer) {
        const int units = layer.up.units();
        share(units, grab(units), [&](int unit) {
            alignas(64) float up[TOGETHER][UNIT], gate[TOGETHER][UNIT];
            int from = unit * UNIT, n = s.d_ff - from < UNIT ? s.d_ff - from : UNIT;
            for (int r = 0; r < run.count; r += TOGETHER) {
                int rows = run.count - r < TOGETHER ? run.count - r : TOGETHER;
                product(layer.up, unit, m.feed_in.rows, r, rows, up);
                if (layer.gate.data) product(layer.gate, unit, m.feed_in.rows, r, rows, gate);
                for (int c = 0; c < rows; c++)
                    for (int i = 0; i < UNIT; i += 16) {
                        F16 u = load<F16>(up[c] + i);
                        F16 y = layer.gate.data ? activate(s.activation, load<F16>(gate[c] + i)) * u
                                                : activate(s.activation, u);
                        store(up[c] + i, y);
                    }
                for (int c = 0; c < rows; c++)
                    memcpy(m.hidden.rows.x + (size_t)(r + c) * m.hidden.rows.stride + from, up[c], n * sizeof(float));
            }
        });
        if (layer.down.quantised()) each_row(run.count, [&](int r) { m.hidden.rows.quantise(r); });
        const Matrix* down = &layer.down;
        bool post = layer.ln2_post.weight != nullptr;
        products(&down, 1, m.hidden.rows, run.count, [&](int, int unit, int first, int rows, float(*y)[UNIT]) {
            deliver(post, unit, first, rows, y);
        });
    }

    void go() {
        each_row(run.count, [&](int r) {
            embed(r);
            before_attention(m.layers[0], r);
        });
        for (int i = 0; i < s.n_layers; i++) {
            const Layer& layer = m.layers[i];
            attention(layer, i);
            if (!s.parallel)
                each_row(run.count, [&](int r) {
                    if (layer.ln1_post.weight) add_normed(layer.ln1_post, r);
                    before_feed(layer, r);
                });
            feed_forward(layer);
            if (i + 1 < s.n_layers)
                each_row(run.count, [&](int r) {
                    if (layer.ln2_post.weight) add_normed(layer.ln2_post, r);
                    before_attention(m.layers[i + 1], r);
                });
        }
        each_row(run.n_out, [&](int i) {
            int r = run.out_rows[i];
            if (m.layers.back().ln2_post.weight) add_normed(m.layers.back().ln2_post, r);
            norm_into(m.parts.final_norm, residual(r), m.last, i, m.parts.unembed.quantised());
        });
        const Matrix* unembed = &m.parts.unembed;
        products(&unembed, 1, m.last.rows, run.n_out, [&](int, int unit, int first, int rows, float(*y)[UNIT]) {
            int from = unit * UNIT, n = s.vocab - from < UNIT ? s.vocab - from : UNIT;
            for (int c = 0; c < rows; c++) {
                if (s.logit_softcap > 0)
                    for (int i = 0; i < UNIT; i += 16)
                        store(y[c] + i, splat(s.logit_softcap) *
                                            hyperbolic_tangent(load<F16>(y[c] + i) / splat(s.logit_softcap)));
                memcpy(run.logits + (size_t)(first + c) * s.vocab + from, y[c], n * sizeof(float));
            }
        });
    }
};

}  // namespace

extern "C" {

const char* gf_instructions() {
#if defined(GF_VNNI)
    return "AVX-512 VNNI";
#elif defined(GF_AVX2)
    return "AVX2";
#else
    return "portable";
#endif
}

void* gf_allocate(size_t bytes) { return allocate(bytes); }
void gf_free(void* p) { free(p); }
size_t gf_matrix_bytes(int format, int rows, int cols) {
    return (size_t)((rows + UNIT - 1) / UNIT) * unit_bytes(format, cols);
}

void gf_pack(int format, int rows, int cols, const uint8_t* source, uint8_t* out, int threads) {
    Matrix m{format, rows, cols, out, nullptr};
    std::lock_guard<std::mutex> hold(pool_use);
    std::atomic<int> next{0};
    team(threads).run([&] {
        for (int unit; (unit = next.fetch_add(1)) < m.units();) pack_unit(m, unit, source, out + unit * unit_bytes(format, cols));
    });
}

void gf_unpack(const Matrix* m, int row, float* out) { unpack_row(*m, row, out); }

// out (count, rows) = x (count, cols) @ matrix, as the forward pass does it; for tests.
int gf_multiply(const Matrix* m, const float* x, int count, float* out) {
    RowBuffers in;
    if (!in.make(count, m->cols)) return 1;
    for (int r = 0; r < count; r++) {
        memcpy(in.rows.x + (size_t)r * in.rows.stride, x + (size_t)r * m->cols, m->cols * sizeof(float));
        if (m->quantised()) in.rows.quantise(r);
    }
    alignas(64) float y[TOGETHER][UNIT];
    for (int unit = 0; unit < m->units(); unit++)
        for (int r = 0; r < count; r += TOGETHER) {
            int c = count - r < TOGETHER ? count - r : TOGETHER, n = m->rows - unit * UNIT;
            product(*m, unit, in.rows, r, c, y);
            for (int i = 0; i < c; i++)
                memcpy(out + (size_t)(r + i) * m->rows + unit * UNIT, y[i], (n < UNIT ? n : UNIT) * sizeof(float));
        }
    return 0;
}

// Reads `bytes` with all threads once and returns the seconds it took.
double gf_read(const uint8_t* data, size_t bytes, int threads) {
    std::lock_guard<std::mutex> hold(pool_use);
    std::atomic<size_t> next{0};
    std::atomic<int32_t> sink{0};
    const size_t piece = 1 << 18;
    auto start = std::chrono::steady_clock::now();
    team(threads).run([&] {
        I16 a = splat_int(0), b = a, c = a, d = a;
        for (size_t at; (at = next.fetch_add(piece)) + piece <= bytes;)
            for (size_t i = at; i < at + piece; i += 256) {
                a ^= load<I16>(data + i), b ^= load<I16>(data + i + 64);
                c ^= load<I16>(data + i + 128), d ^= load<I16>(data + i + 192);
            }
        sink.fetch_xor(sum(a ^ b ^ c ^ d));
    });
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void gf_destroy(Model* m) { delete m; }

Model* gf_create(const Shape* shape, const Parts* parts, const Layer* layers) {
    auto m = std::make_unique<Model>();
    m->s = *shape;
    m->parts = *parts;
    m->layers.assign(layers, layers + shape->n_layers);
    const Shape& s = m->s;
    m->width = (int)round_up(s.d_head, 16);
    size_t cache = (size_t)s.n_layers * s.slots * s.n_kv_heads * m->head_size();
    m->keys = calloc(cache, m->element());
    m->values = calloc(cache, m->element());
    size_t rows = s.rows;
    bool sound = m->keys && m->values;
    sound = sound && m->attention_in.make(s.rows, s.d_model) && m->feed_in.make(s.rows, s.d_model);
    sound = sound && m->mixed.make(s.rows, s.n_heads * s.d_head) && m->hidden.make(s.rows, s.d_ff);
    sound = sound && m->last.make(s.rows, s.d_model);
    if (!sound) return nullptr;
    m->residual = zeros<float>(rows * m->feed_in.rows.stride);
    m->part = zeros<float>(rows * m->feed_in.rows.stride);
    m->query = zeros<float>(rows * round_up(s.n_heads * s.d_head, UNIT));
    m->key = zeros<float>(rows * round_up(s.n_kv_heads * s.d_head, UNIT));
    m->value = zeros<float>(rows * round_up(s.n_kv_heads * s.d_head, UNIT));
    if (!m->residual || !m->part || !m->query || !m->key || !m->value) return nullptr;
    m->phases = std::vector<Phase>((size_t)s.n_layers * 12 + 8);
    return m.release();
}

// `count` tokens (at most Shape.rows) enter the cache at (slot, position); logits (n_out, vocab) of
// the rows named in out_rows. Positions before a row's own must have been given before or with it.
int gf_forward(Model* m, int count, const int32_t* tokens, const int32_t* slots, const int32_t* positions, int n_out,
               const int32_t* out_rows, float* logits, int threads) {
    const Shape& s = m->s;
    if (count < 1 || count > s.rows || n_out < 0 || n_out > s.rows) return 1;
    for (int r = 0; r < count; r++)
        if (tokens[r] < 0 || tokens[r] >= s.vocab || slots[r] < 0 || slots[r] >= s.slots || positions[r] < 0 ||
            positions[r] >= s.capacity)
            return 2;
    for (int i = 0; i < n_out; i++)
        if (out_rows[i] < 0 || out_rows[i] >= count) return 3;
    std::lock_guard<std::mutex> hold(pool_use);
    for (auto& p : m->phases) p.next.store(0), p.done.store(0);
    Run run{*m, count, tokens, slots, positions, n_out, out_rows, logits, {}};
    run.make_groups();
    Pool& threads_ = team(threads);
    threads_.run([&] { Walk(run, threads_).go(); });
    return 0;
}

// The first `n` positions of one slot become another's.
void gf_copy(Model* m, int from, int to, int n) {
    size_t unit = m->element(), bytes = round_up(n, 16) * m->width * unit;
    for (int i = 0; i < m->s.n_layers; i++)
        for (int h = 0; h < m->s.n_kv_heads; h++) {
            size_t a = m->cache_at(i, from, h) * unit, b = m->cache_at(i, to, h) * unit;
            memcpy((char*)m->keys + b, (char*)m->keys + a, bytes);
            memcpy((char*)m->values + b, (char*)m->values + a, bytes);
        }
}

}  // extern "C"
