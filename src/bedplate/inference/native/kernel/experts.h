// A mixture of experts: tokens sorted by expert, and each expert's products over its own, few or many, cut in pieces that
// threads take as they come. What an expert gives a token is kept apart until all is there, and then added up in the order
// of the token's choices, so that its result does not depend on who else is in the batch.
#pragma once
#include <atomic>

#include "activations.h"
#include "mixing.h"
#include "routing.h"

class Experts {
public:
    Experts(const Model& model, const Call& call, Arena& memory, int threads, bool alone)
        : m_(model), s_(model.shape), N_(call.tokens_count), k_(s_.per_token), alone_(alone), form_(model.form()),
          per_thread_(size_t(threads)), taken_(size_t(2 * s_.layers)) {
        if (!s_.experts) return;
        for (auto& each : taken_) each.store(0, std::memory_order_relaxed);
        between_ = make_inputs(memory, N_ * k_, s_.expert_size, form_, form_);
        given_ = memory.array<float>(N_ * k_ * s_.hidden);
        for (Own& own : per_thread_) {
            own.few = make_inputs(memory, TILE, s_.hidden, form_, form_);
            own.logits = memory.array<float>(s_.experts), own.read = memory.array<float>(s_.hidden);
            own.router = std::make_unique<Router>(s_);
            own.begin.resize(size_t(s_.experts) + 1), own.order.resize(size_t(N_ * k_));
        }
        for (int i = 0; i < (alone ? threads : 1); ++i) routes_.emplace_back(size_t(N_ * k_)), shares_.emplace_back(size_t(N_));
    }

    // The choice of one token by its state: as its products read it, or (beside a feed-forward) before any norm.
    void route(const Layer& layer, int64_t t, const float* x, int thread) {
        Own& own = per_thread_[size_t(thread)];
        const float* read = x;
        if (const float* scale = layer.weight[ROUTER_SCALE]) {
            norm_row(x, s_.hidden, s_.eps, false, scale, nullptr, own.read);
            read = own.read;
        }
        for (int e = 0; e < s_.experts; ++e) {
            own.logits[e] = dot(layer.weight[ROUTER] + int64_t(e) * s_.hidden, read);
            if (layer.weight[ROUTER_BIAS]) own.logits[e] += layer.weight[ROUTER_BIAS][e];
        }
        Route* chosen = routes(thread) + t * k_;
        own.router->choose(own.logits, layer.weight[SELECTION_BIAS], chosen);
        if (const float* scales = layer.weight[EXPERT_SCALE])
            for (int j = 0; j < k_; ++j) chosen[j].weight *= scales[chosen[j].expert];
        if (layer.weight[SHARED_GATE]) {
            const float gate = dot(layer.weight[SHARED_GATE], x);
            shares_[me(thread)][size_t(t)] = 1.0f / (1.0f + std::exp(-gate));
        }
    }

    // The first products and what comes between, of every token's experts; x: the tokens' inputs, in their order.
    void open(int l, int thread, const Inputs& x) {
        const Layer& layer = m_.layers[size_t(l)];
        Own& own = per_thread_[size_t(thread)];
        sort(thread);
        each_piece(2 * l, own, layer.gate_up, s_.expert_size / BLOCK, [&](const Linear& w, int e, int from, int end) {
            for (int64_t i = own.begin[size_t(e)]; i < own.begin[size_t(e) + 1]; i += TILE) {
                const int M = int(std::min<int64_t>(TILE, own.begin[size_t(e) + 1] - i));
                const bool one = M == 1;
                if (!one)
                    for (int m = 0; m < M; ++m) copy_row(x, own.order[size_t(i + m)] / k_, own.few, m);
                const int64_t at = one ? own.order[size_t(i)] / k_ : 0;
                const Turn turn = own.turn(e, i);
                const int most = turn.tiles > 1 ? 1 : AT_ONCE;  // one tile reads long runs of the gate and the rest
                for (int b = from; b < end; b += most) between(w, b, std::min(most, end - b), one ? x : own.few, at, M, turn, i);
            }
        });
    }

    // The second products.
    void close(int l, int thread) {
        Own& own = per_thread_[size_t(thread)];
        each_piece(2 * l + 1, own, m_.layers[size_t(l)].down, 0, [&](const Linear& w, int e, int from, int end) {
            alignas(64) float tile[TILE * 64];
            for (int64_t i = own.begin[size_t(e)]; i < own.begin[size_t(e) + 1]; i += TILE) {
                const int M = int(std::min<int64_t>(TILE, own.begin[size_t(e) + 1] - i));
                for (int p = from; p < end; p += 4) {
                    const int count = std::min(4, end - p);
                    tile_product(w, p, count, between_, i, M, own.turn(e, i), tile, 64);
                    for (int m = 0; m < M; ++m)
                        std::memcpy(given_ + own.order[size_t(i + m)] * s_.hidden + p * LANES, tile + m * 64,
                                    size_t(count) * LANES * 4);
                }
            }
        });
    }

