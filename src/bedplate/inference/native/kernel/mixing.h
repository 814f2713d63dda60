// Attention of one call's tokens, shared out among the threads: few tokens (`alone`) by blocks of keys, many by units of
// query rows. The arithmetic of a token is the same either way. Keys and values are the cache's, or of whole texts, which
// are blocked from their own beginning, this call's own: one layer's at a time.
#pragma once
#include <algorithm>
#include <atomic>

#include "attention.h"
#include "model.h"
#include "norms.h"
#include "threads.h"

inline int64_t share(int64_t n, int i, int of) { return n * i / of; }

template <class Arithmetic>
class Mixing {
public:
    using T = typename Arithmetic::Cached;
    using Number = typename Arithmetic::Number;
    using Block = typename Arithmetic::Block;

    Mixing(const Model& model, const Call& call, Arena& memory, int threads, bool alone)
        : m_(model), c_(call), s_(model.shape), N_(call.tokens_count), threads_(threads), alone_(alone) {
        q_ = memory.array<Number>(N_ * m_.q_size());
        if (whole()) keys_ = memory.array<T>(N_ * m_.kv_size()), values_ = memory.array<T>(N_ * m_.kv_size());
        for (int i = 0; i < threads; ++i) {
            blocks_.push_back(reinterpret_cast<Block*>(memory.take(sizeof(Block))));
            running_.push_back(memory.array<float>(int64_t(QUERIES) * s_.head_dim));
            together_.push_back(memory.array<T>(2 * int64_t(KEYS) * s_.head_dim));
        }
        if (alone) find_plans(memory);
        else find_units();
        taken_ = std::vector<std::atomic<int>>(size_t(s_.layers));
        for (auto& each : taken_) each.store(0, std::memory_order_relaxed);
    }

    Number* query(int layer, int head, int64_t token) const {
        return q_ + token * m_.q_size() + head * m_.layer(layer).head_dim;
    }
    T* key(int layer, int head, int64_t token) const {
        return place(keys(layer), layer, c_.rows[token], head, c_.positions[token]);
    }
    T* value(int layer, int head, int64_t token) const {
        return place(values(layer), layer, c_.rows[token], head, c_.positions[token]);
    }

    // Every thread's share of a layer, into mixed [N, heads · D]. Alone, each thread writes all of a vector of its own.
    void run(int l, int thread, Pool& pool, float* mixed) {
        if (alone_) {
            const Plan& plan = plan_of(l);
            const int64_t parts = int64_t(plan.parts.size());
            for (int64_t i = share(parts, thread, threads_); i < share(parts, thread + 1, threads_); ++i)
                attend_part(l, plan, size_t(i), thread);
            pool.barrier();
            join_parts(l, plan, mixed);
        } else {
            const std::vector<Unit>& units = units_of(l);
            for (int i; (i = taken_[size_t(l)].fetch_add(1, std::memory_order_relaxed)) < int(units.size());) {
                if (i + threads_ < int(units.size())) prefetch_unit(l, units[size_t(i + threads_)]);
                attend_unit(l, units[size_t(i)], thread, mixed);
            }
            pool.barrier();
        }
    }

private:
    static constexpr int QUERY_ROWS = 64;  // query rows of one unit
    struct Segment { int64_t first, count, row; };  // consecutive tokens of one row
    struct Unit { int64_t token, count, row; int group; };
    struct Part { int64_t token; int group, block; bool first; };
    struct Units { int kv_heads; std::vector<Unit> all; };              // of the layers with so many
    struct Plan { int window, kv_heads; std::vector<Part> parts; };  // of the layers with these

    bool whole() const { return c_.lengths != nullptr; }
    void* keys(int layer) const { return whole() ? keys_ : c_.keys[m_.layer(layer).source]; }
    void* values(int layer) const { return whole() ? values_ : c_.values[m_.layer(layer).source]; }

    T* place(void* data, int layer, int64_t row, int group, int64_t position) const {
        const Layer& at = m_.layer(layer);
        if (whole()) return static_cast<T*>(data) + (int64_t(group) * N_ + row + position) * at.head_dim;
        const int64_t C = c_.places[at.source];
        return static_cast<T*>(data) + ((row * at.kv_heads + group) * C + position % C) * at.head_dim;
    }

    int shared_by(int l) const { return s_.heads / m_.layer(l).kv_heads; }

    // Positions that a token sees in a layer with this window (0: all): `first` … `end` − 1. In a text half of the window
    // lies on each side of it.
    struct Sight { int64_t first, end; };
    Sight sight(int window, int64_t t) const {
        const int64_t at = c_.positions[t];
        if (!whole()) return {window ? std::max<int64_t>(0, at - window + 1) : 0, at + 1};
        if (!window) return {0, c_.lengths[t]};
        return {std::max<int64_t>(0, at - window / 2), std::min(c_.lengths[t], at + window / 2 + 1)};
    }

