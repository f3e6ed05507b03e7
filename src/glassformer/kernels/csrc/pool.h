// The threads that share one forward pass, and how they share its phases.
//
// A token of a small model is some hundred phases of ten microseconds, so threads spin for a while
// where they wait. A phase is over when its pieces are done, not when every thread has come: a
// thread that the system keeps from running delays nobody unless it holds a piece. Between calls
// workers spin a little and then sleep.
#pragma once

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
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
