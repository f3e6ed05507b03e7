// What a training step works on: the design, its weights packed for products, and room for passes.
//
// Parameters, their gradients and the optimiser's state lie in flat float32 buffers that Python
// owns; this library keeps the weights' packed copies and everything in between.
#pragma once

#include <sys/mman.h>

#include <cstdlib>
#include <memory>
#include <vector>

#include "pool.h"
#include "gemm_train.h"

enum Role { EMBED, POSITIONS, UNEMBED, FINAL, LN1, LN2, Q_NORM, K_NORM, Q, K, V, O, GATE, UP, DOWN };

struct Shape {
    int32_t vocab, d_model, n_layers, n_heads, n_kv_heads, d_head, d_ff, context;
    int32_t qk_norm, layer_norm, gated, activation, tied, threads;
    float eps, score_scale;
};

// One parameter: where it lies in the flat buffers, what it is, and how it is stepped.
struct Parameter {
    int64_t offset;
    int32_t role, layer, rows, cols, bias, muon;
    float lr, decay;
};

// Memory in one piece, handed out from its start; with no memory it counts what is needed.
struct Arena {
    char* at = nullptr;
    size_t used = 0;

    template <class T>
    T* take(long n) {
        T* p = reinterpret_cast<T*>(at + used);
        used += round_to(n * sizeof(T), 64) + 64;  // not the same place in every page
        return p;
    }
};

// Zeroed memory, in large pages where the system gives them.
class Memory {
   public:
    Memory() = default;
    Memory(const Memory&) = delete;
    ~Memory() { release(); }

    bool ask(size_t bytes) {
        if (bytes <= size_) return true;
        release();
        void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED) return false;
#if defined(MADV_HUGEPAGE)
        madvise(p, bytes, MADV_HUGEPAGE);
#endif
        at_ = static_cast<char*>(p), size_ = bytes;
        return true;
    }
    void clear() { memset(at_, 0, size_); }
    char* at() const { return at_; }

   private:
    void release() {
        if (at_) munmap(at_, size_);
        at_ = nullptr, size_ = 0;
    }
    char* at_ = nullptr;
    size_t size_ = 0;
};

// Sixteen rows of a parameter (or entries of a vector): the flat offset of the first, how many there are.
struct Panel {
    int64_t offset = -1;
    int32_t rows = 0;
};

// A vector with its padded copy, and where a block's share of its gradient goes.
struct Vector {
    std::vector<Panel> panels;
    float* at = nullptr;
    long partial = 0;

    bool there() const { return !panels.empty(); }
    long size() const { return (long)panels.size() * SIDE; }
    void place(long entry, int64_t offset, long n) {
        if ((long)panels.size() * SIDE < round_to(entry + n, EDGE)) panels.resize(round_to(entry + n, EDGE) / SIDE);
        for (long i = 0; i < n; i += SIDE)
            panels[(entry + i) / SIDE] = {offset + i, (int32_t)(n - i < SIDE ? n - i : SIDE)};
    }
};

// A matrix as products see it: several parameters may be its rows.
struct Weight {
    std::vector<Panel> panels;  // of its outputs
    long ins = 0, cols = 0;     // padded, true
    Number *forward = nullptr, *backward = nullptr;
    Vector bias;
    Number *left = nullptr, *right = nullptr;  // the gradients of its outputs (tiles), its inputs (panels)

    long outs() const { return (long)panels.size() * SIDE; }
    void sized(long outputs, long inputs) {
        panels.resize(round_to(outputs, EDGE) / SIDE);
        cols = inputs, ins = round_to(inputs, EDGE);
    }
    Right ahead() const { return Right::panels(forward, ins); }
    Right back() const { return Right::panels(backward, outs()); }
};

struct Layer {
    Weight qkv, o, in, down;  // `in` is gate and up in turn, sixteen rows each, or up alone
    Vector ln1, ln1_bias, ln2, ln2_bias, q_norm, k_norm;
};

struct Sizes {
    long width, heads, kv_heads, d_head, head, half;  // head: d_head padded
    long k_at, v_at, qkv, mixed, inner, in, vocab;    // columns of operands, padded
};

// What one block of rows keeps from its forward to its backward pass, per layer.
struct Kept {
    float *x, *middle, *scale1, *scale2, *mean1, *mean2;
    Number *qkv, *inner, *pattern;  // inner: sixteen columns at a time, in each row their slopes and what is open
};

