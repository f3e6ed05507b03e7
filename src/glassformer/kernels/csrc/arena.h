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

#include "simd.h"

constexpr size_t HUGE_PAGE = (size_t)2 << 20;
constexpr size_t SHELF = (size_t)16 << 20;
constexpr size_t SHARED = SHELF / 4;  // pieces up to this size share a shelf

// At the start of a shelf, which is where no piece is: so an address says whether it is on a shelf.
struct Shelf {
    size_t used, pieces;
};

#if defined(__SANITIZE_ADDRESS__)

// Every piece by itself, so that AddressSanitizer sees where each ends.
static void* allocate(size_t bytes) {
    void* p = nullptr;
    return posix_memalign(&p, 64, round_up(bytes ? bytes : 1, 64)) ? nullptr : p;
}
static void release(void* p) { free(p); }

#else

static std::mutex shelf_use;
static Shelf* open_shelf = nullptr;

static void* huge_pages(size_t bytes, size_t align) {
    void* p = nullptr;
    if (posix_memalign(&p, align, bytes)) return nullptr;
#if defined(__linux__)
    madvise(p, bytes, MADV_HUGEPAGE);
#endif
    return p;
}

// Aligned to 64 bytes; null when there is none.
static void* allocate(size_t bytes) {
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

static void release(void* p) {
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

// Memory that grows and is kept between calls: a fresh page costs more than the product that fills it. What was in it
// is lost when it grows.
class Scratch {
   public:
    uint8_t* get(size_t bytes) {
        if (bytes > size_) {
            data_.reset();  // before the next is asked for
            data_.reset(static_cast<uint8_t*>(allocate(bytes)));
            size_ = data_ ? bytes : 0;
        }
        return data_.get();
    }
    // The same, all zero.
    bool clear(size_t bytes) {
        if (!get(bytes)) return false;
        memset(data_.get(), 0, size_);
        return true;
    }
    char* at() const { return reinterpret_cast<char*>(data_.get()); }

   private:
    Buffer<uint8_t> data_;
    size_t size_ = 0;
};

// Memory in one piece, handed out from its start; with no memory it counts what is needed.
struct Arena {
    char* at = nullptr;
    size_t used = 0;

    template <class T>
    T* take(long n) {
        T* p = at ? reinterpret_cast<T*>(at + used) : nullptr;
        used += round_up(n * (long)sizeof(T), 64) + 64;  // not the same place in every page
        return p;
    }
};

