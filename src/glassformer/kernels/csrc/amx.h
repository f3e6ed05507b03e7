// The processor's tiles (AMX): the permission to use them, and their shape while somebody does.
#pragma once

#include <cstdint>

#if defined(__linux__) && defined(__AMX_TILE__) && !defined(GLASSFORMER_PORTABLE) && !defined(GLASSFORMER_NO_AMX)
#define GF_AMX 1
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

// Linux gives a process the tiles when it asks.
static bool tiles_there() {
    static const bool there = syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0;
    return there;
}

// The compiler's tile instructions do not all say that they read memory (GCC 12): what they will read, at
// `p` and wherever else, has been written when this is passed.
static inline __attribute__((always_inline)) void settle(const void* p) { asm volatile("" ::"r"(p) : "memory"); }

struct alignas(64) TileShapes {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {};  // of a row
    uint8_t rows[16] = {};

    // Tiles from `first` to before `last`.
    void set(int first, int last, int row_count, int row_bytes) {
        for (int t = first; t < last; t++) rows[t] = (uint8_t)row_count, bytes[t] = (uint16_t)row_bytes;
    }
};

// While it lives, this thread's tiles have these shapes. What they had before is set again after: other
// libraries (oneDNN) remember what they set.
class TileSetting {
   public:
    explicit TileSetting(const TileShapes& shapes) {
        _tile_storeconfig(&before_);
        settle(&before_);
        settle(&shapes);
        _tile_loadconfig(&shapes);
    }
    ~TileSetting() {
        settle(&before_);
        if (before_.palette)
            _tile_loadconfig(&before_);
        else
            _tile_release();
    }
    TileSetting(const TileSetting&) = delete;
    TileSetting& operator=(const TileSetting&) = delete;

   private:
    TileShapes before_;
};
#endif
