// The optimiser's step: Muon (Newton-Schulz) for whole matrices, AdamW for the rest; then the packed copies.
//
// The same arithmetic as glassformer/train/optimizer.py, whose docstrings name the papers.
#pragma once

#include "orthogonal.h"
#include "train_model.h"

// BlockScratch of one thread for the largest matrix.
struct OptimizerScratch {
    Operand *x, *next, *rows;
    OrthogonalScratch<Operand> rounds;
};

static void lay_out(Model& m, Arena& a, OptimizerScratch& b) {
    long matrix = 0, square = 0, ins = 0;
    for (const Parameter& p : m.parameters) {
        long rows = round_up(p.rows, UNIT), cols = round_up(p.cols, UNIT), small = rows < cols ? rows : cols;
        if (p.muon && rows * cols > matrix) matrix = rows * cols;
        if (p.muon && small * small > square) square = small * small;
    }
    for (Weight* w : m.weights())
        if (w->ins > ins) ins = w->ins;
    b.x = a.take<Operand>(matrix), b.next = a.take<Operand>(matrix), b.rows = a.take<Operand>(LANES * ins);
    b.rounds.lay_out(a, square, matrix);
}

// Momentum moves towards the gradient; what is then orthogonalised, of sixteen entries.
GF_INLINE F16 direction(const float* grad, const float* buffer, long n, float momentum) {
    F16 g = get(grad, n);
    return g + splat(momentum) * (get(buffer, n) - g);
}

static void muon(Model& m, const Parameter& p, const Rules& rules, float rate, float momentum, OptimizerScratch& b) {
    const bool tall = p.rows > p.cols;
    const long rows = p.rows, cols = p.cols, small = round_up(tall ? cols : rows, UNIT), large = round_up(tall ? rows : cols, UNIT);
    float *value = m.master + p.offset, *grad = m.grad + p.offset, *buffer = m.first + p.offset;
    F16 square = splat(0.f);
    for (long i = 0; i < rows * cols; i += LANES) {
        long n = rows * cols - i;
        F16 old = get(buffer + i, n);
        put(buffer + i, old + splat(1.f - momentum) * (get(grad + i, n) - old), n);
        F16 x = direction(grad + i, buffer + i, n, momentum);
        square += x * x;
    }
    const F16 inverse = splat(1.f / std::fmax(std::sqrt(sum(square)), 1e-7f));
    // in squares of sixteen, so that a tall matrix is laid on its side
    for (long r = 0; r < round_up(rows, UNIT); r += LANES)
        for (long c = 0; c < round_up(cols, UNIT); c += LANES) {
            I16 part[LANES];
            for (long i = 0; i < LANES; i++) {
                long at = (r + i) * cols + c, n = r + i < rows ? cols - c : 0;
                part[i] = (I16)(direction(grad + (n > 0 ? at : 0), buffer + (n > 0 ? at : 0), n, momentum) * inverse);
            }
            if (tall) transpose(part);
            for (long i = 0; i < LANES; i++) put(b.x + ((tall ? c : r) + i) * large + (tall ? r : c), (F16)part[i]);
        }
    orthogonalise(small, large, rules.newton_schulz, rules.rounds, b.x, b.next, b.rounds);
    const float lr = rules.muon_lr * rate, size = tall ? std::sqrt((float)rows / cols) : 1.f;
    for (long r = 0; r < rows; r += LANES)
        for (long c = 0; c < cols; c += LANES) {
            I16 part[LANES];
            for (long i = 0; i < LANES; i++) part[i] = (I16)get(b.x + ((tall ? c : r) + i) * large + (tall ? r : c));
            if (tall) transpose(part);
            for (long i = 0; i < LANES && r + i < rows; i++) {
                float* to = value + (r + i) * cols + c;
                F16 v = get(to, cols - c), update = (F16)part[i];
                if (rules.muon_decay > 0) {
                    F16 shrunk = v - splat(lr * rules.muon_decay) * v;
                    v = rules.cautious ? select(update * v > splat(0.f), shrunk, v) : shrunk;
                }
                put(to, v - splat(lr * size) * update, cols - c);
            }
        }
}

