// Attention of one call's tokens, shared out among the threads: few tokens (`alone`) by blocks of keys, many by units of
// query rows. The arithmetic of a token is the same either way.
#pragma once
#include <algorithm>
#include <atomic>

#include "attention.h"
#include "model.h"
#include "threads.h"

inline int64_t share(int64_t n, int i, int of) { return n * i / of; }

template <class Way>
class Mixing {
public:
    using T = typename Way::Cached;
    using Number = typename Way::Number;
    using Block = typename Way::Block;

    Mixing(const Model& model, const Call& call, Arena& memory, int threads, bool alone)
        : m_(model), c_(call), s_(model.shape), N_(call.tokens_count), threads_(threads), alone_(alone) {
        q_ = memory.array<Number>(N_ * m_.q_size());
        for (int i = 0; i < threads; ++i) {
            blocks_.push_back(reinterpret_cast<Block*>(memory.take(sizeof(Block))));
            running_.push_back(memory.array<float>(int64_t(QUERIES) * s_.head_dim));
        }
        if (alone) find_parts(memory);
        else find_units();
        taken_ = std::vector<std::atomic<int>>(size_t(s_.layers));
        for (auto& each : taken_) each.store(0, std::memory_order_relaxed);
    }

    Number* query(int64_t token, int head) const { return q_ + token * m_.q_size() + head * s_.head_dim; }
    T* key(int layer, int head, int64_t token) const { return place(c_.keys[layer], head, token); }
    T* value(int layer, int head, int64_t token) const { return place(c_.values[layer], head, token); }

    // Every thread's share of a layer, into mixed [N, heads · D]. Alone, each thread writes all of a vector of its own.
    void run(int l, int thread, Pool& pool, float* mixed) {
        if (alone_) {
            for (int64_t i = share(int64_t(parts_.size()), thread, threads_);
                 i < share(int64_t(parts_.size()), thread + 1, threads_); ++i)
                attend_part(l, size_t(i), thread);
            pool.barrier();
            join_parts(mixed);
        } else {
            for (int i; (i = taken_[size_t(l)].fetch_add(1, std::memory_order_relaxed)) < int(units_.size());) {
                if (i + threads_ < int(units_.size())) prefetch_unit(l, units_[size_t(i + threads_)]);
                attend_unit(l, units_[size_t(i)], thread, mixed);
            }
            pool.barrier();
        }
    }

private:
    static constexpr int QUERY_ROWS = 64;  // query rows of one unit
    struct Segment { int64_t first, count, row; };  // consecutive tokens of one row
    struct Unit { int64_t token, count, row; int group; };
    struct Part { int64_t token; int group, block; };

    T* place(void* layer, int head, int64_t token) const {
        return static_cast<T*>(layer) + c_.rows[token] * c_.row_stride + head * c_.group_stride +
               c_.positions[token] * s_.head_dim;
    }

    void find_units() {
        const int per_group = s_.heads / s_.kv_heads;
        const int64_t block = std::max(1, std::min(16, QUERY_ROWS / per_group));
        std::vector<Segment> segments;
        for (int64_t i = 0; i < N_; ++i) {
            if (!segments.empty() && c_.rows[i] == c_.rows[i - 1] && c_.positions[i] == c_.positions[i - 1] + 1)
                ++segments.back().count;
            else
                segments.push_back({i, 1, c_.rows[i]});
        }
        for (const Segment& s : segments)
            for (int64_t t = 0; t < s.count; t += block)
                for (int g = 0; g < s_.kv_heads; ++g)
                    units_.push_back({s.first + t, std::min(block, s.count - t), s.row, g});
        // The longest first: what is left for the end is then short.
        std::stable_sort(units_.begin(), units_.end(), [&](const Unit& a, const Unit& b) {
            return c_.positions[a.token] > c_.positions[b.token];
        });
    }

    void find_parts(Arena& memory) {
        for (int64_t t = 0; t < N_; ++t)
            for (int g = 0; g < s_.kv_heads; ++g)
                for (int b = 0; b <= int(c_.positions[t] / KEYS); ++b) parts_.push_back({t, g, b});
        const int per_group = s_.heads / s_.kv_heads;
        part_values_ = memory.array<float>(int64_t(parts_.size()) * per_group * s_.head_dim);
        part_sums_.resize(parts_.size() * size_t(per_group));
    }

    void fetch_block(int l, int64_t row, int group, int block, int count, int thread) {
        const int64_t at = row * c_.row_stride + group * c_.group_stride + int64_t(block) * KEYS * s_.head_dim;
        Way::load_block(static_cast<const T*>(c_.keys[l]) + at, static_cast<const T*>(c_.values[l]) + at, count, s_.head_dim,
                        *blocks_[size_t(thread)]);
    }

