// The threads of one call: torch's own, so that two sets of them never wait for each other's cores.
//
// torch computes with OpenMP; a second pool beside it would find the cores taken by threads that
// spin for their next piece. `GOMP_parallel`'s address is given once, from the runtime torch has
// loaded; without it a call runs on its own thread.
#pragma once

#include <atomic>
#include <cstdlib>
#include <memory>

#include "pool.h"

typedef void (*Parallel)(void (*)(void*), void*, unsigned, unsigned);
static Parallel parallel_region = nullptr;

template <class F>
static void together(int threads, F work) {
    if (threads <= 1 || !parallel_region) return work();
    parallel_region([](void* w) { (*(F*)w)(); }, &work, threads, 0);
}

// Rows of elementwise work in pieces; each piece is done by whoever comes.
template <class F>
static void rows_together(int threads, long rows, long grab, F work) {
    if (rows <= grab) threads = 1;
    std::atomic<long> next{0};
    together(threads, [&] {
        for (;;) {
            long from = next.fetch_add(grab, std::memory_order_relaxed);
            if (from >= rows) return;
            for (long r = from, to = from + grab < rows ? from + grab : rows; r < to; r++) work(r);
        }
    });
}

// Memory that a thread keeps between calls: a fresh page costs more than the product that fills it.
class Scratch {
   public:
    ~Scratch() { free(data_); }
    uint8_t* get(size_t bytes) {
        if (bytes > size_) {
            free(data_);
            size_ = (bytes + 4095) / 4096 * 4096;
            data_ = (uint8_t*)aligned_alloc(4096, size_);
            if (!data_) size_ = 0;
        }
        return data_;
    }

   private:
    uint8_t* data_ = nullptr;
    size_t size_ = 0;
};