static void adamw(Model& m, const Parameter& p, const Rules& rules, float rate, double steps, long from, long n) {
    float* value = m.master + p.offset + from;
    const float* grad = m.grad + p.offset + from;
    float *first = m.first + p.offset + from, *second = m.second + p.offset + from;
    const float lr = p.lr * rate, keep = 1.f - lr * p.decay, b1 = rules.beta1, b2 = rules.beta2, eps = rules.eps;
    const float pace = (float)(lr / (1.0 - std::pow((double)b1, steps)));
    const float inverse = (float)(1.0 / std::sqrt(1.0 - std::pow((double)b2, steps)));
    for (long i = 0; i < n; i++) {
        float g = grad[i];
        float a = first[i] + (1.f - b1) * (g - first[i]), b = b2 * second[i] + (1.f - b2) * g * g;
        first[i] = a, second[i] = b;
        value[i] = value[i] * keep - pace * a / (std::sqrt(b) * inverse + eps);
    }
}

// One piece of the step: a whole matrix, or some rows.
struct Piece {
    const Parameter* p;
    long from, rows, work;
};

static std::vector<Piece> pieces(const Model& m) {
    std::vector<Piece> all;
    for (const Parameter& p : m.parameters) {
        long size = (long)p.rows * p.cols;
        if (p.muon) {
            long small = p.rows < p.cols ? p.rows : p.cols;
            all.push_back({&p, 0, p.rows, size * (64 + small)});
            continue;
        }
        long some = round_up(16384 / p.cols + 1, LANES);
        for (long r = 0; r < p.rows; r += some)
            all.push_back({&p, r, p.rows - r < some ? p.rows - r : some, 64 * some * p.cols});
    }
    // the long ones first; pieces of one size in the parameters' order
    std::stable_sort(all.begin(), all.end(), [](const Piece& a, const Piece& b) { return a.work > b.work; });
    return all;
}

// Everything that the products and the module compute with, from the masters' rows.
static void publish_rows(Model& m, const Parameter& p, long from, long rows, Operand* room) {
    if (Vector* v = vector_of(m, p)) return publish(m, *v);
    Place place = place_of(m, p);
    if (p.bias && place.weight) return;  // with the vectors, below: several parameters share one
    if (place.weight) {
        for (long r = from; r < from + rows; r += LANES) pack_panel(m, *place.weight, (place.row + r * place.step) / LANES, room);
        return;
    }
#if defined(GLASSFORMER_BF16)
    for (long i = p.offset + from * p.cols, end = i + rows * p.cols; i < end; i++) m.working[i] = to_bf16_value(m.master[i]);
#endif
}

static bool make_scratch(Model& m, std::vector<OptimizerScratch>& scratch) {
    scratch.resize(m.s.threads);
    for (int pass = 0; pass < 2; pass++) {
        Arena a{m.optimizer.at()};
        for (OptimizerScratch& b : scratch) lay_out(m, a, b);
        if (!pass && !m.optimizer.clear(a.used)) return false;
    }
    return true;
}

// Takes a step (`steps` counts from 1), or with none only makes the copies anew.
static bool update(Model& m, const Rules* rules, float rate, float momentum, long steps) {
    std::vector<OptimizerScratch> scratch;
    if (!make_scratch(m, scratch)) return false;
    const std::vector<Piece> all = pieces(m);
    std::atomic<int> next{0};
    m.run([&] {
        const Tiles tiles(arithmetic<Operand>().tiles);
        OptimizerScratch& mine = scratch[next.fetch_add(1)];
        m.phases[0].share((int)all.size(), 1, [&](int i) {
            const Piece& piece = all[i];
            const Parameter& p = *piece.p;
            if (rules && p.muon)
                muon(m, p, *rules, rate, momentum, mine);
            else if (rules)
                adamw(m, p, *rules, rate, steps, piece.from * p.cols, piece.rows * p.cols);
            publish_rows(m, p, piece.from, piece.rows, mine.rows);
        });
    });
    for (Weight* w : m.weights())
        if (w->bias.there()) publish(m, w->bias);
    return true;
}

// The sum of squares of all gradients.
static double square_of_gradients(Model& m) {
    constexpr long CHUNK = 1 << 14;
    std::vector<std::pair<const float*, long>> chunks;
    for (const Parameter& p : m.parameters)
        for (long i = 0, n = (long)p.rows * p.cols; i < n; i += CHUNK)
            chunks.push_back({m.grad + p.offset + i, n - i < CHUNK ? n - i : CHUNK});
    std::vector<double> sums(chunks.size());
    m.run([&] {
        m.phases[0].share((int)chunks.size(), 4, [&](int i) {
            F16 total = splat(0.f);
            for (long j = 0; j < chunks[i].second; j += LANES) {
                F16 x = get(chunks[i].first + j, chunks[i].second - j);
                total += x * x;
            }
            sums[i] = sum(total);
        });
    });
    double all = 0;
    for (double x : sums) all += x;
    return all;
}
