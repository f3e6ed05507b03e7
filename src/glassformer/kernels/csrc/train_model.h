// What a training step works on: the design, its weights packed for products, and memory for passes.
//
// Parameters, their gradients and the optimiser's state lie in flat float32 buffers that Python owns; this library keeps
// the weights' packed copies and everything in between. One library is compiled for each precision of operands.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "abi.h"
#include "arena.h"
#include "gemm.h"
#include "math.h"
#include "rows.h"
#include "threads.h"

#if defined(GLASSFORMER_BF16)
typedef uint16_t Operand;  // bfloat16
#else
typedef float Operand;
#endif
constexpr bool BRIEF = sizeof(Operand) == 2;  // exponents to the digits that operands keep
#define GF_MEMBER __attribute__((noinline))

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
    long size() const { return (long)panels.size() * LANES; }
    void place(long entry, int64_t offset, long n) {
        if ((long)panels.size() * LANES < round_up(entry + n, UNIT)) panels.resize(round_up(entry + n, UNIT) / LANES);
        for (long i = 0; i < n; i += LANES)
            panels[(entry + i) / LANES] = {offset + i, (int32_t)(n - i < LANES ? n - i : LANES)};
    }
};

// A matrix as products see it: several parameters may be its rows.
struct Weight {
    std::vector<Panel> panels;  // of its outputs
    long ins = 0, cols = 0;     // padded, true
    Operand *forward = nullptr, *backward = nullptr;
    Vector bias;
    Operand *left = nullptr, *right = nullptr;  // the gradients of its outputs (tiles), its inputs (panels)

    long outs() const { return (long)panels.size() * LANES; }
    void sized(long outputs, long inputs) {
        panels.resize(round_up(outputs, UNIT) / LANES);
        cols = inputs, ins = round_up(inputs, UNIT);
    }
    Right<Operand> ahead() const { return Right<Operand>::panels(forward, ins); }
    Right<Operand> back() const { return Right<Operand>::panels(backward, outs()); }
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
struct SavedActivations {
    float *x, *middle, *scale1, *scale2, *mean1, *mean2;
    Operand *qkv, *inner, *pattern;  // inner: sixteen columns at a time, in each row their slopes and what is open
};

// A thread's room for one block of rows.
struct BlockScratch {
    std::vector<SavedActivations> layers;
    float *last, *last_scale, *last_mean, *logits, *wide, *d;
    Operand *operand, *hidden, *mixed, *d_qkv, *d_mixed;
    Operand *q, *k, *v, *dz, *p, *ds;                     // one head's rows
    Operand *k_transposed, *v_transposed, *k_panels, *v_panels, *q_panels, *z_panels, *p_tiles, *ds_tiles;
    float *scores, *dq, *dk, *dv;
};

// Sequences one after another, and what each token is to be followed by.
struct Batch {
    const int64_t *ids, *targets, *lengths;
    long sequences;
};

// One block of whole sequences: which, where its tokens begin in the batch, and its rows (whole edges).
struct Cut {
    long first, sequences, token, used, rows;
};

// How a batch is cut into blocks, the longest first, so that the threads end together; and the most of everything that
// one block or wave takes.
struct Tiling {
    std::vector<Cut> cuts;
    std::vector<long> waves;  // the first cut of each wave that is stored at once, and the end
    long padded = 0, rows = 0, squares = 0, stored = 0, blocks = 0;  // of a sequence; of a block (two); of a wave (two)

