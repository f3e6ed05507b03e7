// A decoder's forward pass over a batch of tokens: what Python hands over, the buffers of a pass, the cache, and the
// phases from embedding to logits.
#pragma once

#include <vector>

#include "abi.h"
#include "attention.h"
#include "rows.h"
#include "threads.h"

constexpr int SPLIT_ROWS = 8;  // up to this many rows, one head's spans are shared between threads

struct Model {
    InferShape s;
    ModelWeights parts;
    std::vector<LayerWeights> layers;
    int width = 0;                     // of a cached head: d_head rounded up to 16
    void *keys = nullptr, *values = nullptr;  // (layer, slot, kv_head, ...), from calloc: untouched pages cost nothing
    RowBuffers attention_in, feed_in, mixed, hidden, last;
    Buffer<float> residual, query, key, value, part;
    float* partials = nullptr;  // (row, head, span, width + 16) of rows whose spans are shared out; also calloc
    std::unique_ptr<Phases> phases;
    std::vector<RowBuffers> own;  // of each thread: normed rows of the residual stream, when there are few
    bool plain = true;            // a block's parts read the stream as the last part left it, and add to it as they are

    // One pass's phases and buffers for so many threads; false when there is no memory.
    bool prepare(int threads) {
        if (!phases || phases->threads() != threads) {
            phases = std::make_unique<Phases>(s.n_layers * 12 + 8, threads);
            own.clear();
        }
        while ((int)own.size() < threads) {
            RowBuffers rows;
            if (!rows.make(ROWS_PER_PASS, s.d_model)) return false;
            own.push_back(std::move(rows));
        }
        phases->reset();
        return true;
    }

    ~Model() {
        free(keys);
        free(values);
        free(partials);
    }

    size_t head_size() const { return (size_t)s.capacity * width; }
    int spans() const { return (s.capacity + SPAN - 1) / SPAN; }
    size_t element() const { return s.bf16_cache ? 2 : 4; }
    size_t cache_at(int layer, int slot, int head) const {
        return (((size_t)layer * s.slots + slot) * s.n_kv_heads + head) * head_size();
    }
};

// The tokens of one pass.
struct Batch {
    Model& m;
    int count;
    const int32_t *tokens, *slots, *positions;
    int n_out;
    const int32_t* out_rows;
    float* logits;
    struct Group {
        int first, count;
        bool prompt;  // of a long prompt
    };
    std::vector<Group> groups;  // rows of one slot at successive positions: they share a reading of the cache
    Segments segments, out_segments;  // of all rows, of those whose logits are wanted
    bool apart = true;          // no two groups are of one slot: a group reads only what it has written itself

    void make_groups(int threads) {
        // Enough groups for all threads: a group and a cached head are a piece of work.
        int share = m.s.n_heads / m.s.n_kv_heads, most = PREFILL_ROWS / share, fair = count * m.s.n_kv_heads / (4 * threads);
        most = most < fair ? most : fair < 16 / share ? 16 / share : fair;
        if (most < 1) most = 1;
        std::vector<bool> prompt(count);
        auto follows = [&](int r) { return r < count && slots[r] == slots[r - 1] && positions[r] == positions[r - 1] + 1; };
        for (int r = 0, n; r < count; r += n) {
            for (n = 1; follows(r + n); n++) {
            }
            for (int i = r; i < r + n; i++) prompt[i] = n >= PROMPT_TOKENS;
        }
        auto append = [](Segments& to, int row, bool kind) {
            if (to.empty() || to.back().prompt != kind) to.push_back({row, 0, kind});
            to.back().count++;
        };
        for (int r = 0; r < count; r++) append(segments, r, prompt[r]);
        for (int i = 0; i < n_out; i++) append(out_segments, i, prompt[out_rows[i]]);
        for (int r = 0; r < count;) {
            int n = 1;
            while (n < most && follows(r + n)) n++;
            groups.push_back({r, n, prompt[r]});
            r += n;
        }
        std::vector<bool> seen(m.s.slots);
        for (const Group& g : groups) {
            apart = apart && !seen[slots[g.first]];
            seen[slots[g.first]] = true;
        }
    }
};

