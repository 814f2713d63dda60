// One forward pass: what each thread does between the barriers.
#pragma once
#include "low_rank.h"
#include "mixing.h"

constexpr int ALONE = 4;    // below so many tokens each thread does the small per-token work for itself: no barrier

template <class Way>
class Forward {
public:
    using T = typename Way::Cached;

    Forward(const Model& model, const Call& call, Arena& memory, int threads)
        : m_(model), c_(call), s_(model.shape), N_(call.tokens_count), threads_(threads), alone_(N_ < ALONE),
          form_(reads(s_.format)), updates_(model, call, memory, threads), mixing_(model, call, memory, threads, alone_) {
        const Reads second = updates_.any() ? Updates<Way>::form : form_;
        x_ = memory.array<float>(N_ * s_.hidden);
        turn_ = memory.array<float>(N_ * s_.head_dim);
        wide_ = make_inputs(memory, N_, s_.feedforward, form_, second);
        for (int i = 0; i < (alone_ ? threads : 1); ++i) {
            narrow_.push_back(make_inputs(memory, N_, s_.hidden, form_, second));
            mixed_inputs_.push_back(make_inputs(memory, N_, m_.q_size(), form_, second));
            mixed_.push_back(memory.array<float>(N_ * m_.q_size()));
        }
        for (int i = 0; i < threads; ++i) row_.push_back(memory.array<float>(s_.hidden));
        W_ = c_.wanted_count;
        if (W_) {
            last_ = make_inputs(memory, W_, s_.hidden, reads(m_.head.format), reads(m_.head.format));
            chunk_best_.resize(size_t(W_) * size_t(head_chunks()));
        }
    }

    void work(int thread, Pool& pool) {
        begin(thread);
        pool.barrier();
        const int depth = c_.depth < 0 ? s_.layers : c_.depth;
        for (int l = 0; l < depth; ++l) {
            const Layer& layer = m_.layers[size_t(l)];
            const size_t me = size_t(alone_ ? thread : 0);
            prepare_norm(layer.attention_norm, thread, pool);
            updates_.compute(l, Q, 3, narrow_[me], thread, pool);
            project(l, thread, narrow_[me]);
            warm(layer.linear[O], thread);
            pool.barrier();
            mixing_.run(l, thread, pool, mixed_[me]);
            prepare_mixed(thread, pool);
            updates_.compute(l, O, 1, mixed_inputs_[me], thread, pool);
            add_product(l, O, thread, mixed_inputs_[me]);
            warm(layer.linear[GATE], thread);
            warm(layer.linear[UP], thread);
            pool.barrier();
            prepare_norm(layer.feedforward_norm, thread, pool);
            updates_.compute(l, GATE, 2, narrow_[me], thread, pool);
            gate(l, thread, narrow_[me]);
            warm(layer.linear[DOWN], thread);
            pool.barrier();
            updates_.compute(l, DOWN, 1, wide_, thread, pool);
            add_product(l, DOWN, thread, wide_);
            if (l + 1 < depth) warm(m_.layers[size_t(l) + 1].linear[Q], thread);
            pool.barrier();
        }
        finish(thread, pool);
    }

private:
    static constexpr int HEAD_CHUNK = 64;  // panels of one piece of the head
    struct Best { float top, total; int64_t index; };

    // Asks for the beginning of a thread's share of the next product, so that it arrives during the barrier.
    void warm(const Linear& w, int thread) const {
        const int at = int(share(w.panels, thread, threads_));
        if (at < w.panels) prefetch_bytes(w.panel(at), std::min<int64_t>(AHEAD, w.panel_bytes));
    }

    // --- small steps per token

    void begin(int thread) {
        const int half = s_.head_dim / 2;
        for (int64_t t = share(N_, thread, threads_); t < share(N_, thread + 1, threads_); ++t) {
            const T* row = static_cast<const T*>(m_.embedding) + c_.tokens[t] * s_.hidden;
            for (int i = 0; i < s_.hidden; i += LANES) store(x_ + t * s_.hidden + i, load(row + i));
            for (int i = 0; i < half; ++i) {
                float angle = static_cast<float>(c_.positions[t]) * m_.frequencies[i];
                turn_[t * s_.head_dim + i] = cosf(angle), turn_[t * s_.head_dim + half + i] = sinf(angle);
            }
        }
    }

    // Writes 32 of one token's activations in the form that products of `form` take, and the token's adapter.
    INLINE_MEMBER void put_block(F a, F b, const Inputs& to, int64_t at, int block, Reads form, bool adapted) const {
        if (form == BYTES) quantise_block(a, b, to, at, block);
        const bool halves = form == HALVES || (adapted && Updates<Way>::form == HALVES);
        const bool floats = form == FLOATS || (adapted && Updates<Way>::form == FLOATS);
        const int64_t from = at * to.K + int64_t(block) * BLOCK;
        if (halves) store(to.half + from, a), store(to.half + from + LANES, b);
        if (floats) store(to.full + from, a), store(to.full + from + LANES, b);
    }

