// Causal attention over one sequence of a block, head by head, and its gradient.
#pragma once

#include "train_parts.h"

struct Attention {
    const Model& m;
    const Cut& cut;
    Room& room;
    const Sizes& z;

    Attention(const Model& m, Room& room) : m(m), cut(m.cut), room(room), z(m.z) {}

    // One head's rows of q or k: normed, turned by their positions, as rows of `out`.
    __attribute__((noinline)) void turn(const Number* raw, const Vector& norm, Number* out) const {
        const long half = z.half, wide = m.half_padded();
        for (long i = 0; i < cut.length; i++, raw += z.qkv, out += z.head) {
            F16 inverse = norm_of(raw, norm);
            if (m.cosines.empty()) {
                for (long j = 0; j < z.d_head; j += SIDE)
                    put_some(out + j, z.d_head - j, weighed(raw, norm, inverse, j, z.d_head - j));
                continue;
            }
            const float *cosine = &m.cosines[i * wide], *sine = &m.sines[i * wide];
            for (long j = 0; j < half; j += SIDE) {
                F16 a = weighed(raw, norm, inverse, j, half - j), b = weighed(raw, norm, inverse, half + j, half - j);
                F16 c = load<F16>(cosine + j), s = load<F16>(sine + j);
                put_some(out + j, half - j, a * c - b * s);
                put_some(out + half + j, half - j, b * c + a * s);
            }
        }
    }

    // The gradient of `turn`: from that of its output (rows of z.head) to rows of the qkv operand's gradient.
    __attribute__((noinline)) void turn_back(const float* d, const Number* raw, const Vector& norm, Number* out, float* partial) const {
        const long half = z.half, wide = m.half_padded(), n = z.d_head;
        for (long i = 0; i < cut.length; i++, d += z.head, raw += z.qkv, out += z.qkv) {
            alignas(64) float room[512];
            const float *cosine = m.cosines.empty() ? nullptr : &m.cosines[i * wide], *sine = cosine ? &m.sines[i * wide] : nullptr;
            for (long j = 0; cosine && j < half; j += SIDE) {
                F16 a = some(d + j, half - j), b = some(d + half + j, half - j);
                F16 c = load<F16>(cosine + j), s = load<F16>(sine + j);
                store_some(room + j, half - j, a * c + b * s);
                store_some(room + half + j, half - j, b * c - a * s);
            }
            if (!cosine) memcpy(room, d, n * sizeof(float));
            if (!norm.there()) {
                for (long j = 0; j < n; j += SIDE) put_some(out + j, n - j, some(room + j, n - j));
                continue;
            }
            F16 inverse = norm_of(raw, norm), along = splat(0.f);
            float* g = partial + norm.partial;
            for (long j = 0; j < n; j += SIDE) {
                F16 unit = some(raw + j, n - j) * inverse, up = some(room + j, n - j);
                store(g + j, load<F16>(g + j) + up * unit);
                along += up * load<F16>(norm.at + j) * unit;
            }
            along = fold_sum(along) * splat(1.f / n);
            for (long j = 0; j < n; j += SIDE) {
                F16 unit = some(raw + j, n - j) * inverse;
                put_some(out + j, n - j, (some(room + j, n - j) * load<F16>(norm.at + j) - unit * along) * inverse);
            }
        }
    }

    // The weighted values of one sequence whose first row is `row`, into rows of `mixed`.
    void forward(const Layer& layer, const Kept& kept, long sequence, Number* mixed) const {
        const long row = sequence * cut.length, share = z.heads / z.kv_heads, square = cut.padded * cut.padded;
        const Number* raw = kept.qkv + row * z.qkv;
        for (long g = 0; g < z.kv_heads; g++) {
            turn(raw + z.k_at + g * z.d_head, layer.k_norm, room.k);
            copy_rows(raw + z.v_at + g * z.d_head, z.qkv, room.v);
            turn_to_panels(room.k, z.head, cut.padded, z.head, room.k_turned);
            to_panels(room.v, z.head, cut.padded, z.head, room.v_panels, cut.padded, 0);
            for (long h = g * share; h < (g + 1) * share; h++) {
                turn(raw + h * z.d_head, layer.q_norm, room.q);
                Number* p = kept.pattern ? kept.pattern + (sequence * z.heads + h) * square : room.p;
                for (long q = 0; q < cut.padded; q += EDGE) {
                    pattern(q, p);
                    product(EDGE, z.head, q + EDGE, Left::rows(p + q * cut.padded, cut.padded),
                            Right::panels(room.v_panels, cut.padded), [&](long, long n, const float* c) {
                                long rows = cut.length - q < EDGE ? cut.length - q : EDGE;
                                for (long i = 0; i < rows; i++)
                                    for (long j = 0; j < EDGE && n + j < z.d_head; j += SIDE)
                                        put_some(mixed + (row + q + i) * z.mixed + h * z.d_head + n + j, z.d_head - n - j,
                                                 load<F16>(c + i * EDGE + j));
                            });
                }
            }
        }
    }