// One thread's way through the phases of a pass; all threads go through the same phases in the same order.
struct ForwardPass {
    Batch& batch;
    const int me;  // this thread's number
    const InferShape& s;
    Model& m;
    int phase = 0;
    Prefetcher prefetcher;
    int spans = 0;   // of the longest row
    bool split;      // few rows of long sequences: their spans are pieces of work of their own
    bool alone;      // few rows: every thread norms them for itself, which is quicker than waiting for each other's

    ForwardPass(Batch& r, int thread) : batch(r), me(thread), s(r.m.s), m(r.m) {
        for (int i = 0; i < batch.count; i++) spans = batch.positions[i] / SPAN >= spans ? batch.positions[i] / SPAN + 1 : spans;
        split = spans > 1 && batch.count <= SPLIT_ROWS;
        alone = m.plain && batch.count <= ROWS_PER_PASS;
    }

    template <class F>
    void share(int n, int grab, F work) {
        m.phases->share(phase++, n, grab, me, prefetcher, work);
    }

    // What the next products read, for whoever has to wait before. With many rows the weights are not what
    // takes the time.
    void expect(const Matrix* const* matrices, int n) {
        prefetcher.clear();
        if (batch.count > ROWS_PER_PASS) return;
        int total = 0;
        for (int i = 0; i < n; i++) total += matrices[i]->units();
        int unit = m.phases->first(total, me);
        for (int i = 0; i < n; unit -= matrices[i++]->units())
            if (unit >= 0) prefetch(*matrices[i], unit);
    }

    void expect(const LayerWeights& layer) {
        const Matrix* qkv[3] = {&layer.q, &layer.k, &layer.v};
        expect(qkv, 3);
    }

    void expect(const Matrix& matrix) {
        const Matrix* one = &matrix;
        expect(&one, 1);
    }

    // Small work per row between the products: a few rows are one piece.
    template <class F>
    void each_row(int n, F work) {
        int grab = n <= 4 ? n : n <= 64 ? 1 : 4;
        share(n, grab > 0 ? grab : 1, work);
    }

    // Units taken at a time: enough bytes to be worth the asking, few enough that nobody waits long
    // for the last piece.
    int grab(const Matrix& matrix, int units) const {
        if (batch.count > ROWS_PER_PASS) return 1;
        int worth = (int)((48 << 10) / matrix.unit_bytes()), fair = units / (m.phases->threads() * 64);
        return worth > fair ? (worth > 0 ? worth : 1) : fair > 0 ? fair : 1;
    }

    // Products of one input with up to three matrices; done(which, unit, first row, rows, results).
    template <class F>
    void products(const Matrix* const* matrices, int n, const Rows& in, const Segments& segments, F done) {
        int total = 0;
        for (int i = 0; i < n; i++) total += matrices[i]->units();
        share(total, grab(*matrices[0], total), [&](int unit) {
            int which = 0;
            while (unit >= matrices[which]->units()) unit -= matrices[which++]->units();
            unit_products(*matrices[which], unit, in, segments,
                          [&](int r, int c, float(*y)[UNIT]) { done(which, unit, r, c, y); });
        });
    }

    // What products with these matrices read of an input, besides float32.
    struct Reads {
        bool quants = false, narrow = false;
        Reads(std::initializer_list<const Matrix*> matrices, const Segments& segments) {
            for (const Matrix* m : matrices) {
                quants = quants || m->rounds();
                for (const Segment& s : segments) narrow = narrow || (s.prompt && narrows(*m));
            }
        }
        bool any() const { return quants || narrow; }
        void row(const Rows& rows, int row) const {
            if (quants) rows.quantise(row);
            if (narrow) rows.narrow_row(row);
        }
        void block(const Rows& rows, int row, int block, const float* from) const {
            if (quants) rows.quantise(row, block, from);
            if (narrow) rows.narrow_block(row, block, from);
        }
    };