// A thread's room for one block of rows.
struct Room {
    std::vector<Kept> layers;
    float *last, *last_scale, *last_mean, *logits, *wide, *d;
    Number *operand, *hidden, *mixed, *d_qkv, *d_mixed;
    Number *q, *k, *v, *dz, *p, *ds;                     // one head's rows
    Number *k_turned, *v_turned, *k_panels, *v_panels, *q_panels, *z_panels, *p_tiles, *ds_tiles;
    float *scores, *dq, *dk, *dv;
};

// How a batch is cut: blocks of whole sequences, padded to whole edges.
struct Cut {
    long length = 0, padded = 0, group = 0, rows = 0;  // tokens of a sequence; sequences and rows of a block
    bool keeps_pattern = false;
    long blocks = 0;  // that are stored at once
};

constexpr long SHORT = 128;              // up to this length the attention pattern is kept for the gradient
constexpr long BLOCK_BYTES = 3 << 20;    // what a block may keep; it should stay in a core's cache
#if !defined(GLASSFORMER_STORE)
#define GLASSFORMER_STORE (192L << 20)
#endif
constexpr long STORE_BYTES = GLASSFORMER_STORE;  // what is stored of all blocks before weight gradients are made

struct Model {
    Shape s;
    Sizes z;
    std::vector<Parameter> parameters;
    std::vector<Layer> layers;
    Weight unembed;
    Vector final_, final_bias;
    long embed = -1, positions = -1;  // offsets
    float *master = nullptr, *grad = nullptr, *first = nullptr, *second = nullptr;
    uint16_t* working = nullptr;
    std::vector<float> cosines, sines;  // (position, half padded to 16)
    Memory packed, vectors, room, store, benches;
    std::vector<Room> rooms;
    Cut cut;
    bool learning = false;  // whether there is room for gradients
    long partial_size = 0;
    float *partials = nullptr, *d_embedded = nullptr;  // (block, partial_size); (token, width)
    std::vector<double> losses;
    std::unique_ptr<Pool> pool;
    Phase phases[4];

    std::vector<Weight*> weights() {
        std::vector<Weight*> all;
        for (Layer& l : layers) all.insert(all.end(), {&l.qkv, &l.o, &l.in, &l.down});
        all.push_back(&unembed);
        return all;
    }
    std::vector<Vector*> all_vectors() {
        std::vector<Vector*> all;
        auto add = [&](Vector& v) {
            if (v.there()) all.push_back(&v);
        };
        for (Layer& l : layers) {
            for (Vector* v : {&l.ln1, &l.ln1_bias, &l.ln2, &l.ln2_bias, &l.q_norm, &l.k_norm}) add(*v);
            for (Weight* w : {&l.qkv, &l.o, &l.in, &l.down}) add(w->bias);
        }
        add(final_), add(final_bias);
        return all;
    }
    long half_padded() const { return round_to(z.half, SIDE); }
    void run(const std::function<void()>& task) {
        for (Phase& p : phases) p.next.store(0), p.done.store(0);
        if (!pool || !pool->alive()) {
            if (pool) pool.release();  // another process's threads
            pool.reset(new Pool(s.threads));
        }
        pool->run(task);
    }
};

// Which weight a matrix's rows are part of, and its first row there; `step` panels from one sixteen to the next.
struct Place {
    Weight* weight;
    long row, step;
};

static Place place_of(Model& m, const Parameter& p) {
    if (p.role == UNEMBED || (p.role == EMBED && m.s.tied)) return {&m.unembed, 0, 1};
    if (p.role < Q) return {nullptr, 0, 1};
    Layer& l = m.layers[p.layer];
    switch (p.role) {
        case Q: return {&l.qkv, 0, 1};
        case K: return {&l.qkv, m.z.k_at, 1};
        case V: return {&l.qkv, m.z.v_at, 1};
        case O: return {&l.o, 0, 1};
        case GATE: return {&l.in, 0, 2};
        case UP: return {&l.in, m.s.gated ? SIDE : 0, m.s.gated ? 2 : 1};
        default: return {&l.down, 0, 1};
    }
}

static Vector* vector_of(Model& m, const Parameter& p) {
    Layer* l = p.layer >= 0 ? &m.layers[p.layer] : nullptr;
    switch (p.role) {
        case FINAL: return p.bias ? &m.final_bias : &m.final_;
        case LN1: return p.bias ? &l->ln1_bias : &l->ln1;
        case LN2: return p.bias ? &l->ln2_bias : &l->ln2;
        case Q_NORM: return &l->q_norm;
        case K_NORM: return &l->k_norm;
        default: return nullptr;
    }
}

