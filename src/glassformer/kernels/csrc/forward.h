// A decoder's forward pass over a batch of tokens: what Python hands over, the buffers of a pass, the cache, and the
// phases from embedding to logits.
#pragma once

#include <algorithm>
#include <vector>

#include "abi.h"
#include "attention.h"
#include "rows.h"
#include "threads.h"

#if defined(GF_AMX_INT8)
constexpr size_t TILE_ROWS = LANES;  // rows whose scales lie side by side
#else
constexpr size_t TILE_ROWS = 1;
#endif
constexpr int SPLIT_ROWS = 8;  // up to this many rows, one head's spans are shared between threads

// Which rows meet which experts in one layer: each row's choice, then a place for every meeting, by expert.
struct Routing {
    struct Expert {
        int number, first;  // and its first place
        Segments segments;  // of its places, from 0
    };
    std::vector<int> choice, row, order; // (row, active); of each place; choices by expert
    std::vector<float> weights, weight;  // the same of weights
    std::vector<Expert> met;

    // Places of the meetings. Where products go by tiles, an expert of many rows has whole ones of its own.
    void place(int rows, int active, const std::vector<bool>& prompt) {
        order.resize(rows * active);
        for (int i = 0; i < rows * active; i++) order[i] = i;
        std::sort(order.begin(), order.end(), [&](int a, int b) { return choice[a] != choice[b] ? choice[a] < choice[b] : a < b; });
        met.clear();
        int at = 0;
        for (int from = 0, to; from < rows * active; from = to) {
            const int e = choice[order[from]];
            for (to = from; to < rows * active && choice[order[to]] == e; to++) {
            }
            const bool whole = to - from >= (int)TILE_ROWS && TILE_ROWS > 1;
            if (whole) at = (int)round_up(at, TILE_ROWS);
            met.push_back({e, at, {}});
            for (int k = from; k < to; k++) {
                const int i = order[k];
                append(met.back().segments, at - met.back().first, prompt[i / active]);
                row[at] = i / active, weight[at++] = weights[i];
            }
            if (whole) at = (int)round_up(at, TILE_ROWS);
        }
    }
};

struct Model {
    InferShape s;
    ModelWeights parts;
    std::vector<LayerWeights> layers;
    // (layer, slot, kv_head, ...), from calloc: untouched pages cost nothing
    void *keys = nullptr, *values = nullptr;
    float *key_scales = nullptr, *value_scales = nullptr;  // (layer, slot, kv_head, position), of keys and values in 8 bits
    std::vector<size_t> keys_at, values_at, scales_at;     // where each layer's begin, in elements
    int share = 1, kv_heads = 1, heads = 1, wide = 0;  // the most of any layer: heads to a cached one, cached ones, …
    RowBuffers attention_in, feed_in, mixed, hidden, last, chosen_in, chosen_hidden;
    Buffer<float> residual, query, key, value, part, gates, scores;
    float* partials = nullptr;  // (row, head, span, wide + 16) of rows whose spans are shared out; also calloc
    Routing routing;
    std::unique_ptr<Phases> phases;
    std::vector<RowBuffers> own;  // of each thread: normed rows of the residual stream, when there are few
    bool plain = true;            // a block's parts read the stream as the last part left it, and add to it as they are

