// One forward pass: what each thread does between the barriers.
#pragma once
#include "experts.h"
#include "head.h"
#include "heads.h"
#include "low_rank.h"
#include "layer_inputs.h"
#include "scored_tokens.h"

constexpr int64_t FIRST = 4096;  // bytes of the next weights that are asked for before a barrier

template <class Arithmetic>
class Forward {
public:
    using T = typename Arithmetic::Cached;

    // last: a pass of the scored tokens alone, which then are all that the last layer is computed for; or null.
    Forward(const Model& model, const Call& call, Arena& memory, int threads, Forward* last = nullptr)
        : m_(model), c_(call), s_(model.shape), N_(call.tokens_count), threads_(threads), alone_(N_ < ALONE && !call.lengths),
          form_(m_.form()), last_norm_(s_.layer_input ? LAYER_INPUT_AFTER_NORM : FEEDFORWARD_AFTER_NORM),
          updates_(model, call, memory, threads), mixing_(model, call, memory, threads, alone_),
          heads_(model, call, memory, threads, mixing_), experts_(model, call, memory, threads, alone_),
          layer_inputs_(model, call, memory, threads), head_(model, call, memory, threads), last_(last) {
        const Reads second = updates_.any() ? Updates<Arithmetic>::form : form_;
        delta_ = memory.array<float>(N_ * s_.hidden);
        wide_ = make_inputs(memory, N_, std::max(s_.feedforward, s_.layer_input), form_, second);
        for (int i = 0; i < (alone_ ? threads : 1); ++i) {
            x_.push_back(memory.array<float>(N_ * s_.hidden));
            narrow_.push_back(make_inputs(memory, N_, s_.hidden, form_, second));
            mixed_inputs_.push_back(make_inputs(memory, N_, m_.q_size(), form_, second));
            mixed_.push_back(memory.array<float>(N_ * m_.q_size()));
            if (m_.beside()) beside_.push_back(make_inputs(memory, N_, s_.hidden, form_, form_));
        }
        for (int i = 0; i < threads; ++i) row_.push_back(memory.array<float>(2 * s_.hidden));
    }

    void work(int thread, Pool& pool) {
        [[maybe_unused]] const Tiles tiles;
        begin(thread);
        pool.barrier();
        if (layer_inputs_.any()) prepare_layer_inputs(thread, pool);
        const int depth = c_.depth < 0 ? s_.layers : c_.depth;
        for (int l = 0; l < depth; ++l) {
            const Layer* before = l ? &m_.layers[size_t(l) - 1] : nullptr;
            if (last_ && l + 1 == depth) {
                open(l, before, K, thread, pool);
                return last_->end(*this, thread, pool);
            }
            open(l, before, Q, thread, pool);
            close(l, l + 1 < depth, thread, pool);
        }
        finish(depth, thread, pool);
    }

private:
    // The last layer for the scored tokens, which are this pass's own; of all of `whole` there are keys and values.
    void end(const Forward& whole, int thread, Pool& pool) {
        if (!N_) return;
        const int l = s_.layers - 1;
        for (int64_t t = share(N_, thread, threads_); t < share(N_, thread + 1, threads_); ++t) heads_.prepare(t);
        for (int64_t t = first_of(thread); t < end_of(thread); ++t)
            std::memcpy(state(thread, t), whole.state(0, whole.c_.scored[t]), size_t(s_.hidden) * 4);
        for (int64_t t = share(N_, thread, threads_); layer_inputs_.any() && t < share(N_, thread + 1, threads_); ++t)
            layer_inputs_.take(whole.layer_inputs_, whole.c_.scored[t], t);
        pool.barrier();
        open(l, nullptr, V, thread, pool);
        close(l, false, thread, pool);
        finish(s_.layers, thread, pool);
    }

    // A layer up to its queries, keys and values. only: Q: all three; K: keys and values; V: queries.
    void open(int l, const Layer* before, Place only, int thread, Pool& pool) {
        const Layer& layer = m_.layers[size_t(l)];
        const size_t me = size_t(alone_ ? thread : 0);
        prepare(layer, ATTENTION_NORM, before, last_norm_, thread, pool);
        updates_.compute(l, Q, 3, narrow_[me], thread, pool);
        const int heads = (layer.linear[Q].out + layer.linear[K].out + layer.linear[V].out) / layer.head_dim;
        project(l, only == K ? s_.heads : 0, only == V ? s_.heads : heads, thread, narrow_[me]);
        warm(layer.linear[O], thread);
        pool.barrier();
        heads_.keep_waiting(l, only != K, only != V, thread, pool);
    }

