// A small pool: the calling thread and its workers run one function together and meet at barriers.
// Waiting spins for a moment (the next step of a decode comes soon), then sleeps in the kernel, so an idle pool costs
// no CPU. No OpenMP: torch brings its own, and two of them on the same cores fight.
#pragma once
#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>

#include "simd.h"

INLINE void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#else
    std::atomic_signal_fence(std::memory_order_seq_cst);
#endif
}

class Pool {
public:
    // One pool for the library, and a new one in a process that was forked: it has none of its parent's threads.
    static Pool& shared() {
        static std::mutex making;
        static Pool* pool = nullptr;
        static pid_t owner = 0;
        if (owner != getpid()) {
            std::lock_guard<std::mutex> hold(making);
            if (owner != getpid()) pool = new Pool, owner = getpid();
        }
        return *pool;
    }

    std::mutex one_at_a_time;  // held by who calls run

    // Runs work(thread) on threads 0 … count−1; 0 is the caller.
    void run(int count, const std::function<void(int)>& work) {
        grow(count);
        work_ = &work;
        count_ = count;
        arrived_.store(0, std::memory_order_relaxed);
        left_.store(workers_, std::memory_order_relaxed);  // also those without a share answer: none is ever a run behind
        {
            std::lock_guard<std::mutex> hold(sleep_);
            ticket_.fetch_add(1, std::memory_order_release);
        }
        if (sleepers_.load(std::memory_order_acquire) > 0) wake_.notify_all();
        work(0);
        wait([&] { return left_.load(std::memory_order_acquire) == 0; });
    }

    // Every thread of the run waits here for the others.
    void barrier() {
        if (count_ == 1) return;
        uint32_t phase = phase_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == count_) {
            arrived_.store(0, std::memory_order_relaxed);
            phase_.store(phase + 1, std::memory_order_release);
        } else {
            wait([&] { return phase_.load(std::memory_order_acquire) != phase; });
        }
    }

private:
    template <class Done> static void wait(Done done) {
        // The others are at work, so this is short unless the machine gave their core to somebody else.
        for (int i = 0; !done(); ++i) {
            if (i < 4000) relax();
            else sched_yield();
        }
    }

    void grow(int count) {
        for (; workers_ < count - 1; ++workers_) {
            uint64_t seen = ticket_.load();
            std::thread([this, number = workers_ + 1, seen] { serve(number, seen); }).detach();
        }
    }

    void serve(int number, uint64_t seen) {
        while (true) {
            await(seen);
            ++seen;
            if (number < count_) (*work_)(number);
            left_.fetch_sub(1, std::memory_order_release);
        }
    }

    void await(uint64_t seen) {
        auto until = std::chrono::steady_clock::now() + std::chrono::microseconds(200);
        do {
            for (int i = 0; i < 64; ++i) {
                if (ticket_.load(std::memory_order_acquire) != seen) return;
                relax();
            }
        } while (std::chrono::steady_clock::now() < until);
        std::unique_lock<std::mutex> hold(sleep_);
        sleepers_.fetch_add(1);
        wake_.wait(hold, [&] { return ticket_.load(std::memory_order_acquire) != seen; });
        sleepers_.fetch_sub(1);
    }

    std::mutex sleep_;
    std::condition_variable wake_;
    const std::function<void(int)>* work_ = nullptr;
    int count_ = 0, workers_ = 0;
    std::atomic<int> sleepers_{0};
    alignas(64) std::atomic<uint64_t> ticket_{0};
    alignas(64) std::atomic<int> left_{0};
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<uint32_t> phase_{0};
};
