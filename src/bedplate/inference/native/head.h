// The last product: logits of the wanted tokens, the largest of them, and the logarithm of their sum of exponentials.
#pragma once
#include "activations.h"
#include "mixing.h"

class Head {
public:
    Head(const Model& model, const Call& call, Arena& memory, int threads)
        : m_(model), c_(call), threads_(threads), W_(call.wanted_count) {
        if (!W_) return;
        x_ = make_inputs(memory, W_, m_.shape.hidden, reads(m_.head.format), reads(m_.head.format));
        best_.resize(size_t(W_) * size_t(chunks()));
    }

    // Where the normalised states of the wanted tokens are put before `run`.
    const Inputs& inputs() const { return x_; }

    void run(int thread, Pool& pool) {
        for (int64_t c = share(chunks(), thread, threads_); c < share(chunks(), thread + 1, threads_); ++c) chunk(int(c));
        pool.barrier();
        if (thread) return;
        for (int64_t i = 0; i < W_; ++i) {
            Best all = best_[size_t(i)];
            for (int c = 1; c < chunks(); ++c) {
                const Best& next = best_[size_t(c) * size_t(W_) + size_t(i)];
                float top = std::max(all.top, next.top);
                all.total = all.total * exp1(all.top - top) + next.total * exp1(next.top - top);
                if (next.top > all.top) all.index = next.index;
                all.top = top;
            }
            c_.best[i] = all.index;
            c_.logsumexp[i] = all.top + std::log(all.total);
        }
    }

private:
    static constexpr int CHUNK = 64;  // panels of one piece
    struct Best { float top, total; int64_t index; };

    int chunks() const { return (m_.head.panels + CHUNK - 1) / CHUNK; }

    // One piece of the vocabulary, with its largest and its sum of exponentials.
    void chunk(int c) {
        const int64_t V = m_.shape.vocabulary;
        const int first = c * CHUNK, panels = std::min(CHUNK, m_.head.panels - first);
        const int size = std::min(panels * LANES, int(V) - first * LANES);
        alignas(64) float tile[TILE * 64];
        for (int p = 0; p < panels; p += 4)
            for (int64_t i = 0; i < W_; i += TILE) {
                const int M = int(std::min<int64_t>(TILE, W_ - i)), count = std::min(4, panels - p);
                tile_product(m_.head, first + p, count, x_, i, M, {int(i / TILE), int((W_ + TILE - 1) / TILE)}, tile, 64);
                if (m_.shape.logit_cap > 0)
                    for (int m = 0; m < M; ++m)
                        for (int j = 0; j < count * LANES; j += LANES)
                            store(tile + m * 64 + j, capped(load(tile + m * 64 + j), m_.shape.logit_cap));
                const int n = std::min(count * LANES, size - p * LANES);
                for (int m = 0; m < M; ++m)
                    std::memcpy(c_.logits + (i + m) * V + (first + p) * LANES, tile + m * 64, size_t(n) * 4);
            }
        for (int64_t i = 0; i < W_; ++i)
            best_[size_t(c) * size_t(W_) + size_t(i)] = best_of(c_.logits + i * V + first * LANES, size, first * LANES);
    }

    static Best best_of(const float* y, int size, int64_t offset) {
        const F none = set1(-3.0e38f);
        alignas(64) float spare[LANES];
        F top = none, total = zero();
        auto at = [&](int i) {
            if (i + LANES <= size) return load(y + i);
            store(spare, none);
            std::memcpy(spare, y + i, size_t(size - i) * 4);
            return load(spare);
        };
        for (int i = 0; i < size; i += LANES) top = fmax(top, at(i));
        Best best{largest(top), 0, offset};
        for (int i = 0; i < size; i += LANES)
            total = add(total, first_lanes(exp(sub(at(i), set1(best.top))), size - i, zero()));
        best.total = sum(total);
        for (int i = 0; i < size; ++i)
            if (y[i] == best.top) {
                best.index = offset + i;
                break;
            }
        return best;
    }

    const Model& m_;
    const Call& c_;
    const int threads_;
    const int64_t W_;
    Inputs x_;
    std::vector<Best> best_;
};
