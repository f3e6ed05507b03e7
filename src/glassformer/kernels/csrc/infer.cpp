// A decoder-only transformer's forward pass over some tokens, each with its own sequence (slot) and
// position, in one call. Prefill is many tokens of one slot, decode one token of each slot; both are
// the same call and give each token the same numbers.
//
// It knows the shapes it is told and the buffers it is given; it does not know checkpoints,
// sampling or requests. Python owns weights and names; this library owns the cache and the threads.

#include "forward.h"

static std::mutex pool_use;  // one forward pass at a time in a process
static std::unique_ptr<Pool> pool;  // kept between passes

static Pool& team(int threads) {
    if (pool && !pool->alive()) (void)pool.release();  // a fork's child has none of the threads
    if (!pool || pool->size() != threads) {
        pool.reset();
        pool = std::make_unique<Pool>(threads);
    }
    return *pool;
}

#pragma GCC visibility push(default)
extern "C" {

int gf_sizes(int32_t* out, int room) { return sizes_of<Matrix, NormWeights, FeedWeights, RouterWeights, LayerWeights, ModelWeights, InferShape>(out, room); }

const char* gf_instructions() {
#if defined(GF_AMX_INT8)
    if (tiles_there()) return "AVX-512 VNNI, AMX";
#endif
#if defined(GF_VNNI)
    return "AVX-512 VNNI";
#elif defined(GF_AVX2)
    return "AVX2";
#else
    return "portable";
#endif
}

void* gf_allocate(size_t bytes) { return allocate(bytes); }
void gf_free(void* p) { release(p); }
size_t gf_matrix_bytes(int format, int rows, int cols) {
    return (size_t)((rows + UNIT - 1) / UNIT) * unit_bytes(format, cols);
}

void gf_pack(int format, int rows, int cols, const uint8_t* source, uint8_t* out, int threads) {
    Matrix m{format, rows, cols, 0, out, nullptr};
    std::lock_guard<std::mutex> hold(pool_use);
    std::atomic<int> next{0};
    team(threads).run([&] {
        for (int unit; (unit = next.fetch_add(1)) < m.units();) pack_unit(m, unit, source, out + unit * unit_bytes(format, cols));
    });
}

// Whether so many rows of a prompt meet a matrix in bfloat16; for tests.
int gf_narrows(const Matrix* m, int rows) { return narrows(*m) && rows >= PROMPT_TOKENS; }
// Whether they meet it with one scale an output.
int gf_rescales(const Matrix* m, int rows) { return rescales(*m) && rows >= PROMPT_TOKENS; }

void gf_unpack(const Matrix* m, int row, float* out) { unpack_row(*m, row, out); }

// out (count, rows) = x (count, cols) @ matrix, as the forward pass does it; for tests.
int gf_multiply(const Matrix* m, const float* x, int count, float* out) {
    RowBuffers in;
    if (!in.make(count, m->cols)) return 1;
    const Segments all{{0, count, count >= PROMPT_TOKENS}};
    for (int r = 0; r < count; r++) {
        memcpy(in.rows.x + (size_t)r * in.rows.stride, x + (size_t)r * m->cols, m->cols * sizeof(float));
        ForwardPass::Reads({m}, all).row(in.rows, r);
    }
    for (int unit = 0; unit < m->units(); unit++)
        unit_products(*m, unit, in.rows, all, [&](int first, int rows, float(*y)[UNIT]) {
            int n = m->rows - unit * UNIT;
            for (int i = 0; i < rows; i++)
                memcpy(out + (size_t)(first + i) * m->rows + unit * UNIT, y[i], (n < UNIT ? n : UNIT) * sizeof(float));
        });
    return 0;
}

// Reads `bytes` with all threads once and returns the seconds it took.
double gf_read(const uint8_t* data, size_t bytes, int threads) {
    std::lock_guard<std::mutex> hold(pool_use);
    std::atomic<size_t> next{0};
    std::atomic<int32_t> sink{0};
    const size_t piece = 1 << 18;
    auto start = std::chrono::steady_clock::now();
    team(threads).run([&] {
        I16 a = splat_int(0), b = a, c = a, d = a;
        for (size_t at; (at = next.fetch_add(piece)) + piece <= bytes;)
            for (size_t i = at; i < at + piece; i += 256) {
                a ^= load<I16>(data + i), b ^= load<I16>(data + i + 64);
                c ^= load<I16>(data + i + 128), d ^= load<I16>(data + i + 192);
            }
        sink.fetch_xor(sum(a ^ b ^ c ^ d));
    });
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void gf_destroy(Model* m) { delete m; }

Model* gf_create(const InferShape* shape, const ModelWeights* parts, const LayerWeights* layers) {
    auto m = std::make_unique<Model>();
    m->s = *shape;
    m->parts = *parts;
    m->layers.assign(layers, layers + shape->n_layers);
    return m->make() ? m.release() : nullptr;
}

// `count` tokens (at most InferShape::rows) enter the cache at (slot, position); logits (n_out, vocab) of
// the rows named in out_rows. Positions before a row's own must have been given before or with it.
int gf_forward(Model* m, int count, const int32_t* tokens, const int32_t* slots, const int32_t* positions, int n_out,
               const int32_t* out_rows, float* logits, int threads) {
    const InferShape& s = m->s;
    if (count < 1 || count > s.rows || n_out < 0 || n_out > s.rows) return 1;
    for (int r = 0; r < count; r++)
        if (tokens[r] < 0 || tokens[r] >= s.vocab || slots[r] < 0 || slots[r] >= s.slots || positions[r] < 0 ||
            positions[r] >= s.capacity)
            return 2;
    for (int i = 0; i < n_out; i++)
        if (out_rows[i] < 0 || out_rows[i] >= count) return 3;
    std::lock_guard<std::mutex> hold(pool_use);
    Batch batch{*m, count, tokens, slots, positions, n_out, out_rows, logits, {}, {}, {}};
    Pool& pool = team(threads);
    batch.make_groups(pool.size());
    if (!m->prepare(pool.size())) return 4;
    pool.run([&] { ForwardPass(batch, Pool::me()).go(); });
    return 0;
}

// The first `n` positions of one slot become another's.
void gf_copy(Model* m, int from, int to, int n) {
    m->pieces(to, n, [&](char* at, const char* whence, size_t bytes) { memcpy(at, whence, bytes); }, from);
}

// Bytes of the first `n` positions of a slot, which are written to `out` or read from `in` where one is not null.
size_t gf_prefix(Model* m, int slot, int n, char* out, const char* in) {
    size_t done = 0;
    m->pieces(slot, n, [&](char* at, const char*, size_t bytes) {
        if (out) memcpy(out + done, at, bytes);
        if (in) memcpy(at, in + done, bytes);
        done += bytes;
    }, slot);
    return done;
}

}  // extern "C"