    // The rest of it. more: another one follows.
    void close(int l, bool more, int thread, Pool& pool) {
        const Layer& layer = m_.layers[size_t(l)];
        const size_t me = size_t(alone_ ? thread : 0);
        mixing_.run(l, thread, pool, mixed_[me]);
        const Inputs mixed = sized(mixed_inputs_[me], layer.linear[O].in);
        prepare_mixed(mixed, thread, pool);
        updates_.compute(l, O, 1, mixed, thread, pool);
        add_product(l, O, thread, mixed, false);
        warm(layer.linear[s_.gated ? GATE : UP], thread);
        pool.barrier();
        prepare(layer, FEEDFORWARD_NORM, s_.parallel ? nullptr : &layer, ATTENTION_AFTER_NORM, thread, pool);
        updates_.compute(l, s_.gated ? GATE : UP, s_.gated ? 2 : 1, narrow_[me], thread, pool);
        gate(l, thread, narrow_[me]);
        if (!layer.down.empty()) experts_.open(l, thread, layer.beside() ? beside_[me] : narrow_[me]);
        warm(layer.linear[DOWN], thread);
        pool.barrier();
        const Inputs wide = sized(wide_, layer.linear[UP].out);
        updates_.compute(l, DOWN, 1, wide, thread, pool);
        add_product(l, DOWN, thread, wide, s_.parallel);
        if (!layer.down.empty()) experts_.close(l, thread);
        if (layer_inputs_.any()) add_layer_input(l, thread, pool);
        if (more) warm(m_.layers[size_t(l) + 1].linear[Q], thread);
        pool.barrier();
    }

    // The inputs of single layers, from the tokens' embeddings.
    void prepare_layer_inputs(int thread, Pool& pool) {
        const Inputs& x = narrow_[size_t(alone_ ? thread : 0)];
        for (int64_t t = first_of(thread); t < end_of(thread); ++t) put(state(thread, t), x, t, form_, false);
        if (!alone_) pool.barrier();
        layer_inputs_.project(thread, x);
        pool.barrier();
        layer_inputs_.join(thread);
        pool.barrier();
    }

    // A layer's last part: its own input of the tokens, gated by its state. The feed-forward is awaited first.
    void add_layer_input(int l, int thread, Pool& pool) {
        const Layer& layer = m_.layer(l);
        const Inputs& x = narrow_[size_t(alone_ ? thread : 0)];
        const Inputs to = sized(wide_, s_.layer_input);
        pool.barrier();
        for (int64_t t = first_of(thread); t < end_of(thread); ++t) {
            absorb(layer, FEEDFORWARD_AFTER_NORM, thread, t);
            put(state(thread, t), x, t, form_, updates_.adapted(t));
        }
        if (!alone_) pool.barrier();
        updates_.compute(l, LAYER_INPUT_GATE, 1, x, thread, pool);
        alignas(64) float a[TILE * BLOCK];
        const int blocks = s_.layer_input / BLOCK;
        for (int64_t chunk = 0; chunk < N_; chunk += s_.chunk)
            for (int64_t i = share(blocks, thread, threads_); i < share(blocks, thread + 1, threads_); ++i)
                for (int64_t t = chunk; t < std::min(N_, chunk + s_.chunk); t += TILE) {
                    const int M = int(std::min<int64_t>({TILE, N_ - t, chunk + s_.chunk - t}));
                    tile_product(layer.linear[LAYER_INPUT_GATE], int(2 * i), 2, x, t, M, turn(chunk, t), a, BLOCK);
                    updates_.add(l, LAYER_INPUT_GATE, 0, s_.layer_input, t, M, int(i) * BLOCK, BLOCK, a, BLOCK);
                    for (int m = 0; m < M; ++m) {
                        const float *gate = a + m * BLOCK, *given = layer_inputs_.of(t + m, l) + i * BLOCK;
                        F y = gated(s_.activation, load(gate), load(given));
                        F z = gated(s_.activation, load(gate + LANES), load(given + LANES));
                        put_both(y, z, to, t + m, int(i), form_, updates_.adapted(t + m));
                    }
                }
        pool.barrier();
        updates_.compute(l, LAYER_INPUT_DOWN, 1, to, thread, pool);
        add_product(l, LAYER_INPUT_DOWN, thread, to, false);
    }

