// Every fast kernel beside the naive loop that it stands for, on sizes that are not multiples of anything.
//
// `make sanitize` builds it with warnings as errors and the address and undefined-behaviour sanitizers. It prints what
// differs and exits with how much did.
#include <cstdio>
#include <random>

#include "attention.h"
#include "attention_tiles.h"
#include "forward.h"
#include "gemm_parts.h"
#include "orthogonal.h"
#include "sampling.h"

static int failures = 0;
static std::mt19937 generator(1);

static float random_number() { return std::normal_distribution<float>()(generator); }

static std::vector<float> random_numbers(size_t n) {
    std::vector<float> x(n);
    for (float& v : x) v = random_number();
    return x;
}

// Of two lists: the largest difference over the largest number of the right one.
static void compare(const char* what, const float* found, const float* right, size_t n, double limit) {
    double apart = 0, size = 1e-30;
    for (size_t i = 0; i < n; i++) {
        size = std::fmax(size, std::isfinite(right[i]) ? std::fabs((double)right[i]) : 0);
        if (found[i] != right[i]) apart = std::fmax(apart, std::fabs((double)found[i] - right[i]));
        if (std::isnan(found[i]) != std::isnan(right[i])) apart = INFINITY;
    }
    if (apart <= limit * size) return;
    printf("%s: apart by %g of %g, where %g is allowed\n", what, apart, size, limit);
    failures++;
}

static void functions() {
    for (int kind = GELU; kind <= RELU2; kind++)
        for (int round = 0; round < 200; round++) {
            float x[16], y[16], right[16], slope[16], rise[16];
            for (float& v : x) v = random_number() * (round % 4 ? 3.f : 30.f);
            store(y, activate(kind, load<F16>(x)));
            for (int i = 0; i < 16; i++) {
                const double v = x[i], u = std::sqrt(2 / M_PI) * (v + 0.044715 * v * v * v), r = v > 0 ? v : 0;
                right[i] = (float)(kind == GELU        ? v * 0.5 * std::erfc(-v * M_SQRT1_2)
                                   : kind == GELU_TANH ? v * 0.5 * (1 + std::tanh(u))
                                   : kind == SILU      ? v / (1 + std::exp(-v))
                                   : kind == RELU      ? r
                                                       : r * r);
            }
            compare("activation", y, right, 16, 1e-6);
            if (kind != SILU && kind != GELU_TANH) continue;
            F16 s;
            store(y, activate<false>(kind, load<F16>(x), s));
            store(slope, s);
            compare("activation with slope", y, right, 16, 1e-6);
            for (int i = 0; i < 16; i++) {  // by central differences, in float64
                auto f = [&](double v) {
                    return kind == SILU ? v / (1 + std::exp(-v))
                                        : v * 0.5 * (1 + std::tanh(std::sqrt(2 / M_PI) * (v + 0.044715 * v * v * v)));
                };
                rise[i] = (float)((f(x[i] + 1e-5) - f(x[i] - 1e-5)) / 2e-5);
            }
            compare("slope", slope, rise, 16, 1e-5);
        }
    float x[16], y[16], right[16];
    for (int i = 0; i < 16; i++) x[i] = i < 8 ? -12.f * i : 10.f * (i - 8), right[i] = x[i] < -87 ? 0 : std::exp(x[i]);
    x[15] = NAN, right[15] = NAN;
    store(y, exponential(load<F16>(x)));
    for (int i = 0; i < 16; i++) compare("exponential", y + i, right + i, 1, 1e-6);
    store(y, hyperbolic_tangent(load<F16>(x) * splat(0.01f)));
    for (int i = 0; i < 15; i++) right[i] = std::tanh(x[i] * 0.01f);
    compare("hyperbolic tangent", y, right, 15, 1e-6);
}

