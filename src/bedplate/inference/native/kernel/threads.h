// A small pool: the calling thread and its workers run one function together and meet at barriers.
// Waiting spins for a moment (the others are about to arrive, the next step of a decode comes soon), then sleeps in the
// kernel: an idle pool costs no CPU, and where other processes want the cores, the core of a thread that waits is free for
// the one that it waits for. No OpenMP: torch brings its own, and two of them on the same cores fight.
#pragma once
#include <pthread.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>

#include "tiles.h"

INLINE void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#else
    std::atomic_signal_fence(std::memory_order_seq_cst);
#endif
}

// How many threads calls of one size are worth. Results do not depend on their number, so it may follow the machine: where
// other work holds the cores, threads that wait for each other at every barrier take many times what one alone takes.
class Pace {
public:
    // Of at most `most`.
    int threads(int most) {
        if (now_ == 0 || now_ > most) now_ = most;
        return now_ < most && waited_ >= rest_ ? std::min(2 * now_, most) : now_;  // try more once again
    }

    // used: what `threads` gave; share: of the call's `nanoseconds`, in which its first thread computed.
    void learn(int used, double share, int64_t nanoseconds) {
        const bool bad = share < ENOUGH;
        if (used > now_) {  // a trial
            waited_ = 0;
            if (bad) rest_ = std::min(2 * rest_, LONGEST);
            else now_ = used, rest_ = SHORTEST, slow_ = 0;
            return;
        }
        waited_ += nanoseconds;
        slow_ = bad ? slow_ + nanoseconds : 0;
        if (slow_ < SHORTEST || now_ == 1) return;  // what is short may be chance
        now_ = std::max(now_ / 2, 1), rest_ = SHORTEST, waited_ = slow_ = 0;
    }

private:
    static constexpr double ENOUGH = 0.5;  // below it, half as many threads take less time
    static constexpr int64_t SHORTEST = 30000000, LONGEST = 2000000000;
    int now_ = 0;
    // Nanoseconds: of slow calls, one after another; with fewer threads than there may be; of these before the next trial.
    int64_t slow_ = 0, waited_ = 0, rest_ = SHORTEST;
};

class Pool {
public:
    // One pool for the library, and a new one in a process that was forked: it has none of its parent's threads.
    static Pool& shared() {
        static std::mutex making;
        static std::atomic<Pool*> pool{nullptr};
        static std::atomic<pid_t> owner{0};
        if (owner.load(std::memory_order_acquire) != getpid()) {
            std::lock_guard<std::mutex> hold(making);
            if (owner.load(std::memory_order_relaxed) != getpid()) {
                pool.store(new Pool, std::memory_order_relaxed);
                owner.store(getpid(), std::memory_order_release);
            }
        }
        return *pool.load(std::memory_order_relaxed);
    }

    std::mutex one_at_a_time;  // held by who calls run

    // Runs work(thread) on threads 0 … count−1; 0 is the caller. pace is told of the share of the time that 0 computed.
    void run(int count, const std::function<void(int)>& work, Pace* pace = nullptr) {
        const int64_t began = wall(), computed = thread_time();
        count_ = count;
        if (count == 1) {  // nobody is woken, and nobody waited for
            work(0);
            if (pace) pace->learn(1, 1.0, wall() - began);
            return;
        }
        grow(count);
        leader_ = true, spun_ = 0;
        work_ = &work;
        arrived_.store(0, std::memory_order_relaxed);
        left_.store(workers_, std::memory_order_relaxed);  // also those without a share answer: none is ever a run behind
        {
            std::lock_guard<std::mutex> hold(sleep_);
            ticket_.fetch_add(1, std::memory_order_release);
        }
        if (sleepers_.load(std::memory_order_acquire) > 0) wake_.notify_all();
        work(0);
        for (int left; (left = left_.load(std::memory_order_acquire)) != 0;) wait(left_, left);
        leader_ = false;
        if (!pace) return;
        const int64_t taken = std::max<int64_t>(wall() - began, 1);
        pace->learn(count, double(thread_time() - computed - spun_) / double(taken), taken);
    }

    // Every thread of the run waits here for the others.
    void barrier() {
        if (count_ == 1) return;
        uint32_t phase = phase_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == count_) {
            arrived_.store(0, std::memory_order_relaxed);
            phase_.store(phase + 1, std::memory_order_release);
            phase_.notify_all();
        } else {
            wait(phase_, phase);
        }
    }

private:
    // Returns once `value` is no longer `old`.
    template <class T> static void wait(const std::atomic<T>& value, T old) {
        const int64_t began = leader_ ? wall() : 0;
        bool changed = false;
        for (int i = 0; i < SPINS && !changed; ++i) {
            changed = value.load(std::memory_order_acquire) != old;
            if (!changed) relax();
        }
        // What it spins is no computing. Where another process took the core meanwhile, less than this was spun.
        if (leader_) spun_ += std::min<int64_t>(wall() - began, LONGEST_SPIN);
        if (!changed) value.wait(old, std::memory_order_acquire);
    }

    static int64_t wall() { return nanoseconds(CLOCK_MONOTONIC); }
    static int64_t thread_time() { return nanoseconds(CLOCK_THREAD_CPUTIME_ID); }
    static int64_t nanoseconds(clockid_t clock) {
        timespec now{};
        clock_gettime(clock, &now);
        return int64_t(now.tv_sec) * 1000000000 + now.tv_nsec;
    }

    void grow(int count) {
        for (; workers_ < count - 1; ++workers_) {
            uint64_t seen = ticket_.load();
            std::thread([this, number = workers_ + 1, seen] { serve(number, seen); }).detach();
        }
    }

    void serve(int number, uint64_t seen) {
        Tiles::warm();
        while (true) {
            await(seen);
            ++seen;
            if (number < count_) (*work_)(number);
            if (left_.fetch_sub(1, std::memory_order_acq_rel) == 1) left_.notify_all();
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

    static constexpr int SPINS = 4000;  // some tens of microseconds
    static constexpr int64_t LONGEST_SPIN = 200000;  // nanoseconds
    static inline thread_local bool leader_ = false;
    static inline thread_local int64_t spun_ = 0;

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
