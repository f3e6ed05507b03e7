// One block of whole sequences, forward and backward through all layers, by one thread.
//
// Besides its own room it writes, for each weight, its inputs and the gradients of its outputs in the
// orders that the products of the next phase want.
#pragma once

#include "attention_train.h"
#include "dropout.h"

struct Block {
    Model& m;
    BlockScratch& scratch;
    const Sizes& z;
    const long at, rows, tokens;         // rows of the wave before it, its own (padded), all of the wave
    const long sequences, used;          // whole sequences in it, and the rows they fill
    const int64_t *lengths;              // of its sequences
    const int64_t *ids, *targets;        // of the first row
    const Dropout dropout;
    const long place;                    // of the first row in the batch
    float* partial = nullptr;
    bool learning = false;

    Block(Model& m, BlockScratch& scratch, const Batch& batch, const Cut& cut, long at, long tokens, const Dropout& dropout,
          long place)
        : m(m), scratch(scratch), z(m.z), at(at), rows(cut.rows), tokens(tokens), sequences(cut.sequences), used(cut.used),
          lengths(batch.lengths + cut.first), ids(batch.ids + cut.token), targets(batch.targets + cut.token),
          dropout(dropout), place(place + cut.token) {}

    // Operands for weight gradients.
    GF_MEMBER void store_input(const Weight& w, const Operand* x) {
        if (learning) to_panels(x, w.ins, rows, w.ins, w.right, tokens, at);
    }
    GF_MEMBER void store_output(const Weight& w, const Operand* d) {
        to_tiles(d, w.outs(), rows, w.outs(), w.left, tokens, at);
        bias_back(w.bias, d, w.outs(), rows, partial);
    }

    double forward(float scale) {
        embed(m.s.n_layers ? scratch.layers[0].x : scratch.last);
        for (int i = 0; i < m.s.n_layers; i++) {
            float* next = i + 1 < m.s.n_layers ? scratch.layers[i + 1].x : scratch.last;
            attend(m.layers[i], scratch.layers[i], keep(2 * i + 1));
            feed(m.layers[i], scratch.layers[i], next, keep(2 * i + 2));
        }
        norm_rows(m, scratch.last, m.final_, m.final_bias, rows, scratch.last_scale, scratch.last_mean, scratch.operand);
        store_input(m.unembed, scratch.operand);
        product(rows, z.vocab, z.width, Left<Operand>::rows(scratch.operand, z.width), m.unembed.ahead(),
                [&](long r, long n, const float* c) {
                    for (long i = 0; i < UNIT; i++) memcpy(scratch.logits + (r + i) * z.vocab + n, c + i * UNIT, UNIT * 4);
                });
        return loss(scale);
    }

    void backward() {
        store_output(m.unembed, scratch.operand);
        product(rows, z.width, z.vocab, Left<Operand>::rows(scratch.operand, z.vocab), m.unembed.back(), into_wide());
        memset(scratch.d, 0, rows * z.width * sizeof(float));
        norm_back(m, scratch.wide, scratch.last, m.final_, m.final_bias, rows, scratch.last_scale, scratch.last_mean, scratch.d, partial);
        for (int i = m.s.n_layers; i-- > 0;) {
            feed_back(m.layers[i], scratch.layers[i], keep(2 * i + 2));
            attend_back(m.layers[i], scratch.layers[i], keep(2 * i + 1));
        }
        if (const DropoutMask kept = keep(0); !kept.all())
            for (long r = 0; r < rows; r++)
                for (long i = 0; i < z.width; i += LANES) {
                    float* at = scratch.d + r * z.width + i;
                    store(at, kept(place + r, i, load<F16>(at)));
                }
        memcpy(m.d_embedded + at * z.width, scratch.d, rows * z.width * sizeof(float));
    }

   private:
    DropoutMask keep(int site) const { return {dropout, (uint32_t)site}; }

    template <class F>
    void each_sequence(const SavedActivations& k, F work) {
        Operand* pattern = learning ? k.pattern : nullptr;
        for (long s = 0, row = 0; s < sequences; row += lengths[s++]) {
            const long square = square_of(m, lengths[s]);
            work(CausalAttention(m, scratch, k.qkv + row * z.qkv, row, lengths[s], square ? pattern : nullptr));
            if (pattern) pattern += square;
        }
    }