static void conversions() {
    for (float x : {0.f, -0.f, 1.f, 1.00390625f, 1.01171875f, 3.14159f, -2.5e-20f, 3e38f, INFINITY, NAN}) {
        uint16_t wide[16];
        put(wide, splat(x));
        const float one = bf16_value(to_bf16_value(x)), many = bf16_value(wide[3]);
        compare("bfloat16 of one and of sixteen", &many, &one, 1, 0);
        if (std::isfinite(x)) compare("bfloat16", &one, &x, 1, 1. / 256);
    }
    I16 square[16];
    int32_t numbers[16][16];
    for (int i = 0; i < 16; i++) square[i] = lanes() + splat_int(100 * i);
    transpose(square);
    memcpy(numbers, square, sizeof numbers);
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 16; j++) failures += numbers[i][j] != 100 * j + i;
}

static void rows() {
    for (long n : {1, 15, 16, 17, 70}) {
        const auto x = random_numbers(n), w = random_numbers(n), b = random_numbers(n), angles = random_numbers(n);
        for (bool centred : {false, true}) {
            std::vector<float> y(n), right(n);
            norm_row(x.data(), n, w.data(), 1.f, b.data(), 1e-5f, centred, y.data());
            double mean = 0, square = 0;
            for (float v : x) mean += centred ? v / (double)n : 0;
            for (float v : x) square += (v - mean) * (v - mean) / n;
            for (long i = 0; i < n; i++) right[i] = (float)((x[i] - mean) / std::sqrt(square + 1e-5) * (w[i] + 1) + b[i]);
            compare("norm", y.data(), right.data(), n, 2e-6);
        }
        std::vector<float> cosine(n), sine(n), head = random_numbers(2 * n), turned(2 * n), back(2 * n);
        for (long i = 0; i < n; i++) cosine[i] = std::cos(angles[i]), sine[i] = std::sin(angles[i]);
        rotate_row(head.data(), cosine.data(), sine.data(), n, turned.data());
        for (long i = 0; i < n; i++) {
            const float right = head[i] * cosine[i] - head[n + i] * sine[i];
            compare("rotation", &turned[i], &right, 1, 1e-5 + 1e-6 / std::fabs(right));
        }
        rotate_row(turned.data(), cosine.data(), sine.data(), n, back.data(), -1.f);
        compare("rotation back", back.data(), head.data(), 2 * n, 2e-6);
        std::vector<float> p = x, slope = w, logits = x, right(n), gradient(n);
        const long seen = (n + 1) / 2, target = n / 3;
        double all = 0, own = 0, mean = 0;
        for (long i = 0; i < n; i++) all += std::exp((double)x[i]), own += i < seen ? std::exp(0.7 * x[i]) : 0;
        for (long i = 0; i < n; i++) right[i] = i < seen ? (float)(std::exp(0.7 * x[i]) / own) : 0;
        softmax_row(p.data(), seen, n, 0.7f);
        compare("softmax", p.data(), right.data(), n, 2e-6);
        for (long i = 0; i < n; i++) mean += (double)right[i] * w[i];
        for (long i = 0; i < n; i++) gradient[i] = (float)(right[i] * (w[i] - mean) * 0.7);
        softmax_gradient_row(p.data(), slope.data(), n, 0.7f);
        compare("softmax's gradient", slope.data(), gradient.data(), n, 1e-5);
        const float loss = cross_entropy_row(logits.data(), n, target), truth = (float)(std::log(all) - x[target]);
        compare("cross-entropy", &loss, &truth, 1, 1e-5);
        for (long i = 0; i < n; i++) gradient[i] = (float)(std::exp((double)x[i]) / all - (i == target));
        compare("cross-entropy's gradient", logits.data(), gradient.data(), n, 1e-5);
    }
}