    void find_units() {
        std::vector<Segment> segments;
        for (int64_t i = 0; i < N_; ++i) {
            if (!segments.empty() && c_.rows[i] == c_.rows[i - 1] && c_.positions[i] == c_.positions[i - 1] + 1)
                ++segments.back().count;
            else
                segments.push_back({i, 1, c_.rows[i]});
        }
        for (const Layer& layer : m_.layers) {
            const int groups = layer.kv_heads;
            if (std::any_of(units_.begin(), units_.end(), [&](const Units& u) { return u.kv_heads == groups; })) continue;
            units_.push_back({groups, {}});
            std::vector<Unit>& all = units_.back().all;
            // Each unit turns the keys that it reads, which texts alone have few of, and a cache many.
            const int64_t block = std::max(1, std::min(whole() ? QUERY_ROWS : 16, QUERY_ROWS / (s_.heads / groups)));
            for (const Segment& s : segments)
                for (int64_t t = 0; t < s.count; t += block)
                    for (int g = 0; g < groups; ++g) all.push_back({s.first + t, std::min(block, s.count - t), s.row, g});
            // The longest first: what is left for the end is then short.
            std::stable_sort(all.begin(), all.end(), [&](const Unit& a, const Unit& b) {
                return sight(0, a.token).end > sight(0, b.token).end;
            });
        }
    }

    const std::vector<Unit>& units_of(int l) const {
        const int groups = m_.layer(l).kv_heads;
        return std::find_if(units_.begin(), units_.end(), [&](const Units& u) { return u.kv_heads == groups; })->all;
    }

    void find_plans(Arena& memory) {
        size_t most = 0;  // parts, times the query rows of each
        for (const Layer& layer : m_.layers) {
            if (std::any_of(plans_.begin(), plans_.end(), [&](const Plan& p) { return is_for(p, layer); })) continue;
            plans_.push_back({layer.window, layer.kv_heads, {}});
            for (int64_t t = 0; t < N_; ++t)
                for (int g = 0; g < layer.kv_heads; ++g) {
                    const int first = int(sight(layer.window, t).first / KEYS);
                    for (int b = first; b <= int(c_.positions[t] / KEYS); ++b)
                        plans_.back().parts.push_back({t, g, b, b == first});
                }
            most = std::max(most, plans_.back().parts.size() * size_t(s_.heads / layer.kv_heads));
        }
        part_values_ = memory.array<float>(int64_t(most) * s_.head_dim);
        part_sums_.resize(most);
    }

    static bool is_for(const Plan& plan, const Layer& layer) {
        return plan.window == layer.window && plan.kv_heads == layer.kv_heads;
    }

    const Plan& plan_of(int l) const {
        return *std::find_if(plans_.begin(), plans_.end(), [&](const Plan& p) { return is_for(p, m_.layer(l)); });
    }

    // Keys `first` … count − 1 of a block are seen.
    void fetch_block(int l, int64_t row, int group, int block, int first, int count, int thread) {
        const int64_t begin = int64_t(block) * KEYS, D = m_.layer(l).head_dim;
        const T *k = place(keys(l), l, row, group, begin), *v = place(values(l), l, row, group, begin);
        const int64_t C = whole() ? 0 : c_.places[m_.layer(l).source];
        const int64_t before = whole() ? count : C - begin % C;  // the ring's end
        if (before < count) {
            T *keys = together_[size_t(thread)], *values = keys + KEYS * D;
            auto join = [&](T* to, const T* from, void* data) {
                std::memcpy(to, from, size_t(before * D) * sizeof(T));
                const T* rest = place(data, l, row, group, begin + before);
                std::memcpy(to + before * D, rest, size_t((count - before) * D) * sizeof(T));
            };
            join(keys, k, this->keys(l)), join(values, v, this->values(l));
            k = keys, v = values;
        }
        Arithmetic::load_block(k, v, first, count, int(D), *blocks_[size_t(thread)]);
    }

    // The beginning of what a unit reads: its own loads run ahead of themselves from there.
    void prefetch_unit(int l, const Unit& unit) {
        const int64_t first = sight(m_.layers[size_t(l)].window, unit.token).first / KEYS * KEYS;
        const int64_t bytes = int64_t(sizeof(T)) * 16 * NEXT * m_.layer(l).head_dim;
        prefetch_bytes(place(keys(l), l, unit.row, unit.group, first), bytes);
        prefetch_bytes(place(values(l), l, unit.row, unit.group, first), bytes);
    }