    GF_MEMBER void embed(float* x) {
        const long d = m.s.d_model;
        const DropoutMask kept = keep(0);
        for (long s = 0, r = 0; s < sequences; s++)
            for (long p = 0; p < lengths[s]; p++, r++, x += z.width) {
                const float* row = m.master + m.embed + ids[r] * d;
                const float* position = m.positions < 0 ? nullptr : m.master + m.positions + p * d;
                for (long i = 0; i < d; i += LANES) {
                    F16 v = get(row + i, d - i);
                    if (position) v += get(position + i, d - i);
                    put(x + i, kept(place + r, i, v), d - i);
                }
            }
        memset(x, 0, (rows - used) * z.width * sizeof(float));
    }

    GF_MEMBER void attend(const Layer& l, const SavedActivations& k, const DropoutMask& keep) {
        norm_rows(m, k.x, l.ln1, l.ln1_bias, rows, k.scale1, k.mean1, scratch.operand);
        store_input(l.qkv, scratch.operand);
        product(rows, z.qkv, z.width, Left<Operand>::rows(scratch.operand, z.width), l.qkv.ahead(), [&](long r, long n, const float* c) {
            for (long i = 0; i < UNIT; i++)
                for (long j = 0; j < UNIT; j += LANES)
                    put(k.qkv + (r + i) * z.qkv + n + j, with_bias(l.qkv.bias, n + j, load<F16>(c + i * UNIT + j)));
        });
        memset(scratch.mixed + used * z.mixed, 0, (rows - used) * z.mixed * sizeof(Operand));
        each_sequence(k, [&](const CausalAttention& attention) { attention.forward(l, scratch.mixed); });
        store_input(l.o, scratch.mixed);
        product(rows, z.width, z.mixed, Left<Operand>::rows(scratch.mixed, z.mixed), l.o.ahead(), onto(k.x, k.middle, l.o.bias, keep));
    }

    GF_MEMBER void feed(const Layer& l, const SavedActivations& k, float* next, const DropoutMask& keep) {
        norm_rows(m, k.middle, l.ln2, l.ln2_bias, rows, k.scale2, k.mean2, scratch.operand);
        store_input(l.in, scratch.operand);
        Operand *inner = scratch.hidden, *kept = k.inner;
        const int kind = m.s.activation;
        const Vector& bias = l.in.bias;
        const long rows = this->rows, width = z.inner;
        if (m.s.gated)
            product(rows, z.in, z.width, Left<Operand>::rows(scratch.operand, z.width), l.in.ahead(), [&](long r, long n, const float* c) {
                Operand* to = kept + (n / UNIT * rows + r) * UNIT;
                for (long i = 0; i < UNIT; i++, to += UNIT) {
                    F16 slope, open = activate<BRIEF>(kind, with_bias(bias, n, load<F16>(c + i * UNIT)), slope);
                    F16 up = with_bias(bias, n + LANES, load<F16>(c + i * UNIT + LANES));
                    put(to, slope * up), put(to + LANES, open), put(inner + (r + i) * width + n / 2, open * up);
                }
            });
        else
            product(rows, z.in, z.width, Left<Operand>::rows(scratch.operand, z.width), l.in.ahead(), [&](long r, long n, const float* c) {
                for (long j = 0; j < UNIT; j += LANES) {
                    Operand* to = kept + ((n + j) / LANES * rows + r) * UNIT;
                    for (long i = 0; i < UNIT; i++, to += UNIT) {
                        F16 slope, open = activate<BRIEF>(kind, with_bias(bias, n + j, load<F16>(c + i * UNIT + j)), slope);
                        put(to, slope), put(inner + (r + i) * width + n + j, open);
                    }
                }
            });
        store_input(l.down, inner);
        product(rows, z.width, z.inner, Left<Operand>::rows(inner, z.inner), l.down.ahead(), onto(k.middle, next, l.down.bias, keep));
    }

    GF_MEMBER void feed_back(const Layer& l, const SavedActivations& k, const DropoutMask& keep) {
        round_d(keep);
        store_output(l.down, scratch.operand);
        Operand* d_in = scratch.hidden;
        const Operand* kept = k.inner;
        const bool gated = m.s.gated;
        const long rows = this->rows, width = z.in;
        product(rows, z.inner, z.width, Left<Operand>::rows(scratch.operand, z.width), l.down.back(), [&](long r, long n, const float* c) {
            for (long j = 0; j < UNIT; j += LANES) {
                const Operand* from = kept + ((n + j) / LANES * rows + r) * UNIT;
                Operand* to = d_in + r * width + (gated ? 2 : 1) * (n + j);
                for (long i = 0; i < UNIT; i++, from += UNIT, to += width) {
                    F16 d = load<F16>(c + i * UNIT + j);
                    put(to, d * get(from));
                    if (gated) put(to + LANES, d * get(from + LANES));
                }
            }
        });
        store_output(l.in, d_in);
        product(rows, z.width, z.in, Left<Operand>::rows(d_in, z.in), l.in.back(), into_wide());
        norm_back(m, scratch.wide, k.middle, l.ln2, l.ln2_bias, rows, k.scale2, k.mean2, scratch.d, partial);
    }