static void choices() {
    for (long n : {1, 15, 257, 4099}) {
        std::vector<float> x = random_numbers(n);
        for (long i = 0; i < n; i += 5) x[i] = i % 2 ? x[i / 2] : -INFINITY;  // equals, and some that never come
        x[n / 2] = 1.5f;
        const float by = 1.f / 0.7f;
        std::vector<double> reached(n);
        double all = 0;
        const float top = *std::max_element(x.begin(), x.end());
        for (long i = 0; i < n; i++) reached[i] = all += std::exp(((double)x[i] - top) / 0.7);
        const float found = (float)Weights(x.data(), n, by).sums(nullptr), right = (float)all;
        compare("sum of weights", &found, &right, 1, 1e-6);
        for (double share : {0.0, 1e-9, 0.3, 0.77, 0.999999, 1.0}) {
            const long i = draw_row(x.data(), n, by, share);
            const double before = i ? reached[i - 1] : 0;  // within float32's rounding of a sum
            if (x[i] == -INFINITY || before > share * all + 1e-5 * all || reached[i] < share * all - 1e-5 * all)
                printf("a draw at %g of %ld: %ld\n", share, n, i), failures++;
        }
        std::vector<int32_t> order(n), first(n);
        for (long i = 0; i < n; i++) order[i] = (int32_t)i;
        std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return x[a] > x[b]; });
        for (long count : {1L, std::min(n, 20L), n})
            if (largest_of(x.data(), n, count, first.data()) != count || !std::equal(first.begin(), first.begin() + count, order.begin()))
                printf("the %ld largest of %ld\n", count, n), failures++;
    }
}

// One weight matrix of random blocks, as a file has it.
static std::vector<uint8_t> stored_matrix(int format, int rows, int cols) {
    const size_t bytes = format == F32 ? 4 * cols : format == BF16 ? 2 * cols : with_blocks(format, [&](auto b) { return (size_t)(cols / BLOCK * b.stored); });
    std::vector<uint8_t> data(rows * bytes);
    for (int r = 0; r < rows; r++) {
        uint8_t* row = data.data() + r * bytes;
        if (format <= BF16) {
            for (int k = 0; k < cols; k++) {
                const float x = random_number();
                const uint16_t h = to_bf16_value(x);
                format == F32 ? memcpy(row + 4 * k, &x, 4) : memcpy(row + 2 * k, &h, 2);
            }
            continue;
        }
        for (size_t i = 0; i < bytes; i++) row[i] = (uint8_t)generator();
        with_blocks(format, [&](auto b) {
            for (int block = 0; block < cols / BLOCK; block++) {
                const uint16_t scale = 0x2c00 + generator() % 0x400;  // a half about 1/16
                memcpy(row + block * b.stored, &scale, 2);
                if (b.minima) memcpy(row + block * b.stored + 2, &scale, 2);
            }
        });
    }
    return data;
}

