// What the engine keeps of one model between passes: its weights, the buffers of a pass, the cache of all slots.
#pragma once

#include <algorithm>
#include <vector>

#include "abi.h"
#include "attention.h"
#include "products.h"
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