    // Asks for the beginning of a thread's share of the next product, so that it arrives during the barrier.
    void warm(const Linear& w, int thread) const {
        const int at = int(share(w.panels, thread, threads_));
        if (at < w.panels) prefetch_bytes(w.panel(at), std::min<int64_t>(FIRST, w.panel_bytes));
    }

    // --- small steps per token. Alone, each thread has the residual stream for itself, and does all of it.

    int64_t first_of(int thread) const { return alone_ ? 0 : share(N_, thread, threads_); }
    int64_t end_of(int thread) const { return alone_ ? N_ : share(N_, thread + 1, threads_); }
    float* state(int thread, int64_t t) const { return x_[size_t(alone_ ? thread : 0)] + t * s_.hidden; }

    void norm(const Vectors& of, int which, const float* x, float* out) const {
        norm_row(x, s_.hidden, s_.eps, s_.layer_norm, of.weight[which], of.bias[which], out);
    }

    void begin(int thread) {
        for (int64_t t = share(N_, thread, threads_); t < share(N_, thread + 1, threads_); ++t) heads_.prepare(t);
        for (int64_t t = first_of(thread); t < end_of(thread); ++t) {
            const T* row = static_cast<const T*>(m_.embedding) + c_.tokens[t] * s_.hidden;
            float* x = state(thread, t);
            for (int i = 0; i < s_.hidden; i += LANES) store(x + i, load(row + i));
            if (s_.embedding_scale != 1.0f) scaled_row(x, s_.hidden, s_.embedding_scale);
            if (m_.types) add_row(m_.types, c_.types ? c_.types[t] : 0, x);
            if (m_.positions) add_row(m_.positions, c_.positions[t], x);
            if (m_.own.weight[EMBEDDING_NORM]) norm(m_.own, EMBEDDING_NORM, x, x);
        }
    }

    void add_row(const void* table, int64_t row, float* x) const {
        const T* at = static_cast<const T*>(table) + row * s_.hidden;
        for (int i = 0; i < s_.hidden; i += LANES) store(x + i, add(load(x + i), load(at + i)));
    }

    // Adds what the last products gave to the residual stream; that, or the sum, normalised where that layer says so.
    void absorb(const Layer& from, int which, int thread, int64_t t) {
        float *x = state(thread, t), *y = delta_ + t * s_.hidden, *row = row_[size_t(thread)];
        if (!from.down.empty() && which == FEEDFORWARD_AFTER_NORM) {
            std::memcpy(row, y, size_t(s_.hidden) * 4);  // the sum is everybody's
            if (from.beside()) add_beside(from, thread, t, row);
            else experts_.add(from, t, thread, row);
            y = row;
        }
        const bool input = which == LAYER_INPUT_AFTER_NORM, post = s_.post && !input;
        if (from.weight[which] && !post) norm(from, which, y, row), y = row;
        const F by = set1(input ? 1.0f : s_.residual_scale);
        for (int i = 0; i < s_.hidden; i += LANES) store(x + i, fma(load(y + i), by, load(x + i)));
        if (from.weight[which] && post) norm(from, which, x, x);
        if (which == last_norm_ && from.output_scale != 1.0f) scaled_row(x, s_.hidden, from.output_scale);
    }

    // To what the feed-forward gave, normalised, what the experts beside it gave, normalised.
    void add_beside(const Layer& from, int thread, int64_t t, float* y) const {
        float* other = y + s_.hidden;
        std::memset(other, 0, size_t(s_.hidden) * 4);
        experts_.add_own(t, thread, other);
        norm(from, DENSE_AFTER_NORM, y, y), norm(from, BESIDE_AFTER_NORM, other, other);
        for (int i = 0; i < s_.hidden; i += LANES) store(y + i, add(load(y + i), load(other + i)));
    }

    // The inputs of a layer's next products: from its norm, or as they are. from: whose products to add first, or null.
    void prepare(const Layer& layer, int which, const Layer* from, int after, int thread, Pool& pool) {
        float* row = row_[size_t(thread)];
        const Inputs& to = narrow_[size_t(alone_ ? thread : 0)];
        for (int64_t t = first_of(thread); t < end_of(thread); ++t) {
            if (from) absorb(*from, after, thread, t);
            if (layer.weight[which]) norm(layer, which, state(thread, t), row);
            const float* x = layer.weight[which] ? row : state(thread, t);
            put(x, to, t, form_, updates_.adapted(t));
            if (which != FEEDFORWARD_NORM || layer.down.empty()) continue;
            experts_.route(layer, t, layer.beside() ? state(thread, t) : x, thread);
            if (!layer.beside()) continue;
            norm(layer, BESIDE_NORM, state(thread, t), row);
            put(row, beside_[size_t(alone_ ? thread : 0)], t, form_, false);
        }
        if (!alone_) pool.barrier();
    }