    void attend_part(int l, const Plan& plan, size_t i, int thread) {
        const Part& part = plan.parts[i];
        const int D = m_.layer(l).head_dim, per_group = shared_by(l);
        const Seen seen = seen_of(sight(plan.window, part.token), part.block);
        fetch_block(l, c_.rows[part.token], part.group, part.block, seen.begin, seen.end, thread);
        const Seen all_seen[QUERIES] = {seen, seen, seen, seen};
        for (int h = 0; h < per_group; h += QUERIES) {
            const int n = std::min(QUERIES, per_group - h);
            const Number* q[QUERIES];
            Running* out = &part_sums_[i * size_t(per_group) + size_t(h)];
            for (int j = 0; j < n; ++j) {
                q[j] = q_ + part.token * m_.q_size() + (part.group * per_group + h + j) * D;
                out[j].values = part_values_ + (int64_t(i) * per_group + h + j) * D;
            }
            attend<Arithmetic>(*blocks_[size_t(thread)], seen.end, q, all_seen, n, D, scores(l), out);
        }
    }

    // What of a block, of which it is something.
    static Seen seen_of(const Sight& sight, int block) {
        const int64_t begin = int64_t(block) * KEYS;
        return {int(std::max<int64_t>(0, sight.first - begin)), int(std::min<int64_t>(KEYS, sight.end - begin))};
    }

    void join_parts(int l, const Plan& plan, float* mixed) {
        const int D = m_.layer(l).head_dim, per_group = shared_by(l);
        const std::vector<Part>& parts = plan.parts;
        Running into{};
        for (size_t i = 0; i < parts.size(); ++i)
            if (parts[i].first)
                for (int h = 0; h < per_group; ++h) {
                    const int head = parts[i].group * per_group + h;
                    into.values = mixed + parts[i].token * m_.q_size() + head * D;
                    for (size_t j = i; j < parts.size() && (j == i || !parts[j].first); ++j)
                        join(into, part_sums_[j * size_t(per_group) + size_t(h)], D, j == i);
                    divide(l, head, into);
                }
    }

    // A sink is one more score, of no value (gpt-oss).
    void divide(int l, int head, Running& x) {
        float by = 1.0f / x.total;
        if (const float* sinks = m_.layers[size_t(l)].weight[SINKS]) {
            const float top = std::max(x.top, sinks[head]), old = exp1(x.top - top);
            by = old / (x.total * old + exp1(sinks[head] - top));
        }
        scaled_row(x.values, m_.layer(l).head_dim, by);
    }

    Scores scores(int l) const { return {m_.layer(l).score_scale, s_.score_cap}; }

    void attend_unit(int l, const Unit& unit, int thread, float* mixed) {
        const int D = m_.layer(l).head_dim, per_group = shared_by(l), rows = int(unit.count) * per_group;
        const int window = m_.layers[size_t(l)].window;
        Running total[QUERY_ROWS], fresh[QUERIES];
        const Number* q[QUERY_ROWS];
        Sight sees[QUERY_ROWS];
        bool begun[QUERY_ROWS] = {};
        for (int r = 0; r < rows; ++r) {
            const int64_t t = unit.token + r / per_group;
            const int64_t at = t * m_.q_size() + (unit.group * per_group + r % per_group) * D;
            q[r] = q_ + at, sees[r] = sight(window, t), total[r].values = mixed + at;
        }
        const int64_t last = sees[rows - 1].end - 1;
        for (int b = int(sees[0].first / KEYS); b <= int(last / KEYS); ++b) {
            const int64_t begin = int64_t(b) * KEYS;
            const int count = int(std::min<int64_t>(KEYS, last + 1 - begin));
            fetch_block(l, unit.row, unit.group, b, seen_of(sees[0], b).begin, count, thread);
            int r = 0, end = rows;  // those before and behind see nothing of this block
            while (r < rows && sees[r].end <= begin) ++r;
            while (end > r && sees[end - 1].first >= begin + KEYS) --end;
            while (r < end) {
                const int n = std::min(QUERIES, end - r);
                Seen seen[QUERIES];
                for (int j = 0; j < n; ++j) {
                    seen[j] = seen_of(sees[r + j], b);
                    fresh[j].values = begun[r + j] ? running_[size_t(thread)] + j * D : total[r + j].values;
                }
                attend<Arithmetic>(*blocks_[size_t(thread)], count, q + r, seen, n, D, scores(l), fresh);
                for (int j = 0; j < n; ++j) {
                    if (begun[r + j]) join(total[r + j], fresh[j], D, false);
                    else total[r + j] = fresh[j], begun[r + j] = true;
                }
                r += n;
            }
        }
        for (int r = 0; r < rows; ++r) divide(l, unit.group * per_group + r % per_group, total[r]);
    }

    const Model& m_;
    const Call& c_;
    const Shape& s_;
    const int64_t N_;
    const int threads_;
    const bool alone_;
    Number* q_;
    T *keys_ = nullptr, *values_ = nullptr;  // [G, N, D] of whole texts
    float* part_values_ = nullptr;
    std::vector<float*> running_;
    std::vector<T*> together_;  // a block that a ring's end cuts in two
    std::vector<Block*> blocks_;
    std::vector<Units> units_;
    std::vector<Plan> plans_;
    std::vector<Running> part_sums_;
    std::vector<std::atomic<int>> taken_;
};