    static void norm(const NormWeights& w, const float* x, float* out, int n, float eps, bool centred) {
        norm_row(x, n, w.weight, 0.f, w.bias, eps, centred, out);
    }

    void norm_into(const NormWeights& w, const float* x, const RowBuffers& to, int row, const Reads& reads) {
        norm(w, x, to.rows.at(row), s.d_model, s.eps, s.layer_norm);
        reads.row(to.rows, row);
    }

    void prefetch(const Matrix& m, int unit) {
        if (unit < m.units()) prefetcher.add(m.unit(unit), (size_t)(m.units() - unit) * m.unit_bytes());
    }

    float* residual(int row) { return m.residual.get() + (size_t)row * m.feed_in.rows.stride; }

    void embed(int row) {
        float* x = residual(row);
        unpack_row(m.parts.embed, batch.tokens[row], x);
        if (s.embedding_scale > 0)
            for (int i = 0; i < s.d_model; i++) x[i] *= s.embedding_scale;
        if (m.parts.pos_embed.data) {
            float* p = m.part.get() + (size_t)row * m.feed_in.rows.stride;
            unpack_row(m.parts.pos_embed, batch.positions[row], p);
            for (int i = 0; i < s.d_model; i++) x[i] += p[i];
        }
    }

    void before_attention(const LayerWeights& layer, const RowBuffers& to, int row) {
        norm_into(layer.ln1, residual(row), to, row, Reads({&layer.q, &layer.k, &layer.v}, batch.segments));
    }

    void before_feed(const LayerWeights& layer, const RowBuffers& to, int row) {
        norm_into(layer.ln2, residual(row), to, row, Reads({&layer.up, &layer.gate}, batch.segments));
    }

    // The rows that the next phase, of n pieces, reads: this thread's own, made now by work(buffers, row), or those
    // that the threads have made together. The stream does not change before the phase is over; who comes when it
    // is, makes nothing, and who is overtaken while making them finds no piece left to use them for.
    template <class F>
    const Rows& input(const RowBuffers& shared, int n, F work) {
        if (!alone) return shared.rows;
        const RowBuffers& to = m.own[me];
        if (!m.phases->over(phase, n))
            for (int r = 0; r < batch.count; r++) work(to, r);
        return to.rows;
    }

    void add_normed(const NormWeights& w, int row) {
        float *p = m.part.get() + (size_t)row * m.feed_in.rows.stride, *x = residual(row);
        norm(w, p, p, s.d_model, s.eps, s.layer_norm);
        for (int i = 0; i < s.d_model; i++) x[i] += p[i];
    }

    // A head of a row: normed where the design has that, and turned by its position.
    void rotate(const LayerWeights& layer, int row, float* x, const NormWeights& weights) {
        if (weights.weight) norm(weights, x, x, s.d_head, s.eps, false);
        const int half = s.rotary / 2;
        const size_t at = ((size_t)layer.table * s.capacity + batch.positions[row]) * half;
        rotate_row(x, m.parts.cosines + at, m.parts.sines + at, half, x);
    }

    // One cached head's keys and values of a row, and the queries that will read them.
    template <class E>
    void remember(const LayerWeights& layer, int index, int row, int h) {
        int q_width = (int)round_up(s.n_heads * s.d_head, UNIT), k_width = (int)round_up(s.n_kv_heads * s.d_head, UNIT);
        int p = batch.positions[row], share = s.n_heads / s.n_kv_heads;
        for (int i = h * share; i < (h + 1) * share; i++)
            rotate(layer, row, m.query.get() + (size_t)row * q_width + i * s.d_head, layer.q_norm);
        float* k = m.key.get() + (size_t)row * k_width + h * s.d_head;
        const float* v = m.value.get() + (size_t)row * k_width + h * s.d_head;
        rotate(layer, row, k, layer.k_norm);
        size_t base = m.cache_at(index, batch.slots[row], h);
        E* keys = static_cast<E*>(m.keys) + base + (size_t)(p / 16) * 16 * m.width + p % 16;
        E* values = static_cast<E*>(m.values) + base + (size_t)p * m.width;
        for (int i = 0; i < s.d_head; i++) {
            put_one(keys + i * 16, k[i]);
            put_one(values + i, v[i]);
        }
    }

