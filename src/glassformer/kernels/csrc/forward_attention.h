// The phases of a forward pass that attend: queries, keys and values enter the cache, groups of rows read it.
#pragma once

#include "forward.h"

// A query or key as the scores use it: normed, before or after it is turned by its position.
inline void ForwardPass::rotate(const LayerWeights& layer, int row, float* x, const NormWeights& weights, int head) {
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
inline void ForwardPass::norm_whole(const LayerWeights& layer, int row) {
    const int q = layer.n_heads * layer.d_head, k = layer.n_kv_heads * layer.d_head;
    float *a = row_of(m.query, row, q), *b = row_of(m.key, row, k);
    norm(layer.q_norm, a, a, q, layer.norm_eps, layer.norm_centred);
    if (layer.k_norm.weight) norm(layer.k_norm, b, b, k, layer.norm_eps, layer.norm_centred);
}

// One cached head's keys and values of a row, and the queries that will read them.
template <class E>
inline void ForwardPass::remember(const LayerWeights& layer, int index, int row, int h) {
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

inline float* ForwardPass::partial(int row, int head, int span) {
    return m.partials + (((size_t)row * m.heads + head) * m.spans() + span) * (m.wide + 16);
}

// The rows of a group that share a cached head: all their spans, or one of them.
template <class E>
inline void ForwardPass::attend_group(const LayerWeights& layer, const Batch::Group& g, int kv_head, int only) {
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
inline void ForwardPass::finish(const LayerWeights& layer, int row, int head, const float* parts, size_t stride, int count) {
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

inline void ForwardPass::merge_row(const LayerWeights& layer, int row) {
    for (int h = 0; h < layer.n_heads; h++) finish(layer, row, h, partial(row, h, 0), m.wide + 16, batch.positions[row] / SPAN + 1);
}

inline void ForwardPass::attention(const LayerWeights& layer, int index) {
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
