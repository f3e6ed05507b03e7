// Causal attention over one sequence of a block, head by head, and its gradient.
#pragma once

#include "train_parts.h"

struct CausalAttention {
    const Model& m;
    BlockScratch& scratch;
    const Sizes& z;
    const Operand* raw;         // its rows of queries, keys and values
    const long row, length, padded;  // its first row in the block, its tokens, in whole edges
    Operand* kept;              // its heads' patterns, or null where they are computed again

    CausalAttention(const Model& m, BlockScratch& scratch, const Operand* raw, long row, long length, Operand* kept)
        : m(m), scratch(scratch), z(m.z), raw(raw), row(row), length(length), padded(round_up(length, UNIT)), kept(kept) {}

    // One head's rows of q or k: normed, rotated by their positions, as rows of `out`.
    GF_MEMBER void rotate(const Operand* raw, const Vector& norm, Operand* out) const {
        const long n = z.d_head;
        alignas(64) float head[512];
        for (long i = 0; i < length; i++, raw += z.qkv, out += z.head) {
            if (norm.there())
                norm_row(raw, n, norm.at, 0.f, (const float*)nullptr, m.s.eps, false, head);
            else
                for (long j = 0; j < n; j += LANES) put(head + j, get(raw + j, n - j), n - j);
            if (m.cosines.empty()) {
                for (long j = 0; j < n; j += LANES) put(out + j, get(head + j, n - j), n - j);
                continue;
            }
            const long at = i * m.half_padded();
            rotate_row(head, &m.cosines[at], &m.sines[at], z.half, out);
        }
        clear_padding(out);
    }

    // The gradient of `rotate`: from that of its output (rows of z.head) to rows of the qkv operand's gradient.
    GF_MEMBER void rotate_back(const float* d, const Operand* raw, const Vector& norm, Operand* out, float* partial) const {
        const long n = z.d_head;
        for (long i = 0; i < length; i++, d += z.head, raw += z.qkv, out += z.qkv) {
            alignas(64) float head[512];
            const long at = i * m.half_padded();
            if (m.cosines.empty())
                memcpy(head, d, n * sizeof(float));
            else
                rotate_row(d, &m.cosines[at], &m.sines[at], z.half, head, -1.f);
            if (!norm.there()) {
                for (long j = 0; j < n; j += LANES) put(out + j, get(head + j, n - j), n - j);
                continue;
            }
            F16 square = splat(0.f), along = splat(0.f);
            for (long j = 0; j < n; j += LANES) square += get(raw + j, n - j) * get(raw + j, n - j);
            const F16 inverse = splat(1.f / sqrtf(sum(square) / n + m.s.eps));
            float* g = partial + norm.partial;
            for (long j = 0; j < n; j += LANES) {
                F16 unit = get(raw + j, n - j) * inverse, up = get(head + j, n - j);
                store(g + j, load<F16>(g + j) + up * unit);
                along += up * load<F16>(norm.at + j) * unit;
            }
            along = sum_lanes(along) * splat(1.f / n);
            for (long j = 0; j < n; j += LANES) {
                F16 unit = get(raw + j, n - j) * inverse;
                put(out + j, (get(head + j, n - j) * load<F16>(norm.at + j) - unit * along) * inverse, n - j);
            }
        }
    }

    // The weighted values, into the sequence's rows of `mixed`.
    void forward(const Layer& layer, Operand* mixed) const {
        const long share = z.heads / z.kv_heads;
        for (long g = 0; g < z.kv_heads; g++) {
            rotate(raw + z.k_at + g * z.d_head, layer.k_norm, scratch.k);
            copy_rows(raw + z.v_at + g * z.d_head, z.qkv, scratch.v);
            transpose_to_panels(scratch.k, z.head, padded, z.head, scratch.k_transposed);
            to_panels(scratch.v, z.head, padded, z.head, scratch.v_panels, padded, 0);
            for (long h = g * share; h < (g + 1) * share; h++) {
                rotate(raw + h * z.d_head, layer.q_norm, scratch.q);
                Operand* p = kept ? kept + h * padded * padded : scratch.p;
                for (long q = 0; q < padded; q += UNIT) {
                    pattern(q, p);
                    product(UNIT, z.head, q + UNIT, Left<Operand>::rows(p + q * padded, padded),
                            Right<Operand>::panels(scratch.v_panels, padded), [&](long, long n, const float* c) {
                                long rows = length - q < UNIT ? length - q : UNIT;
                                for (long i = 0; i < rows; i++)
                                    for (long j = 0; j < UNIT && n + j < z.d_head; j += LANES)
                                        put(mixed + (row + q + i) * z.mixed + h * z.d_head + n + j, load<F16>(c + i * UNIT + j), z.d_head - n - j);
                            });
                }
            }
        }
    }