    GF_MEMBER void attend_back(const Layer& l, const SavedActivations& k, const DropoutMask& keep) {
        round_d(keep);
        store_output(l.o, scratch.operand);
        product(rows, z.mixed, z.width, Left<Operand>::rows(scratch.operand, z.width), l.o.back(), [&](long r, long n, const float* c) {
            for (long i = 0; i < UNIT; i++)
                for (long j = 0; j < UNIT; j += LANES) put(scratch.d_mixed + (r + i) * z.mixed + n + j, load<F16>(c + i * UNIT + j));
        });
        memset(scratch.d_qkv + used * z.qkv, 0, (rows - used) * z.qkv * sizeof(Operand));
        each_sequence(k, [&](const CausalAttention& attention) {
            attention.backward(l, scratch.d_mixed, scratch.d_qkv, partial);
        });
        store_output(l.qkv, scratch.d_qkv);
        product(rows, z.width, z.qkv, Left<Operand>::rows(scratch.d_qkv, z.qkv), l.qkv.back(), into_wide());
        norm_back(m, scratch.wide, k.x, l.ln1, l.ln1_bias, rows, k.scale1, k.mean1, scratch.d, partial);
    }

    // The gradient of what a part adds to the stream, as an operand.
    GF_MEMBER void round_d(const DropoutMask& keep) {
        for (long r = 0; r < rows; r++)
            for (long i = 0, at = r * z.width; i < z.width; i += LANES, at += LANES)
                put(scratch.operand + at, keep(place + r, i, load<F16>(scratch.d + at)));
    }

    struct IntoWide {
        float* wide;
        long width;
        void operator()(long r, long n, const float* c) const {
            for (long i = 0; i < UNIT; i++) memcpy(wide + (r + i) * width + n, c + i * UNIT, UNIT * 4);
        }
    };
    IntoWide into_wide() const { return {scratch.wide, z.width}; }

    // A part's output added to the stream.
    struct Onto {
        const float* x;
        float* out;
        const Vector& bias;
        long width;
        const DropoutMask& keep;
        long place;
        void operator()(long r, long n, const float* c) const {
            for (long i = 0; i < UNIT; i++)
                for (long j = 0; j < UNIT; j += LANES) {
                    long at = (r + i) * width + n + j;
                    F16 part = with_bias(bias, n + j, load<F16>(c + i * UNIT + j));
                    store(out + at, load<F16>(x + at) + keep(place + r + i, n + j, part));
                }
        }
    };
    Onto onto(const float* x, float* out, const Vector& bias, const DropoutMask& keep) const {
        return {x, out, bias, z.width, keep, place};
    }

    // Sum of -log p(target); the logits' gradient times `scale` becomes the operand. Targets below 0 do not count.
    GF_MEMBER double loss(float scale) {
        double sum_of_losses = 0;
        const long n = m.s.vocab, whole = n / LANES * LANES;
        const F16 never = splat(-1e30f);
        for (long r = 0; r < rows; r++) {
            float* row = scratch.logits + r * z.vocab;
            Operand* d = scratch.operand + r * z.vocab;
            const bool counts = r < used && targets[r] >= 0;
            if (!counts) {
                if (learning) memset(d, 0, z.vocab * sizeof(Operand));
                continue;
            }
            if (whole < z.vocab) store(row + whole, select(lanes() < splat_int((int)(n - whole)), load<F16>(row + whole), never));
            for (long i = whole + LANES; i < z.vocab; i += LANES) store(row + i, never);
            F16 top = never, total = splat(0.f);
            for (long i = 0; i < z.vocab; i += LANES) top = largest(top, load<F16>(row + i));
            const float most = peak(top), wanted = row[targets[r]];
            for (long i = 0; i < z.vocab; i += LANES) {
                F16 e = exponential<BRIEF>(load<F16>(row + i) - splat(most));
                total += e;
                store(row + i, e);
            }
            const float all = sum(total);
            sum_of_losses += (double)(most - wanted) + std::log((double)all);
            if (!learning) continue;
            const F16 share = splat(scale / all);
            row[targets[r]] -= all;
            for (long i = 0; i < z.vocab; i += LANES) put(d + i, load<F16>(row + i) * share);
        }
        return sum_of_losses;
    }
};
