// A model as the forward pass sees it: what Python hands over, the buffers of a pass, the cache.
#pragma once

#include <vector>

#include "attention_decode.h"
#include "arena.h"
#include "threads.h"

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

constexpr int SPLIT_ROWS = 8;  // up to this many rows, one head's spans are shared between threads

struct RowBuffers {
    Buffer<float> x;
    Buffer<int8_t> q;
    Buffer<Scale> scales;
    Buffer<float> across;
    Rows rows;

    bool make(int count, int cols) {
        rows.stride = (int)round_up(cols, 64);
        size_t n = round_up(count, 16) * rows.stride;  // tiles take sixteen rows, though some be nobody's
        x = zeros<float>(n);
        q = zeros<int8_t>(n);
        scales = zeros<Scale>(n / BLOCK);
        across = zeros<float>(n / BLOCK * 2);
        rows.x = x.get(), rows.q = q.get(), rows.scales = scales.get();
        rows.across = across.get();
        return x && q && scales && across;
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
            if (!rows.make(TOGETHER, s.d_model)) return false;
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
    size_t element() const { return s.brain_cache ? 2 : 4; }
    size_t cache_at(int layer, int slot, int head) const {
        return (((size_t)layer * s.slots + slot) * s.n_kv_heads + head) * head_size();
    }
};

}  // namespace
