// The last product: of the scored tokens the largest logit, the first place where it stands, the logarithm of the sum of all
// exponentials, and, where they are asked for, the logits. Where some are NaN that logarithm is NaN, and the place is one of
// the vocabulary.
#pragma once
#include "activations.h"
#include "mixing.h"

class Head {
public:
    Head(const Model& model, const Call& call, Arena& memory, int threads)
        : m_(model), c_(call), threads_(threads), W_(call.scored_count) {
        if (!W_) return;
        x_ = make_inputs(memory, W_, m_.shape.hidden, reads(m_.head.format), reads(m_.head.format));
        for (float** to : {&tops_, &totals_, &places_}) *to = memory.array<float>(W_ * padded());
        for (int i = 0; !c_.logits && i < threads; ++i) pieces_.push_back(memory.array<float>(std::min<int64_t>(W_, MOST) * PIECE));
    }

    // Where the normalised states of the scored tokens are put before `run`.
    const Inputs& inputs() const { return x_; }

    void run(int thread, Pool& pool) {
        for (int64_t c = share(chunks(), thread, threads_); c < share(chunks(), thread + 1, threads_); ++c) {
            // Logits that nobody asked for stay in the cache, where so many rows fit.
            const int64_t most = c_.logits ? W_ : MOST;
            for (int64_t i = 0; i < W_; i += most) chunk(int(c), i, std::min(i + most, W_), thread);
        }
        pool.barrier();
        for (int64_t i = share(W_, thread, threads_); i < share(W_, thread + 1, threads_); ++i) finish(i);
    }

private:
    static constexpr int CHUNK = 64, PIECE = CHUNK * LANES;  // panels of one piece, and their logits
    static constexpr int64_t MOST = 64;                      // rows whose logits lie beside each other

    int chunks() const { return (m_.head.panels + CHUNK - 1) / CHUNK; }
    int padded() const { return (chunks() + LANES - 1) / LANES * LANES; }

    // One piece of the vocabulary for rows i … end − 1, with its largest and its sum of exponentials.
    void chunk(int c, int64_t i, int64_t end, int thread) {
        const int64_t V = m_.shape.vocabulary, begin = i;
        const int first = c * CHUNK, panels = std::min(CHUNK, m_.head.panels - first);
        const int size = std::min(panels * LANES, int(V) - first * LANES), tiles = int((end - begin + TILE - 1) / TILE);
        float* to = c_.logits ? c_.logits + begin * V + first * LANES : pieces_[size_t(thread)];
        const int64_t ld = c_.logits ? V : PIECE;
        alignas(64) float tile[TILE * 64];
        for (int p = 0; p < panels; p += 4)
            for (i = begin; i < end; i += TILE) {
                const int M = int(std::min<int64_t>(TILE, end - i)), count = std::min(4, panels - p);
                tile_product(m_.head, first + p, count, x_, i, M, {int((i - begin) / TILE), tiles}, tile, 64);
                if (m_.shape.logit_cap > 0)
                    for (int m = 0; m < M; ++m)
                        for (int j = 0; j < count * LANES; j += LANES)
                            store(tile + m * 64 + j, capped(load(tile + m * 64 + j), m_.shape.logit_cap));
                const int n = std::min(count * LANES, size - p * LANES);
                for (int m = 0; m < M; ++m)
                    std::memcpy(to + (i - begin + m) * ld + p * LANES, tile + m * 64, size_t(n) * 4);
            }
        for (i = begin; i < end; ++i) note(c, i, to + (i - begin) * ld, size);
    }

    // The largest of a row's piece, the first place where it stands, and the sum of exponentials about it.
    void note(int c, int64_t i, const float* y, int size) {
        const F none = set1(-3.0e38f);
        alignas(64) float tops[LANES], places[LANES], spare[LANES];
        for (int l = 0; l < LANES; ++l) places[l] = float(l);
        F top = none, place = load(places), at = place, total = zero();
        auto of = [&](int j) {
            if (j + LANES <= size) return load(y + j);
            store(spare, none);
            std::memcpy(spare, y + j, size_t(size - j) * 4);
            return load(spare);
        };
        for (int j = 0; j < size; j += LANES) {
            const F x = of(j);
            place = where_below(top, x, at, place), top = fmax(top, x), at = add(at, set1(float(LANES)));
        }
        const float highest = largest(top);
        for (int j = 0; j < size; j += LANES)
            total = add(total, first_lanes(exp(sub(of(j), set1(highest))), size - j, zero()));
        store(tops, top), store(places, place);
        float found = float(PIECE);
        for (int l = 0; l < LANES; ++l)
            if (tops[l] == highest) found = std::min(found, places[l]);
        const int64_t to = i * padded() + c;
        tops_[to] = highest, totals_[to] = sum(total), places_[to] = found < float(size) ? found : 0.0f;  // 0: of NaN
    }

    // A row's pieces together, always in this order.
    void finish(int64_t i) {
        const float *tops = tops_ + i * padded(), *totals = totals_ + i * padded();
        int best = 0;
        for (int c = 1; c < chunks(); ++c)
            if (tops[c] > tops[best]) best = c;
        F total = zero();
        for (int c = 0; c < chunks(); c += LANES) {
            const int left = chunks() - c;
            const F x = exp(sub(first_lanes(load(tops + c), left, zero()), set1(tops[best])));
            total = add(total, first_lanes(mul(load(totals + c), x), left, zero()));
        }
        c_.best[i] = int64_t(best) * PIECE + int64_t(places_[i * padded() + best]);
        c_.top[i] = tops[best];
        c_.logsumexp[i] = tops[best] + std::log(sum(total));
    }

    const Model& m_;
    const Call& c_;
    const int threads_;
    const int64_t W_;
    Inputs x_;
    float *tops_ = nullptr, *totals_ = nullptr, *places_ = nullptr;  // [W, pieces]: largest, sum, and the place of the largest
    std::vector<float*> pieces_;                                     // of each thread the logits of one piece, where they are not kept
};
