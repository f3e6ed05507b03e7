// Products of rows of activations with a unit of weights, 32 outputs, by whichever kernel is quickest for so many rows.
//
// Every output is summed over the inputs in the same order however many rows share a product, so a token's numbers do
// not depend on what else was in its batch. Few rows: the weights are read once, and that is the time it takes. Many
// rows: what has to be done to the weights is done once for all of them. For float32 activations and for 8-bit ones the
// numbers are the same either way; but tokens of a long prompt meet bfloat16 weights that are not exact as bfloat16, and
// blocks that are not exact with one scale an output.
#pragma once

#include <new>

#include "gemm.h"
#include "products_few.h"
#include "products_prompt.h"
#include "products_stored.h"
#include "products_tiles.h"
#include "threads.h"

// From so many rows on: weights are unpacked for 8-bit tiles, of which from so many rows on one is used; blocks are
// written as float32 numbers; products are of bfloat16 activations.
constexpr int TILES_FROM = 25, TILE_FROM = 6, WRITE_FROM = 3 * ROWS_PER_PASS;

// Whether rows of a prompt meet this matrix in bfloat16.
GF_INLINE bool narrows(const Matrix& m) { return FAST_BF16 && m.data && !m.exact && m.format == BF16; }

// Takes products: first row, rows, results.
typedef Taking<int, int, float (*)[UNIT]> Taker;

// done(first row, rows, results) for some rows at a time, in order.
static void unit_products(const Matrix& given, int number, const Rows& in, const Segments& segments, Taker done) {
    alignas(64) float y[UNIT][UNIT];
    Matrix matrix = given;
    int unit = number;
    if (given.stored) {
#if defined(GF_VNNI)
        const bool one = segments.back().first + segments.back().count == 1, whole = given.rows - number * UNIT >= UNIT;
        if (one && whole && given.rounds() && given.format != Q8_0 && given.cols % (4 * BLOCK) == 0) {
            given.format == Q4_0 ? product_stored<Q4_0>(given, number, in, y[0]) : product_stored<Q4_1>(given, number, in, y[0]);
            add_bias(given, number, 1, y);
            return done(0, 1, y);
        }
#endif
        static thread_local Scratch packed;
        uint8_t* to = packed.get(given.unit_bytes() + FAR_PREFETCH_BYTES);
        if (!to) throw std::bad_alloc();
        pack_unit(given, number, given.data, to);
        matrix.data = to, matrix.rows = UNIT, unit = 0;
        if (given.bias) matrix.bias += number * UNIT;
    }
    // Rows of prompts `most` at a time by way(row), the others as ever.
    auto prompts_apart = [&](int most, auto way) {
        for (const Segment& s : segments)
            for (int r = s.first, end = s.first + s.count, c; r < end; r += c) {
                c = s.prompt ? most : ROWS_PER_PASS;
                c = end - r < c ? end - r : c;
                s.prompt ? way(r) : few_rows(matrix, unit, in, r, c, y);
                add_bias(matrix, unit, c, y);
                done(r, c, y);
            }
    };
    if (narrows(matrix)) {
        const Arithmetic<uint16_t>& way = arithmetic<uint16_t>();
        const Tiles tiles(way.tiles);
        const long K = round_up(matrix.cols, 32);
        const auto panels = Right<uint16_t>::panels((const uint16_t*)matrix.unit(unit), K);
        return prompts_apart(UNIT, [&](int r) {
            way.multiply(Left<uint16_t>::rows(in.narrow + (size_t)r * in.stride, in.stride), panels, K, y[0]);
        });
    }
    if (rescales(matrix) && has_prompt(segments)) {
        static thread_local Rescaled rescaled;
        if (!rescaled.fill(matrix, unit)) throw std::bad_alloc();
        // meanwhile the next unit is asked for, a line or two at a time
        const uint8_t *next = matrix.unit(unit + 1), *end = next + (unit + 1 < matrix.units() ? matrix.unit_bytes() : 0);
        const int lines = 1 + (int)(matrix.unit_bytes() / 64) * ROWS_PER_PASS / (segments.back().first + segments.back().count);
        return prompts_apart(ROWS_PER_PASS, [&](int r) {
            for (int i = 0; i < lines && next < end; i++, next += 64) __builtin_prefetch(next, 0, 2);
            product_rescaled(rescaled, matrix.cols, in, r, y);
        });
    }
    const int rows = segments.empty() ? 0 : segments.back().first + segments.back().count;
    int r = 0, from = unit;
    Matrix read = matrix;
#if defined(GF_AMX_INT8)
    static thread_local Unpacked unpacked;
    if (matrix.rounds() && rows >= TILES_FROM && tiles_there() && unpacked.fill(matrix, unit)) {
        const Tiles tiles(TileUse::BYTES);
        for (; rows - r >= TILE_FROM; r += 16) {
            int c = rows - r < 16 ? rows - r : 16;
            matrix.format == Q4_1 ? product_tiles<true>(unpacked, in, r, y) : product_tiles<false>(unpacked, in, r, y);
            add_bias(matrix, unit, c, y);
            done(r, c, y);
        }
    }
#endif
    if (matrix.format >= Q8_0 && matrix.exact && rows >= WRITE_FROM) {
        static thread_local Scratch numbers;
        if (uint8_t* floats = numbers.get((size_t)matrix.cols * UNIT * sizeof(float))) {
            dequantise_unit(matrix, unit, reinterpret_cast<float*>(floats));
            read = Matrix{F32, UNIT, matrix.cols, 1, floats, nullptr}, from = 0;
        }
    }
    for (; r < rows; r += ROWS_PER_PASS) {
        int c = rows - r < ROWS_PER_PASS ? rows - r : ROWS_PER_PASS;
        few_rows(read, from, in, r, c, y);
        add_bias(matrix, unit, c, y);
        done(r, c, y);
    }
}