    bool within(const Tiling& o) const {
        return padded <= o.padded && rows <= o.rows && squares <= o.squares && stored <= o.stored && blocks <= o.blocks;
    }
    void widen(const Tiling& o) {
        auto grow = [](long& x, long y) { x = x > y ? x : y; };
        grow(padded, o.padded), grow(rows, o.rows), grow(squares, o.squares), grow(stored, o.stored), grow(blocks, o.blocks);
    }
};

constexpr long SHORT = 128;              // up to this length a sequence's attention pattern is kept for the gradient
constexpr long BLOCK_BYTES = 3 << 20;    // what a block may keep; it should stay in a core's cache
#if !defined(GLASSFORMER_STORE)
#define GLASSFORMER_STORE (192L << 20)
#endif
constexpr long STORE_BYTES = GLASSFORMER_STORE;  // what is stored of all blocks before weight gradients are made

struct Model {
    TrainShape s;
    Sizes z;
    std::vector<Parameter> parameters;
    std::vector<Layer> layers;
    Weight unembed;
    Vector final_, final_bias;
    long embed = -1, positions = -1;  // offsets
    float *master = nullptr, *grad = nullptr, *first = nullptr, *second = nullptr;
    uint16_t* working = nullptr;
    std::vector<float> cosines, sines;  // (position, half padded to 16)
    Scratch packed, vectors, blocks, stored, optimizer;
    std::vector<BlockScratch> scratch;
    Tiling capacity;        // what there is memory for
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
    long half_padded() const { return round_up(z.half, LANES); }
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
        case UP: return {&l.in, m.s.gated ? LANES : 0, m.s.gated ? 2 : 1};
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
static void pack_panel(const Model& m, const Weight& w, long panel, Operand* rows) {
    const Panel& from = w.panels[panel];
    for (int r = 0; r < LANES; r++) {
        Operand* row = rows + r * w.ins;
        for (long i = 0; i < w.ins; i += LANES) {
            long n = r < from.rows ? w.cols - i : 0, at = from.offset + r * w.cols + i;
            put(row + i, n > 0 ? get(m.master + at, n) : splat(0.f));
#if defined(GLASSFORMER_BF16)
            if (n > 0) memcpy(m.working + at, row + i, (n < LANES ? n : LANES) * sizeof(Operand));
#endif
        }
    }
    transpose_to_panels(rows, w.ins, LANES, w.ins, w.forward + panel * w.ins * LANES);
    to_panels(rows, w.ins, LANES, w.ins, w.backward, w.outs(), panel * LANES);
}

// The padded copy of a vector, and what the module itself computes with.
static void publish(const Model& m, const Vector& v) {
    for (size_t p = 0; p < v.panels.size(); p++)
        for (int i = 0; i < v.panels[p].rows; i++) {
            float x = m.master[v.panels[p].offset + i];
            v.at[p * LANES + i] = x;
#if defined(GLASSFORMER_BF16)
            m.working[v.panels[p].offset + i] = to_bf16_value(x);
#endif
        }
}

static bool build(Model& m, const float* cosines, const float* sines) {
    const TrainShape& s = m.s;
    Sizes& z = m.z;
    z.width = round_up(s.d_model, UNIT);
    z.heads = s.n_heads, z.kv_heads = s.n_kv_heads, z.d_head = s.d_head, z.head = round_up(s.d_head, UNIT);
    z.half = s.d_head / 2;
    z.k_at = round_up(z.heads * s.d_head, LANES), z.v_at = z.k_at + round_up(z.kv_heads * s.d_head, LANES);
    z.qkv = round_up(z.v_at + z.kv_heads * s.d_head, UNIT);
    z.mixed = round_up(z.heads * s.d_head, UNIT), z.inner = round_up(s.d_ff, UNIT);
    z.in = s.gated ? 2 * z.inner : z.inner, z.vocab = round_up(s.vocab, UNIT);
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
            for (long i = 0; i < p.cols; i += LANES)
                to.weight->bias.place(to.row + i * to.step, p.offset + i, p.cols - i < LANES ? p.cols - i : LANES);
            if (to.weight->bias.size() < to.weight->outs()) to.weight->bias.panels.resize(to.weight->panels.size());
            continue;
        }
        for (long i = 0; i < p.rows; i += LANES)
            to.weight->panels[(to.row + i * to.step) / LANES] = {p.offset + i * p.cols,
                                                                (int32_t)(p.rows - i < LANES ? p.rows - i : LANES)};
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
        for (Weight* w : m.weights()) w->forward = a.take<Operand>(w->outs() * w->ins), w->backward = a.take<Operand>(w->outs() * w->ins);
        m.partial_size = 0;
        for (Vector* v : m.all_vectors()) v->at = b.take<float>(v->size()), v->partial = m.partial_size, m.partial_size += v->size();
        if (!pass && !(m.packed.clear(a.used) && m.vectors.clear(b.used))) return false;
    }
    return true;
}

// Bytes that one row of a block keeps over all layers.
static long bytes_a_row(const Model& m, long length) {
    const Sizes& z = m.z;
    long numbers = z.qkv + 2 * z.inner + (length <= SHORT ? z.heads * round_up(length, UNIT) : 0);
    return m.s.n_layers * (2 * z.width * 4 + numbers * (long)sizeof(Operand));
}

// Bytes that one token stores for the weights' gradients.
static long bytes_stored(Model& m) {
    long n = m.z.width * 4;
    for (Weight* w : m.weights()) n += (w->outs() + w->ins) * sizeof(Operand);
    return n;
}

// Numbers of the pattern that is kept of a sequence, for all heads.
static long square_of(const Model& m, long length) {
    const long padded = round_up(length, UNIT);
    return length <= SHORT ? m.z.heads * padded * padded : 0;
}