    // From the gradient of `mixed` to that of the qkv rows.
    void backward(const Layer& layer, const Operand* d_mixed, Operand* d_qkv, float* partial) const {
        const long share = z.heads / z.kv_heads;
        Operand* out = d_qkv + row * z.qkv;
        for (long g = 0; g < z.kv_heads; g++) {
            rotate(raw + z.k_at + g * z.d_head, layer.k_norm, scratch.k);
            copy_rows(raw + z.v_at + g * z.d_head, z.qkv, scratch.v);
            if (!kept) transpose_to_panels(scratch.k, z.head, padded, z.head, scratch.k_transposed);
            transpose_to_panels(scratch.v, z.head, padded, z.head, scratch.v_transposed);
            to_panels(scratch.k, z.head, padded, z.head, scratch.k_panels, padded, 0);
            for (long h = g * share; h < (g + 1) * share; h++) {
                rotate(raw + h * z.d_head, layer.q_norm, scratch.q);
                copy_rows(d_mixed + row * z.mixed + h * z.d_head, z.mixed, scratch.dz);
                to_panels(scratch.q, z.head, padded, z.head, scratch.q_panels, padded, 0);
                to_panels(scratch.dz, z.head, padded, z.head, scratch.z_panels, padded, 0);
                Operand* p = kept ? kept + h * padded * padded : scratch.p;
                for (long q = 0; q < padded; q += UNIT) {
                    if (!kept) pattern(q, p);
                    pattern_back(q, p + q * padded);
                    product(UNIT, z.head, q + UNIT, Left<Operand>::rows(scratch.ds + q * padded, padded),
                            Right<Operand>::panels(scratch.k_panels, padded), [&](long, long n, const float* c) {
                                for (long i = 0; i < UNIT; i++) memcpy(scratch.dq + (q + i) * z.head + n, c + i * UNIT, UNIT * 4);
                            });
                    to_tiles(p + q * padded, padded, UNIT, q + UNIT, scratch.p_tiles, padded, q);
                    to_tiles(scratch.ds + q * padded, padded, UNIT, q + UNIT, scratch.ds_tiles, padded, q);
                }
                for (long k = 0; k < padded; k += UNIT) {  // queries from k on see this key
                    add(scratch.ds_tiles, scratch.q_panels, k, scratch.dk, h == g * share);
                    add(scratch.p_tiles, scratch.z_panels, k, scratch.dv, h == g * share);
                }
                rotate_back(scratch.dq, raw + h * z.d_head, layer.q_norm, out + h * z.d_head, partial);
            }
            rotate_back(scratch.dk, raw + z.k_at + g * z.d_head, layer.k_norm, out + z.k_at + g * z.d_head, partial);
            for (long i = 0; i < length; i++)
                for (long j = 0; j < z.d_head; j += LANES)
                    put(out + i * z.qkv + z.v_at + g * z.d_head + j, get(scratch.dv + i * z.head + j, z.d_head - j), z.d_head - j);
        }
    }

   private:
    GF_MEMBER void copy_rows(const Operand* from, long ld, Operand* to) const {
        for (long i = 0; i < length; i++)
            for (long j = 0; j < z.d_head; j += LANES) put(to + i * z.head + j, get(from + i * ld + j, z.d_head - j), z.d_head - j);
        clear_padding(to + length * z.head);
    }

    // Rows of a head behind the last token: what a longer sequence left there might not be finite.
    void clear_padding(Operand* rows) const { memset(rows, 0, (padded - length) * z.head * sizeof(Operand)); }

