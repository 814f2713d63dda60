// Chooses a token's experts and their weights from its router logits (models/layers/experts.py cites the papers).
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "model.h"

struct Route {
    int32_t expert;
    float weight;
};

class Router {
public:
    explicit Router(const Shape& shape) : s_(shape), scores_(size_t(shape.experts)), preference_(scores_), group_(scores_) {}

    // logits: [experts], which are changed. Into `to` [per_token], the best first.
    void choose(float* logits, const float* selection_bias, Route* to) {
        const int E = s_.experts;
        score(logits);
        for (int e = 0; e < E; ++e)
            preference_[size_t(e)] = (s_.scoring == CHOSEN ? logits[e] : scores_[size_t(e)]) + (selection_bias ? selection_bias[e] : 0.0f);
        if (s_.groups > 1) keep_best_groups();
        for (int j = 0; j < s_.per_token; ++j) {
            const auto best = std::max_element(preference_.begin(), preference_.end());
            to[j].expert = int32_t(best - preference_.begin());
            *best = -std::numeric_limits<float>::infinity();
        }
        weigh(logits, to);
    }

private:
    enum Scoring { SOFTMAX = 0, CHOSEN = 1, SIGMOID = 2 };

    void score(const float* logits) {
        const int E = s_.experts;
        if (s_.scoring == SIGMOID) {
            for (int e = 0; e < E; ++e) scores_[size_t(e)] = 1.0f / (1.0f + std::exp(-logits[e]));
        } else if (s_.scoring == SOFTMAX) {
            const float top = *std::max_element(logits, logits + E);
            float total = 0;
            for (int e = 0; e < E; ++e) total += scores_[size_t(e)] = std::exp(logits[e] - top);
            for (float& score : scores_) score /= total;
        }
    }

    // Experts of the groups whose two best together are among the best; the others are out.
    void keep_best_groups() {
        const int size = s_.experts / s_.groups;
        std::vector<float> best(size_t(s_.groups), 0.0f);
        for (int g = 0; g < s_.groups; ++g) {
            std::copy_n(preference_.begin() + g * size, size, group_.begin());
            std::partial_sort(group_.begin(), group_.begin() + 2, group_.begin() + size, std::greater<float>());
            best[size_t(g)] = group_[0] + group_[1];
        }
        for (int out = s_.groups_chosen; out < s_.groups; ++out) {
            const auto worst = std::min_element(best.begin(), best.end());
            std::fill_n(preference_.begin() + (worst - best.begin()) * size, size, -std::numeric_limits<float>::infinity());
            *worst = std::numeric_limits<float>::infinity();
        }
    }

    void weigh(const float* logits, Route* to) const {
        float total = 0;
        for (int j = 0; j < s_.per_token; ++j) {
            const int e = to[j].expert;
            total += to[j].weight = s_.scoring == CHOSEN ? std::exp(logits[e] - logits[to[0].expert]) : scores_[size_t(e)];
        }
        if (s_.scoring == SIGMOID) total += 1e-20f;
        const float by = s_.scoring == CHOSEN || s_.renormalise ? s_.expert_scale / total : s_.expert_scale;
        for (int j = 0; j < s_.per_token; ++j) to[j].weight *= by;
    }

    const Shape& s_;
    std::vector<float> scores_, preference_, group_;
};