    void put(const float* x, const Inputs& to, int64_t at, Reads form, bool adapted) const {
        for (int b = 0; b < to.blocks(); ++b)
            put_block(load(x + b * BLOCK), load(x + b * BLOCK + LANES), to, at, b, form, adapted);
    }

    int64_t first_of(int thread) const { return alone_ ? 0 : share(N_, thread, threads_); }
    int64_t end_of(int thread) const { return alone_ ? N_ : share(N_, thread + 1, threads_); }

    void norm_row(const float* x, const float* weight, float* out) {
        F squares = zero();
        for (int i = 0; i < s_.hidden; i += LANES) squares = fma(load(x + i), load(x + i), squares);
        F inverse = set1(1.0f / std::sqrt(sum(squares) / static_cast<float>(s_.hidden) + s_.eps));
        for (int i = 0; i < s_.hidden; i += LANES) store(out + i, mul(mul(load(x + i), inverse), load(weight + i)));
    }

    void prepare_norm(const float* weight, int thread, Pool& pool) {
        float* row = row_[size_t(thread)];
        const Inputs& to = narrow_[size_t(alone_ ? thread : 0)];
        for (int64_t t = first_of(thread); t < end_of(thread); ++t) {
            norm_row(x_ + t * s_.hidden, weight, row);
            put(row, to, t, form_, updates_.adapted(t));
        }
        if (!alone_) pool.barrier();
    }

    void prepare_mixed(int thread, Pool& pool) {
        const size_t me = size_t(alone_ ? thread : 0);
        for (int64_t t = first_of(thread); t < end_of(thread); ++t)
            put(mixed_[me] + t * m_.q_size(), mixed_inputs_[me], t, form_, updates_.adapted(t));
        if (!alone_) pool.barrier();
    }

    // --- products

    void project(int l, int thread, const Inputs& x) {
        const Layer& layer = m_.layers[size_t(l)];
        const int D = s_.head_dim, panels = D / LANES, all = s_.heads + 2 * s_.kv_heads;
        const int64_t ld = m_.q_size() + 2 * m_.kv_size();
        alignas(64) float tile[TILE * WIDTH];
        for (int64_t chunk = 0; chunk < N_; chunk += s_.chunk)
            for (int64_t u = share(all, thread, threads_); u < share(all, thread + 1, threads_); ++u) {
                const int place = u < s_.heads ? Q : u < s_.heads + s_.kv_heads ? K : V;
                const int head = int(place == Q ? u : place == K ? u - s_.heads : u - s_.heads - s_.kv_heads);
                const int64_t column = place == Q ? 0 : m_.q_size() + (place == V ? m_.kv_size() : 0);
                for (int64_t t = chunk; t < std::min(N_, chunk + s_.chunk); t += TILE) {
                    const int M = int(std::min<int64_t>({TILE, N_ - t, chunk + s_.chunk - t}));
                    tile_product(layer.linear[place], head * panels, panels, x, t, M, t == chunk, tile, D);
                    updates_.add(l, place, column, ld, t, M, head * D, D, tile, D);
                    for (int m = 0; m < M; ++m) keep_head(l, place, head, t + m, tile + m * D);
                }
            }
    }

    // A finished head of one token: turned to its position, and to where attention finds it.
    void keep_head(int l, int place, int head, int64_t t, float* y) {
        const int D = s_.head_dim, half = D / 2;
        if (place != V) {
            const float *cosine = turn_ + t * D, *sine = cosine + half;
            for (int i = 0; i < half; ++i) {
                float a = y[i], b = y[i + half];
                y[i] = a * cosine[i] - b * sine[i], y[i + half] = b * cosine[i] + a * sine[i];
            }
        }
        if (place == Q) copy_head(y, mixing_.query(t, head));
        else copy_head(y, place == K ? mixing_.key(l, head, t) : mixing_.value(l, head, t));
    }

    template <class To>
    void copy_head(const float* y, To* to) const {
        for (int i = 0; i < s_.head_dim; i += LANES) store(to + i, load(y + i));
    }

    void add_product(int l, int place, int thread, const Inputs& x) {
        const Linear& w = m_.layers[size_t(l)].linear[place];
        alignas(64) float tile[TILE * WIDTH];
        const int from = int(share(w.panels, thread, threads_)), end = int(share(w.panels, thread + 1, threads_));
        for (int64_t chunk = 0; chunk < N_; chunk += s_.chunk)
            for (int p = from; p < end; p += 4)
                for (int64_t t = chunk; t < std::min(N_, chunk + s_.chunk); t += TILE) {
                    const int M = int(std::min<int64_t>({TILE, N_ - t, chunk + s_.chunk - t})), count = std::min(4, end - p);
                    tile_product(w, p, count, x, t, M, t == chunk, tile, 64);
                    updates_.add(l, place, 0, w.out, t, M, p * LANES, count * LANES, tile, 64);
                    for (int m = 0; m < M; ++m)
                        for (int i = 0; i < count * LANES; i += LANES) {
                            float* y = x_ + (t + m) * s_.hidden + p * LANES + i;
                            store(y, add(load(y), load(tile + m * 64 + i)));
                        }
                }
    }

