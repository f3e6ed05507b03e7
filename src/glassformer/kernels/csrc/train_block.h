// One block of whole sequences, forward and backward through all layers, by one thread.
//
// Besides its own room it writes, for each weight, its inputs and the gradients of its outputs in the
// orders that the products of the next phase want.
#pragma once

#include "attention_train.h"
#include "dropout.h"

struct Block {
    Model& m;
    Room& room;
    const Sizes& z;
    const Cut& cut;
    const long index, rows, tokens;      // of the block; padded rows; of all blocks of this wave
    const long sequences, used;          // whole sequences in it, and the rows they fill
    const int64_t *ids, *targets;        // of the first row
    const Dropout dropout;
    const long place;                    // of the first row in the batch
    float* partial = nullptr;
    bool learning = false;

    Block(Model& m, Room& room, long index, long blocks, long sequences, const int64_t* ids, const int64_t* targets,
          const Dropout& dropout, long place)
        : m(m), room(room), z(m.z), cut(m.cut), index(index), rows(cut.rows), tokens(blocks * cut.rows),
          sequences(sequences), used(sequences * cut.length), ids(ids), targets(targets), dropout(dropout), place(place) {}

    // Operands for weight gradients.
    __attribute__((noinline)) void keep_input(const Weight& w, const Number* x) {
        if (learning) to_panels(x, w.ins, rows, w.ins, w.right, tokens, index * rows);
    }
    __attribute__((noinline)) void keep_output(const Weight& w, const Number* d) {
        to_tiles(d, w.outs(), rows, w.outs(), w.left, tokens, index * rows);
        bias_back(w.bias, d, w.outs(), rows, partial);
    }

    double forward(float scale) {
        embed(m.s.n_layers ? room.layers[0].x : room.last);
        for (int i = 0; i < m.s.n_layers; i++) {
            float* next = i + 1 < m.s.n_layers ? room.layers[i + 1].x : room.last;
            attend(m.layers[i], room.layers[i], keep(2 * i + 1));
            feed(m.layers[i], room.layers[i], next, keep(2 * i + 2));
        }
        norm_rows(m, room.last, m.final_, m.final_bias, rows, room.last_scale, room.last_mean, room.operand);
        keep_input(m.unembed, room.operand);
        product(rows, z.vocab, z.width, Left::rows(room.operand, z.width), m.unembed.ahead(),
                [&](long r, long n, const float* c) {
                    for (long i = 0; i < EDGE; i++) memcpy(room.logits + (r + i) * z.vocab + n, c + i * EDGE, EDGE * 4);
                });
        return loss(scale);
    }

    void backward() {
        keep_output(m.unembed, room.operand);
        product(rows, z.width, z.vocab, Left::rows(room.operand, z.vocab), m.unembed.back(), into_wide());
        memset(room.d, 0, rows * z.width * sizeof(float));
        norm_back(m, room.wide, room.last, m.final_, m.final_bias, rows, room.last_scale, room.last_mean, room.d, partial);
        for (int i = m.s.n_layers; i-- > 0;) {
            feed_back(m.layers[i], room.layers[i], keep(2 * i + 2));
            attend_back(m.layers[i], room.layers[i], keep(2 * i + 1));
        }
        if (const Keep kept = keep(0); !kept.all())
            for (long r = 0; r < rows; r++)
                for (long i = 0; i < z.width; i += SIDE) {
                    float* at = room.d + r * z.width + i;
                    store(at, kept(place + r, i, load<F16>(at)));
                }
        memcpy(m.d_embedded + index * rows * z.width, room.d, rows * z.width * sizeof(float));
    }

   private:
    Keep keep(int site) const { return {dropout, (uint32_t)site}; }

    __attribute__((noinline)) void embed(float* x) {
        const long d = m.s.d_model;
        const Keep kept = keep(0);
        for (long r = 0; r < rows; r++, x += z.width) {
            if (r >= used) {
                memset(x, 0, z.width * sizeof(float));
                continue;
            }
            const float* row = m.master + m.embed + ids[r] * d;
            const float* position = m.positions < 0 ? nullptr : m.master + m.positions + r % cut.length * d;
            for (long i = 0; i < d; i += SIDE) {
                F16 v = some(row + i, d - i);
                if (position) v += some(position + i, d - i);
                store_some(x + i, d - i, kept(place + r, i, v));
            }
        }
    }