    void prepare_mixed(const Inputs& to, int thread, Pool& pool) {
        const size_t me = size_t(alone_ ? thread : 0);
        for (int64_t t = first_of(thread); t < end_of(thread); ++t)
            put(mixed_[me] + t * m_.q_size(), to, t, form_, updates_.adapted(t));
        if (!alone_) pool.barrier();
    }

    // Writes 32 of one token's activations in the form that products of `form` take, and the token's adapter.
    INLINE_MEMBER void put_both(F a, F b, const Inputs& to, int64_t at, int block, Reads form, bool adapted) const {
        put_block(a, b, to, at, block, form);
        if (adapted && Updates<Arithmetic>::form != form) put_block(a, b, to, at, block, Updates<Arithmetic>::form);
    }

    void put(const float* x, const Inputs& to, int64_t at, Reads form, bool adapted) const {
        for (int b = 0; b < to.blocks(); ++b)
            put_both(load(x + b * BLOCK), load(x + b * BLOCK + LANES), to, at, b, form, adapted);
    }

    // --- products

    Turn turn(int64_t chunk, int64_t t) const {
        const int64_t tokens = std::min<int64_t>(N_ - chunk, s_.chunk);
        return {int((t - chunk) / TILE), int((tokens + TILE - 1) / TILE)};
    }

    // Heads from … end − 1 of the products of queries, keys and values, those that there are.
    void project(int l, int from, int end, int thread, const Inputs& x) {
        const Layer& layer = m_.layers[size_t(l)];
        const int D = layer.head_dim, panels = D / LANES, all = end - from, groups = layer.kv_heads;
        const int64_t columns[] = {0, layer.linear[Q].out, int64_t(layer.linear[Q].out) + layer.linear[K].out};
        const int64_t ld = columns[V] + layer.linear[V].out;
        alignas(64) float tile[TILE * MAX_HEAD], value[MAX_HEAD];
        for (int64_t chunk = 0; chunk < N_; chunk += s_.chunk)
            for (int64_t u = from + share(all, thread, threads_); u < from + share(all, thread + 1, threads_); ++u) {
                const int place = u < s_.heads ? Q : u < s_.heads + groups ? K : V;
                const int head = int(place == Q ? u : place == K ? u - s_.heads : u - s_.heads - groups);
                for (int64_t t = chunk; t < std::min(N_, chunk + s_.chunk); t += TILE) {
                    const int M = int(std::min<int64_t>({TILE, N_ - t, chunk + s_.chunk - t}));
                    tile_product(layer.linear[place], head * panels, panels, x, t, M, turn(chunk, t), tile, D);
                    updates_.add(l, place, columns[place], ld, t, M, head * D, D, tile, D);
                    for (int m = 0; m < M; ++m) {
                        if (place == K && layer.linear[V].out == 0) {  // values are what keys are before they turn
                            std::memcpy(value, tile + m * D, size_t(D) * 4);
                            heads_.keep(l, V, head, t + m, value);
                        }
                        heads_.keep(l, place, head, t + m, tile + m * D);
                    }
                }
            }
    }

    // What attention or the feed-forward adds. more: to what already stands there.
    void add_product(int l, int place, int thread, const Inputs& x, bool more) {
        const Linear& w = m_.layers[size_t(l)].linear[place];
        alignas(64) float tile[TILE * 64];
        const int from = int(share(w.panels, thread, threads_)), end = int(share(w.panels, thread + 1, threads_));
        for (int64_t chunk = 0; chunk < N_; chunk += s_.chunk)
            for (int p = from; p < end; p += 4)
                for (int64_t t = chunk; t < std::min(N_, chunk + s_.chunk); t += TILE) {
                    const int M = int(std::min<int64_t>({TILE, N_ - t, chunk + s_.chunk - t})), count = std::min(4, end - p);
                    tile_product(w, p, count, x, t, M, turn(chunk, t), tile, 64);
                    updates_.add(l, place, 0, w.out, t, M, p * LANES, count * LANES, tile, 64);
                    for (int m = 0; m < M; ++m)
                        for (int i = 0; i < count * LANES; i += LANES) {
                            float* y = delta_ + (t + m) * s_.hidden + p * LANES + i;
                            F fresh = load(tile + m * 64 + i);
                            store(y, more ? add(load(y), fresh) : fresh);
                        }
                }
    }

