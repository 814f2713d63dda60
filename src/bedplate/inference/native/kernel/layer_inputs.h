// Per-layer embeddings (Gemma 3n; models/stack.py): for each token and layer, a row of a table of their own plus a
// projection of the token's embedding. Computed once per call, for all layers.
#pragma once
#include "head.h"
#include "norms.h"

template <class Arithmetic>
class LayerInputs {
public:
    using T = typename Arithmetic::Cached;

    LayerInputs(const Model& model, const Call& call, Arena& memory, int threads)
        : m_(model), c_(call), s_(model.shape), threads_(threads), wide_(int64_t(s_.layers) * s_.layer_input) {
        if (any()) all_ = memory.array<float>(c_.tokens_count * wide_);
    }

    bool any() const { return s_.layer_input > 0; }

    // [layer_input] of one token and layer.
    const float* of(int64_t t, int layer) const { return all_ + t * wide_ + int64_t(layer) * s_.layer_input; }

    // A thread's share of the projection. x: the tokens' embeddings as products read them. A barrier follows.
    void project(int thread, const Inputs& x) {
        const Linear& w = m_.layer_input;
        alignas(64) float tile[TILE * 64];
        const int from = int(share(w.panels, thread, threads_)), end = int(share(w.panels, thread + 1, threads_));
        for (int64_t chunk = 0; chunk < c_.tokens_count; chunk += s_.chunk) {
            const int64_t behind = std::min<int64_t>(c_.tokens_count, chunk + s_.chunk);
            const int tiles = int((behind - chunk + TILE - 1) / TILE);
            for (int p = from; p < end; p += 4)
                for (int64_t t = chunk; t < behind; t += TILE) {
                    const int M = int(std::min<int64_t>(TILE, behind - t)), count = std::min(4, end - p);
                    tile_product(w, p, count, x, t, M, {int((t - chunk) / TILE), tiles}, tile, 64);
                    for (int m = 0; m < M; ++m)
                        std::memcpy(all_ + (t + m) * wide_ + p * LANES, tile + m * 64, size_t(count) * LANES * 4);
                }
        }
    }

    // (√layer_input · row + norm(projection / √hidden)) / √2, of a thread's share of the tokens. A barrier follows.
    void join(int thread) {
        const F row_scale = set1(s_.layer_input_scale), both = set1(0.70710678118654752f);
        const float by = 1.0f / std::sqrt(static_cast<float>(s_.hidden));
        for (int64_t t = share(c_.tokens_count, thread, threads_); t < share(c_.tokens_count, thread + 1, threads_); ++t)
            for (int l = 0; l < s_.layers; ++l) {
                float* y = all_ + t * wide_ + int64_t(l) * s_.layer_input;
                const T* row = static_cast<const T*>(m_.layer_input_rows) + c_.tokens[t] * wide_ + int64_t(l) * s_.layer_input;
                scaled_row(y, s_.layer_input, by);
                norm_row(y, s_.layer_input, s_.eps, s_.layer_norm, m_.own.weight[LAYER_INPUT_NORM], m_.own.bias[LAYER_INPUT_NORM], y);
                for (int i = 0; i < s_.layer_input; i += LANES)
                    store(y + i, mul(fma(load(row + i), row_scale, load(y + i)), both));
            }
    }

    // Of this pass's token t, the last layer's, as `whole` has them of its token `from`.
    void take(const LayerInputs& whole, int64_t from, int64_t t) {
        const int64_t at = int64_t(s_.layers - 1) * s_.layer_input;
        std::memcpy(all_ + t * wide_ + at, whole.all_ + from * wide_ + at, size_t(s_.layer_input) * 4);
    }

private:
    const Model& m_;
    const Call& c_;
    const Shape& s_;
    const int threads_;
    const int64_t wide_;
    float* all_ = nullptr;
};
