// The phases of one forward pass, from embedding to logits, as every thread walks them.
#pragma once

#include "infer_model.h"
#include "gemm_rows.h"

namespace {

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
    for (int i = 0; i < whole; i += 16) {
        F16 y = (load<F16>(x + i) - splat(mean)) * splat(inverse) * load<F16>(w.weight + i);
        store(out + i, w.bias ? y + load<F16>(w.bias + i) : y);
    }
    for (int i = whole; i < n; i++) {
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
    bool apart = true;          // no two groups are of one slot: a group reads only what it has written itself

    void make_groups(int threads) {
        // Enough groups for all threads: a group and a cached head are a piece of work.
        int share = m.s.n_heads / m.s.n_kv_heads, most = MANY / share, fair = count * m.s.n_kv_heads / (4 * threads);
        most = most < fair ? most : fair < 16 / share ? 16 / share : fair;
        if (most < 1) most = 1;
        for (int r = 0; r < count;) {
            int n = 1;
            while (n < most && r + n < count && slots[r + n] == slots[r] && positions[r + n] == positions[r] + n) n++;
            groups.push_back({r, n});
            r += n;
        }
        std::vector<bool> seen(m.s.slots);
        for (const Group& g : groups) {
            apart = apart && !seen[slots[g.first]];
            seen[slots[g.first]] = true;
        }
    }
};

// One thread's walk through the phases; all threads walk the same phases in the same order.
struct Walk {
    Run& run;
    const int me;  // this thread's number
    const Shape& s;
    Model& m;
    int phase = 0;
    Soon soon;
    Tiles tiles;
    int spans = 0;   // of the longest row
    bool split;      // few rows of long sequences: their spans are pieces of work of their own
    bool alone;      // few rows: every thread norms them for itself, which is quicker than waiting for each other's

    Walk(Run& r, int thread) : run(r), me(thread), s(r.m.s), m(r.m), tiles(r.count >= TILES_FROM) {
        for (int i = 0; i < run.count; i++) spans = run.positions[i] / SPAN >= spans ? run.positions[i] / SPAN + 1 : spans;
        split = spans > 1 && run.count <= SPLIT_ROWS;
        alone = m.plain && run.count <= TOGETHER;
    }

    template <class F>
    void share(int n, int grab, F work) {
        m.phases->share(phase++, n, grab, me, soon, work);
    }

    // What the next products read, for whoever has to wait before. With many rows the weights are not what
    // takes the time.
    void expect(const Matrix* const* matrices, int n) {
        soon.clear();
        if (run.count > TOGETHER) return;
        int total = 0;
        for (int i = 0; i < n; i++) total += matrices[i]->units();
        int unit = m.phases->first(total, me);
        for (int i = 0; i < n; unit -= matrices[i++]->units())
            if (unit >= 0) soon.add(*matrices[i], unit);
    }

    void expect(const Layer& layer) {
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
        if (run.count > TOGETHER) return 1;
        int worth = (int)((48 << 10) / unit_bytes(matrix.format, matrix.cols)), fair = units / (m.phases->threads() * 64);
        return worth > fair ? (worth > 0 ? worth : 1) : fair > 0 ? fair : 1;
    }