// Sixteen rows of a matrix, rounded and packed for both directions; the rounded copy too where there is one.
static void pack_panel(const Model& m, const Weight& w, long panel, Number* rows) {
    const Panel& from = w.panels[panel];
    for (int r = 0; r < SIDE; r++) {
        Number* row = rows + r * w.ins;
        for (long i = 0; i < w.ins; i += SIDE) {
            long n = r < from.rows ? w.cols - i : 0, at = from.offset + r * w.cols + i;
            put(row + i, n > 0 ? some(m.master + at, n) : splat(0.f));
#if defined(GLASSFORMER_BRAIN)
            if (n > 0) memcpy(m.working + at, row + i, (n < SIDE ? n : SIDE) * sizeof(Number));
#endif
        }
    }
    turn_to_panels(rows, w.ins, SIDE, w.ins, w.forward + panel * w.ins * SIDE);
    to_panels(rows, w.ins, SIDE, w.ins, w.backward, w.outs(), panel * SIDE);
}

// The padded copy of a vector, and what the module itself computes with.
static void publish(const Model& m, const Vector& v) {
    for (size_t p = 0; p < v.panels.size(); p++)
        for (int i = 0; i < v.panels[p].rows; i++) {
            float x = m.master[v.panels[p].offset + i];
            v.at[p * SIDE + i] = x;
#if defined(GLASSFORMER_BRAIN)
            m.working[v.panels[p].offset + i] = to_brain_value(x);
#endif
        }
}

static bool build(Model& m, const float* cosines, const float* sines) {
    const Shape& s = m.s;
    Sizes& z = m.z;
    z.width = round_to(s.d_model, EDGE);
    z.heads = s.n_heads, z.kv_heads = s.n_kv_heads, z.d_head = s.d_head, z.head = round_to(s.d_head, EDGE);
    z.half = s.d_head / 2;
    z.k_at = round_to(z.heads * s.d_head, SIDE), z.v_at = z.k_at + round_to(z.kv_heads * s.d_head, SIDE);
    z.qkv = round_to(z.v_at + z.kv_heads * s.d_head, EDGE);
    z.mixed = round_to(z.heads * s.d_head, EDGE), z.inner = round_to(s.d_ff, EDGE);
    z.in = s.gated ? 2 * z.inner : z.inner, z.vocab = round_to(s.vocab, EDGE);
    m.layers.resize(s.n_layers);
    for (Layer& l : m.layers) {
        l.qkv.sized(z.qkv, s.d_model), l.o.sized(s.d_model, z.heads * s.d_head);
        l.in.sized(z.in, s.d_model), l.down.sized(s.d_model, s.d_ff);
    }
    m.unembed.sized(s.vocab, s.d_model);
    for (const Parameter& p : m.parameters) {
        if (p.role == EMBED && !p.bias) m.embed = p.offset;
        if (p.role == POSITIONS) m.positions = p.offset;
        if (Vector* v = vector_of(m, p)) v->place(0, p.offset, p.cols);
        Place to = place_of(m, p);
        if (!to.weight) continue;
        if (p.bias) {
            for (long i = 0; i < p.cols; i += SIDE)
                to.weight->bias.place(to.row + i * to.step, p.offset + i, p.cols - i < SIDE ? p.cols - i : SIDE);
            if (to.weight->bias.size() < to.weight->outs()) to.weight->bias.panels.resize(to.weight->panels.size());
            continue;
        }
        for (long i = 0; i < p.rows; i += SIDE)
            to.weight->panels[(to.row + i * to.step) / SIDE] = {p.offset + i * p.cols,
                                                                (int32_t)(p.rows - i < SIDE ? p.rows - i : SIDE)};
    }
    if (cosines) {
        long wide = m.half_padded();
        m.cosines.assign(s.context * wide, 0.f), m.sines = m.cosines;
        for (long i = 0; i < s.context; i++) {
            memcpy(&m.cosines[i * wide], cosines + i * z.half, z.half * sizeof(float));
            memcpy(&m.sines[i * wide], sines + i * z.half, z.half * sizeof(float));
        }
    }
    for (int pass = 0; pass < 2; pass++) {
        Arena a{m.packed.at()}, b{m.vectors.at()};
        for (Weight* w : m.weights()) w->forward = a.take<Number>(w->outs() * w->ins), w->backward = a.take<Number>(w->outs() * w->ins);
        m.partial_size = 0;
        for (Vector* v : m.all_vectors()) v->at = b.take<float>(v->size()), v->partial = m.partial_size, m.partial_size += v->size();
        if (!pass && !(m.packed.ask(a.used) && m.vectors.ask(b.used))) return false;
    }
    return true;
}