    // wide = silu(gate x) ⊙ up x, by blocks of 32 features, which are also the blocks that it is quantised in.
    void gate(int l, int thread, const Inputs& x) {
        const Linear &g = m_.layers[size_t(l)].linear[GATE], &u = m_.layers[size_t(l)].linear[UP];
        alignas(64) float a[TILE * BLOCK], b[TILE * BLOCK];
        const int blocks = s_.feedforward / BLOCK;
        const int64_t ld = 2 * int64_t(s_.feedforward);
        for (int64_t chunk = 0; chunk < N_; chunk += s_.chunk)
            for (int64_t i = share(blocks, thread, threads_); i < share(blocks, thread + 1, threads_); ++i)
                for (int64_t t = chunk; t < std::min(N_, chunk + s_.chunk); t += TILE) {
                    const int M = int(std::min<int64_t>({TILE, N_ - t, chunk + s_.chunk - t}));
                    tile_product(g, int(2 * i), 2, x, t, M, t == chunk, a, BLOCK);
                    tile_product(u, int(2 * i), 2, x, t, M, t == chunk, b, BLOCK);
                    updates_.add(l, GATE, 0, ld, t, M, int(i) * BLOCK, BLOCK, a, BLOCK);
                    updates_.add(l, UP, s_.feedforward, ld, t, M, int(i) * BLOCK, BLOCK, b, BLOCK);
                    for (int m = 0; m < M; ++m) {
                        F y = silu_times(load(a + m * BLOCK), load(b + m * BLOCK));
                        F z = silu_times(load(a + m * BLOCK + LANES), load(b + m * BLOCK + LANES));
                        put_block(y, z, wide_, t + m, int(i), form_, updates_.adapted(t + m));
                    }
                }
    }

    static F silu_times(F g, F u) { return mul(div(g, add(set1(1.0f), exp(sub(zero(), g)))), u); }

    // --- the end

    int head_chunks() const { return (m_.head.panels + HEAD_CHUNK - 1) / HEAD_CHUNK; }

    void finish(int thread, Pool& pool) {
        float* row = row_[size_t(thread)];
        if (c_.hidden)
            for (int64_t t = share(N_, thread, threads_); t < share(N_, thread + 1, threads_); ++t) {
                float* to = c_.hidden + t * s_.hidden;
                if (c_.depth >= 0) std::memcpy(to, x_ + t * s_.hidden, size_t(s_.hidden) * 4);
                else norm_row(x_ + t * s_.hidden, m_.norm, to);
            }
        if (!W_) return;
        for (int64_t i = share(W_, thread, threads_); i < share(W_, thread + 1, threads_); ++i) {
            norm_row(x_ + c_.wanted[i] * s_.hidden, m_.norm, row);
            put(row, last_, i, reads(m_.head.format), false);
        }
        pool.barrier();
        for (int64_t c = share(head_chunks(), thread, threads_); c < share(head_chunks(), thread + 1, threads_); ++c)
            head_chunk(int(c));
        pool.barrier();
        if (thread) return;
        for (int64_t i = 0; i < W_; ++i) {
            Best all = chunk_best_[size_t(i)];
            for (int c = 1; c < head_chunks(); ++c) {
                const Best& next = chunk_best_[size_t(c) * size_t(W_) + size_t(i)];
                float top = std::max(all.top, next.top);
                all.total = all.total * exp1(all.top - top) + next.total * exp1(next.top - top);
                if (next.top > all.top) all.index = next.index;
                all.top = top;
            }
            c_.best[i] = all.index;
            c_.logsumexp[i] = all.top + std::log(all.total);
        }
    }

    // Logits of one piece of the vocabulary, with its largest and its sum of exponentials.
    void head_chunk(int c) {
        const int first = c * HEAD_CHUNK, panels = std::min(HEAD_CHUNK, m_.head.panels - first);
        const int size = std::min(panels * LANES, s_.vocabulary - first * LANES);
        alignas(64) float tile[TILE * 64];
        for (int p = 0; p < panels; p += 4)
            for (int64_t i = 0; i < W_; i += TILE) {
                const int M = int(std::min<int64_t>(TILE, W_ - i)), count = std::min(4, panels - p);
                tile_product(m_.head, first + p, count, last_, i, M, i == 0, tile, 64);
                const int n = std::min(count * LANES, size - p * LANES);
                for (int m = 0; m < M; ++m)
                    std::memcpy(c_.logits + (i + m) * s_.vocabulary + (first + p) * LANES, tile + m * 64, size_t(n) * 4);
            }
        for (int64_t i = 0; i < W_; ++i)
            chunk_best_[size_t(c) * size_t(W_) + size_t(i)] =
                best_of(c_.logits + i * s_.vocabulary + first * LANES, size, first * LANES);
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
    const Shape& s_;
    const int64_t N_;
    const int threads_;
    const bool alone_;
    const Reads form_;
    Updates<Way> updates_;
    Mixing<Way> mixing_;
    int64_t W_ = 0;
    float *x_, *turn_;
    Inputs wide_, last_;
    std::vector<Inputs> narrow_, mixed_inputs_;
    std::vector<float*> mixed_, row_;
    std::vector<Best> chunk_best_;
};
