// Low-rank updates (LoRA, https://arxiv.org/abs/2106.09685) of the tokens that have an adapter, each its own.
#pragma once
#include "attention.h"
#include "model.h"
#include "threads.h"

constexpr int RUN = 16;  // tokens of one adapter that share its loads

struct AdapterRun { int64_t first, count; const LowRank* at; };

template <class Arithmetic>
class Updates {
public:
    using T = typename Arithmetic::Cached;  // adapters are stored as keys and values are

    // The form of the activations that A is multiplied with.
    static constexpr Reads form = std::is_same<typename Arithmetic::Number, uint16_t>::value ? HALVES : FLOATS;

    Updates(const Model& model, const Call& call, Arena& memory, int threads)
        : m_(model), c_(call), threads_(threads), low_(size_t(threads), nullptr) {
        find_runs();
        if (runs_.empty()) return;
        const Shape& s = m_.shape;
        const int widest = std::max({m_.q_size() + 2 * m_.kv_size(), 2 * s.feedforward, s.hidden, s.layer_input});
        update_ = memory.array<float>(c_.tokens_count * int64_t(widest));
        for (float*& low : low_) low = memory.array<float>(int64_t(RUN) * max_rank_);
#ifdef BEDPLATE_TILES
        const int longest = std::max({s.hidden, m_.q_size(), s.feedforward, s.layer_input});
        for (int i = 0; i < threads; ++i)
            turned_.push_back(memory.array<uint16_t>(RUN * int64_t(longest))), sums_.push_back(memory.array<float>(RUN * int64_t(max_rank_)));
#endif
    }

    bool any() const { return !runs_.empty(); }
    bool adapted(int64_t token) const { return any() && c_.adapters[token]; }

    // Σ scaling · B (A x) at `count` places from `first` on, kept for `add`. Ends with a barrier where there is any.
    void compute(int layer, int first, int count, const Inputs& x, int thread, Pool& pool) {
        if (!any()) return;
        int64_t ld = 0;
        for (int i = 0; i < count; ++i) ld += m_.layers[size_t(layer)].linear[first + i].out;
        int64_t item = 0;
        for (size_t r = 0; r < runs_.size(); ++r) {
            int64_t column = 0;
            for (int i = 0; i < count; ++i, ++item) {
                const Linear& w = m_.layers[size_t(layer)].linear[first + i];
                const LowRank& low = runs_[r].at[layer * PLACES + first + i];
                if (low.rank && item % threads_ == thread) {
                    const int64_t after = item + threads_;  // what this thread computes next
                    const LowRank* next = size_t(after / count) < runs_.size()
                        ? &runs_[size_t(after / count)].at[layer * PLACES + first + int(after % count)] : nullptr;
                    run(low, w, runs_[r], x, update_ + column, ld, thread, next);
                }
                column += w.out;
            }
        }
        pool.barrier();
    }

    // Adds a place's update to a tile of its features from `feature` on. column, ld: where it stands among the places
    // that were computed together.
    void add(int layer, int place, int64_t column, int64_t ld, int64_t token, int M, int feature, int count, float* tile,
             int64_t tile_ld) const {
        if (!any()) return;
        for (int m = 0; m < M; ++m) {
            if (!adapted(token + m)) continue;
            const LowRank& low = c_.adapters[token + m][layer * PLACES + place];
            if (!low.rank) continue;
            const float* from = update_ + (token + m) * ld + column + feature;
            float* y = tile + m * tile_ld;
            for (int i = 0; i < count; i += LANES) store(y + i, ::add(load(y + i), load(from + i)));
            if (!low.scale) continue;
            for (int i = 0; i < count; i += LANES)
                store(y + i, fma(load(y + i), load(low.scale + feature + i),
                                 low.shift ? load(low.shift + feature + i) : zero()));
        }
    }

private:
    static constexpr int ROWS = 4, COLUMNS = 8;

    void find_runs() {
        if (!c_.adapters) return;
        for (int64_t i = 0; i < c_.tokens_count; ++i) {
            const LowRank* at = c_.adapters[i];
            if (!at) continue;
            if (!runs_.empty() && runs_.back().at == at && runs_.back().first + runs_.back().count == i &&
                runs_.back().count < RUN) {
                ++runs_.back().count;
                continue;
            }
            if (runs_.empty() || runs_.back().at != at)
                for (int j = 0; j < m_.shape.layers * PLACES; ++j) max_rank_ = std::max(max_rank_, at[j].rank);
            runs_.push_back({i, 1, at});
        }
    }