    // One pass's phases and buffers for so many threads; false when there is no memory.
    bool prepare(int threads) {
        if (!phases || phases->threads() != threads) {
            phases = std::make_unique<Phases>(s.n_layers * 16 + 8, threads);
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
        free(key_scales);
        free(value_scales);
        free(partials);
    }

    int spans() const { return (s.capacity + SPAN - 1) / SPAN; }
    size_t element() const { return s.cache_bits / 8; }
    // Elements of a layer's cached head, of its keys or values.
    size_t head_size(int d) const { return (size_t)s.capacity * round_up(d, 16); }
    size_t keys_of(int layer, int slot, int head) const {
        const LayerWeights& l = layers[layer];
        return keys_at[layer] + ((size_t)slot * l.n_kv_heads + head) * head_size(l.d_head);
    }
    size_t values_of(int layer, int slot, int head) const {
        const LayerWeights& l = layers[layer];
        return values_at[layer] + ((size_t)slot * l.n_kv_heads + head) * head_size(l.d_value);
    }
    size_t scales_of(int layer, int slot, int head) const {
        return scales_at[layer] + ((size_t)slot * layers[layer].n_kv_heads + head) * s.capacity;
    }
    // Everything that a slot's first n positions are kept in: f(it, the same of slot `other`, bytes).
    template <class F>
    void pieces(int slot, int n, F f, int other) const {
        const size_t count = round_up(n, 16);
        auto each = [&](void* base, size_t a, size_t b, size_t unit, size_t numbers) { f((char*)base + a * unit, (const char*)base + b * unit, numbers * unit); };
        for (int i = 0; i < s.n_layers; i++)
            for (int h = 0; layers[i].source == i && h < layers[i].n_kv_heads; h++) {
                each(keys, keys_of(i, slot, h), keys_of(i, other, h), element(), count * round_up(layers[i].d_head, 16));
                each(values, values_of(i, slot, h), values_of(i, other, h), element(), count * round_up(layers[i].d_value, 16));
                for (float* scales : {key_scales, value_scales})
                    if (s.cache_bits == 8) each(scales, scales_of(i, slot, h), scales_of(i, other, h), sizeof(float), count);
            }
    }
    bool make();
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
    std::vector<bool> prompt{};  // of each row
    bool apart = true;          // no two groups are of one slot: a group reads only what it has written itself

    void make_groups(int threads) {
        // Enough groups for all threads: a group and a cached head are a piece of work.
        int share = m.share, most = PREFILL_ROWS / share, fair = count * m.kv_heads / (4 * threads);
        most = most < fair ? most : fair < 16 / share ? 16 / share : fair;
        if (most < 1) most = 1;
        prompt.assign(count, false);
        auto follows = [&](int r) { return r < count && slots[r] == slots[r - 1] && positions[r] == positions[r - 1] + 1; };
        for (int r = 0, n; r < count; r += n) {
            for (n = 1; follows(r + n); n++) {
            }
            for (int i = r; i < r + n; i++) prompt[i] = n >= PROMPT_TOKENS;
        }
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

    // A part's input: the stream, normed where the design has that.
    void norm_into(const NormWeights& w, const float* x, const RowBuffers& to, int row, const Reads& reads) {
        if (w.weight) norm(w, x, to.rows.at(row), s.d_model, s.eps, s.layer_norm);
        else memcpy(to.rows.at(row), x, s.d_model * sizeof(float));
        reads.row(to.rows, row);
    }

    void prefetch(const Matrix& m, int unit) {
        if (unit < m.units()) prefetcher.add(m.unit(unit), (size_t)(m.units() - unit) * m.unit_bytes());
    }

    // The same of rows that lie as a file has them, so many units of them.
    void prefetch_rows(const Matrix& m, int unit, int units) {
        const size_t bytes = UNIT * row_bytes(m.format, m.cols);
        if (m.data) prefetcher.add(m.data + unit * bytes, units * bytes);
    }

    float* residual(int row) { return m.residual.get() + (size_t)row * m.feed_in.rows.stride; }

    // Numbers of a row that lie one row after the other, so many each.
    template <class T>
    static T* row_of(const Buffer<T>& from, int row, long width) { return from.get() + (size_t)row * round_up(width, UNIT); }

    void embed(int row) {
        float* x = residual(row);
        unpack_row(m.parts.embed, batch.tokens[row], x);
        if (s.embedding_scale > 0)
            for (int i = 0; i < s.d_model; i++) x[i] *= s.embedding_scale;
        if (m.parts.embed_norm.weight) norm(m.parts.embed_norm, x, x, s.d_model, s.eps, s.layer_norm);
        if (m.parts.pos_embed.data) {
            float* p = m.part.get() + (size_t)row * m.feed_in.rows.stride;
            unpack_row(m.parts.pos_embed, batch.positions[row], p);
            for (int i = 0; i < s.d_model; i++) x[i] += p[i];
        }
    }

    void before_attention(const LayerWeights& layer, const RowBuffers& to, int row) {
        norm_into(layer.ln1, residual(row), to, row, Reads({&layer.q, &layer.k, &layer.v, &layer.z_gate}, batch.segments));
    }

    void before_feed(const LayerWeights& layer, const RowBuffers& to, int row) {
        const Reads reads({&layer.feed.up, &layer.feed.gate, &layer.expert.up, &layer.expert.gate}, batch.segments);
        norm_into(layer.ln2, residual(row), to, row, reads);
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

    // What part 0 or 1 left in `part` joins the stream through its norm.
    void add_normed(const LayerWeights& layer, int part, int row) {
        const NormWeights& w = part ? layer.ln2_post : layer.ln1_post;
        if (!w.weight) return;
        float *p = m.part.get() + (size_t)row * m.feed_in.rows.stride, *x = residual(row);
        norm(w, p, p, s.d_model, s.eps, s.layer_norm);
        for (int i = 0; i < s.d_model; i++) x[i] = x[i] * layer.keep[part] + p[i] * layer.scale[part];
    }

    // What is left to do to a row of the stream after a block.
    void leave(const LayerWeights& layer, int row) {
        add_normed(layer, layer.feed.d_ff || layer.router.experts ? 1 : 0, row);
        float* x = residual(row);
        for (int i = 0; layer.leaving != 1 && i < s.d_model; i++) x[i] *= layer.leaving;
        for (int i = 0; layer.after && i < s.d_model; i++) x[i] += layer.after[i];
    }

    // A query or key as the scores use it: normed, before or after it is turned by its position.
    void rotate(const LayerWeights& layer, int row, float* x, const NormWeights& weights, int head) {
        const size_t own = layer.query_norm == OF_EACH ? (size_t)head * layer.d_head : 0;
        const NormWeights w{weights.weight + own, weights.bias ? weights.bias + own : nullptr};
        const bool normed = weights.weight && layer.query_norm != OF_WHOLE;
        if (normed && !layer.norm_after) norm(w, x, x, layer.d_head, layer.norm_eps, layer.norm_centred);
        if (layer.clip_after)
            for (int i = 0; i < layer.d_head; i++) x[i] = fminf(fmaxf(x[i], -layer.clip), layer.clip);
        const int half = layer.rotary / 2;
        const size_t at = (size_t)batch.positions[row] * half;
        rotate_row(x, layer.cosines + at, layer.sines + at, half, x);
        if (normed && layer.norm_after) norm(w, x, x, layer.d_head, layer.norm_eps, layer.norm_centred);
    }

    // All heads of a row normed together.
    void norm_whole(const LayerWeights& layer, int row) {
        const int q = layer.n_heads * layer.d_head, k = layer.n_kv_heads * layer.d_head;
        float *a = row_of(m.query, row, q), *b = row_of(m.key, row, k);
        norm(layer.q_norm, a, a, q, layer.norm_eps, layer.norm_centred);
        if (layer.k_norm.weight) norm(layer.k_norm, b, b, k, layer.norm_eps, layer.norm_centred);
    }

    // One cached head's keys and values of a row, and the queries that will read them.
    template <class E>
    void remember(const LayerWeights& layer, int index, int row, int h) {
        int p = batch.positions[row], share = layer.n_heads / layer.n_kv_heads;
        for (int i = h * share; i < (h + 1) * share; i++) {
            float* q = row_of(m.query, row, layer.n_heads * layer.d_head) + i * layer.d_head;
            rotate(layer, row, q, layer.q_norm, i);
            if (layer.query_scale)
                for (int j = 0; j < layer.d_head; j++) q[j] *= layer.query_scale[p];
        }
        if (!layer.k.data) return;
        float* k = row_of(m.key, row, layer.n_kv_heads * layer.d_head) + h * layer.d_head;
        float* v = row_of(m.value, row, layer.n_kv_heads * layer.d_value) + h * layer.d_value;
        if (layer.v_norm.weight) norm(layer.v_norm, v, v, layer.d_value, s.eps, false);
        rotate(layer, row, k, layer.k_norm, h);
        const int width = (int)round_up(layer.d_head, 16), wide = (int)round_up(layer.d_value, 16);
        E* keys = static_cast<E*>(m.keys) + m.keys_of(index, batch.slots[row], h) + (size_t)(p / 16) * 16 * width + p % 16;
        E* values = static_cast<E*>(m.values) + m.values_of(index, batch.slots[row], h) + (size_t)p * wide;
        if constexpr (sizeof(E) == 1) {
            const size_t at = m.scales_of(index, batch.slots[row], h) + p;
            m.key_scales[at] = put_bytes(k, layer.d_head, keys, 16);
            m.value_scales[at] = put_bytes(v, layer.d_value, values, 1) * layer.value_scale;
        } else {
            for (int i = 0; i < layer.d_head; i++) put_one(keys + i * 16, k[i]);
            for (int i = 0; i < layer.d_value; i++) put_one(values + i, v[i] * layer.value_scale);
        }
    }

    float* partial(int row, int head, int span) {
        return m.partials + (((size_t)row * m.heads + head) * m.spans() + span) * (m.wide + 16);
    }

    // The rows of a group that share a cached head: all their spans, or one of them.
    template <class E>
    void attend_group(const LayerWeights& layer, const Batch::Group& g, int kv_head, int only) {
        const int share = layer.n_heads / layer.n_kv_heads, source = layer.source, slot = batch.slots[g.first];
        const E *keys = static_cast<const E*>(m.keys), *values = static_cast<const E*>(m.values);
        // Where the keys lie of what is attended to after this.
        const Batch::Group& then = &g == batch.groups.data() ? g : (&g)[-1];
        const bool more = kv_head + 1 < layer.n_kv_heads;
        const E* next = keys + (more ? m.keys_of(source, slot, kv_head + 1) : m.keys_of(source, batch.slots[then.first], 0));
        float slopes[PREFILL_ROWS];
        const size_t scales = sizeof(E) == 1 ? m.scales_of(source, slot, kv_head) : 0;
        const Head<E> head{keys + m.keys_of(source, slot, kv_head), values + m.values_of(source, slot, kv_head),
                           (int)round_up(layer.d_head, 16), layer.d_head, (int)round_up(layer.d_value, 16), layer.window,
                           layer.chunk, layer.score_scale, layer.score_softcap, layer.slopes ? slopes : nullptr, next,
                           m.key_scales + scales, m.value_scales + scales};
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
                q[c] = row_of(m.query, rows[c], layer.n_heads * layer.d_head) + heads[c] * layer.d_head;
                if (layer.slopes) slopes[c] = layer.slopes[heads[c]];
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
            for (int c = 0; c < count; c++) finish(layer, rows[c], heads[c], parts.data() + (size_t)c * spans * part, part, last + 1);
        }
    }

    // A head's spans become what the output projection reads of it.
    void finish(const LayerWeights& layer, int row, int head, const float* parts, size_t stride, int count) {
        const int d = layer.d_value;
        float* z = m.mixed.rows.at(row) + head * d;
        merge(parts, stride, count, (int)round_up(d, 16), d, layer.sinks ? layer.sinks[head] : -INFINITY, z);
        if (layer.gate == NO_GATE) return;
        const bool each = layer.z_gate.rows > layer.n_heads;  // one for each number, or one for the head
        const float* gates = row_of(m.gates, row, layer.z_gate.rows) + (each ? head * d : head);
        for (int i = 0; i < d; i++) {
            const float x = gates[each ? i : 0];
            z[i] *= layer.gate == SOFTPLUS ? (x > 20.f ? x : log1pf(expf(x))) : 1.f / (1.f + expf(-x));
        }
    }

    void merge_row(const LayerWeights& layer, int row) {
        for (int h = 0; h < layer.n_heads; h++) finish(layer, row, h, partial(row, h, 0), m.wide + 16, batch.positions[row] / SPAN + 1);
    }

    // What part 0 or 1 gives, to the residual stream or, when a norm comes first, to `part`.
    void deliver(const LayerWeights& layer, int part, int unit, int first, int rows, float (*y)[UNIT]) {
        const bool normed = (part ? layer.ln2_post : layer.ln1_post).weight;
        const float keep = layer.keep[part], scale = layer.scale[part];
        int stride = m.feed_in.rows.stride, from = unit * UNIT, n = s.d_model - from < UNIT ? s.d_model - from : UNIT;
        float* base = (normed ? m.part.get() : m.residual.get()) + from;
        for (int c = 0; c < rows; c++) {
            float* to = base + (size_t)(first + c) * stride;
            for (int i = 0; i < n; i++) to[i] = normed ? y[c][i] : to[i] * keep + y[c][i] * scale;
        }
    }

    void attention(const LayerWeights& layer, int index) {
        const Matrix* all[4] = {&layer.q, &layer.k, &layer.v, &layer.z_gate};
        const Buffer<float>* to[4] = {&m.query, &m.key, &m.value, &m.gates};
        expect(layer.o);
        int units = 0;
        for (const Matrix* one : all) units += one->units();
        const Rows& in = input(m.attention_in, units, [&](const RowBuffers& to, int r) { before_attention(layer, to, r); });
        products(all, 4, in, batch.segments, [&](int which, int unit, int first, int rows, float(*y)[UNIT]) {
            const F16 most = splat(layer.clip), least = splat(-layer.clip);
            for (int c = 0; c < rows; c++) {
                float* x = row_of(*to[which], first + c, all[which]->rows) + unit * UNIT;
                if (layer.clip > 0 && (which == 2 || (which < 2 && !layer.clip_after)))
                    for (int i = 0; i < UNIT; i += 16) store(y[c] + i, smallest(largest(load<F16>(y[c] + i), least), most));
                memcpy(x, y[c], sizeof y[c]);
                if (which == 1 && !layer.v.data) memcpy(row_of(m.value, first + c, all[1]->rows) + unit * UNIT, y[c], sizeof y[c]);
            }
        });
        if (layer.query_norm == OF_WHOLE && !layer.norm_after) each_row(batch.count, [&](int r) { norm_whole(layer, r); });
        // Where nobody else reads what a group writes, all that attention does for a head is one piece of work.
        const int pieces = split ? spans : 1, kv_heads = layer.n_kv_heads, share_width = layer.n_heads / kv_heads * layer.d_value;
        const bool at_once = batch.apart && !split, whole_blocks = share_width % BLOCK == 0;
        const Reads reads({&layer.o}, batch.segments);
        auto enter = [&](int r, int h) {
            s.cache_bits == 8 ? remember<int8_t>(layer, index, r, h)
            : s.cache_bits == 16 ? remember<uint16_t>(layer, index, r, h) : remember<float>(layer, index, r, h);
        };
        if (!at_once)
            each_row(batch.count, [&](int r) {
                for (int h = 0; h < kv_heads; h++) enter(r, h);
            });
        share((int)batch.groups.size() * kv_heads * pieces, 1, [&](int i) {
            int group = i / (kv_heads * pieces), kv_head = i / pieces % kv_heads;
            const Batch::Group& g = batch.groups[batch.groups.size() - 1 - group];  // the longest first
            if (at_once)
                for (int r = g.first; r < g.first + g.count; r++) enter(r, kv_head);
            if (s.cache_bits == 8)
                attend_group<int8_t>(layer, g, kv_head, i % pieces);
            else if (s.cache_bits == 16)
                attend_group<uint16_t>(layer, g, kv_head, i % pieces);
            else
                attend_group<float>(layer, g, kv_head, i % pieces);
            if (at_once && whole_blocks && reads.any())
                for (int r = g.first; r < g.first + g.count; r++)
                    for (int b = kv_head * share_width / BLOCK; b < (kv_head + 1) * share_width / BLOCK; b++)
                        reads.block(m.mixed.rows, r, b, m.mixed.rows.at(r) + b * BLOCK);
        });
        if (split || (reads.any() && !(at_once && whole_blocks)))
            each_row(batch.count, [&](int r) {
                if (split) merge_row(layer, r);
                reads.row(m.mixed.rows, r);
            });
        const Matrix* o = &layer.o;
        expect(layer.feed.up);
        if (batch.count <= ROWS_PER_PASS) prefetch(layer.feed.gate, m.phases->first(layer.feed.gate.units(), me));
        products(&o, 1, m.mixed.rows, batch.segments, [&](int, int unit, int first, int rows, float(*y)[UNIT]) {
            deliver(layer, 0, unit, first, rows, y);
        });
    }

    // 32 neurons of a part for the rows of `in`, to `to`, which `reads` says how to write; `times`: of each row, what
    // its inputs are multiplied by, or null.
    void neurons(const FeedWeights& f, int unit, const Rows& in, const Segments& segments, const Rows& to, const Reads& reads,
                 const float* times) {
        static thread_local std::vector<float> gates;  // (row, UNIT)
        if (f.gate.data) {
            gates.resize((size_t)(segments.back().first + segments.back().count) * UNIT);
            unit_products(f.gate, unit, in, segments, [&](int first, int rows, float(*y)[UNIT]) {
                memcpy(&gates[(size_t)first * UNIT], y, rows * sizeof *y);
            });
        }
        const float* gate = f.gate.data ? gates.data() : nullptr;
        const int from = unit * UNIT, n = f.d_ff - from < UNIT ? f.d_ff - from : UNIT;
        const F16 cut = splat(f.cut > 0 ? f.cut : INFINITY), pre = splat(f.scale);
        const bool plain = f.scale == 1 && f.cut == 0 && f.shift == 0 && !times;
        unit_products(f.up, unit, in, segments, [&](int first, int rows, float(*y)[UNIT]) {
            for (int c = 0; c < rows; c++) {
                for (int i = 0; i < UNIT; i += 16) {
                    F16 u = load<F16>(y[c] + i), g = gate ? load<F16>(gate + (first + c) * UNIT + i) : u;
                    if (!plain) {
                        const F16 x = splat(times ? times[first + c] : 1.f);
                        g = smallest(g * x * pre, cut);
                        u = smallest(largest(u * x, -cut), cut) + splat(f.shift);
                    }
                    store(y[c] + i, gate ? activate(f.activation, g) * u : activate(f.activation, g));
                }
                reads.block(to, first + c, unit, y[c]);
                if (!reads.quants) memcpy(to.at(first + c) + from, y[c], n * sizeof(float));
            }
        });
    }

    void feed_forward(const LayerWeights& layer, const LayerWeights* next) {
        const FeedWeights& f = layer.feed;
        const int units = f.up.units();
        expect(f.down);
        const Rows& in = input(m.feed_in, units, [&](const RowBuffers& to, int r) { before_feed(layer, to, r); });
        const Reads reads({&f.down}, batch.segments);  // 32 outputs are one block of what follows
        share(units, grab(f.up, units), [&](int unit) { neurons(f, unit, in, batch.segments, m.hidden.rows, reads, nullptr); });
        const Matrix* down = &f.down;
        next ? expect(*next) : expect(m.parts.unembed);
        products(&down, 1, m.hidden.rows, batch.segments, [&](int, int unit, int first, int rows, float(*y)[UNIT]) {
            deliver(layer, 1, unit, first, rows, y);
        });
    }

    // The chosen experts of a row and their weights, from the router's scores.
    void choose(const RouterWeights& r, int row) {
        const int experts = r.experts, padded = (int)round_up(experts, UNIT);
        const float* x = m.scores.get() + (size_t)row * (padded + UNIT);
        static thread_local std::vector<float> score, ranked;
        score.assign(padded, 0.f), ranked.assign(padded, -INFINITY);
        float top = -INFINITY, total = 0;
        for (int e = 0; e < experts; e++) {
            ranked[e] = r.softcap > 0 ? r.softcap * tanhf(x[e] / r.softcap) : x[e];
            top = ranked[e] > top ? ranked[e] : top;
        }
        for (int e = 0; e < experts; e++) total += score[e] = r.sigmoid ? 1.f / (1.f + expf(-ranked[e])) : expf(ranked[e] - top);
        for (int e = 0; e < experts; e++) {
            if (!r.sigmoid) score[e] /= total;
            ranked[e] = (r.before ? ranked[e] : score[e]) + (r.correction ? r.correction[e] : 0.f);
        }
        auto best = [](std::vector<float>& of, int from, int n) {
            int found = from;
            for (int e = from; e < from + n; e++) found = of[e] > of[found] ? e : found;
            return found;
        };
        if (r.groups > 1) {  // only the best groups' experts stay
            const int size = experts / r.groups;
            std::vector<float> worth(r.groups, 0.f), left = ranked;
            for (int g = 0; g < r.groups; g++)
                for (int i = 0; i < r.group_best; i++) {
                    const int e = best(left, g * size, size);
                    worth[g] += left[e], left[e] = -INFINITY;
                }
            left.assign(padded, -INFINITY);
            for (int i = 0; i < r.top_groups; i++) {
                const int g = best(worth, 0, r.groups);
                for (int e = g * size; e < (g + 1) * size; e++) left[e] = ranked[e];
                worth[g] = -INFINITY;
            }
            ranked = left;
        }
        int* choice = &m.routing.choice[(size_t)row * r.active];
        float* weights = &m.routing.weights[(size_t)row * r.active];
        total = 0;
        for (int i = 0; i < r.active; i++) {
            choice[i] = best(ranked, 0, experts);
            ranked[choice[i]] = -INFINITY;
            total += weights[i] = score[choice[i]];
        }
        for (int i = 0; i < r.active; i++) {
            if (r.renormalise) weights[i] /= total > 1.17549435e-38f ? total : 1.17549435e-38f;
            weights[i] *= r.scale * (r.scales ? r.scales[choice[i]] : 1.f);
        }
    }

    // Expert e's matrix of all that lie one after the other.
    static Matrix expert(const Matrix& all, int e, int experts) {
        Matrix one = all;
        one.rows = all.rows / experts;
        if (one.data) one.data += (size_t)e * one.rows * row_bytes(one.format, one.cols);
        if (one.bias) one.bias += (size_t)e * round_up(one.rows, UNIT);
        return one;
    }

    // A router chooses experts for each row; each expert meets its rows at once. A row's sum runs over experts in order.
    void experts(const LayerWeights& layer, const LayerWeights* next) {
        const RouterWeights& router = layer.router;
        const int n = router.experts, padded = (int)round_up(n, UNIT);
        const FeedWeights &each = layer.expert, &beside = layer.feed;
        Routing& routing = m.routing;
        auto of = [&](const FeedWeights& f, int e) {
            FeedWeights one = f;
            one.gate = expert(f.gate, e, n), one.up = expert(f.up, e, n), one.down = expert(f.down, e, n);
            return one;
        };
        const Matrix* scores[2] = {&router.scores, &router.beside};
        products(scores, 2, m.feed_in.rows, batch.segments, [&](int which, int unit, int first, int rows, float(*y)[UNIT]) {
            for (int c = 0; c < rows; c++)
                memcpy(m.scores.get() + (size_t)(first + c) * (padded + UNIT) + (which ? padded : unit * UNIT), y[c], sizeof y[c]);
        });
        const bool one = batch.count == 1;  // all that it meets read the same row
        if (!one) each_row(batch.count, [&](int r) { choose(router, r); });
        share(1, 1, [&](int) {
            if (one) choose(router, 0);
            routing.place(batch.count, router.active, batch.prompt);
        });
        const Reads enters({&each.up, &each.gate}, batch.segments), leaves({&each.down}, batch.segments), aside({&beside.down}, batch.segments);
        const int units = each.up.rows / n / UNIT + (each.up.rows / n % UNIT > 0), met = (int)routing.met.size();
        const int first = m.phases->first(met * units + beside.up.units(), me);
        prefetcher.clear();
        if (one && first < met * units)
            for (const Matrix* all : {&each.gate, &each.up}) prefetch_rows(expert(*all, routing.met[first / units].number, n), first % units, 1);
        if (!one) share(met, 1, [&](int i) {  // an expert's inputs, side by side
            const Routing::Expert& e = routing.met[i];
            const Rows& from = m.feed_in.rows;
            for (int p = e.first, end = p + e.segments.back().first + e.segments.back().count; p < end; p++) {
                memcpy(m.chosen_in.rows.at(p), from.at(routing.row[p]), from.stride * sizeof(float));
                enters.row(m.chosen_in.rows, p);
            }
        });
        prefetcher.clear();
        if (one)
            for (const Routing::Expert& e : routing.met) prefetch_rows(expert(each.down, e.number, n), m.phases->first((s.d_model + UNIT - 1) / UNIT, me), 1);
        share(met * units + beside.up.units(), 1, [&](int i) {
            if (i >= met * units) return neurons(beside, i - met * units, m.feed_in.rows, batch.segments, m.hidden.rows, aside, nullptr);
            const Routing::Expert& e = routing.met[i / units];
            FeedWeights f = of(each, e.number);
            if (i / units + 1 < met) {
                const FeedWeights then = of(each, routing.met[i / units + 1].number);
                f.gate.after = then.gate.data, f.up.after = then.up.data;
            }
            neurons(f, i % units, one ? m.feed_in.rows : m.chosen_in.rows.from(e.first), e.segments, m.chosen_hidden.rows.from(e.first),
                    leaves, router.on_input ? &routing.weight[e.first] : nullptr);
        });
        next ? expect(*next) : expect(m.parts.unembed);
        share((s.d_model + UNIT - 1) / UNIT, 1, [&](int unit) {
            static thread_local std::vector<float> sums;  // (row, UNIT)
            sums.assign((size_t)batch.count * UNIT, 0.f);
            auto add = [&](int row, float weight, const float* y) {
                for (int i = 0; i < UNIT; i++) sums[(size_t)row * UNIT + i] += weight * y[i];
            };
            for (const Routing::Expert& e : routing.met)
                unit_products(expert(each.down, e.number, n), unit, m.chosen_hidden.rows.from(e.first), e.segments,
                              [&](int first, int rows, float(*y)[UNIT]) {
                                  for (int c = 0, p = e.first + first; c < rows; c++, p++)
                                      add(routing.row[p], router.on_input ? 1.f : routing.weight[p], y[c]);
                              });
            if (beside.d_ff)
                unit_products(beside.down, unit, m.hidden.rows, batch.segments, [&](int first, int rows, float(*y)[UNIT]) {
                    for (int c = 0; c < rows; c++) {
                        const float open = m.scores.get()[(size_t)(first + c) * (padded + UNIT) + padded];
                        add(first + c, router.beside_scale * (router.beside.data ? 1.f / (1.f + expf(-open)) : 1.f), y[c]);
                    }
                });
            deliver(layer, 1, unit, 0, batch.count, reinterpret_cast<float(*)[UNIT]>(sums.data()));
        });
    }

    // What has to be ready before a block, and between its two parts, unless each thread makes it for itself.
    void before_block(const LayerWeights& layer, int row) {
        if (alone) return;
        if (layer.n_heads) before_attention(layer, m.attention_in, row);
        if (layer.parallel || !layer.n_heads) before_feed(layer, m.feed_in, row);
    }

    void go() {
        expect(m.layers[0]);
        each_row(batch.count, [&](int r) {
            embed(r);
            before_block(m.layers[0], r);
        });
        for (int i = 0; i < s.n_layers; i++) {
            const LayerWeights &layer = m.layers[i], *next = i + 1 < s.n_layers ? &m.layers[i + 1] : nullptr;
            const bool feeds = layer.feed.d_ff || layer.router.experts;
            if (layer.n_heads) attention(layer, i);
            if (layer.n_heads && feeds && !alone && (!layer.parallel || layer.ln1_post.weight))
                each_row(batch.count, [&](int r) {
                    add_normed(layer, 0, r);
                    if (!layer.parallel) before_feed(layer, m.feed_in, r);
                });
            if (feeds) layer.router.experts ? experts(layer, next) : feed_forward(layer, next);
            if (next && !alone)
                each_row(batch.count, [&](int r) {
                    leave(layer, r);
                    before_block(*next, r);
                });
        }
        each_row(batch.n_out, [&](int i) {
            int r = batch.out_rows[i];
            leave(m.layers.back(), r);
            norm_into(m.parts.final_norm, residual(r), m.last, i, Reads({&m.parts.unembed}, batch.out_segments));
        });
        const Matrix* unembed = &m.parts.unembed;
        prefetcher.clear();
        products(&unembed, 1, m.last.rows, batch.out_segments, [&](int, int unit, int first, int rows, float(*y)[UNIT]) {
            int from = unit * UNIT, n = s.vocab - from < UNIT ? s.vocab - from : UNIT;
            for (int c = 0; c < rows; c++) {
                for (int i = 0; i < UNIT; i += 16) {
                    F16 x = load<F16>(y[c] + i) * splat(s.logit_scale);
                    if (s.logit_softcap > 0) x = splat(s.logit_softcap) * hyperbolic_tangent(x / splat(s.logit_softcap));
                    store(y[c] + i, x);
                }
                memcpy(batch.logits + (size_t)(first + c) * s.vocab + from, y[c], n * sizeof(float));
            }
        });
    }
};

inline bool Model::make() {
    size_t kept_keys = 0, kept_values = 0, kept_scales = 0;
    int q = 1, k = 1, v = 1, z = 1, gate = 1, d_ff = 1, d_expert = 1, scores = 0, active = 0;
    auto most = [](int& of, int n) { of = n > of ? n : of; };
    for (int i = 0; i < s.n_layers; i++) {
        const LayerWeights& l = layers[i];
        plain = plain && l.n_heads && !l.parallel && !l.ln1_post.weight && !l.ln2_post.weight && l.feed.d_ff && l.leaving == 1 && !l.after;
        plain = plain && !l.router.experts;
        most(d_ff, l.feed.d_ff), most(d_expert, l.expert.d_ff), most(scores, (int)round_up(l.router.experts, UNIT) + UNIT);
        most(active, l.router.active);
        if (l.n_heads) most(share, l.n_heads / l.n_kv_heads);
        most(kv_heads, l.n_kv_heads), most(heads, l.n_heads), most(wide, (int)round_up(l.d_value, 16));
        most(q, l.n_heads * l.d_head), most(k, l.n_kv_heads * l.d_head), most(v, l.n_kv_heads * l.d_value);
        most(z, l.n_heads * l.d_value), most(gate, l.z_gate.rows);
        keys_at.push_back(kept_keys), values_at.push_back(kept_values), scales_at.push_back(kept_scales);
        if (l.source != i) continue;
        kept_keys += (size_t)s.slots * l.n_kv_heads * head_size(l.d_head);
        kept_values += (size_t)s.slots * l.n_kv_heads * head_size(l.d_value);
        if (s.cache_bits == 8) kept_scales += (size_t)s.slots * l.n_kv_heads * s.capacity;
    }
    const size_t rows = s.rows;
    keys = calloc(kept_keys + 1, element()), values = calloc(kept_values + 1, element());
    key_scales = static_cast<float*>(calloc(kept_scales + 1, sizeof(float)));
    value_scales = static_cast<float*>(calloc(kept_scales + 1, sizeof(float)));
    partials = static_cast<float*>(calloc((size_t)SPLIT_ROWS * heads * spans() * (wide + 16), sizeof(float)));
    bool sound = keys && values && key_scales && value_scales && partials;
    sound = sound && attention_in.make(s.rows, s.d_model) && feed_in.make(s.rows, s.d_model);
    sound = sound && mixed.make(s.rows, z) && hidden.make(s.rows, d_ff) && last.make(s.rows, s.d_model);
    if (active) {
        const int places = (TILE_ROWS > 1 ? 3 : 1) * s.rows * active + TILE_ROWS;
        sound = sound && chosen_in.make(places, s.d_model) && chosen_hidden.make(places, d_expert);
        routing.choice.resize(rows * active), routing.weights.resize(rows * active);
        routing.row.resize(places), routing.weight.resize(places);
    }
    if (!sound) return false;
    residual = zeros<float>(rows * feed_in.rows.stride), part = zeros<float>(rows * feed_in.rows.stride);
    query = zeros<float>(rows * round_up(q, UNIT)), key = zeros<float>(rows * round_up(k, UNIT));
    value = zeros<float>(rows * round_up(v > k ? v : k, UNIT)), gates = zeros<float>(rows * round_up(gate, UNIT));
    this->scores = zeros<float>(rows * scores);
    return residual && part && query && key && value && gates && this->scores;
}
