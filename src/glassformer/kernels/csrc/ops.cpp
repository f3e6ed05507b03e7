// The functions that Python calls; kernels/native.py says what each takes.
#include "attention_block.h"
#include "gemm.h"
#include "rows.h"

extern "C" {

// The sizes of the structures that Python hands over, in the order of its `Library`; returns how many.
int gf_sizes(int32_t* out, int room) {
    const size_t sizes[] = {sizeof(Attention)};
    const int n = sizeof sizes / sizeof *sizes;
    for (int i = 0; i < n && i < room; i++) out[i] = (int32_t)sizes[i];
    return n;
}

void gk_threads(void* region) { parallel_region = (Parallel)region; }

int gk_tiles() {
#ifdef GF_TILES
    return tiles_there();
#else
    return 0;
#endif
}

int gk_linear(
    const float* x, long rows, long depth, long stride, const float* w, const float* bias, long outputs, float* out,
    int threads) {
#ifdef GF_TILES
    return linear_f32(x, rows, depth, stride, w, bias, outputs, out, threads);
#else
    return 1;
#endif
}

int gk_attention(const Attention* a, const void* q, const void* k, const void* v, void* out, int threads) {
#ifdef GF_TILES
    return a->brain ? Attend<1>(*a, q, k, v, out).run(threads) : Attend<3>(*a, q, k, v, out).run(threads);
#else
    return 1;
#endif
}

void gk_rms_norm(
    const void* x, long rows, long d, const void* weight, float plus, float eps, void* out, int brain, int threads) {
    if (brain)
        rms_norm((const uint16_t*)x, rows, d, (const uint16_t*)weight, plus, eps, (uint16_t*)out, threads);
    else
        rms_norm((const float*)x, rows, d, (const float*)weight, plus, eps, (float*)out, threads);
}

void gk_gated(const void* gate, const void* up, long n, int kind, void* out, int brain, int threads) {
    if (brain)
        gated((const uint16_t*)gate, (const uint16_t*)up, n, kind, (uint16_t*)out, threads);
    else
        gated((const float*)gate, (const float*)up, n, kind, (float*)out, threads);
}

void gk_rotate(
    const void* x, long positions, long heads, long d, long stride, const float* cosines, const float* sines, long pairs,
    void* out, int brain, int threads) {
    if (brain)
        rotate((const uint16_t*)x, positions, heads, d, stride, cosines, sines, pairs, (uint16_t*)out, threads);
    else
        rotate((const float*)x, positions, heads, d, stride, cosines, sines, pairs, (float*)out, threads);
}
}
