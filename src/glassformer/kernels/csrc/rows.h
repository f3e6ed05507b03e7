// Rows of activations, and what is done to each of them: norm, rotation, rounding to 8 bits or to bfloat16.
#pragma once

#include <vector>

#include "amx.h"
#include "arena.h"
#include "math.h"
#include "panel.h"

constexpr int ROWS_PER_PASS = 8;        // activation rows that share one reading of the weights

// out = x over its root mean square (about its mean, with `centred`), times weight + plus, plus bias; n numbers. Returns
// the mean and what was multiplied by.
struct NormParts {
    float mean, inverse;
};
template <class In, class W, class Out>
GF_INLINE NormParts norm_row(const In* x, long n, const W* weight, float plus, const W* bias, float eps, bool centred, Out* out) {
    F16 total = splat(0.f), square = splat(0.f);
    float mean = 0;
    if (centred) {
        for (long i = 0; i < n; i += 16) total += get(x + i, n - i);
        mean = sum(total) / n;
    }
    for (long i = 0; i < n; i += 16) {
        F16 d = get(x + i, n - i) - splat(mean);
        if (centred && n - i < 16) d = select(lanes() < splat_int((int)(n - i)), d, splat(0.f));
        square += d * d;
    }
    const float inverse = 1.f / sqrtf(sum(square) / n + eps);
    for (long i = 0; i < n; i += 16) {
        F16 y = (get(x + i, n - i) - splat(mean)) * splat(inverse) * (get(weight + i, n - i) + splat(plus));
        put(out + i, bias ? y + get(bias + i, n - i) : y, n - i);
    }
    return {mean, inverse};
}

// Turns pairs (i, i + pairs) by angles; `sign` -1 turns back. In place where to == from.
template <class In, class Out>
GF_INLINE void rotate_row(const In* from, const float* cosine, const float* sine, long pairs, Out* to, float sign = 1.f) {
    for (long i = 0; i < pairs; i += 16) {
        const long n = pairs - i;
        F16 a = get(from + i, n), b = get(from + pairs + i, n), c = get(cosine + i, n), s = get(sine + i, n) * splat(sign);
        put(to + i, a * c - b * s, n);
        put(to + pairs + i, b * c + a * s, n);
    }
}

// What a product needs to know of 32 quantised activations beside the quants themselves.
struct Scale {
    float scale;         // of the quants
    float total;         // scale * sum of the quants: what a weight block's minimum is multiplied by
    int32_t less8;       // -8 * sum of the quants, for weights stored with 8 added,
    int32_t less128;     // and with 128 added
};

// Rows of activations: float32, and beside them bfloat16, or 8-bit quants with one scale per 32 inputs.
struct Rows {
    int stride = 0;  // of one row, in inputs: a multiple of 64, zero beyond the last
    float* x = nullptr;           // (row, stride)
    uint16_t* narrow = nullptr;   // (row, stride) in bfloat16
    int8_t* q = nullptr;          // (row, stride)
    Scale* scales = nullptr;  // (row, block)
    float* across = nullptr;  // (row / 16, block, 2, 16): scales and totals of sixteen rows side by side

    int blocks() const { return stride / BLOCK; }
    float* at(int row) const { return x + (size_t)row * stride; }
    // The same from a row on: of tiles, from a whole one.
    Rows from(int row) const {
        const size_t at = (size_t)row * stride;
        return {stride, x + at, narrow + at, q + at, scales + (size_t)row * blocks(), across + (size_t)(row / LANES) * blocks() * 32};
    }

    void quantise(int row, int block, const float* from) const {
        int8_t* to = q + (size_t)row * stride + block * BLOCK;
        F16 a = load<F16>(from), c = load<F16>(from + 16);
        float top = peak(largest(magnitude(a), magnitude(c))), scale = top / 127.f;
        F16 inverse = splat(top > 0 ? 127.f / top : 0.f);
        I16 i = nearest(a * inverse), j = nearest(c * inverse);
        store(to, __builtin_convertvector(i, S16));
        store(to + 16, __builtin_convertvector(j, S16));
        int32_t total = sum(i + j);
        scales[(size_t)row * blocks() + block] = Scale{scale, scale * (float)total, -8 * total, -128 * total};
#if defined(GF_AMX_INT8)
        float* side = across + ((size_t)(row / 16) * blocks() + block) * 32 + row % 16;
        side[0] = scale, side[16] = scale * (float)total;
#endif
    }

    void quantise(int row) const {
        for (int b = 0; b < blocks(); b++) quantise(row, b, at(row) + b * BLOCK);
    }

    // 32 inputs in bfloat16.
    void narrow_block(int row, int block, const float* from) const {
        uint16_t* to = narrow + (size_t)row * stride + block * BLOCK;
        put(to, load<F16>(from)), put(to + 16, load<F16>(from + 16));
    }
    void narrow_row(int row) const {
        for (int b = 0; b < blocks(); b++) narrow_block(row, b, at(row) + b * BLOCK);
    }
};

// Rows with their memory, all zero.
struct RowBuffers {
    Buffer<float> x;
    Buffer<uint16_t> narrow;
    Buffer<int8_t> q;
    Buffer<Scale> scales;
    Buffer<float> across;
    Rows rows;

    bool make(int count, int cols) {
        rows.stride = (int)round_up(cols, 64);
        size_t n = (size_t)round_up(count, UNIT) * rows.stride;  // products take 32 rows, though some be nobody's
        x = zeros<float>(n), narrow = zeros<uint16_t>(n), q = zeros<int8_t>(n);
        scales = zeros<Scale>(n / BLOCK), across = zeros<float>(n / BLOCK * 2);
        rows.x = x.get(), rows.narrow = narrow.get(), rows.q = q.get(), rows.scales = scales.get();
        rows.across = across.get();
        return x && narrow && q && scales && across;
    }
};

// Rows of one kind that lie together: tokens of a prompt, of which at least PROMPT_TOKENS came at once, or others. What a
// token is depends on its own sequence only, so others in the batch do not change its numbers.
struct Segment {
    int first, count;
    bool prompt;
};
typedef std::vector<Segment> Segments;

// One more row.
static void append(Segments& to, int row, bool prompt) {
    if (to.empty() || to.back().prompt != prompt) to.push_back({row, 0, prompt});
    to.back().count++;
}
constexpr int PROMPT_TOKENS = 64;

static bool has_prompt(const Segments& segments) {
    for (const Segment& s : segments)
        if (s.prompt) return true;
    return false;
}
