// A whole batch: blocks in turn, then the weights' gradients from what the blocks stored.
//
// Every sum is made by one thread in an order that the shapes give, so neither timing nor the number
// of threads shows in the bits.
#pragma once

#include "train_block.h"

// A weight's gradient over all stored tokens, for 32 of its rows.
static void weight_gradient(Model& m, const Weight& w, long row, long tokens, bool fresh) {
    product(UNIT, w.ins, tokens, Left<Operand>::tiles(w.left, tokens).from(row, 0), Right<Operand>::panels(w.right, tokens),
            [&](long, long n, const float* c) {
                for (long i = 0; i < UNIT; i++) {
                    const Panel& to = w.panels[(row + i) / LANES];
                    if (i % LANES >= to.rows) continue;
                    float* g = m.grad + to.offset + i % LANES * w.cols + n;
                    for (long j = 0; j < UNIT && n + j < w.cols; j += LANES) {
                        F16 x = load<F16>(c + i * UNIT + j);
                        fresh ? put(g + j, x, w.cols - n - j) : add(g + j, x, w.cols - n - j);
                    }
                }
            });
}

// A vector's gradient from the blocks' shares.
static void vector_gradient(Model& m, const Vector& v, long blocks, bool fresh) {
    for (size_t p = 0; p < v.panels.size(); p++) {
        F16 sum = splat(0.f);
        for (long b = 0; b < blocks; b++) sum += load<F16>(m.partials + b * m.partial_size + v.partial + p * LANES);
        if (v.panels[p].rows <= 0) continue;
        float* g = m.grad + v.panels[p].offset;
        fresh ? put(g, sum, v.panels[p].rows) : add(g, sum, v.panels[p].rows);
    }
}

// Sixteen columns of the embeddings' gradients: every token's of a wave, in order. With tied weights `grad` already holds
// the unembedding's.
static void embedding_gradient(Model& m, const Batch& batch, const Cut* begin, const Cut* end, long column, bool fresh) {
    const long d = m.s.d_model, n = d - column;
    float* to[2] = {m.grad + m.embed + column, m.positions < 0 ? nullptr : m.grad + m.positions + column};
    const long rows[2] = {m.s.vocab, m.s.context};
    for (int t = 0; t < 2; t++)
        if (to[t] && fresh && !(t == 0 && m.s.tied))
            for (long r = 0; r < rows[t]; r++) put(to[t] + r * d, splat(0.f), n);
    const float* from = m.d_embedded + column;
    for (const Cut* c = begin; c < end; from += c->rows * m.z.width, c++) {
        const float* row = from;
        const int64_t* id = batch.ids + c->token;
        for (long s = c->first; s < c->first + c->sequences; s++)
            for (long i = 0; i < batch.lengths[s]; i++, row += m.z.width, id++) {
                F16 x = get(row, n);
                add(to[0] + *id * d, x, n);
                if (to[1]) add(to[1] + i * d, x, n);
            }
    }
}

// The summed loss of a batch; with `learning`, its gradient times `scale` too, in place of what is there (`fresh`) or
// added to it. Below 0: -1 there is not enough memory, -2 an id is none, or there are more positions than the model has.
static double pass(Model& m, const Batch& batch, float scale, bool learning, bool fresh, const Dropout& dropout, long place) {
    long tokens = 0;
    for (long s = 0; s < batch.sequences; tokens += batch.lengths[s++])
        if (batch.lengths[s] < 1 || batch.lengths[s] > m.s.context) return -2;
    for (long i = 0; i < tokens; i++)
        if (batch.ids[i] < 0 || batch.ids[i] >= m.s.vocab || batch.targets[i] >= m.s.vocab) return -2;
    if (!tokens) return -2;
    const Tiling tiling = tiling_for(m, batch.lengths, batch.sequences);
    if (!make_scratch(m, tiling, learning)) return -1;
    std::vector<std::pair<const Weight*, long>> items;
    for (const Weight* w : m.weights())
        for (long row = 0; row < w->outs(); row += UNIT) items.push_back({w, row});
    const std::vector<Vector*> vectors = m.all_vectors();
    const long columns = (m.s.d_model + LANES - 1) / LANES;
    double loss = 0;
    for (size_t wave = 0; wave + 1 < tiling.waves.size(); wave++) {
        const Cut *begin = &tiling.cuts[tiling.waves[wave]], *end = begin + tiling.waves[wave + 1] - tiling.waves[wave];
        const long blocks = end - begin;
        std::vector<long> rows{0};  // before each block
        for (const Cut* c = begin; c < end; c++) rows.push_back(rows.back() + c->rows);
        m.losses.assign(blocks, 0.0);
        std::atomic<int> next{0};
        m.run([&] {
            const Tiles tiles(arithmetic<Operand>().tiles);
            BlockScratch& scratch = m.scratch[next.fetch_add(1)];
            m.phases[0].share((int)blocks, 1, [&](int i) {
                Block block(m, scratch, batch, begin[i], rows[i], rows[blocks], dropout, place);
                if (learning) {
                    block.partial = m.partials + i * m.partial_size, block.learning = true;
                    memset(block.partial, 0, m.partial_size * sizeof(float));
                }
                m.losses[i] = block.forward(scale);
                if (learning) block.backward();
            });
            if (!learning) return;
            m.phases[1].share((int)items.size(), 1, [&](int i) {
                weight_gradient(m, *items[i].first, items[i].second, rows[blocks], fresh);
            });
            m.phases[2].share((int)(vectors.size() + columns), 1, [&](int i) {
                if (i < columns)
                    embedding_gradient(m, batch, begin, end, i * LANES, fresh);
                else
                    vector_gradient(m, *vectors[i - columns], blocks, fresh);
            });
        });
        for (double l : m.losses) loss += l;
        fresh = false;
    }
    return loss;
}
