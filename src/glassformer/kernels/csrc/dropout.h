// Dropout: which numbers of the stream's additions are left out, from a hash of where they stand.
//
// The same hash as glassformer/train/dropout.py: nothing is drawn in turn, so nothing has to be kept for
// the backward pass, and neither blocks nor threads show in it.
#pragma once

#include "abi.h"

constexpr uint32_t SITE_STEP = 0x9E3779B9u, ROW_STEP = 0x85EBCA77u, COLUMN_STEP = 0xC2B2AE3Du;

GF_INLINE uint32_t hashed(uint32_t x) {
    x ^= x >> 16, x *= 0x7FEB352Du, x ^= x >> 15, x *= 0x846CA68Bu;
    return x ^ (x >> 16);
}

// What one place of the stream (0: the embeddings; 2i + 1 and 2i + 2: attention and feed-forward part of block i)
// does to sixteen numbers of a row.
class DropoutMask {
   public:
    DropoutMask(const Dropout& d, uint32_t site) : share_(d.share), scale_(d.scale), key_(hashed(d.key + site * SITE_STEP)) {}

    bool all() const { return share_ == 0; }
    F16 operator()(long row, long column, F16 x) const {
        if (!share_) return x;
        U16 h = (U16)lanes() + (uint32_t)column;
        h = h * COLUMN_STEP + hashed(key_ + (uint32_t)row * ROW_STEP);
        h ^= h >> 16, h *= 0x7FEB352Du, h ^= h >> 15, h *= 0x846CA68Bu, h ^= h >> 16;
        return select((I16)(h >= share_), x * splat(scale_), splat(0.f));
    }

   private:
    uint32_t share_;
    float scale_;
    uint32_t key_;
};
