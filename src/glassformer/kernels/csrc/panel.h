// The one order that matrices are packed in, for every number format.
//
// A panel holds sixteen outputs (rows of a weight, columns of a product): lines of 64 bytes, each with the same inputs of
// all sixteen, so that sums never cross lanes. How many inputs a line has is the format's trait:
//
//   F32   one input       (line, 16) float
//   BF16  two inputs      (line, 16, 2) bfloat16
//   Q8_0, Q4_0, Q4_1      GGUF's blocks of 32 inputs: all quants (block, line, 16, 4 bytes), then all scales as stored,
//                         in half precision (block, 16), for Q4_1 with the minima after them (block, 2, 16). Q8_0's
//                         signed bytes have 128 added, because the dot product wants unsigned; of 4-bit quants a byte
//                         holds inputs i and i + 16.
//
// A unit is two panels, 32 outputs: one contiguous piece of memory whose panels are read side by side, as two streams
// are quicker than one. Training keeps panels of one matrix in one buffer, without units.
#pragma once

#include "convert.h"

constexpr int LANES = 16;   // outputs of a panel
constexpr int UNIT = 32;    // outputs of a unit; rows and columns of a product's square
constexpr int BLOCK = 32;   // inputs that share a scale

enum Format { F32 = 0, BF16 = 1, Q8_0 = 2, Q4_0 = 3, Q4_1 = 4 };

template <int FORMAT>
struct Blocks;  // of one panel: bytes of quants and of scales, of a row's block in a file; what is added to quants
template <>
struct Blocks<Q8_0> {
    static constexpr int quants = 512, scales = 32, stored = 34, offset = 128;
    static constexpr bool minima = false;
};
template <>
struct Blocks<Q4_0> {
    static constexpr int quants = 256, scales = 32, stored = 18, offset = 8;
    static constexpr bool minima = false;
};
template <>
struct Blocks<Q4_1> {
    static constexpr int quants = 256, scales = 64, stored = 20, offset = 0;
    static constexpr bool minima = true;
};

// f(Blocks<FORMAT>) for a format that is known when the program runs.
template <class F>
GF_INLINE auto with_blocks(int format, F f) {
    return format == Q8_0 ? f(Blocks<Q8_0>()) : format == Q4_0 ? f(Blocks<Q4_0>()) : f(Blocks<Q4_1>());
}

GF_INLINE size_t panel_bytes(int format, int cols) {
    if (format == F32) return (size_t)cols * 64;
    if (format == BF16) return (size_t)round_up(cols, 32) * 32;  // whole tiles, padded with zeros
    return with_blocks(format, [&](auto b) {
        size_t blocks = cols / BLOCK;
        return blocks * b.quants + round_up(blocks * b.scales, 64);
    });
}

GF_INLINE size_t unit_bytes(int format, int cols) { return 2 * panel_bytes(format, cols); }

struct Matrix {
    int32_t format, rows, cols;
    int32_t exact;        // meets float32 activations, as the float32 numbers it stands for
    const uint8_t* data;  // (unit, panel, ...); null: absent
    const float* bias;    // (rows padded to whole units), or null
    int32_t stored = 0;   // rows lie as a file has them, perhaps in it: a unit is packed when it is read
    const uint8_t* after = nullptr;  // what is read after the last unit of stored rows, if that is known

    int units() const { return data ? (rows + UNIT - 1) / UNIT : 0; }
    bool rounds() const { return data && format >= Q8_0 && !exact; }  // activations to 8 bits
    size_t unit_bytes() const { return ::unit_bytes(format, cols); }
    const uint8_t* unit(int i) const { return data + (size_t)i * unit_bytes(); }
};

// Bytes of one row as a file has it: floats, bfloat16 bits, or GGUF blocks.
GF_INLINE size_t row_bytes(int format, int cols) {
    if (format <= BF16) return (size_t)cols * (format == F32 ? 4 : 2);
    return with_blocks(format, [&](auto b) { return (size_t)(cols / BLOCK * b.stored); });
}

// Sixteen words of four bytes of a row of `bytes` bytes, from word `at` on: a line's share each. Zero beyond the end.
GF_INLINE I16 words_of(const uint8_t* row, size_t bytes, size_t at) {
    I16 v = splat_int(0);
    if (at * 4 < bytes) memcpy(&v, row + at * 4, bytes - at * 4 < 64 ? bytes - at * 4 : 64);
    return v;
}
template <class B>
GF_INLINE I16 words_of(B b, const uint8_t* row, size_t bytes, size_t at) {
    constexpr int SIZE = b.quants / LANES, AT_ONCE = 64 / SIZE;  // bytes of a block's quants; blocks of a register
    const uint8_t* from = row + at * 4 / SIZE * b.stored + b.stored - SIZE;
    I16 v = splat_int(0);
    if (from + (AT_ONCE - 1) * b.stored + SIZE > row + bytes) {  // fewer blocks than that are left
        for (int i = 0; i < AT_ONCE && from + i * b.stored < row + bytes; i++) memcpy((char*)&v + i * SIZE, from + i * b.stored, SIZE);
    } else {
#if defined(GF_VNNI)
        __m512i w;
        if constexpr (SIZE == 16) {
            w = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i*)from));
            w = _mm512_inserti32x4(w, _mm_loadu_si128((const __m128i*)(from + b.stored)), 1);
            w = _mm512_inserti32x4(w, _mm_loadu_si128((const __m128i*)(from + 2 * b.stored)), 2);
            w = _mm512_inserti32x4(w, _mm_loadu_si128((const __m128i*)(from + 3 * b.stored)), 3);
        } else {
            w = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i*)from));
            w = _mm512_inserti64x4(w, _mm256_loadu_si256((const __m256i*)(from + b.stored)), 1);
        }
        v = (I16)w;
