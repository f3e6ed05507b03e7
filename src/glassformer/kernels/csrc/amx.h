// The processor's tiles (AMX): the permission to use them, and their shapes while a thread does.
#pragma once

#include <cstdint>

#include "simd.h"

#if defined(__linux__) && defined(__AMX_TILE__) && defined(GF_VNNI) && !defined(GLASSFORMER_NO_AMX)
#define GF_AMX 1
#include <sys/syscall.h>
#include <unistd.h>
#if defined(__AMX_INT8__)
#define GF_AMX_INT8 1
#endif
#if defined(__AMX_BF16__) && defined(__AVX512BF16__)
#define GF_AMX_BF16 1
#endif
#endif

enum class TileUse { NONE, FULL, BYTES };  // FULL: eight tiles of 16 x 64 bytes; BYTES: of 8-bit products of 32 inputs

#if defined(GF_AMX)

// Linux gives a process the tiles when it asks.
static bool tiles_there() {
    static const bool there = syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0;
    return there;
}

// The compiler's tile instructions do not all say that they read memory (GCC 12): what they will read, at
// `p` and wherever else, has been written when this is passed.
GF_INLINE void compiler_fence(const void* p) { asm volatile("" ::"r"(p) : "memory"); }

struct alignas(64) TileShapes {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {};  // of a row
    uint8_t rows[16] = {};

    // Tiles from `first` to before `last`.
    void set(int first, int last, int row_count, int row_bytes) {
        for (int t = first; t < last; t++) rows[t] = (uint8_t)row_count, bytes[t] = (uint16_t)row_bytes;
    }
};

// While it lives, this thread's tiles have shapes of ours. What they had before is set again after: other libraries
// (oneDNN) remember what they set.
class Tiles {
   public:
    explicit Tiles(TileUse use) : on_(use != TileUse::NONE && tiles_there()) {
        if (!on_) return;
        TileShapes shapes;
        if (use == TileUse::FULL) {
            shapes.set(0, 8, 16, 64);
        } else {
            shapes.set(0, 4, 16, 64);  // sums
            shapes.set(4, 6, 16, 32);  // activations
            shapes.set(6, 8, 8, 64);   // weights
        }
        _tile_storeconfig(&before_);
        compiler_fence(&before_);
        compiler_fence(&shapes);
        _tile_loadconfig(&shapes);
    }
    ~Tiles() {
        if (!on_) return;
        compiler_fence(&before_);
        if (before_.palette)
            _tile_loadconfig(&before_);
        else
            _tile_release();
    }
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;
    bool on() const { return on_; }

   private:
    const bool on_;
    TileShapes before_;
};

#else

static inline bool tiles_there() { return false; }

class Tiles {
   public:
    explicit Tiles(TileUse) {}
    bool on() const { return false; }
};

#endif
