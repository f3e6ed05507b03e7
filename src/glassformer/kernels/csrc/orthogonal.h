// Newton-Schulz: a matrix's singular values pushed towards 1, by products with its own Gram matrix (glassformer/train/
// optimizer.py, whose docstrings name the papers).
//
// All rounds are polynomials of one small matrix, x xT, which are symmetric and commute. So half of most products is
// enough, and the first rounds of a wide matrix can be taken together.
#pragma once

#include "gemm.h"

// Each round multiplies what rounding has put into the Gram matrix by a^2: before that is so much, rounds go one by one.
constexpr float CARRIED = 1000;
constexpr int WIDE = 2;  // from this ratio of columns to rows on, rounds taken together are fewer products

// A product that is symmetric, `value(at, sums)` of it: what stands below the diagonal is computed, and kept on both sides.
template <class T, class F>
GF_INLINE void symmetric(long n, long depth, Left<T> left, Right<T> right, T* out, F value) {
    product<true>(n, n, depth, left, right, [&](long r, long k, const float* c) {
        for (long i = 0; i < UNIT; i += LANES)
            for (long j = 0; j < UNIT; j += LANES) {
                I16 part[LANES];
                for (long l = 0; l < LANES; l++) {
                    const long at = (r + i + l) * n + k + j;
                    const F16 x = value(at, load<F16>(c + (i + l) * UNIT + j));
                    put(out + at, x), part[l] = (I16)x;
                }
                if (k == r) continue;
                transpose(part);
                for (long l = 0; l < LANES; l++) put(out + (k + j + l) * n + r + i, (F16)part[l]);
            }
    });
}

// The working memory of one matrix of `small` by `large`.
template <class T>
struct OrthogonalScratch {
    T *panels, *gram, *factor, *all, *spare;

    void lay_out(Arena& a, long square, long matrix) {
        panels = a.take<T>(matrix > square ? matrix : square);
        for (T** p : {&gram, &factor, &all, &spare}) *p = a.take<T>(square);
    }
};

// out = add(at) + a * b, which is symmetric, as is b; `add` of the entry at `at`.
template <class T, class F>
static void commuting(long n, const T* a, const T* b, T* panels, T* out, F add) {
    to_panels(b, n, n, n, panels, n, 0);
    symmetric(n, n, Left<T>::rows(a, n), Right<T>::panels(panels, n), out, [&](long at, F16 v) { return add(at) + v; });
}

// out (n, columns) = add(at) + a * b, b (n, columns).
template <class T, class F>
static void whole(long n, long columns, const T* a, const T* b, T* panels, T* out, F add) {
    to_panels(b, columns, n, columns, panels, n, 0);
    product(n, columns, n, Left<T>::rows(a, n), Right<T>::panels(panels, n), [&](long r, long k, const float* c) {
        for (long i = 0; i < UNIT; i++)
            for (long j = 0; j < UNIT; j += LANES) {
                const long at = (r + i) * columns + k + j;
                put(out + at, add(at) + load<F16>(c + i * UNIT + j));
            }
    });
}

// Rounds of x <- a x + b (x xT) x + c (x xT)^2 x, (a, b, c) of each in `rules`; x (small, large), its numbers after some
// rounds in `next`, with which it changes places. A multiple of the identity stands apart from what is rounded: `a` is
// large beside the entries that it would be added to.
template <class T>
static void orthogonalise(long small, long large, const float (*rules)[3], int rounds, T*& x, T*& next, OrthogonalScratch<T>& s) {
    for (int first = 0, some; first < rounds; first += some) {
        float grown = 1.f, alone = 1.f;  // x becomes alone * x + all * x
        for (some = 1; !first && some < rounds && large >= WIDE * small; some++)
            if ((grown *= rules[some - 1][0] * rules[some - 1][0]) > CARRIED) break;
        transpose_to_panels(x, large, small, large, s.panels);
        symmetric(small, large, Left<T>::rows(x, large), Right<T>::panels(s.panels, large), s.gram, [](long, F16 v) { return v; });
        for (int i = 0; i < some; i++) {
            const F16 a = splat(rules[first + i][0]), b = splat(rules[first + i][1]), c = splat(rules[first + i][2]);
            T* factor = i ? s.factor : s.all;
            to_panels(s.gram, small, small, small, s.panels, small, 0);
            symmetric(small, small, Left<T>::rows(s.gram, small), Right<T>::panels(s.panels, small), factor,
                      [&](long at, F16 v) { return b * get(s.gram + at) + c * v; });
            if (i + 1 < some) {
                // (a + factor) gram (a + factor): the first product whole, as rounded matrices do not quite commute
                whole(small, small, factor, s.gram, s.panels, s.spare, [&](long at) { return a * get(s.gram + at); });
                commuting(small, s.spare, factor, s.panels, s.gram, [&](long at) { return a * get(s.spare + at); });
            }
            if (i) {
                commuting(small, factor, s.all, s.panels, s.spare,
                          [&](long at) { return splat(alone) * get(factor + at) + a * get(s.all + at); });
                std::swap(s.all, s.spare);
            }
            alone *= rules[first + i][0];
        }
        whole(small, large, s.all, x, s.panels, next, [&](long at) { return splat(alone) * get(x + at); });
        std::swap(x, next);
    }
}
