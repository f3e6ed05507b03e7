// The phases of a forward pass that feed forward: a dense part, or experts that a router chooses.
#pragma once

#include "forward.h"

// 32 neurons of a part for the rows of `in`, to `to`, which `reads` says how to write; `times`: of each row, what
// its inputs are multiplied by, or null.
inline void ForwardPass::neurons(const FeedWeights& f, int unit, const Rows& in, const Segments& segments, const Rows& to, const Reads& reads,
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

inline void ForwardPass::feed_forward(const LayerWeights& layer, const LayerWeights* next) {
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
inline void ForwardPass::choose(const RouterWeights& r, int row) {
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
inline Matrix ForwardPass::expert(const Matrix& all, int e, int experts) {
    Matrix one = all;
    one.rows = all.rows / experts;
    if (one.data) one.data += (size_t)e * one.rows * row_bytes(one.format, one.cols);
    if (one.bias) one.bias += (size_t)e * round_up(one.rows, UNIT);
    return one;
}

// A router chooses experts for each row; each expert meets its rows at once. A row's sum runs over experts in order.
inline void ForwardPass::experts(const LayerWeights& layer, const LayerWeights* next) {
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
