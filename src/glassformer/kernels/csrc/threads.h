// How the threads of a pass share its phases, and what a thread that waits does meanwhile.
//
// Every thread has a range of a phase's pieces of its own and takes them in order, so that memory is
// asked for ahead across pieces; whoever has finished takes from the end of another's. A thread that
// waits for the end of a phase asks for the weights it will read next: memory is what a token costs,
// and it should never rest.
#pragma once

#include <atomic>
#include <memory>

#include "panel.h"
#include "pool.h"

// Weights that one thread will read soon. They are brought into its second cache, a few lines at a time.
class Soon {
   public:
    void clear() { count_ = 0; }

    // The units from `unit` on of a matrix that is about to be multiplied.
    void add(const Matrix& m, int unit) {
        if (count_ == MOST || unit >= m.units()) return;
        const uint8_t* from = m.data + (size_t)unit * unit_bytes(m.format, m.cols);
        size_t bytes = (size_t)(m.units() - unit) * unit_bytes(m.format, m.cols);
        pieces_[count_++] = {from, from + (bytes < REACH ? bytes : REACH)};
    }

    // Eight lines of each piece; false when there is nothing left to ask for.
    bool ask() {
        bool asked = false;
        for (int i = 0; i < count_; i++) {
            Piece& p = pieces_[i];
            if (p.at >= p.end) continue;
            for (int line = 0; line < 8; line++) __builtin_prefetch(p.at + line * 64, 0, 2);
            p.at += 512;
            asked = true;
        }
        return asked;
    }

   private:
    static constexpr int MOST = 2;
    static constexpr size_t REACH = 128 << 10;
    struct Piece {
        const uint8_t *at, *end;
    };
    Piece pieces_[MOST];
    int count_ = 0;
};

// The phases of a pass: of each, how many pieces are done, and of every thread's range how many are taken.
class Phases {
   public:
    Phases(int phases, int threads)
        : threads_(threads), lines_((phases + 7) / 8), words_(new Line[(size_t)(threads + 1) * lines_]) {}

    int threads() const { return threads_; }

    // All phases anew; by one thread, before the others come.
    void reset() {
        for (int i = 0; i < (threads_ + 1) * lines_; i++)
            for (auto& word : words_[i].words) word.store(0, std::memory_order_relaxed);
    }

    // The first of thread `who`'s pieces of n.
    int first(int n, int who) const { return (int)(((int64_t)n * who + threads_ - 1) / threads_); }

    bool over(int phase, int n) const { return word(threads_, phase).load(std::memory_order_acquire) >= (uint64_t)n; }

    // Lets thread `me` do its part of a phase of n pieces, taken up to `grab` at a time, and wait for the others'.
    template <class F>
    void share(int phase, int n, int grab, int me, Soon& soon, F work) {
        if (over(phase, n)) return;
        std::atomic<uint64_t>& done = word(threads_, phase);
        int mine = 0;
        for (int k = 0; k < threads_; k++) {
            int who = (me + k) % threads_, from, to;
            while (take(word(who, phase), first(n, who), first(n, who + 1), grab, k > 0, from, to)) {
                for (int i = from; i < to; i++) work(i);
                mine += to - from;
            }
        }
        if (mine) done.fetch_add(mine, std::memory_order_acq_rel);
        for (int spins = 0; done.load(std::memory_order_acquire) < (uint64_t)n;)
            if (!soon.ask()) Pool::pause(spins++);
    }

   private:
    struct alignas(64) Line {
        std::atomic<uint64_t> words[8];
    };

    // What thread `who` has of a phase, or, for the number after the last, how many pieces are done. A thread's words
    // lie in lines of their own: taking from its own range, it waits for nobody.
    std::atomic<uint64_t>& word(int who, int phase) const { return words_[(size_t)who * lines_ + phase / 8].words[phase % 8]; }

    // From the front of a range, or, of another's, from its back. `taken` counts both, 32 bits each.
    static bool take(std::atomic<uint64_t>& taken, int low, int high, int grab, bool back, int& from, int& to) {
        uint64_t old = taken.load(std::memory_order_relaxed);
        for (;;) {
            int front = low + (int)(uint32_t)old, end = high - (int)(old >> 32);
            if (front >= end) return false;
            int n = grab < end - front ? grab : end - front;
            from = back ? end - n : front, to = from + n;
            if (taken.compare_exchange_weak(old, old + (back ? (uint64_t)n << 32 : n), std::memory_order_relaxed)) return true;
        }
    }

    int threads_, lines_;  // lines of one thread's words
    std::unique_ptr<Line[]> words_;
};