    __attribute__((noinline)) void attend(const Layer& l, const Kept& k, const Keep& keep) {
        norm_rows(m, k.x, l.ln1, l.ln1_bias, rows, k.scale1, k.mean1, room.operand);
        keep_input(l.qkv, room.operand);
        product(rows, z.qkv, z.width, Left::rows(room.operand, z.width), l.qkv.ahead(), [&](long r, long n, const float* c) {
            for (long i = 0; i < EDGE; i++)
                for (long j = 0; j < EDGE; j += SIDE)
                    put(k.qkv + (r + i) * z.qkv + n + j, with_bias(l.qkv.bias, n + j, load<F16>(c + i * EDGE + j)));
        });
        memset(room.mixed + used * z.mixed, 0, (rows - used) * z.mixed * sizeof(Number));
        const Attention attention(m, room);
        for (long s = 0; s < sequences; s++) attention.forward(l, k, s, room.mixed);
        keep_input(l.o, room.mixed);
        product(rows, z.width, z.mixed, Left::rows(room.mixed, z.mixed), l.o.ahead(), onto(k.x, k.middle, l.o.bias, keep));
    }

    __attribute__((noinline)) void feed(const Layer& l, const Kept& k, float* next, const Keep& keep) {
        norm_rows(m, k.middle, l.ln2, l.ln2_bias, rows, k.scale2, k.mean2, room.operand);
        keep_input(l.in, room.operand);
        Number *inner = room.hidden, *kept = k.inner;
        const int kind = m.s.activation;
        const Vector& bias = l.in.bias;
        const long rows = this->rows, width = z.inner;
        if (m.s.gated)
            product(rows, z.in, z.width, Left::rows(room.operand, z.width), l.in.ahead(), [&](long r, long n, const float* c) {
                Number* to = kept + (n / EDGE * rows + r) * EDGE;
                for (long i = 0; i < EDGE; i++, to += EDGE) {
                    F16 slope, open = activated(kind, with_bias(bias, n, load<F16>(c + i * EDGE)), slope);
                    F16 up = with_bias(bias, n + SIDE, load<F16>(c + i * EDGE + SIDE));
                    put(to, slope * up), put(to + SIDE, open), put(inner + (r + i) * width + n / 2, open * up);
                }
            });
        else
            product(rows, z.in, z.width, Left::rows(room.operand, z.width), l.in.ahead(), [&](long r, long n, const float* c) {
                for (long j = 0; j < EDGE; j += SIDE) {
                    Number* to = kept + ((n + j) / SIDE * rows + r) * EDGE;
                    for (long i = 0; i < EDGE; i++, to += EDGE) {
                        F16 slope, open = activated(kind, with_bias(bias, n + j, load<F16>(c + i * EDGE + j)), slope);
                        put(to, slope), put(inner + (r + i) * width + n + j, open);
                    }
                }
            });
        keep_input(l.down, inner);
        product(rows, z.width, z.inner, Left::rows(inner, z.inner), l.down.ahead(), onto(k.middle, next, l.down.bias, keep));
    }

    __attribute__((noinline)) void feed_back(const Layer& l, const Kept& k, const Keep& keep) {
        round_d(keep);
        keep_output(l.down, room.operand);
        Number* d_in = room.hidden;
        const Number* kept = k.inner;
        const bool gated = m.s.gated;
        const long rows = this->rows, width = z.in;
        product(rows, z.inner, z.width, Left::rows(room.operand, z.width), l.down.back(), [&](long r, long n, const float* c) {
            for (long j = 0; j < EDGE; j += SIDE) {
                const Number* from = kept + ((n + j) / SIDE * rows + r) * EDGE;
                Number* to = d_in + r * width + (gated ? 2 : 1) * (n + j);
                for (long i = 0; i < EDGE; i++, from += EDGE, to += width) {
                    F16 d = load<F16>(c + i * EDGE + j);
                    put(to, d * get(from));
                    if (gated) put(to + SIDE, d * get(from + SIDE));
                }
            }
        });
        keep_output(l.in, d_in);
        product(rows, z.width, z.in, Left::rows(d_in, z.in), l.in.back(), into_wide());
        norm_back(m, room.wide, k.middle, l.ln2, l.ln2_bias, rows, k.scale2, k.mean2, room.d, partial);
    }

