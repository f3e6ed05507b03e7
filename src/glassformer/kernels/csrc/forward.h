// A decoder's forward pass over a batch of tokens: the phases from embedding to logits, and what all of them share.
#pragma once

#include "infer_model.h"

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

    void share(int n, int grab, Taking<int> work) {
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
    void each_row(int n, Taking<int> work) {
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

    // Products of one input with some matrices; done(which, unit, first row, rows, results).
    void products(const Matrix* const* matrices, int n, const Rows& in, const Segments& segments,
                  Taking<int, int, int, int, float (*)[UNIT]> done) {
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

    GF_NOINLINE void norm(const NormWeights& w, const float* x, float* out, int n, float eps, bool centred) {
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

    // forward_attention.h
    void rotate(const LayerWeights& layer, int row, float* x, const NormWeights& weights, int head);
    void norm_whole(const LayerWeights& layer, int row);
    template <class E>
    void remember(const LayerWeights& layer, int index, int row, int h);
    float* partial(int row, int head, int span);
    template <class E>
    void attend_group(const LayerWeights& layer, const Batch::Group& g, int kv_head, int only);
    void finish(const LayerWeights& layer, int row, int head, const float* parts, size_t stride, int count);
    void merge_row(const LayerWeights& layer, int row);
    void attention(const LayerWeights& layer, int index);

    // forward_feed.h
    void neurons(const FeedWeights& f, int unit, const Rows& in, const Segments& segments, const Rows& to, const Reads& reads, const float* times);
    void feed_forward(const LayerWeights& layer, const LayerWeights* next);
    void choose(const RouterWeights& r, int row);
    static Matrix expert(const Matrix& all, int e, int experts);
    void experts(const LayerWeights& layer, const LayerWeights* next);

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

#include "forward_attention.h"
#include "forward_feed.h"
