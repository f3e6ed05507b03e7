// What Python hands over, as `infer_abi.py`, `train_abi.py` and `ops_abi.py` have it; sizes are compared at load.
#pragma once

#include <cstddef>
#include <cstdint>

#include "panel.h"

// ---- a forward pass (infer.cpp)

struct InferShape {
    int32_t vocab, d_model, n_layers, n_heads, n_kv_heads, d_head, d_ff;
    int32_t rotary, activation, layer_norm, parallel, slots, capacity, bf16_cache, rows;
    int32_t narrow;  // prompts may be attended to in bfloat16
    float eps, score_scale, score_softcap, logit_softcap, embedding_scale;
};

struct NormWeights {
    const float *weight, *bias;  // weight null: no such norm
};

struct LayerWeights {
    Matrix q, k, v, o, gate, up, down;
    NormWeights ln1, ln2, ln1_post, ln2_post, q_norm, k_norm;
    int32_t window, table;  // window 0: all positions; table: which rotary table
};

struct ModelWeights {
    Matrix embed, unembed, pos_embed;
    NormWeights final_norm;
    const float *cosines, *sines;  // (table, capacity, rotary / 2)
};

// ---- attention of whole tensors (ops.cpp)

struct AttentionShape {
    int32_t batch, heads, kv_heads, queries, keys, d_head;
    int32_t start;   // slot of the first query
    int32_t window;  // how many latest slots a query sees, itself included; 0 for all
    int32_t bf16;    // bfloat16, else float32
    float scale;
    // Of elements: from one batch row, head and position to the next. Inside a head elements are adjacent.
    int64_t q[3], k[3], v[3], out[3];
};

// ---- a training step (train.cpp)

enum Role { EMBED, POSITIONS, UNEMBED, FINAL, LN1, LN2, Q_NORM, K_NORM, Q, K, V, O, GATE, UP, DOWN };

struct TrainShape {
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

struct Rules {
    float muon_lr, muon_decay, beta1, beta2, eps;
    int32_t rounds, cautious;
};

// One forward and backward pass: `share` of 2^32 is left out (0: nothing), what stays is multiplied by `scale`.
struct Dropout {
    uint32_t key, share;
    float scale;
};

// The sizes of structures, in the order of Python's `Library`; returns how many.
template <class... Structures>
static int sizes_of(int32_t* out, int room) {
    const size_t sizes[] = {sizeof(Structures)...};
    for (int i = 0; i < (int)sizeof...(Structures) && i < room; i++) out[i] = (int32_t)sizes[i];
    return sizeof...(Structures);
}