    // From the gradient of `mixed` to that of the qkv rows.
    void backward(const Layer& layer, const Kept& kept, long sequence, const Number* d_mixed, Number* d_qkv,
                  float* partial) const {
        const long row = sequence * cut.length, share = z.heads / z.kv_heads, square = cut.padded * cut.padded;
        const long padded = cut.padded;
        const Number* raw = kept.qkv + row * z.qkv;
        Number* out = d_qkv + row * z.qkv;
        for (long g = 0; g < z.kv_heads; g++) {
            turn(raw + z.k_at + g * z.d_head, layer.k_norm, room.k);
            copy_rows(raw + z.v_at + g * z.d_head, z.qkv, room.v);
            if (!kept.pattern) turn_to_panels(room.k, z.head, padded, z.head, room.k_turned);
            turn_to_panels(room.v, z.head, padded, z.head, room.v_turned);
            to_panels(room.k, z.head, padded, z.head, room.k_panels, padded, 0);
            for (long h = g * share; h < (g + 1) * share; h++) {
                turn(raw + h * z.d_head, layer.q_norm, room.q);
                copy_rows(d_mixed + row * z.mixed + h * z.d_head, z.mixed, room.dz);
                to_panels(room.q, z.head, padded, z.head, room.q_panels, padded, 0);
                to_panels(room.dz, z.head, padded, z.head, room.z_panels, padded, 0);
                Number* p = kept.pattern ? kept.pattern + (sequence * z.heads + h) * square : room.p;
                for (long q = 0; q < padded; q += EDGE) {
                    if (!kept.pattern) pattern(q, p);
                    pattern_back(q, p + q * padded);
                    product(EDGE, z.head, q + EDGE, Left::rows(room.ds + q * padded, padded),
                            Right::panels(room.k_panels, padded), [&](long, long n, const float* c) {
                                for (long i = 0; i < EDGE; i++) memcpy(room.dq + (q + i) * z.head + n, c + i * EDGE, EDGE * 4);
                            });
                    to_tiles(p + q * padded, padded, EDGE, q + EDGE, room.p_tiles, padded, q);
                    to_tiles(room.ds + q * padded, padded, EDGE, q + EDGE, room.ds_tiles, padded, q);
                }
                for (long k = 0; k < padded; k += EDGE) {  // queries from k on see this key
                    add(room.ds_tiles, room.q_panels, k, room.dk, h == g * share);
                    add(room.p_tiles, room.z_panels, k, room.dv, h == g * share);
                }
                turn_back(room.dq, raw + h * z.d_head, layer.q_norm, out + h * z.d_head, partial);
            }
            turn_back(room.dk, raw + z.k_at + g * z.d_head, layer.k_norm, out + z.k_at + g * z.d_head, partial);
            for (long i = 0; i < cut.length; i++)
                for (long j = 0; j < z.d_head; j += SIDE)
                    put_some(out + i * z.qkv + z.v_at + g * z.d_head + j, z.d_head - j, some(room.dv + i * z.head + j, z.d_head - j));
        }
    }

   private:
    F16 norm_of(const Number* raw, const Vector& norm) const {
        if (!norm.there()) return splat(1.f);
        F16 square = splat(0.f);
        for (long j = 0; j < z.d_head; j += SIDE) {
            F16 x = some(raw + j, z.d_head - j);
            square += x * x;
        }
        return root_inverse(fold_sum(square) * splat(1.f / z.d_head) + splat(m.s.eps));
    }

    F16 weighed(const Number* raw, const Vector& norm, F16 inverse, long at, long n) const {
        F16 x = some(raw + at, n);
        return norm.there() ? x * inverse * some(norm.at + at, n) : x;
    }