    // Softmax of 32 queries' scaled scores over the keys up to each, rows of `p`; beyond, and for padding, 0.
    GF_MEMBER void pattern(long q, Operand* p) const {
        const Multiply<Operand> multiply = arithmetic<Operand>().multiply;
        const Left<Operand> rows = Left<Operand>::rows(scratch.q, z.head);
        const Right<Operand> keys = Right<Operand>::panels(scratch.k_transposed, z.head);
        for (long k = 0; k <= q; k += UNIT) multiply(rows.from(q, 0), keys.from(k, 0), z.head, scratch.scores + k * UNIT);
        const F16 scale = splat(m.s.score_scale), never = splat(-1e30f);
        float *scores = scratch.scores, most[UNIT], sums[UNIT];
        auto at = [=](long i, long k) { return scores + k / UNIT * UNIT * UNIT + i * UNIT + k % UNIT; };
        // one step for all rows before the next, so that rows do not wait for each other
        for (long i = 0; i < UNIT; i++) {
            const long whole = (q + i) / LANES * LANES;
            F16 top = select(lanes() <= splat_int((int)(q + i - whole)), load<F16>(at(i, whole)), never);
            store(at(i, whole), top);
            for (long k = 0; k < whole; k += LANES) top = largest(top, load<F16>(at(i, k)));
            most[i] = peak(top);
        }
        for (long i = 0; i < UNIT; i++) {
            const F16 top = splat(most[i]) * scale;
            F16 total = splat(0.f);
            for (long k = 0; k <= q + i; k += LANES) {
                F16 e = exponential<BRIEF>(load<F16>(at(i, k)) * scale - top);
                store(at(i, k), e);
                total += e;
            }
            sums[i] = sum(total);
        }
        for (long i = 0; i < UNIT; i += LANES) store(sums + i, splat(1.f) / load<F16>(sums + i));
        for (long i = 0; i < UNIT; i++) {
            Operand* out = p + (q + i) * padded;
            const F16 inverse = splat(q + i < length ? sums[i] : 0.f);
            for (long k = 0; k < q + UNIT; k += LANES) put(out + k, k <= q + i ? load<F16>(at(i, k)) * inverse : splat(0.f));
        }
    }

    // The gradient of 32 queries' scores, rows of scratch.ds, from their rows of the pattern.
    GF_MEMBER void pattern_back(long q, const Operand* p) const {
        const Multiply<Operand> multiply = arithmetic<Operand>().multiply;
        const Left<Operand> rows = Left<Operand>::rows(scratch.dz, z.head);
        const Right<Operand> values = Right<Operand>::panels(scratch.v_transposed, z.head);
        for (long k = 0; k <= q; k += UNIT) multiply(rows.from(q, 0), values.from(k, 0), z.head, scratch.scores + k * UNIT);
        const F16 scale = splat(m.s.score_scale);
        for (long i = 0; i < UNIT; i++, p += padded) {
            Operand* out = scratch.ds + (q + i) * padded;
            const float* row = scratch.scores + i * UNIT;
            auto at = [&](long k) { return row + k / UNIT * UNIT * UNIT + k % UNIT; };
            F16 along = splat(0.f);
            for (long k = 0; k <= q + i; k += LANES) along += get(p + k) * load<F16>(at(k));
            along = sum_lanes(along);
            for (long k = 0; k < q + UNIT; k += LANES)
                put(out + k, k <= q + i ? get(p + k) * (load<F16>(at(k)) - along) * scale : splat(0.f));
        }
    }

    // to (key, head) += tiles (key, query) x panels (query, head), for 32 keys from k.
    GF_MEMBER void add(const Operand* tiles, const Operand* panels, long k, float* to, bool fresh) const {
        product(UNIT, z.head, padded - k, Left<Operand>::tiles(tiles, padded).from(k, k),
                Right<Operand>::panels(panels, padded).from(0, k), [&](long, long n, const float* c) {
                    for (long i = 0; i < UNIT; i++)
                        for (long j = 0; j < UNIT; j += LANES) {
                            float* at = to + (k + i) * z.head + n + j;
                            F16 x = load<F16>(c + i * UNIT + j);
                            store(at, fresh ? x : load<F16>(at) + x);
                        }
                });
    }
};