    // The beginning of what a unit reads: its own loads run ahead of themselves from there.
    void prefetch_unit(int l, const Unit& unit) {
        const int64_t at = unit.row * c_.row_stride + unit.group * c_.group_stride;
        const int64_t bytes = int64_t(sizeof(T)) * 16 * NEXT * s_.head_dim;
        prefetch_bytes(static_cast<const T*>(c_.keys[l]) + at, bytes);
        prefetch_bytes(static_cast<const T*>(c_.values[l]) + at, bytes);
    }

    void attend_part(int l, size_t i, int thread) {
        const Part& part = parts_[i];
        const int D = s_.head_dim, per_group = s_.heads / s_.kv_heads;
        const int seen = int(std::min<int64_t>(KEYS, c_.positions[part.token] + 1 - int64_t(part.block) * KEYS));
        fetch_block(l, c_.rows[part.token], part.group, part.block, seen, thread);
        const int all_seen[QUERIES] = {seen, seen, seen, seen};
        for (int h = 0; h < per_group; h += QUERIES) {
            const int n = std::min(QUERIES, per_group - h);
            const Number* q[QUERIES];
            Running* out = &part_sums_[i * size_t(per_group) + size_t(h)];
            for (int j = 0; j < n; ++j) {
                q[j] = q_ + part.token * m_.q_size() + (part.group * per_group + h + j) * D;
                out[j].values = part_values_ + (int64_t(i) * per_group + h + j) * D;
            }
            attend<Way>(*blocks_[size_t(thread)], seen, q, all_seen, n, D, score_scale(), out);
        }
    }

    void join_parts(float* mixed) {
        const int D = s_.head_dim, per_group = s_.heads / s_.kv_heads;
        Running into{};
        for (size_t i = 0; i < parts_.size(); ++i)
            if (parts_[i].block == 0)
                for (int h = 0; h < per_group; ++h) {
                    into.values = mixed + parts_[i].token * m_.q_size() + (parts_[i].group * per_group + h) * D;
                    for (size_t j = i; j < parts_.size() && (j == i || parts_[j].block); ++j)
                        join(into, part_sums_[j * size_t(per_group) + size_t(h)], D, j == i);
                    divide(into);
                }
    }

    void divide(Running& x) {
        F by = set1(1.0f / x.total);
        for (int d = 0; d < s_.head_dim; d += LANES) store(x.values + d, mul(load(x.values + d), by));
    }

    float score_scale() const { return 1.0f / std::sqrt(static_cast<float>(s_.head_dim)); }

    void attend_unit(int l, const Unit& unit, int thread, float* mixed) {
        const int D = s_.head_dim, per_group = s_.heads / s_.kv_heads, rows = int(unit.count) * per_group;
        Running total[QUERY_ROWS], fresh[QUERIES];
        const Number* q[QUERY_ROWS];
        int64_t position[QUERY_ROWS];
        for (int r = 0; r < rows; ++r) {
            const int64_t t = unit.token + r / per_group;
            const int64_t at = t * m_.q_size() + (unit.group * per_group + r % per_group) * D;
            q[r] = q_ + at, position[r] = c_.positions[t], total[r].values = mixed + at;
        }
        const int64_t last = c_.positions[unit.token + unit.count - 1];
        for (int b = 0; b <= int(last / KEYS); ++b) {
            const int64_t begin = int64_t(b) * KEYS;
            const int count = int(std::min<int64_t>(KEYS, last + 1 - begin));
            fetch_block(l, unit.row, unit.group, b, count, thread);
            int r = 0;
            while (r < rows && position[r] < begin) ++r;  // those see nothing of this block
            while (r < rows) {
                const int n = std::min(QUERIES, rows - r);
                int seen[QUERIES];
                for (int j = 0; j < n; ++j) {
                    seen[j] = int(std::min<int64_t>(KEYS, position[r + j] + 1 - begin));
                    fresh[j].values = b ? running_[size_t(thread)] + j * D : total[r + j].values;
                }
                attend<Way>(*blocks_[size_t(thread)], count, q + r, seen, n, D, score_scale(), fresh);
                for (int j = 0; j < n; ++j) {
                    if (b) join(total[r + j], fresh[j], D, false);
                    else total[r + j] = fresh[j];
                }
                r += n;
            }
        }
        for (int r = 0; r < rows; ++r) divide(total[r]);
    }

    const Model& m_;
    const Call& c_;
    const Shape& s_;
    const int64_t N_;
    const int threads_;
    const bool alone_;
    Number* q_;
    float* part_values_ = nullptr;
    std::vector<float*> running_;
    std::vector<Block*> blocks_;
    std::vector<Unit> units_;
    std::vector<Part> parts_;
    std::vector<Running> part_sums_;
    std::vector<std::atomic<int>> taken_;
};