#else
        for (int i = 0; i < AT_ONCE; i++) memcpy((char*)&v + i * SIZE, from + i * b.stored, SIZE);
#endif
    }
    return b.offset == 128 ? v ^ splat_int((int32_t)0x80808080) : v;
}

// One unit from rows as a file has them. Rows beyond the last are 0. Asks for the same of the next unit.
static void pack_unit(const Matrix& m, int unit, const uint8_t* source, uint8_t* out) {
    const size_t bytes = row_bytes(m.format, m.cols), panel = panel_bytes(m.format, m.cols);
    for (int p = 0; p < 2; p++, out += panel) {
        const size_t first = (size_t)unit * UNIT + p * LANES;
        const int rows = (size_t)m.rows <= first ? 0 : (size_t)m.rows - first < LANES ? (int)(m.rows - first) : LANES;
        const uint8_t* from = source + first * bytes;
        if (rows < LANES) memset(out, 0, panel);
        auto lines = [&](size_t size, auto read) {  // so many bytes of them
            for (size_t at = 0; at < size / 4; at += LANES) {
                I16 square[LANES];
                const size_t ahead = UNIT * bytes + at * 4 * bytes / size;
                for (int r = 0; r < rows; r++) {
                    square[r] = read(from + r * bytes, at);
                    __builtin_prefetch(from + r * bytes + ahead, 0, 2);
                }
                for (int r = rows; r < LANES; r++) square[r] = splat_int(0);
                transpose(square);
                for (size_t i = 0; i < LANES && (at + i) * 64 < size * 16; i++) store(out + (at + i) * 64, square[i]);
            }
        };
        if (m.format <= BF16) {
            lines(panel / 16, [&](const uint8_t* row, size_t at) { return words_of(row, bytes, at); });
            continue;
        }
        with_blocks(m.format, [&](auto b) {
            const size_t blocks = m.cols / BLOCK, quants = blocks * b.quants;
            lines(quants / 16, [&](const uint8_t* row, size_t at) { return words_of(b, row, bytes, at); });
            for (size_t i = 0; i < blocks; i++)
                for (int r = 0; r < rows; r++) {
                    const uint8_t* block = from + r * bytes + i * b.stored;
                    memcpy(out + quants + i * b.scales + r * 2, block, 2);
                    if (b.minima) memcpy(out + quants + i * b.scales + 32 + r * 2, block + 2, 2);
                }
        });
    }
}

// One row back as floats: how tokens are embedded, and how packing is tested.
static void unpack_row(const Matrix& m, int row, float* out) {
    const int lane = row % LANES;
    const uint8_t* panel = m.unit(row / UNIT) + row % UNIT / LANES * panel_bytes(m.format, m.cols);
    if (m.format == F32) {
        for (int k = 0; k < m.cols; k++) memcpy(out + k, panel + ((size_t)k * LANES + lane) * 4, 4);
    } else if (m.format == BF16) {
        for (int k = 0; k < m.cols; k++) {
            uint16_t h;
            memcpy(&h, panel + ((size_t)(k / 2) * LANES + lane) * 4 + k % 2 * 2, 2);
            out[k] = bf16_value(h);
        }
    } else {
        with_blocks(m.format, [&](auto b) {
            const int blocks = m.cols / BLOCK;
            const uint8_t* scales = panel + blocks * b.quants;
            for (int i = 0; i < blocks; i++, scales += b.scales, panel += b.quants) {
                uint16_t half, low = 0;
                memcpy(&half, scales + lane * 2, 2);
                if (b.minima) memcpy(&low, scales + 32 + lane * 2, 2);
                for (int k = 0; k < BLOCK; k++) {
                    const int at = b.quants == 512 ? k : k % 16, byte = panel[at / 4 * 64 + lane * 4 + at % 4];
                    const int q = b.quants == 512 ? byte : k < 16 ? byte & 15 : byte >> 4;
                    out[i * BLOCK + k] = half_value(half) * (q - b.offset) + half_value(low);
                }
            }
        });
    }
}

// Four inputs' quants of sixteen outputs, line i of eight, each an unsigned byte.
template <int FORMAT>
GF_INLINE B64 quants_of(const uint8_t* q, int i) {
    if (FORMAT == Q8_0) return load<B64>(q + i * 64);
    U16 pair = load<U16>(q + i % 4 * 64);
    return (B64)((i < 4 ? pair : pair >> 4) & 0x0f0f0f0fu);
}

