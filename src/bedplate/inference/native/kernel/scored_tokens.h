// The tokens of a call whose logits are computed, which are all that the last layer is computed for.
#pragma once
#include <vector>

#include "model.h"

constexpr int ALONE = 4;    // below so many tokens each thread does the small per-token work for itself: no barrier

class ScoredTokens {
public:
    explicit ScoredTokens(const Call& all) : call(all) {
        for (int i = 0; i < all.scored_count; ++i) {
            const int64_t t = all.scored[i];
            numbers_.push_back(i), tokens_.push_back(all.tokens[t]), rows_.push_back(all.rows[t]);
            positions_.push_back(all.positions[t]);
            if (all.adapters) adapters_.push_back(all.adapters[t]);
        }
        call.tokens_count = all.scored_count, call.scored = numbers_.data(), call.tokens = tokens_.data();
        call.rows = rows_.data(), call.positions = positions_.data();
        if (all.adapters) call.adapters = adapters_.data();
    }
    ScoredTokens(const ScoredTokens&) = delete;

    // Whether most tokens of a call only leave their keys and values behind.
    static bool few(const Call& all) {
        return !all.hidden && all.depth < 0 && all.tokens_count >= ALONE && 2 * all.scored_count <= all.tokens_count;
    }

    Call call;

private:
    std::vector<int64_t> numbers_, tokens_, rows_, positions_;
    std::vector<const LowRank*> adapters_;
};