    // y: what the shared expert gave the token, where there is one; to it is added what its own experts gave.
    void add(const Layer& layer, int64_t t, int thread, float* y) const {
        if (!layer.linear[DOWN].out) std::memset(y, 0, size_t(s_.hidden) * 4);
        else if (layer.weight[SHARED_GATE]) scaled_row(y, s_.hidden, shares_[me(thread)][size_t(t)]);
        add_own(t, thread, y);
    }

    // Adds to y what a token's own experts gave, each as much as it counts.
    void add_own(int64_t t, int thread, float* y) const {
        const Route* routes = routes_[me(thread)].data() + t * k_;
        for (int i = 0; i < s_.hidden; i += LANES) {
            F total = zero();
            for (int j = 0; j < k_; ++j)
                total = fma(load(given_ + (t * k_ + j) * s_.hidden + i), set1(routes[j].weight), total);
            store(y + i, ::add(load(y + i), total));
        }
    }

private:
    static constexpr int64_t PIECE = 512 << 10;  // bytes of weights that stay in the second-level cache for all tokens
    struct Own {
        Inputs few;              // gathered rows of a tile
        float *logits = nullptr, *read = nullptr;  // of a router, and what they are made of
        std::unique_ptr<Router> router;
        std::vector<int64_t> begin, order;  // where an expert's rows begin; which (token · k + choice) stands at a row
        Turn turn(int e, int64_t row) const {
            const int64_t first = begin[size_t(e)], rows = begin[size_t(e) + 1] - first;
            return {int((row - first) / TILE), int((rows + TILE - 1) / TILE)};
        }
    };

    size_t me(int thread) const { return size_t(alone_ ? thread : 0); }
    Route* routes(int thread) { return routes_[me(thread)].data(); }

    float dot(const float* a, const float* b) const {
        F total = zero();
        for (int i = 0; i < s_.hidden; i += LANES) total = fma(load(a + i), load(b + i), total);
        return sum(total);
    }

    void sort(int thread) {
        Own& own = per_thread_[size_t(thread)];
        const Route* all = routes(thread);
        std::fill(own.begin.begin(), own.begin.end(), 0);
        for (int64_t c = 0; c < N_ * k_; ++c) ++own.begin[size_t(all[c].expert) + 1];
        for (size_t e = 0; e < size_t(s_.experts); ++e) own.begin[e + 1] += own.begin[e];
        std::vector<int64_t> next(own.begin);
        for (int64_t c = 0; c < N_ * k_; ++c) own.order[size_t(next[size_t(all[c].expert)]++)] = c;
    }

    // Calls work(w, expert, from, end) for pieces of the matrices of experts that have tokens, as this thread gets them.
    // units: how many parts a matrix is cut in at most; 0: its panels.
    template <class Work>
    void each_piece(int counter, const Own& own, const std::vector<Linear>& all, int units, const Work& work) {
        const int parts = units ? units : all[0].panels;
        const int pieces = int(std::clamp<int64_t>(all[0].panels * all[0].panel_bytes / PIECE, 1, parts / 4 ? parts / 4 : 1));
        std::atomic<int>& taken = taken_[size_t(counter)];
        int mine = taken.fetch_add(1, std::memory_order_relaxed), item = 0;
        for (int e = 0; e < s_.experts; ++e) {
            if (own.begin[size_t(e)] == own.begin[size_t(e) + 1]) continue;
            for (int p = 0; p < pieces; ++p, ++item) {
                if (item != mine) continue;
                work(all[size_t(e)], e, int(share(parts, p, pieces)), int(share(parts, p + 1, pieces)));
                mine = taken.fetch_add(1, std::memory_order_relaxed);
            }
        }
    }

    // So many blocks of the features between an expert's products, of M rows from `row` on.
    void between(const Linear& w, int block, int blocks, const Inputs& x, int64_t at, int M, const Turn& turn, int64_t row) {
        alignas(64) float a[TILE * AT_ONCE * BLOCK], b[TILE * AT_ONCE * BLOCK];
        const int size = blocks * BLOCK, panels = size / LANES;
        tile_product(w, 2 * block, panels, x, at, M, turn, a, size);
        if (s_.gated) tile_product(w, 2 * block + s_.expert_size / LANES, panels, x, at, M, turn, b, size);
        for (int m = 0; m < M; ++m)
            for (int j = 0; j < size; j += BLOCK) {
                F out[2];
                for (int h = 0; h < 2; ++h) {
                    const int i = m * size + j + h * LANES;
                    out[h] = s_.gated ? gated(s_.activation, load(a + i), load(b + i)) : activated(s_.activation, load(a + i));
                }
                put_block(out[0], out[1], between_, row + m, block + j / BLOCK, form_);
            }
    }

    const Model& m_;
    const Shape& s_;
    const int64_t N_;
    const int k_;
    const bool alone_;
    const Reads form_;
    std::vector<Own> per_thread_;
    std::vector<std::vector<Route>> routes_;
    std::vector<std::vector<float>> shares_;  // how much of the shared expert a token takes
    std::vector<std::atomic<int>> taken_;
    Inputs between_;
    float* given_ = nullptr;
};