static void products() {
    for (int format = F32; format <= Q4_1; format++)
        for (int cols : {32, 96, 160, 256, 45})
            for (int count : {1, 2, 3, 5, 8, 11, 30, 70})
                for (int exact = 0; exact < 2; exact++) {
                    if (cols % BLOCK && format >= Q8_0) continue;
                    const int outputs = 70;
                    const auto source = stored_matrix(format, outputs, cols);
                    Buffer<uint8_t> packed(static_cast<uint8_t*>(allocate((outputs + UNIT - 1) / UNIT * unit_bytes(format, cols) + FAR_PREFETCH_BYTES)));
                    const auto bias = random_numbers(96);
                    const Matrix m{format, outputs, cols, exact, packed.get(), bias.data()};
                    for (int u = 0; u < m.units(); u++) pack_unit(m, u, source.data(), packed.get() + u * m.unit_bytes());
                    const Segments all{{0, count, count >= PROMPT_TOKENS}};
                    RowBuffers in;
                    in.make(count, cols);
                    for (int r = 0; r < count; r++) {
                        for (int k = 0; k < cols; k++) in.rows.at(r)[k] = random_number();
                        ForwardPass::Reads({&m}, all).row(in.rows, r);
                    }
                    std::vector<float> found(count * outputs), right(count * outputs), row(cols);
                    std::vector<float> again(found.size());
                    Matrix stored = m;
                    stored.data = source.data(), stored.stored = 1;
                    for (int u = 0; u < m.units(); u++)
                        for (std::vector<float>* to : {&found, &again})
                            unit_products(to == &found ? m : stored, u, in.rows, all, [&](int first, int n, float(*y)[UNIT]) {
                                for (int r = 0; r < n; r++)
                                    for (int i = 0; i < UNIT && u * UNIT + i < outputs; i++) (*to)[(first + r) * outputs + u * UNIT + i] = y[r][i];
                            });
                    compare("product of rows as a file has them", again.data(), found.data(), found.size(), 0);
                    Rescaled rescaled;
                    const bool once_more = all[0].prompt && rescales(m);
                    for (int o = 0; o < outputs; o++) {
                        unpack_row(m, o, row.data());
                        if (once_more) {
                            if (o % UNIT == 0) rescaled.fill(m, o / UNIT);
                            const float scale = rescaled.scale[o % UNIT];
                            for (int k = 0; k < cols; k++) {
                                const int byte = rescaled.quants[k / 4 * 128 + o % UNIT * 4 + k % 4];
                                const float rounded = (byte - 128) * scale;
                                failures += std::fabs(rounded - row[k]) > 0.501f * scale;
                                row[k] = rounded;
                            }
                        }
                        for (int r = 0; r < count; r++) {
                            double total = bias[o];
                            for (int k = 0; k < cols; k++) {
                                const Rows& x = in.rows;
                                const float seen = all[0].prompt && narrows(m) ? bf16_value(x.narrow[r * x.stride + k])
                                                   : m.rounds()         ? x.q[r * x.stride + k] * x.scales[r * x.blocks() + k / BLOCK].scale
                                                                        : x.at(r)[k];
                                total += (double)seen * row[k];
                            }
                            right[r * outputs + o] = (float)total;
                        }
                    }
                    compare("product", found.data(), right.data(), found.size(), 3e-6);
                }
}

template <class T>
static void squares() {
    const long M = 64, N = 96, K = 64;
    std::vector<T> left(M * K), right(K * N), panels(K * N), tiles(M * K), turned(K * N), again(K * N);
    for (T& x : left) put_one(&x, random_number());
    for (T& x : right) put_one(&x, random_number());
    to_panels(right.data(), N, K, N, panels.data(), K, 0);
    for (long k = 0; k < K; k++)
        for (long n = 0; n < N; n++) turned[n * K + k] = right[k * N + n];
    transpose_to_panels(turned.data(), K, N, K, again.data());
    failures += memcmp(panels.data(), again.data(), panels.size() * sizeof(T)) != 0;
    std::vector<T> down(K * M);
    for (long m = 0; m < M; m++)
        for (long k = 0; k < K; k++) down[k * M + m] = left[m * K + k];
    to_tiles(down.data(), M, K, M, tiles.data(), K, 0);
    const Tiles on(arithmetic<T>().tiles);
    auto value = [](const T& x) { return sizeof(T) == 4 ? load<float>(&x) : bf16_value(load<uint16_t>(&x)); };
    std::vector<float> truth(M * N);
    for (long m = 0; m < M; m++)
        for (long n = 0; n < N; n++) {
            double total = 0;
            for (long k = 0; k < K; k++) total += (double)value(left[m * K + k]) * value(right[k * N + n]);
            truth[m * N + n] = (float)total;
        }
    for (int way = 0; way < 2; way++) {
        std::vector<float> found(M * N);
        auto take = [&](long m, long n, const float* c) {
            for (long i = 0; i < UNIT; i++) memcpy(&found[(m + i) * N + n], c + i * UNIT, UNIT * 4);
        };
        const auto a = way ? Left<T>::tiles(tiles.data(), K) : Left<T>::rows(left.data(), K);
        product(M, N, K, a, Right<T>::panels(panels.data(), K), take);
        compare(way ? "product of tiles" : "product of rows", found.data(), truth.data(), truth.size(), 3e-6);
        float c[UNIT * UNIT];
        multiply_plainly(a, Right<T>::panels(panels.data(), K), K, c);
        for (long i = 0; i < UNIT; i++) compare("plain product", c + i * UNIT, &truth[i * N], UNIT, 2e-5);
    }
}