    __attribute__((noinline)) void copy_rows(const Number* from, long ld, Number* to) const {
        for (long i = 0; i < cut.length; i++)
            for (long j = 0; j < z.d_head; j += SIDE) put_some(to + i * z.head + j, z.d_head - j, some(from + i * ld + j, z.d_head - j));
    }

    // Softmax of 32 queries' scaled scores over the keys up to each, rows of `p`; beyond, and for padding, 0.
    __attribute__((noinline)) void pattern(long q, Number* p) const {
        const Multiply multiply = arithmetic().multiply;
        const Left rows = Left::rows(room.q, z.head);
        const Right keys = Right::panels(room.k_turned, z.head);
        for (long k = 0; k <= q; k += EDGE) multiply(rows.from(q, 0), keys.from(k, 0), z.head, room.scores + k * EDGE);
        const F16 scale = splat(m.s.score_scale), never = splat(-1e30f);
        const long length = cut.length, padded = cut.padded;
        float *scores = room.scores, most[EDGE], sums[EDGE];
        auto at = [=](long i, long k) { return scores + k / EDGE * EDGE * EDGE + i * EDGE + k % EDGE; };
        // one step for all rows before the next, so that rows do not wait for each other
        for (long i = 0; i < EDGE; i++) {
            const long whole = (q + i) / SIDE * SIDE;
            F16 top = select(lanes() <= splat_int((int)(q + i - whole)), load<F16>(at(i, whole)), never);
            store(at(i, whole), top);
            for (long k = 0; k < whole; k += SIDE) top = largest(top, load<F16>(at(i, k)));
            most[i] = peak(top);
        }
        for (long i = 0; i < EDGE; i++) {
            const F16 top = splat(most[i]) * scale;
            F16 sum = splat(0.f);
            for (long k = 0; k <= q + i; k += SIDE) {
                F16 e = power_of_e(load<F16>(at(i, k)) * scale - top);
                store(at(i, k), e);
                sum += e;
            }
            sums[i] = total(sum);
        }
        for (long i = 0; i < EDGE; i += SIDE) store(sums + i, splat(1.f) / load<F16>(sums + i));
        for (long i = 0; i < EDGE; i++) {
            Number* out = p + (q + i) * padded;
            const F16 inverse = splat(q + i < length ? sums[i] : 0.f);
            for (long k = 0; k < q + EDGE; k += SIDE) put(out + k, k <= q + i ? load<F16>(at(i, k)) * inverse : splat(0.f));
        }
    }

    // The gradient of 32 queries' scores, rows of room.ds, from their rows of the pattern.
    __attribute__((noinline)) void pattern_back(long q, const Number* p) const {
        const Multiply multiply = arithmetic().multiply;
        const Left rows = Left::rows(room.dz, z.head);
        const Right values = Right::panels(room.v_turned, z.head);
        for (long k = 0; k <= q; k += EDGE) multiply(rows.from(q, 0), values.from(k, 0), z.head, room.scores + k * EDGE);
        const F16 scale = splat(m.s.score_scale);
        for (long i = 0; i < EDGE; i++, p += cut.padded) {
            Number* out = room.ds + (q + i) * cut.padded;
            const float* row = room.scores + i * EDGE;
            auto at = [&](long k) { return row + k / EDGE * EDGE * EDGE + k % EDGE; };
            F16 along = splat(0.f);
            for (long k = 0; k <= q + i; k += SIDE) along += get(p + k) * load<F16>(at(k));
            along = fold_sum(along);
            for (long k = 0; k < q + EDGE; k += SIDE)
                put(out + k, k <= q + i ? get(p + k) * (load<F16>(at(k)) - along) * scale : splat(0.f));
        }
    }

    // to (key, head) += tiles (key, query) x panels (query, head), for 32 keys from k.
    __attribute__((noinline)) void add(const Number* tiles, const Number* panels, long k, float* to, bool fresh) const {
        product(EDGE, z.head, cut.padded - k, Left::tiles(tiles, cut.padded).from(k, k),
                Right::panels(panels, cut.padded).from(0, k), [&](long, long n, const float* c) {
                    for (long i = 0; i < EDGE; i++)
                        for (long j = 0; j < EDGE; j += SIDE) {
                            float* at = to + (k + i) * z.head + n + j;
                            F16 x = load<F16>(c + i * EDGE + j);
                            store(at, fresh ? x : load<F16>(at) + x);
                        }
                });
    }
};