    float* partial(int row, int head, int span) {
        return m.partials + (((size_t)row * s.n_heads + head) * m.spans() + span) * (m.width + 16);
    }

    // Where the keys lie of the group that is attended to after this one.
    size_t follows(int index, const Batch::Group& g) const {
        const Batch::Group& next = &g == batch.groups.data() ? g : (&g)[-1];
        return m.cache_at(index, batch.slots[next.first], 0);
    }

    // The rows of a group that share a cached head: all their spans, or one of them.
    template <class E>
    void attend_group(const LayerWeights& layer, int index, const Batch::Group& g, int kv_head, int only) {
        int q_width = (int)round_up(s.n_heads * s.d_head, UNIT), share = s.n_heads / s.n_kv_heads;
        size_t base = m.cache_at(index, batch.slots[g.first], kv_head);
        Head<E> head{static_cast<const E*>(m.keys) + base, static_cast<const E*>(m.values) + base,
                     m.width, s.d_head, layer.window, s.score_scale, s.score_softcap,
                     static_cast<const E*>(m.keys) + (kv_head + 1 < s.n_kv_heads ? base + m.head_size() : follows(index, g))};
        static thread_local std::vector<float> parts;
        size_t part = head.partial();
        const bool narrow = FAST_BF16 && sizeof(E) == 2 && s.narrow && g.prompt;
        const bool many = narrow || (!split && g.count * share >= PREFILL_FROM && g.count * share <= PREFILL_ROWS);
        const int at_once = many ? PREFILL_ROWS : 4;
        static thread_local std::unique_ptr<PrefillScratch> prefill_scratch;
        if (many && !prefill_scratch) prefill_scratch.reset(new PrefillScratch());
        if (!split && parts.size() < at_once * spans * part) parts.resize(at_once * spans * part);
        for (int i = 0, n = g.count * share; i < n; i += at_once) {
            int count = n - i < at_once ? n - i : at_once, position[PREFILL_ROWS], rows[PREFILL_ROWS], heads[PREFILL_ROWS], last = 0;
            const float* q[PREFILL_ROWS];
            for (int c = 0; c < count; c++) {
                rows[c] = g.first + (i + c) / share, heads[c] = kv_head * share + (i + c) % share;
                q[c] = m.query.get() + (size_t)rows[c] * q_width + heads[c] * s.d_head;
                position[c] = batch.positions[rows[c]];
                last = position[c] / SPAN > last ? position[c] / SPAN : last;
            }
            float* out[PREFILL_ROWS];
            if (split) {
                for (int c = 0; c < count; c++) out[c] = partial(rows[c], heads[c], only);
                attend<E>(head, q, position, count, only, out);
                continue;
            }
            for (int span = 0; span <= last; span++) {
                for (int c = 0; c < count; c++) out[c] = parts.data() + ((size_t)c * spans + span) * part;
                if constexpr (sizeof(E) == 2)
                    if (narrow) {
                        attend_narrow(head, q, position, count, span, out, *prefill_scratch);
                        continue;
                    }
                many ? attend_prefill<E>(head, q, position, count, span, out, *prefill_scratch) : attend<E>(head, q, position, count, span, out);
            }
            for (int c = 0; c < count; c++)
                merge(parts.data() + (size_t)c * spans * part, part, last + 1, m.width, s.d_head,
                      m.mixed.rows.x + (size_t)rows[c] * m.mixed.rows.stride + heads[c] * s.d_head);
        }
    }