template <class E, bool NARROW = false>
static void attention(int d_head, int window, float softcap, int chunk = 0, float slope = 0, float sink = -INFINITY) {
    const int width = (int)round_up(d_head, 16), length = 600, capacity = (int)round_up(length, 32);
    std::vector<E> keys(capacity * width), values(capacity * width);
    std::vector<float> k = random_numbers(length * d_head), v = random_numbers(length * d_head), scales(2 * capacity);
    for (int p = 0; p < length; p++) {
        float *key = &k[p * d_head], *value = &v[p * d_head];
        E *to_key = &keys[(p / 16 * width) * 16 + p % 16], *to_value = &values[p * width];
        if constexpr (sizeof(E) == 1) {
            scales[p] = put_bytes(key, d_head, to_key, 16), scales[capacity + p] = put_bytes(value, d_head, to_value, 1);
            const float step[2] = {scales[p], scales[capacity + p]};
            for (int i = 0; i < d_head; i++) {
                failures += std::fabs(key[i] - to_key[i * 16] * step[0]) > 0.5001f * step[0];
                failures += std::fabs(value[i] - to_value[i] * step[1]) > 0.5001f * step[1];
                key[i] = to_key[i * 16] * step[0], value[i] = to_value[i] * step[1];
            }
        } else
            for (int i = 0; i < d_head; i++) {
                put_one(to_key + i * 16, key[i]), put_one(to_value + i, value[i]);
                key[i] = sizeof(E) == 4 ? key[i] : bf16_value(load<uint16_t>(to_key + i * 16));
                value[i] = sizeof(E) == 4 ? value[i] : bf16_value(load<uint16_t>(to_value + i));
            }
    }
    const std::vector<float> slopes(40, slope);
    const Head<E> head{keys.data(), values.data(), width, d_head, width, window, chunk, 0.3f, softcap, slopes.data(), keys.data(), scales.data(), &scales[capacity]};
    auto scratch = std::make_unique<PrefillScratch>();
    for (int count : {1, 3, 4, 11, 40}) {
        const auto q = random_numbers(count * d_head);
        std::vector<float> part(count * 2 * head.partial()), out(count * d_head), right(count * d_head);
        std::vector<const float*> rows(count);
        std::vector<float*> to(count);
        std::vector<int> position(count);
        const bool narrow = NARROW && count == 40;
        for (int c = 0; c < count; c++) rows[c] = &q[c * d_head], position[c] = length - count + c;
        for (int span = 0; span < 2; span++) {
            for (int c = 0; c < count; c++) to[c] = &part[(c * 2 + span) * head.partial()];
            if constexpr (NARROW)
                if (narrow) {
                    attend_narrow(head, rows.data(), position.data(), count, span, to.data(), *scratch);
                    continue;
                }
            if (count > 4)
                attend_prefill(head, rows.data(), position.data(), count, span, to.data(), *scratch);
            else
                attend(head, rows.data(), position.data(), count, span, to.data());
        }
        for (int c = 0; c < count; c++) {
            merge(&part[c * 2 * head.partial()], head.partial(), 2, width, d_head, sink, &out[c * d_head]);
            std::vector<double> score(position[c] + 1);
            double total = std::exp((double)sink);
            for (int p = head.first_seen(position[c]); p <= position[c]; p++) {
                for (int i = 0; i < d_head; i++) score[p] += (double)q[c * d_head + i] * k[p * d_head + i] * 0.3;
                score[p] = (softcap > 0 ? softcap * std::tanh(score[p] / softcap) : score[p]) - slope * (position[c] - p);
                total += score[p] = std::exp(score[p]);
            }
            for (int p = head.first_seen(position[c]); p <= position[c]; p++)
                for (int i = 0; i < d_head; i++) right[c * d_head + i] += (float)(score[p] / total * v[p * d_head + i]);
        }
        compare("attention", out.data(), right.data(), out.size(), narrow ? 1e-2 : 2e-5);
    }
}