    // Adapters of many skins come from memory: each piece is asked for while the one before it is computed.
    void run(const LowRank& low, const Linear& w, const AdapterRun& run, const Inputs& x, float* out, int64_t ld, int thread,
             const LowRank* next) {
        float* h = low_[size_t(thread)];
        const T* b = static_cast<const T*>(low.b);
        for (int r = 0; r < low.rank; ++r) prefetch_bytes(b + int64_t(r) * w.out, COLUMNS * LANES * sizeof(T));
        if constexpr (BY_TILES) down_tiles(low, w.in, run, x, h, thread);
        int r = BY_TILES ? low.rank : 0;
        for (; r + ROWS <= low.rank; r += ROWS) down_rows<ROWS>(low, r, w.in, run, x, h);
        for (; r < low.rank; ++r) down_rows<1>(low, r, w.in, run, x, h);
        int o = 0;
        for (; o + COLUMNS * LANES <= w.out; o += COLUMNS * LANES) up_columns<COLUMNS>(low, o, w.out, run, h, out, ld);
        for (; o < w.out; o += LANES) up_columns<1>(low, o, w.out, run, h, out, ld);
        if (next && next->rank) prefetch_bytes(next->a, int64_t(ROWS) * w.in * int64_t(sizeof(T)));
    }

#ifdef BEDPLATE_TILES
    static constexpr bool BY_TILES = form == HALVES;
    // A's rows in the place of tokens, and the run's tokens in that of a panel's features.
    void down_tiles(const LowRank& low, int in, const AdapterRun& run, const Inputs& x, float* h, int thread) {
        uint16_t* turned = turned_[size_t(thread)];
        float* sums = sums_[size_t(thread)];
        for (int k = 0; k < in; k += BLOCK) {
            I words[LANES];
            for (int t = 0; t < LANES; ++t)
                words[t] = t < run.count ? iload(x.half + (run.first + t) * x.K + k) : izero();
            transpose(words);
            for (int i = 0; i < LANES; ++i) istore(turned + k * LANES + i * BLOCK, words[i]);
        }
        Inputs rows;
        rows.K = in, rows.half = static_cast<uint16_t*>(const_cast<void*>(low.a));
        for (int r = 0; r < low.rank; r += TILE)
            pair_tiles<1>(reinterpret_cast<const uint8_t*>(turned), 0, rows, r, std::min(TILE, low.rank - r), 0, sums + r * LANES, LANES);
        for (int64_t t = 0; t < run.count; ++t)
            for (int r = 0; r < low.rank; ++r) h[t * low.rank + r] = sums[r * LANES + t] * low.scaling;
    }
    std::vector<uint16_t*> turned_;  // of each thread: a run's inputs, pair by pair
    std::vector<float*> sums_;
#else
    static constexpr bool BY_TILES = false;
    void down_tiles(const LowRank&, int, const AdapterRun&, const Inputs&, float*, int) {}
#endif

    template <int R>
    void down_rows(const LowRank& low, int r, int in, const AdapterRun& run, const Inputs& x, float* h) {
        const T* a = static_cast<const T*>(low.a) + int64_t(r) * in;
        for (int64_t t = 0; t < run.count; ++t) {
            F acc[R];
            for (int i = 0; i < R; ++i) acc[i] = zero();
            for (int k = 0; k < in; k += 2 * LANES) {
                if (t == 0 && r + R < low.rank)
                    for (int i = 0; i < R; ++i) prefetch_bytes(a + int64_t(R + i) * in + k, 2 * LANES * sizeof(T));
                for (int i = 0; i < R; ++i) acc[i] = dot(acc[i], a + int64_t(i) * in + k, x, (run.first + t) * x.K + k);
            }
            for (int i = 0; i < R; ++i) h[t * low.rank + r + i] = sum(acc[i]) * low.scaling;
        }
    }

    // Adds 32 products.
    static INLINE_MEMBER F dot(F to, const T* a, const Inputs& x, int64_t at) {
#ifdef BEDPLATE_BF16
        if constexpr (form == HALVES) return dot_bf16(to, iload(a), iload(x.half + at));
#endif
        return fma(load(a + LANES), load(x.full + at + LANES), fma(load(a), load(x.full + at), to));
    }

    template <int P>
    void up_columns(const LowRank& low, int o, int out_size, const AdapterRun& run, const float* h, float* out, int64_t ld) {
        const T* b = static_cast<const T*>(low.b) + o;
        const bool more = o + P * LANES < out_size;
        for (int64_t t = 0; t < run.count; ++t) {
            F acc[P];
            for (int p = 0; p < P; ++p) acc[p] = zero();
            for (int r = 0; r < low.rank; ++r) {
                F x = set1(h[t * low.rank + r]);
                const T* row = b + int64_t(r) * out_size;
                if (t == 0 && more) prefetch_bytes(row + P * LANES, P * LANES * int64_t(sizeof(T)));
                for (int p = 0; p < P; ++p) acc[p] = fma(x, load(row + p * LANES), acc[p]);
            }
            for (int p = 0; p < P; ++p) store(out + (run.first + t) * ld + o + p * LANES, acc[p]);
        }
    }

    const Model& m_;
    const Call& c_;
    const int threads_;
    std::vector<float*> low_;
    std::vector<AdapterRun> runs_;
    int32_t max_rank_ = 0;
    float* update_ = nullptr;
};