    void merge_row(int row) {
        for (int h = 0; h < s.n_heads; h++)
            merge(partial(row, h, 0), m.width + 16, batch.positions[row] / SPAN + 1, m.width, s.d_head,
                  m.mixed.rows.x + (size_t)row * m.mixed.rows.stride + h * s.d_head);
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

    void attention(const LayerWeights& layer, int index) {
        const Matrix* qkv[3] = {&layer.q, &layer.k, &layer.v};
        float* to[3] = {m.query.get(), m.key.get(), m.value.get()};
        expect(layer.o);
        const Rows& in = input(m.attention_in, layer.q.units() + layer.k.units() + layer.v.units(),
                               [&](const RowBuffers& to, int r) { before_attention(layer, to, r); });
        products(qkv, 3, in, batch.segments, [&](int which, int unit, int first, int rows, float(*y)[UNIT]) {
            size_t width = round_up(qkv[which]->rows, UNIT);
            for (int c = 0; c < rows; c++) memcpy(to[which] + (first + c) * width + unit * UNIT, y[c], sizeof y[c]);
        });
        // Where nobody else reads what a group writes, all that attention does for a head is one piece of work.
        const int pieces = split ? spans : 1, share_width = s.n_heads / s.n_kv_heads * s.d_head;
        const bool at_once = batch.apart && !split, whole_blocks = share_width % BLOCK == 0;
        const Reads reads({&layer.o}, batch.segments);
        auto enter = [&](int r, int h) {
            s.bf16_cache ? remember<uint16_t>(layer, index, r, h) : remember<float>(layer, index, r, h);
        };
        if (!at_once)
            each_row(batch.count, [&](int r) {
                for (int h = 0; h < s.n_kv_heads; h++) enter(r, h);
            });
        share((int)batch.groups.size() * s.n_kv_heads * pieces, 1, [&](int i) {
            int group = i / (s.n_kv_heads * pieces), kv_head = i / pieces % s.n_kv_heads;
            const Batch::Group& g = batch.groups[batch.groups.size() - 1 - group];  // the longest first
            if (at_once)
                for (int r = g.first; r < g.first + g.count; r++) enter(r, kv_head);
            if (s.bf16_cache)
                attend_group<uint16_t>(layer, index, g, kv_head, i % pieces);
            else
                attend_group<float>(layer, index, g, kv_head, i % pieces);
            if (at_once && whole_blocks && reads.any())
                for (int r = g.first; r < g.first + g.count; r++)
                    for (int b = kv_head * share_width / BLOCK; b < (kv_head + 1) * share_width / BLOCK; b++)
                        reads.block(m.mixed.rows, r, b, m.mixed.rows.at(r) + b * BLOCK);
        });
        if (split || (reads.any() && !(at_once && whole_blocks)))
            each_row(batch.count, [&](int r) {
                if (split) merge_row(r);
                reads.row(m.mixed.rows, r);
            });
        const Matrix* o = &layer.o;
        expect(layer.up);
        if (batch.count <= ROWS_PER_PASS) prefetch(layer.gate, m.phases->first(layer.gate.units(), me));
        bool post = layer.ln1_post.weight != nullptr;
        products(&o, 1, m.mixed.rows, batch.segments, [&](int, int unit, int first, int rows, float(*y)[UNIT]) {
            deliver(post, unit, first, rows, y);
        });
    }

    void feed_forward(const LayerWeights& layer, const LayerWeights* next) {
        const int units = layer.up.units();
        expect(layer.down);
        const Rows& in = input(m.feed_in, units, [&](const RowBuffers& to, int r) { before_feed(layer, to, r); });
        share(units, grab(layer.up, units), [&](int unit) {
            static thread_local std::vector<float> gates;  // (row, UNIT)
            if (layer.gate.data) {
                gates.resize((size_t)batch.count * UNIT);
                unit_products(layer.gate, unit, in, batch.segments, [&](int first, int rows, float(*y)[UNIT]) {
                    memcpy(&gates[(size_t)first * UNIT], y, rows * sizeof *y);
                });
            }
            const float* gate = layer.gate.data ? gates.data() : nullptr;
            const Rows& to = m.hidden.rows;
            const int from = unit * UNIT, n = s.d_ff - from < UNIT ? s.d_ff - from : UNIT;
            const Reads reads({&layer.down}, batch.segments);  // 32 outputs are one block of what follows
            unit_products(layer.up, unit, in, batch.segments, [&](int first, int rows, float(*y)[UNIT]) {
                for (int c = 0; c < rows; c++) {
                    for (int i = 0; i < UNIT; i += 16) {
                        F16 u = load<F16>(y[c] + i);
                        if (gate) u = activate(s.activation, load<F16>(gate + (first + c) * UNIT + i)) * u;
                        else u = activate(s.activation, u);
                        store(y[c] + i, u);
                    }
                    reads.block(to, first + c, unit, y[c]);
                    if (!reads.quants) memcpy(to.at(first + c) + from, y[c], n * sizeof(float));
                }
            });
        });
        const Matrix* down = &layer.down;
        next ? expect(*next) : expect(m.parts.unembed);
        bool post = layer.ln2_post.weight != nullptr;
        products(&down, 1, m.hidden.rows, batch.segments, [&](int, int unit, int first, int rows, float(*y)[UNIT]) {
            deliver(post, unit, first, rows, y);
        });
    }

    // What has to be ready before a block, and between its two parts, unless each thread makes it for itself.
    void before_block(const LayerWeights& layer, int row) {
        if (alone) return;
        before_attention(layer, m.attention_in, row);
        if (s.parallel) before_feed(layer, m.feed_in, row);
    }

    void go() {
        expect(m.layers[0]);
        each_row(batch.count, [&](int r) {
            embed(r);
            before_block(m.layers[0], r);
        });
        for (int i = 0; i < s.n_layers; i++) {
            const LayerWeights& layer = m.layers[i];
            attention(layer, i);
            if (!s.parallel && !alone)
                each_row(batch.count, [&](int r) {
                    if (layer.ln1_post.weight) add_normed(layer.ln1_post, r);
                    before_feed(layer, m.feed_in, r);
                });
            feed_forward(layer, i + 1 < s.n_layers ? &m.layers[i + 1] : nullptr);
            if (i + 1 < s.n_layers && !alone)
                each_row(batch.count, [&](int r) {
                    if (layer.ln2_post.weight) add_normed(layer.ln2_post, r);
                    before_block(m.layers[i + 1], r);
                });
        }
        each_row(batch.n_out, [&](int i) {
            int r = batch.out_rows[i];
            if (m.layers.back().ln2_post.weight) add_normed(m.layers.back().ln2_post, r);
            norm_into(m.parts.final_norm, residual(r), m.last, i, Reads({&m.parts.unembed}, batch.out_segments));
        });
        const Matrix* unembed = &m.parts.unembed;
        prefetcher.clear();
        products(&unembed, 1, m.last.rows, batch.out_segments, [&](int, int unit, int first, int rows, float(*y)[UNIT]) {
            int from = unit * UNIT, n = s.vocab - from < UNIT ? s.vocab - from : UNIT;
            for (int c = 0; c < rows; c++) {
                if (s.logit_softcap > 0)
                    for (int i = 0; i < UNIT; i += 16)
                        store(y[c] + i, splat(s.logit_softcap) *
                                            hyperbolic_tangent(load<F16>(y[c] + i) / splat(s.logit_softcap)));
                memcpy(batch.logits + (size_t)(first + c) * s.vocab + from, y[c], n * sizeof(float));
            }
        });
    }
};