// Rounds of Newton-Schulz, wide and square: each by the products that its line names.
static void rounds(long rows, long columns) {
    const float rules[4][3] = {{7.9562f, -22.3396f, 15.8638f}, {3.6048f, -2.5963f, 0.4906f}, {2.6866f, -1.9337f, 0.4215f}, {1.5f, -0.5f, 0}};
    std::vector<float> x = random_numbers(rows * columns), truth(x.size()), next(x.size());
    for (float& v : x) v /= std::sqrt((float)rows * columns);
    std::vector<double> now(x.begin(), x.end());
    for (auto& rule : rules) {
        std::vector<double> gram(rows * rows), then(now.size());
        for (long i = 0; i < rows; i++)
            for (long j = 0; j < rows; j++)
                for (long k = 0; k < columns; k++) gram[i * rows + j] += now[i * columns + k] * now[j * columns + k];
        for (long i = 0; i < rows; i++)
            for (long j = 0; j < rows; j++) {
                double factor = rule[1] * gram[i * rows + j] + (i == j ? rule[0] : 0);
                for (long k = 0; k < rows; k++) factor += rule[2] * gram[i * rows + k] * gram[k * rows + j];
                for (long k = 0; k < columns; k++) then[i * columns + k] += factor * now[j * columns + k];
            }
        now = then;
    }
    for (size_t i = 0; i < truth.size(); i++) truth[i] = (float)now[i];
    Arena counted;
    OrthogonalScratch<float> scratch;
    scratch.lay_out(counted, rows * rows, rows * columns);
    Scratch memory;
    memory.clear(counted.used);
    Arena arena{memory.at()};
    scratch.lay_out(arena, rows * rows, rows * columns);
    float *from = x.data(), *to = next.data();
    orthogonalise(rows, columns, rules, 4, from, to, scratch);
    compare("rounds of Newton-Schulz", from, truth.data(), truth.size(), 1e-4);
}

static void threads() {
    Pool pool(3);
    for (int round = 0; round < 50; round++) {
        Phases phases(2, 3);
        std::vector<std::atomic<int>> done(101), second(7);
        phases.reset();
        pool.run([&] {
            Prefetcher prefetcher;
            phases.share(0, 101, 1 + round % 5, Pool::me(), prefetcher, [&](int i) { done[i]++; });
            for (auto& d : done) failures += d != 1;  // a phase is over for all or for none
            phases.share(1, 7, 1, Pool::me(), prefetcher, [&](int i) { second[i]++; });
        });
        for (auto& d : second) failures += d != 1;
    }
}

int main() {
    functions();
    conversions();
    rows();
    choices();
    products();
    squares<float>();
    squares<uint16_t>();
    for (int d_head : {16, 40, 64, 96})
        for (int window : {0, 50})
            attention<float>(d_head, window, window ? 5.f : 0.f), attention<uint16_t>(d_head, window, 0.f), attention<uint16_t, true>(d_head, window, 0.f), attention<int8_t>(d_head, window, 0.f);
    attention<float>(40, 0, 0.f, 90, 0.1f, 2.f), attention<uint16_t, true>(64, 0, 0.f, 90, 0.1f, 2.f);
    rounds(64, 160), rounds(64, 64);
    threads();
    printf(failures ? "%d differ\n" : "all as the naive loops have it\n", failures);
    return failures != 0;
}