// The same as numbers, one input at a time: done(input, sixteen numbers) in the inputs' order. `d` and `low`: what a
// quant is multiplied by, and what is added. A half-precision scale times 8 bits is exact in float32, so each weight is
// rounded once, by the addition, as when the block is dequantised.
template <int FORMAT, class F>
GF_INLINE void dequantise_block(const uint8_t* q, F16 d, F16 low, F done) {
    for (int i = 0; i < 8; i++) {
        U16 four = FORMAT == Q8_0 ? load<U16>(q + i * 64) : load<U16>(q + i % 4 * 64) >> (i < 4 ? 0 : 4);
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            U16 bits = four >> (8 * j);
            done(i * 4 + j, (FORMAT == Q8_0 ? __builtin_convertvector((I16)(bits & 0xffu), F16) : low_nibble(bits)) * d + low);
        }
    }
}

template <int FORMAT>
GF_INLINE F16 lowest(const uint8_t* scales, F16 d) {
    typedef Blocks<FORMAT> B;
    return B::minima ? halves(scales + 32) : d * splat(-(float)B::offset);
}

// A unit of blocks, written as a unit of float32 numbers.
static void dequantise_unit(const Matrix& m, int unit, float* out) {
    const int blocks = m.cols / BLOCK;
    with_blocks(m.format, [&](auto b) {
        constexpr int FORMAT = b.quants == 512 ? Q8_0 : b.minima ? Q4_1 : Q4_0;
        for (int p = 0; p < 2; p++) {
            const uint8_t* q = m.unit(unit) + p * panel_bytes(m.format, m.cols);
            const uint8_t* s = q + blocks * b.quants;
            for (int i = 0; i < blocks; i++, q += b.quants, s += b.scales, out += BLOCK * LANES) {
                const F16 d = halves(s);
                dequantise_block<FORMAT>(q, d, lowest<FORMAT>(s, d), [&](int k, F16 x) { store(out + k * LANES, x); });
            }
        }
    });
}

// What follows packs the operands of training's products: T is float or uint16_t (bfloat16); K numbers of every row.
template <class T>
constexpr int LINE = 4 / (int)sizeof(T);  // inputs of a line

// One line of a panel: sixteen columns of one row, or of two rows side by side.
GF_INLINE I16 line_of(const float* row, long) { return load<I16>(row); }
GF_INLINE I16 line_of(const uint16_t* row, long ld) {
#if defined(GF_VNNI)
    alignas(64) static const uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                   8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    __m512i both = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i*)row));
    both = _mm512_inserti64x4(both, _mm256_loadu_si256((const __m256i*)(row + ld)), 1);
    return (I16)_mm512_permutexvar_epi16(_mm512_load_si512(order), both);
#else
    return (I16)(widened(row) | (widened(row + ld) << 16));
#endif
}

// Row-major rows k (count of them, from k0 of K) become panels, in which columns are outputs.
template <class T>
GF_NOINLINE void to_panels(const T* rows, long ld, long count, long columns, T* out, long K, long k0) {
    for (long p = 0; p < columns / LANES; p++) {
        T* to = out + p * K * LANES + k0 * LANES;
        const T* from = rows + p * LANES;
        for (long k = 0; k < count; k += LINE<T>) store(to + k * LANES, line_of(from + k * ld, ld));
    }
}

// The same rows k become tiles, left operands whose k runs over tokens: in bfloat16 squares of 16 rows x 32 k, in
// float32 the same as panels.
template <class T>
GF_NOINLINE void to_tiles(const T* rows, long ld, long count, long columns, T* out, long K, long k0) {
    if constexpr (LINE<T> == 1) {
        to_panels(rows, ld, count, columns, out, K, k0);
    } else {
        for (long p = 0; p < columns / LANES; p++) {
            T* to = out + p * K * LANES + k0 * LANES;
            const T* from = rows + p * LANES;
            for (long k = 0; k < count; k += UNIT) {
                I16 square[LANES];
                for (int i = 0; i < LANES; i++) square[i] = line_of(from + (k + 2 * i) * ld, ld);
                transpose(square);
                for (int i = 0; i < LANES; i++) store(to + k * LANES + i * UNIT, square[i]);
            }
        }
    }
}

// Row-major (columns, K): every row becomes an output of a panel.
template <class T>
GF_NOINLINE void transpose_to_panels(const T* rows, long ld, long columns, long K, T* out) {
    for (long p = 0; p < columns / LANES; p++) {
        T* to = out + p * K * LANES;
        const T* from = rows + p * LANES * ld;
        for (long k = 0; k < K; k += LANES * LINE<T>) {
            I16 square[LANES];
            for (int i = 0; i < LANES; i++) square[i] = load<I16>(from + i * ld + k);
            transpose(square);
            for (int i = 0; i < LANES; i++) store(to + k * LANES + i * LANES * LINE<T>, square[i]);
        }
    }
}