// Depends on the lengths alone, never on how many threads there are: the order of sums follows from it.
static Tiling tiling_for(Model& m, const int64_t* lengths, long count) {
    Tiling t;
    long longest = 0, token = 0, total = 0;
    for (long s = 0; s < count; s++) longest = lengths[s] > longest ? lengths[s] : longest;
    t.padded = round_up(longest, UNIT);
    // small models: what a block keeps stays in cache; others: many rows for each reading of the weights
    const long most = bytes_a_row(m, longest) * 64 <= BLOCK_BYTES ? 64 : 256;
    for (long s = 0; s < count; token += lengths[s++]) {
        if (t.cuts.empty() || t.cuts.back().used + lengths[s] > most) t.cuts.push_back({s, 0, token, 0, 0});
        t.cuts.back().sequences++, t.cuts.back().used += lengths[s];
    }
    for (Cut& c : t.cuts) {
        c.rows = round_up(c.used, UNIT), total += c.rows;
        long squares = 0;
        for (long s = c.first; s < c.first + c.sequences; s++) squares += square_of(m, lengths[s]);
        t.rows = c.rows > t.rows ? c.rows : t.rows, t.squares = squares > t.squares ? squares : t.squares;
    }
    std::stable_sort(t.cuts.begin(), t.cuts.end(), [](const Cut& a, const Cut& b) { return a.rows > b.rows; });
    long fits = STORE_BYTES / bytes_stored(m);
    if (fits < 4 * t.rows) fits = 4 * t.rows;
    const long waves = (total + fits - 1) / fits, share = (total + waves - 1) / waves;
    const long end = (long)t.cuts.size();
    long before = 0;
    for (long i = 0, stored = 0, blocks = 0; i < end; i++) {
        if (before >= (long)t.waves.size() * share) t.waves.push_back(i), stored = blocks = 0;
        before += t.cuts[i].rows, stored += t.cuts[i].rows, blocks++;
        t.stored = stored > t.stored ? stored : t.stored, t.blocks = blocks > t.blocks ? blocks : t.blocks;
    }
    t.waves.push_back(end);
    return t;
}

static void lay_out(const Model& m, const Tiling& c, BlockScratch& r, Arena& a, bool learning) {
    const Sizes& z = m.z;
    long rows = c.rows, square = c.padded * c.padded, head = c.padded * z.head;
    auto most = [](long x, long y) { return x > y ? x : y; };
    r.layers.resize(m.s.n_layers);
    for (int i = 0; i < m.s.n_layers; i++) {
        SavedActivations& k = r.layers[i];
        if (i && !learning) {  // nothing is kept: all layers share
            k = r.layers[0];
            continue;
        }
        k.x = a.take<float>(rows * z.width), k.middle = a.take<float>(rows * z.width);
        k.scale1 = a.take<float>(rows), k.scale2 = a.take<float>(rows);
        k.mean1 = a.take<float>(rows), k.mean2 = a.take<float>(rows);
        k.qkv = a.take<Operand>(rows * z.qkv);
        k.inner = a.take<Operand>(rows * 2 * z.inner);
        k.pattern = learning && c.squares ? a.take<Operand>(c.squares) : nullptr;
    }
    r.last = a.take<float>(rows * z.width), r.last_scale = a.take<float>(rows), r.last_mean = a.take<float>(rows);
    r.logits = a.take<float>(rows * z.vocab), r.wide = a.take<float>(rows * z.width);
    r.d = a.take<float>(rows * z.width);
    r.operand = a.take<Operand>(rows * most(z.width, z.vocab)), r.hidden = a.take<Operand>(rows * z.in);
    r.mixed = a.take<Operand>(rows * z.mixed), r.d_mixed = a.take<Operand>(rows * z.mixed);
    r.d_qkv = a.take<Operand>(rows * z.qkv);
    for (Operand** p : {&r.q, &r.k, &r.v, &r.dz, &r.k_transposed, &r.v_transposed, &r.k_panels, &r.v_panels, &r.q_panels, &r.z_panels})
        *p = a.take<Operand>(head);
    for (Operand** p : {&r.p, &r.ds, &r.p_tiles, &r.ds_tiles}) *p = a.take<Operand>(square);
    r.scores = a.take<float>(UNIT * c.padded);
    for (float** p : {&r.dq, &r.dk, &r.dv}) *p = a.take<float>(head);
}

static void lay_store(Model& m, const Tiling& c, Arena& a) {
    const long tokens = c.stored;
    for (Weight* w : m.weights()) w->left = a.take<Operand>(w->outs() * tokens), w->right = a.take<Operand>(w->ins * tokens);
    m.d_embedded = a.take<float>(tokens * m.z.width);
    m.partials = a.take<float>(c.blocks * m.partial_size);
}

// Makes room for batches cut this way, and as those before were. Everything is cleared: what is padding must
// be finite.
static bool make_scratch(Model& m, const Tiling& wanted, bool learning) {
    static_assert(sizeof(long) >= 8, "sizes need 64 bits");
    if (wanted.within(m.capacity) && (!learning || m.learning)) return true;
    Tiling c = m.capacity;
    c.widen(wanted);
    learning = learning || m.learning;
    m.capacity = Tiling{}, m.learning = false;
    m.scratch.resize(m.s.threads);
    for (int pass = 0; pass < 2; pass++) {
        Arena a{m.blocks.at()}, b{m.stored.at()};
        for (BlockScratch& r : m.scratch) lay_out(m, c, r, a, learning);
        if (learning) lay_store(m, c, b);
        if (!pass && !(m.blocks.clear(a.used) && (!learning || m.stored.get(b.used)))) return false;
    }
    m.capacity = c, m.learning = learning;
    return true;
}
