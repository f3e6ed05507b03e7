// Memory for weights and buffers, in huge pages where the system has them.
//
// A walk through the weights touches every page once per token, so with pages of 4 KiB a good part of
// its time goes into looking up where they are. A matrix of a small model is smaller than a huge page
// (2 MiB), so matrices share shelves of several. Each shelf is freed with the last piece on it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "panel.h"

namespace {

constexpr size_t HUGE_PAGE = (size_t)2 << 20;
constexpr size_t SHELF = (size_t)16 << 20;
constexpr size_t SHARED = SHELF / 4;  // pieces up to this size share a shelf

// At the start of a shelf, which is where no piece is: so an address says whether it is on a shelf.
struct Shelf {
    size_t used, pieces;
};

std::mutex shelf_use;
Shelf* open_shelf = nullptr;

void* huge_pages(size_t bytes, size_t align) {
    void* p = nullptr;
    if (posix_memalign(&p, align, bytes)) return nullptr;
#if defined(__linux__)
    madvise(p, bytes, MADV_HUGEPAGE);
#endif
    return p;
}

#if defined(__SANITIZE_ADDRESS__)

// Every piece by itself, so that AddressSanitizer sees where each ends.
void* allocate(size_t bytes) {
    void* p = nullptr;
    return posix_memalign(&p, 64, round_up(bytes ? bytes : 1, 64)) ? nullptr : p;
}
void release(void* p) { free(p); }

#else

// Aligned to 64 bytes; null when there is none.
void* allocate(size_t bytes) {
    bytes = round_up(bytes ? bytes : 1, 64);
    if (bytes > SHARED) return huge_pages(round_up(bytes, HUGE_PAGE), SHELF);
    std::lock_guard<std::mutex> hold(shelf_use);
    if (!open_shelf || open_shelf->used + bytes > SHELF) {
        auto* next = static_cast<Shelf*>(huge_pages(SHELF, SHELF));
        if (!next) return nullptr;
        *next = Shelf{64, 0};
        open_shelf = next;
    }
    void* p = reinterpret_cast<char*>(open_shelf) + open_shelf->used;
    open_shelf->used += bytes;
    open_shelf->pieces++;
    return p;
}

void release(void* p) {
    size_t beyond = reinterpret_cast<uintptr_t>(p) % SHELF;
    if (!beyond) return free(p);
    std::lock_guard<std::mutex> hold(shelf_use);
    auto* shelf = reinterpret_cast<Shelf*>(static_cast<char*>(p) - beyond);
    if (--shelf->pieces) return;
    if (shelf == open_shelf) open_shelf = nullptr;
    free(shelf);
}

#endif

struct Free {
    void operator()(void* p) const { release(p); }
};
template <class T>
using Buffer = std::unique_ptr<T[], Free>;

template <class T>
Buffer<T> zeros(size_t n) {
    T* p = static_cast<T*>(allocate(n * sizeof(T)));
    if (p) memset((void*)p, 0, n * sizeof(T));
    return Buffer<T>(p);
}

}  // namespace