    // The features between, by blocks of 32, which are also the blocks that they are quantised in. One tile of tokens takes
    // many of them at once, so that it reads long runs of the one matrix and of the other; of several tiles each finds the
    // weights of a block in the cache.
    void gate(int l, int thread, const Inputs& x) {
        const Linear &g = m_.layers[size_t(l)].linear[GATE], &u = m_.layers[size_t(l)].linear[UP];
        alignas(64) float a[TILE * AT_ONCE * BLOCK], b[TILE * AT_ONCE * BLOCK];
        const int blocks = u.out / BLOCK, first = s_.gated ? u.out : 0, most = N_ > TILE ? 1 : AT_ONCE;
        const int64_t ld = u.out + int64_t(first), end = share(blocks, thread + 1, threads_);
        const Inputs to = sized(wide_, u.out);
        for (int64_t chunk = 0; chunk < N_; chunk += s_.chunk)
            for (int64_t i = share(blocks, thread, threads_); i < end; i += most)
                for (int64_t t = chunk; t < std::min(N_, chunk + s_.chunk); t += TILE) {
                    const int M = int(std::min<int64_t>({TILE, N_ - t, chunk + s_.chunk - t}));
                    const int size = int(std::min<int64_t>(most, end - i)) * BLOCK, panels = size / LANES;
                    if (s_.gated) {
                        tile_product(g, int(2 * i), panels, x, t, M, turn(chunk, t), a, size);
                        updates_.add(l, GATE, 0, ld, t, M, int(i) * BLOCK, size, a, size);
                    }
                    tile_product(u, int(2 * i), panels, x, t, M, turn(chunk, t), b, size);
                    updates_.add(l, UP, first, ld, t, M, int(i) * BLOCK, size, b, size);
                    for (int m = 0; m < M; ++m)
                        for (int j = 0; j < size; j += BLOCK) {
                            const int at = m * size + j;
                            F y = between(a + at, b + at), z = between(a + at + LANES, b + at + LANES);
                            put_both(y, z, to, t + m, int(i) + j / BLOCK, form_, updates_.adapted(t + m));
                        }
                }
    }

    // As many features as a layer has there.
    static Inputs sized(Inputs x, int K) {
        x.K = K;
        return x;
    }

    F between(const float* gate, const float* up) const {
        return s_.gated ? gated(s_.activation, load(gate), load(up)) : activated(s_.activation, load(up));
    }

    // --- the end

    void finish(int depth, int thread, Pool& pool) {
        if (depth)
            for (int64_t t = first_of(thread); t < end_of(thread); ++t)
                absorb(m_.layer(depth - 1), last_norm_, thread, t);
        if (!alone_) pool.barrier();
        if (c_.hidden)
            for (int64_t t = share(N_, thread, threads_); t < share(N_, thread + 1, threads_); ++t) {
                float* to = c_.hidden + t * s_.hidden;
                if (c_.depth < 0 && m_.own.weight[FINAL_NORM]) norm(m_.own, FINAL_NORM, state(thread, t), to);
                else std::memcpy(to, state(thread, t), size_t(s_.hidden) * 4);
            }
        const int64_t W = c_.scored_count;
        if (!W) return;
        const Reads form = reads(m_.head.format);
        for (int64_t i = share(W, thread, threads_); i < share(W, thread + 1, threads_); ++i) {
            float *row = row_[size_t(thread)], *x = state(thread, c_.scored[i]);
            if (m_.own.weight[FINAL_NORM]) norm(m_.own, FINAL_NORM, x, row);
            else std::memcpy(row, x, size_t(s_.hidden) * 4);
            if (s_.head_scale != 1.0f) scaled_row(row, s_.hidden, s_.head_scale);
            put(row, head_.inputs(), i, form, false);
        }
        pool.barrier();
        head_.run(thread, pool);
    }

    const Model& m_;
    const Call& c_;
    const Shape& s_;
    const int64_t N_;
    const int threads_;
    const bool alone_;
    const Reads form_;
    const Vector last_norm_;  // behind a layer's last part
    Updates<Arithmetic> updates_;
    Mixing<Arithmetic> mixing_;
    Heads<Arithmetic> heads_;
    Experts experts_;
    LayerInputs<Arithmetic> layer_inputs_;
    Head head_;
    Forward* const last_;
    float* delta_;
    Inputs wide_;
    std::vector<Inputs> narrow_, mixed_inputs_, beside_;
    std::vector<float*> x_, mixed_, row_;
};
