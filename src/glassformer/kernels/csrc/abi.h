// What Python hands over, as `infer_abi.py`, `train_abi.py` and `ops_abi.py` have it; sizes are compared at load.
#pragma once

#include <cstddef>
#include <cstdint>

#include "panel.h"

// ---- a forward pass (infer.cpp)

struct InferShape {
    int32_t vocab, d_model, n_layers, layer_norm, slots, capacity, cache_bits, rows;
    int32_t narrow;  // prompts may be attended to in bfloat16
    float eps, logit_scale, logit_softcap, embedding_scale;
};

struct NormWeights {
    const float *weight, *bias;  // weight null: no such norm
};

// down(act(gate) * up), or down(act(up)) without a gate; of experts, all of them one after the other.
struct FeedWeights {
    Matrix gate, up, down;
    int32_t d_ff, activation;  // d_ff 0: no such part
    float scale, cut, shift;   // multiplies what is activated; bounds both halves (0: nowhere); added to the linear half
};

// Which experts a token passes, and with what weights.
struct RouterWeights {
    Matrix scores, beside;             // beside: of the part that every token passes
    const float *correction, *scales;  // of each expert, or null: added where experts are chosen; multiplies weights
    int32_t experts, active;           // experts 0: no router
    int32_t sigmoid, before, groups, top_groups, group_best, renormalise, on_input;
    float softcap, scale, beside_scale;
};

enum QueryNorm { NO_NORM = 0, OF_HEADS = 1, OF_EACH = 2, OF_WHOLE = 3 };  // one weight for all heads, one each, over all
enum HeadGate { NO_GATE = 0, SIGMOID = 1, SOFTPLUS = 2 };

// One block. A number that is 0 and a pointer that is null stand for "none".
struct LayerWeights {
    Matrix q, k, v, o, z_gate;  // no v: values are keys before norm and rotation
    FeedWeights feed, expert;   // beside a router, `feed` is the part that every token passes
    RouterWeights router;
    NormWeights ln1, ln2, ln1_post, ln2_post, q_norm, k_norm, v_norm;
    const float *cosines, *sines;  // (capacity, rotary / 2)
    const float *sinks, *slopes;   // of each head
    const float* query_scale;      // (capacity)
    const float* after;            // (d_model), added to the stream as it leaves the block
    int32_t n_heads, n_kv_heads, d_head, d_value, rotary, window, chunk;
    int32_t source;                // layer whose keys and values are used: this one, or one before
    int32_t query_norm, norm_after, norm_centred, clip_after, gate, parallel;
    float norm_eps, score_scale, score_softcap, clip, value_scale;
    float keep[2], scale[2];       // what multiplies the stream, and what joins it, at each part
    float leaving;                 // multiplies the stream after the block
};

struct ModelWeights {
    Matrix embed, unembed, pos_embed;
    NormWeights embed_norm, final_norm;
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
    const float (*newton_schulz)[3];  // of each round
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
