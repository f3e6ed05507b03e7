// The threads that share one pass, how they share its phases, and what a thread that waits does meanwhile.
//
// A token of a small model is some hundred phases of ten microseconds, so threads spin for a while where they wait. A
// phase is over when its pieces are done, not when every thread has come: a thread that the system keeps from running
// delays nobody unless it holds a piece. Between calls workers spin a little and then sleep.
#pragma once

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "simd.h"

GF_INLINE void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

class Pool {
   public:
    explicit Pool(int threads) : size_(threads < 1 ? 1 : threads), owner_(getpid()) {
        for (int id = 1; id < size_; id++) workers_.emplace_back([this, id] { me() = id, serve(); });
    }

    ~Pool() {
        {
            std::lock_guard<std::mutex> hold(sleep_);
            stop_ = true;
            ticket_.fetch_add(1);
        }
        wake_.notify_all();
        for (auto& worker : workers_) worker.join();
    }

    int size() const { return size_; }
    // The calling thread's number: 0, or a worker's, from 1.
    static int& me() {
        static thread_local int id = 0;
        return id;
    }

    bool alive() const { return owner_ == getpid(); }  // threads do not survive a fork

    // Runs task() on the calling thread and on every worker that comes in time, until all of those
    // have returned from it.
    void run(const std::function<void()>& task) {
        task_ = &task;
        inside_.fetch_sub(CLOSED, std::memory_order_acq_rel);
        if (size_ > 1) {
            {
                std::lock_guard<std::mutex> hold(sleep_);
                ticket_.fetch_add(1, std::memory_order_release);
            }
            if (sleepers_.load()) wake_.notify_all();
        }
        task();
        inside_.fetch_add(CLOSED, std::memory_order_acq_rel);
        for (int spins = 0; inside_.load(std::memory_order_acquire) != CLOSED; spins++) pause(spins);
    }

    static void pause(int spins) {
        relax();
        if (spins > 200) std::this_thread::yield();  // somebody else needs this core
    }

   private:
    static constexpr int CLOSED = 1 << 20;

    void serve() {
        unsigned seen = 0;
        for (;;) {
            wait(seen);
            seen = ticket_.load(std::memory_order_acquire);
            if (stop_) return;
            if (inside_.fetch_add(1, std::memory_order_acq_rel) < CLOSED) (*task_)();
            inside_.fetch_sub(1, std::memory_order_acq_rel);
        }
    }

    void wait(unsigned seen) {
        auto until = std::chrono::steady_clock::now() + std::chrono::microseconds(300);
        while (std::chrono::steady_clock::now() < until)
            for (int i = 0; i < 64; i++) {
                if (ticket_.load(std::memory_order_acquire) != seen) return;
                relax();
            }
        std::unique_lock<std::mutex> hold(sleep_);
        sleepers_.fetch_add(1);
        wake_.wait(hold, [&] { return ticket_.load(std::memory_order_acquire) != seen; });
        sleepers_.fetch_sub(1);
    }

    const int size_;
    const pid_t owner_;
    std::vector<std::thread> workers_;
    const std::function<void()>* task_ = nullptr;
    alignas(64) std::atomic<unsigned> ticket_{0};
    alignas(64) std::atomic<int> inside_{CLOSED};  // workers in the task; CLOSED more when there is none
    alignas(64) std::atomic<int> sleepers_{0};
    std::mutex sleep_;
    std::condition_variable wake_;
    std::atomic<bool> stop_{false};
};

// A function that is called for as long as a call lasts. What calls it then stands once in the library.
template <class... Args>
class Taking {
   public:
    template <class F>
    Taking(const F& f) : who_(&f), call_([](const void* who, Args... args) { (*static_cast<const F*>(who))(args...); }) {}
    void operator()(Args... args) const { call_(who_, args...); }

   private:
    const void* who_;
    void (*call_)(const void*, Args...);
};

// One phase of a pass: pieces of work, handed out in runs of `grab`.
struct alignas(64) Phase {
    std::atomic<int> next{0}, done{0};

    template <class F>
    void share(int n, int grab, F work) {
        if (done.load(std::memory_order_acquire) >= n) return;
        for (;;) {
            int from = next.fetch_add(grab, std::memory_order_relaxed);
            if (from >= n) break;
            int to = from + grab < n ? from + grab : n;
            for (int i = from; i < to; i++) work(i);
            done.fetch_add(to - from, std::memory_order_acq_rel);
        }
        for (int spins = 0; done.load(std::memory_order_acquire) < n; spins++) Pool::pause(spins);
    }
};

// Weights that one thread will read soon. They are brought into its second cache, a few lines at a time.
class Prefetcher {
   public:
    void clear() { count_ = 0; }

    // Memory that is about to be read from its start.
    void add(const uint8_t* from, size_t bytes) {
        if (count_ == MOST || !bytes) return;
        pieces_[count_++] = {from, from + (bytes < PREFETCH_BYTES ? bytes : PREFETCH_BYTES)};
    }

    // Eight lines of each piece; false when nothing is left.
    bool step() {
        bool more = false;
        for (int i = 0; i < count_; i++) {
            Piece& p = pieces_[i];
            if (p.at >= p.end) continue;
            for (int line = 0; line < 8; line++) __builtin_prefetch(p.at + line * 64, 0, 2);
            p.at += 512;
            more = true;
        }
        return more;
    }

   private:
    static constexpr int MOST = 16;
    static constexpr size_t PREFETCH_BYTES = 128 << 10;
    struct Piece {
        const uint8_t *at, *end;
    };
    Piece pieces_[MOST];
    int count_ = 0;
};

// The phases of a pass: of each, how many pieces are done, and of every thread's range how many are taken.
//
// Every thread has a range of a phase's pieces of its own and takes them in order, so that memory is read ahead across
// pieces; whoever has finished takes from the end of another's. A thread that waits prefetches what it will read next.
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
    void share(int phase, int n, int grab, int me, Prefetcher& prefetcher, Taking<int> work) {
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
            if (!prefetcher.step()) Pool::pause(spins++);
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

// torch's own threads, for calls from between torch's: a second pool would find the cores taken by threads that spin
// for their next piece. Without torch's runtime a call runs on its own thread.
typedef void (*Parallel)(void (*)(void*), void*, unsigned, unsigned);
static Parallel parallel_region = nullptr;  // GOMP_parallel of the runtime that torch has loaded

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