    __attribute__((noinline)) void attend_back(const Layer& l, const Kept& k, const Keep& keep) {
        round_d(keep);
        keep_output(l.o, room.operand);
        product(rows, z.mixed, z.width, Left::rows(room.operand, z.width), l.o.back(), [&](long r, long n, const float* c) {
            for (long i = 0; i < EDGE; i++)
                for (long j = 0; j < EDGE; j += SIDE) put(room.d_mixed + (r + i) * z.mixed + n + j, load<F16>(c + i * EDGE + j));
        });
        memset(room.d_qkv + used * z.qkv, 0, (rows - used) * z.qkv * sizeof(Number));
        const Attention attention(m, room);
        for (long s = 0; s < sequences; s++) attention.backward(l, k, s, room.d_mixed, room.d_qkv, partial);
        keep_output(l.qkv, room.d_qkv);
        product(rows, z.width, z.qkv, Left::rows(room.d_qkv, z.qkv), l.qkv.back(), into_wide());
        norm_back(m, room.wide, k.x, l.ln1, l.ln1_bias, rows, k.scale1, k.mean1, room.d, partial);
    }

    // The gradient of what a part adds to the stream, as an operand.
    __attribute__((noinline)) void round_d(const Keep& keep) {
        for (long r = 0; r < rows; r++)
            for (long i = 0, at = r * z.width; i < z.width; i += SIDE, at += SIDE)
                put(room.operand + at, keep(place + r, i, load<F16>(room.d + at)));
    }

    struct IntoWide {
        float* wide;
        long width;
        void operator()(long r, long n, const float* c) const {
            for (long i = 0; i < EDGE; i++) memcpy(wide + (r + i) * width + n, c + i * EDGE, EDGE * 4);
        }
    };
    IntoWide into_wide() const { return {room.wide, z.width}; }

    // A part's output added to the stream.
    struct Onto {
        const float* x;
        float* out;
        const Vector& bias;
        long width;
        const Keep& keep;
        long place;
        void operator()(long r, long n, const float* c) const {
            for (long i = 0; i < EDGE; i++)
                for (long j = 0; j < EDGE; j += SIDE) {
                    long at = (r + i) * width + n + j;
                    F16 part = with_bias(bias, n + j, load<F16>(c + i * EDGE + j));
                    store(out + at, load<F16>(x + at) + keep(place + r + i, n + j, part));
                }
        }
    };
    Onto onto(const float* x, float* out, const Vector& bias, const Keep& keep) const {
        return {x, out, bias, z.width, keep, place};
    }

    // Sum of -log p(target); the logits' gradient times `scale` becomes the operand. Targets below 0 do not count.
    __attribute__((noinline)) double loss(float scale) {
        double sum_of_losses = 0;
        const long n = m.s.vocab, whole = n / SIDE * SIDE;
        const F16 never = splat(-1e30f);
        for (long r = 0; r < rows; r++) {
            float* row = room.logits + r * z.vocab;
            Number* d = room.operand + r * z.vocab;
            const bool counts = r < used && targets[r] >= 0;
            if (!counts) {
                if (learning) memset(d, 0, z.vocab * sizeof(Number));
                continue;
            }
            if (whole < z.vocab) store(row + whole, select(lanes() < splat_int((int)(n - whole)), load<F16>(row + whole), never));
            for (long i = whole + SIDE; i < z.vocab; i += SIDE) store(row + i, never);
            F16 top = never, sum = splat(0.f);
            for (long i = 0; i < z.vocab; i += SIDE) top = largest(top, load<F16>(row + i));
            const float most = peak(top), wanted = row[targets[r]];
            for (long i = 0; i < z.vocab; i += SIDE) {
                F16 e = power_of_e(load<F16>(row + i) - splat(most));
                sum += e;
                store(row + i, e);
            }
            const float all = total(sum);
            sum_of_losses += (double)(most - wanted) + std::log((double)all);
            if (!learning) continue;
            const F16 share = splat(scale / all);
            row[targets[r]] -= all;
            for (long i = 0; i < z.vocab; i += SIDE) put(d + i, load<F16>(row + i) * share);
        }
        return sum_of_losses;
    }
};