    // Products of one input with up to three matrices; done(which, unit, first row, rows, results).
    template <class F>
    void products(const Matrix* const* matrices, int n, const Rows& in, int rows, F done) {
        int total = 0;
        for (int i = 0; i < n; i++) total += matrices[i]->units();
        share(total, grab(*matrices[0], total), [&](int unit) {
            int which = 0;
            while (unit >= matrices[which]->units()) unit -= matrices[which++]->units();
            unit_products(tiles, *matrices[which], unit, in, rows,
                          [&](int r, int c, float(*y)[UNIT]) { done(which, unit, r, c, y); });
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

    void before_attention(const Layer& layer, const RowBuffers& to, int row) {
        norm_into(layer.ln1, residual(row), to, row, layer.q.rounds() || layer.k.rounds() || layer.v.rounds());
    }

    void before_feed(const Layer& layer, const RowBuffers& to, int row) {
        norm_into(layer.ln2, residual(row), to, row, layer.up.rounds() || layer.gate.rounds());
    }

    // The rows that the next phase, of n pieces, reads: this thread's own, made now by work(buffers, row), or those
    // that the threads have made together. The stream does not change before the phase is over; who comes when it
    // is, makes nothing, and who is overtaken while making them finds no piece left to use them for.
    template <class F>
    const Rows& input(const RowBuffers& shared, int n, F work) {
        if (!alone) return shared.rows;
        const RowBuffers& to = m.own[me];
        if (!m.phases->over(phase, n))
            for (int r = 0; r < run.count; r++) work(to, r);
        return to.rows;
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

    // One cached head's keys and values of a row, and the queries that will read them.
    template <class E>
    void remember(const Layer& layer, int index, int row, int h) {
        int q_width = (int)round_up(s.n_heads * s.d_head, UNIT), k_width = (int)round_up(s.n_kv_heads * s.d_head, UNIT);
        int p = run.positions[row], share = s.n_heads / s.n_kv_heads;
        for (int i = h * share; i < (h + 1) * share; i++)
            turn(layer, row, m.query.get() + (size_t)row * q_width + i * s.d_head, layer.q_norm);
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

    float* partial(int row, int head, int span) {
        return m.partials + (((size_t)row * s.n_heads + head) * m.spans() + span) * (m.width + 16);
    }

    // Where the keys lie of the group that is attended to after this one.
    size_t follows(int index, const Run::Group& g) const {
        const Run::Group& next = &g == run.groups.data() ? g : (&g)[-1];
        return m.cache_at(index, run.slots[next.first], 0);
    }

    // The rows of a group that share a cached head: all their spans, or one of them.
    template <class E>
    void attend_group(const Layer& layer, int index, const Run::Group& g, int kv_head, int only) {
        int q_width = (int)round_up(s.n_heads * s.d_head, UNIT), share = s.n_heads / s.n_kv_heads;
        size_t base = m.cache_at(index, run.slots[g.first], kv_head);
        Head<E> head{static_cast<const E*>(m.keys) + base, static_cast<const E*>(m.values) + base,
                     m.width, s.d_head, layer.window, s.score_scale, s.score_softcap,
                     static_cast<const E*>(m.keys) + (kv_head + 1 < s.n_kv_heads ? base + m.head_size() : follows(index, g))};
        static thread_local std::vector<float> room;
        size_t part = head.partial();
        const bool many = !split && g.count * share >= MANY_FROM && g.count * share <= MANY;
        const int at_once = many ? MANY : 4;
        static thread_local std::unique_ptr<ManyRoom> many_room;
        if (many && !many_room) many_room.reset(new ManyRoom);
        if (!split && room.size() < at_once * spans * part) room.resize(at_once * spans * part);
        for (int i = 0, n = g.count * share; i < n; i += at_once) {
            int count = n - i < at_once ? n - i : at_once, position[MANY], rows[MANY], heads[MANY], last = 0;
            const float* q[MANY];
            for (int c = 0; c < count; c++) {
                rows[c] = g.first + (i + c) / share, heads[c] = kv_head * share + (i + c) % share;
                q[c] = m.query.get() + (size_t)rows[c] * q_width + heads[c] * s.d_head;
                position[c] = run.positions[rows[c]];
                last = position[c] / SPAN > last ? position[c] / SPAN : last;
            }
            float* out[MANY];
            if (split) {
                for (int c = 0; c < count; c++) out[c] = partial(rows[c], heads[c], only);
                attend<E>(head, q, position, count, only, out);
                continue;
            }
            for (int span = 0; span <= last; span++) {
                for (int c = 0; c < count; c++) out[c] = room.data() + ((size_t)c * spans + span) * part;
                many ? attend_many<E>(head, q, position, count, span, out, *many_room) : attend<E>(head, q, position, count, span, out);
            }
            for (int c = 0; c < count; c++)
                merge(room.data() + (size_t)c * spans * part, part, last + 1, m.width, s.d_head,
                      m.mixed.rows.x + (size_t)rows[c] * m.mixed.rows.stride + heads[c] * s.d_head);
        }
    }

    void merge_row(int row) {
        for (int h = 0; h < s.n_heads; h++)
            merge(partial(row, h, 0), m.width + 16, run.positions[row] / SPAN + 1, m.width, s.d_head,
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

    void attention(const Layer& layer, int index) {
        const Matrix* qkv[3] = {&layer.q, &layer.k, &layer.v};
        float* to[3] = {m.query.get(), m.key.get(), m.value.get()};
        expect(layer.o);
        const Rows& in = input(m.attention_in, layer.q.units() + layer.k.units() + layer.v.units(),
                               [&](const RowBuffers& to, int r) { before_attention(layer, to, r); });
        products(qkv, 3, in, run.count, [&](int which, int unit, int first, int rows, float(*y)[UNIT]) {
            size_t width = round_up(qkv[which]->rows, UNIT);
            for (int c = 0; c < rows; c++) memcpy(to[which] + (first + c) * width + unit * UNIT, y[c], sizeof y[c]);
        });
        // Where nobody else reads what a group writes, all that attention does for a head is one piece of work.
        const int pieces = split ? spans : 1, share_width = s.n_heads / s.n_kv_heads * s.d_head;
        const bool at_once = run.apart && !split, whole_blocks = share_width % BLOCK == 0;
        auto enter = [&](int r, int h) {
            s.brain_cache ? remember<uint16_t>(layer, index, r, h) : remember<float>(layer, index, r, h);
        };
        if (!at_once)
            each_row(run.count, [&](int r) {
                for (int h = 0; h < s.n_kv_heads; h++) enter(r, h);
            });
        share((int)run.groups.size() * s.n_kv_heads * pieces, 1, [&](int i) {
            int group = i / (s.n_kv_heads * pieces), kv_head = i / pieces % s.n_kv_heads;
            const Run::Group& g = run.groups[run.groups.size() - 1 - group];  // the longest first
            if (at_once)
                for (int r = g.first; r < g.first + g.count; r++) enter(r, kv_head);
            if (s.brain_cache)
                attend_group<uint16_t>(layer, index, g, kv_head, i % pieces);
            else
                attend_group<float>(layer, index, g, kv_head, i % pieces);
            if (at_once && whole_blocks && layer.o.rounds())
                for (int r = g.first; r < g.first + g.count; r++)
                    for (int b = kv_head * share_width / BLOCK; b < (kv_head + 1) * share_width / BLOCK; b++)
                        m.mixed.rows.quantise(r, b, m.mixed.rows.at(r) + b * BLOCK);
        });
        if (split || (layer.o.rounds() && !(at_once && whole_blocks)))
            each_row(run.count, [&](int r) {
                if (split) merge_row(r);
                if (layer.o.rounds()) m.mixed.rows.quantise(r);
            });
        const Matrix* o = &layer.o;
        expect(layer.up);
        if (run.count <= TOGETHER) soon.add(layer.gate, m.phases->first(layer.gate.units(), me));
        bool post = layer.ln1_post.weight != nullptr;
        products(&o, 1, m.mixed.rows, run.count, [&](int, int unit, int first, int rows, float(*y)[UNIT]) {
            deliver(post, unit, first, rows, y);
        });
    }

    void feed_forward(const Layer& layer, const Layer* next) {
        const int units = layer.up.units();
        expect(layer.down);
        const Rows& in = input(m.feed_in, units, [&](const RowBuffers& to, int r) { before_feed(layer, to, r); });
        share(units, grab(layer.up, units), [&](int unit) {
            static thread_local std::vector<float> gates;  // (row, UNIT)
            if (layer.gate.data) {
                gates.resize((size_t)run.count * UNIT);
                unit_products(tiles, layer.gate, unit, in, run.count, [&](int first, int rows, float(*y)[UNIT]) {
                    memcpy(&gates[(size_t)first * UNIT], y, rows * sizeof *y);
                });
            }
            const float* gate = layer.gate.data ? gates.data() : nullptr;
            const Rows& to = m.hidden.rows;
            const int from = unit * UNIT, n = s.d_ff - from < UNIT ? s.d_ff - from : UNIT;
            const bool rounds = layer.down.rounds();  // then 32 outputs are one block of what follows
            unit_products(tiles, layer.up, unit, in, run.count, [&](int first, int rows, float(*y)[UNIT]) {
                for (int c = 0; c < rows; c++) {
                    for (int i = 0; i < UNIT; i += 16) {
                        F16 u = load<F16>(y[c] + i);
                        if (gate) u = activate(s.activation, load<F16>(gate + (first + c) * UNIT + i)) * u;
                        else u = activate(s.activation, u);
                        store(y[c] + i, u);
                    }
                    if (rounds) to.quantise(first + c, unit, y[c]);
                    else memcpy(to.at(first + c) + from, y[c], n * sizeof(float));
                }
            });
        });
        const Matrix* down = &layer.down;
        next ? expect(*next) : expect(m.parts.unembed);
        bool post = layer.ln2_post.weight != nullptr;
        products(&down, 1, m.hidden.rows, run.count, [&](int, int unit, int first, int rows, float(*y)[UNIT]) {
            deliver(post, unit, first, rows, y);
        });
    }

    // What has to be ready before a block, and between its two parts, unless each thread makes it for itself.
    void before_block(const Layer& layer, int row) {
        if (alone) return;
        before_attention(layer, m.attention_in, row);
        if (s.parallel) before_feed(layer, m.feed_in, row);
    }

    void go() {
        expect(m.layers[0]);
        each_row(run.count, [&](int r) {
            embed(r);
            before_block(m.layers[0], r);
        });
        for (int i = 0; i < s.n_layers; i++) {
            const Layer& layer = m.layers[i];
            attention(layer, i);
            if (!s.parallel && !alone)
                each_row(run.count, [&](int r) {
                    if (layer.ln1_post.weight) add_normed(layer.ln1_post, r);
                    before_feed(layer, m.feed_in, r);
                });
            feed_forward(layer, i + 1 < s.n_layers ? &m.layers[i + 1] : nullptr);
            if (i + 1 < s.n_layers && !alone)
                each_row(run.count, [&](int r) {
                    if (layer.ln2_post.weight) add_normed(layer.ln2_post, r);
                    before_block(m.layers[i + 1], r);
                });
        }
        each_row(run.n_out, [&](int i) {
            int r = run.out_rows[i];
            if (m.layers.back().ln2_post.weight) add_normed(m.layers.back().ln2_post, r);
            norm_into(m.parts.final_norm, residual(r), m.last, i, m.parts.unembed.rounds());
        });
        const Matrix* unembed = &m.parts.unembed;
        soon.clear();
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
