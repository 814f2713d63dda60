// Whole texts shared out among threads: each computes its own from beginning to end, and meets no barrier. What a text gives
// does not depend on its company.
#pragma once
#include <algorithm>
#include <deque>
#include <numeric>

#include "forward.h"

// Some of a call's texts, as a call of their own.
class Texts {
public:
    explicit Texts(const Call& all) : call(all), all_(all) {}
    Texts(const Texts&) = delete;

    // The text whose first token is this one.
    void add(int64_t first) {
        const int64_t count = all_.lengths[first], row = int64_t(tokens_.size());
        for (int64_t t = first; t < first + count; ++t) {
            tokens_.push_back(all_.tokens[t]), positions_.push_back(all_.positions[t]);
            rows_.push_back(row), lengths_.push_back(count);
            if (all_.types) types_.push_back(all_.types[t]);
            if (all_.adapters) adapters_.push_back(all_.adapters[t]);
        }
        firsts_.push_back(first);
    }

    // To be called when all were added.
    void ready(int hidden, Arena& memory) {
        call.tokens_count = int32_t(tokens_.size());
        call.tokens = tokens_.data(), call.rows = rows_.data(), call.positions = positions_.data();
        call.lengths = lengths_.data();
        if (all_.types) call.types = types_.data();
        if (all_.adapters) call.adapters = adapters_.data();
        call.hidden = memory.array<float>(int64_t(call.tokens_count) * hidden);
    }

    // Their states to where the whole call wants them.
    void give(int hidden) const {
        const float* from = call.hidden;
        for (const int64_t first : firsts_) {
            const int64_t size = all_.lengths[first] * hidden;
            std::memcpy(all_.hidden + first * hidden, from, size_t(size) * 4);
            from += size;
        }
    }

    Call call;

private:
    const Call& all_;
    std::vector<int64_t> firsts_, tokens_, rows_, positions_, lengths_, types_;
    std::vector<const LowRank*> adapters_;
};

// What texts cost: products by token, and attention by token and key, which takes about twice as long for each addition.
inline double cost_of(const Shape& s, int64_t length) {
    const double q = double(s.heads) * s.head_dim, kv = double(s.kv_heads) * s.head_dim;
    const double weights = s.hidden * (2 * q + 2 * kv + (s.gated ? 3.0 : 2.0) * s.feedforward);
    return double(length) * (weights / (4 * q) + double(length));
}

// A call's texts in so many shares of about the same cost; none where they cannot be shared out evenly, or it is no such call.
inline std::deque<Texts> shared_texts(const Model& m, const Call& call, int shares) {
    constexpr double EVEN = 1.1;  // the largest share, of an even one; the barriers cost about as much
    std::deque<Texts> found;
    if (!call.lengths || !call.hidden || call.scored_count || shares < 2) return found;
    std::vector<int64_t> firsts;
    for (int64_t t = 0; t < call.tokens_count; t += call.lengths[t]) firsts.push_back(t);
    // The longest first, each to whom has least.
    std::stable_sort(firsts.begin(), firsts.end(), [&](int64_t a, int64_t b) { return call.lengths[a] > call.lengths[b]; });
    const size_t count = size_t(shares);
    std::vector<double> costs(count);
    std::vector<std::vector<int64_t>> each(count);
    for (const int64_t first : firsts) {
        const size_t least = size_t(std::min_element(costs.begin(), costs.end()) - costs.begin());
        costs[least] += cost_of(m.shape, call.lengths[first]), each[least].push_back(first);
    }
    const double all = std::accumulate(costs.begin(), costs.end(), 0.0);
    if (*std::max_element(costs.begin(), costs.end()) * shares > EVEN * all) return found;
    for (const std::vector<int64_t>& share : each) {
        found.emplace_back(call);
        for (const int64_t first : share) found.back().add(first);
    }
    return found;
}
