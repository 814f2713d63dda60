// One forward pass: what each thread does between the barriers.
#pragma once
#include <algorithm>
#include <atomic>

#include "attention.h"
#include "model.h"
#include "threads.h"

constexpr int ALONE = 4;    // below so many tokens each thread does the small per-token work for itself: no barrier
constexpr int CHUNK = 128;  // tokens whose activations stay in the second-level cache while weights stream by
constexpr int RUN = 16;     // tokens of one adapter that share its loads

struct Segment { int64_t first, count, row, position; };  // consecutive tokens of one row
struct AdapterRun { int64_t first, count; const LowRank* at; };

class Forward {
public:
    Forward(const Model& model, const Call& call, Arena& memory, int threads)
        : m_(model), c_(call), s_(model.shape), N_(call.tokens_count), threads_(threads), alone_(N_ < ALONE) {
        find_segments();
        find_adapters();
        const int FF = s_.feedforward, D = s_.head_dim, widest = std::max(m_.q_size() + 2 * m_.kv_size(), 2 * FF);
        x_ = memory.array<float>(N_ * s_.hidden);
        q_ = memory.array<uint16_t>(N_ * m_.q_size());
        turn_ = memory.array<float>(N_ * D);
        wide_ = make_inputs(memory, N_, FF);
        const int copies = alone_ ? threads : 1;
        for (int i = 0; i < copies; ++i) {
            narrow_.push_back(make_inputs(memory, N_, s_.hidden));
            mixed_inputs_.push_back(make_inputs(memory, N_, m_.q_size()));
            mixed_.push_back(memory.array<float>(N_ * m_.q_size()));
        }
        if (adapted_) update_ = memory.array<float>(N_ * widest);
        for (int i = 0; i < threads; ++i) {
            blocks_.push_back(reinterpret_cast<Block*>(memory.take(sizeof(Block))));
            row_.push_back(memory.array<float>(s_.hidden));
            running_.push_back(memory.array<float>(int64_t(QUERIES) * D));
            low_.push_back(adapted_ ? memory.array<float>(int64_t(RUN) * max_rank_) : nullptr);
        }
        if (alone_) find_parts(memory);
        else find_units();
        W_ = c_.wanted_count;
        if (W_) {
            last_ = make_inputs(memory, W_, s_.hidden);
            chunk_best_.resize(size_t(W_) * head_chunks());
        }
        taken_ = std::vector<std::atomic<int>>(size_t(s_.layers));
        for (auto& each : taken_) each.store(0, std::memory_order_relaxed);
    }

    void work(int thread, Pool& pool) {
        begin(thread);
        pool.barrier();
        const int depth = c_.depth < 0 ? s_.layers : c_.depth;
        for (int l = 0; l < depth; ++l) {
            const Layer& layer = m_.layers[size_t(l)];
            const int me = alone_ ? thread : 0;
            prepare_norm(layer.attention_norm, thread, pool);
            low_rank(l, Q, 3, narrow_[size_t(me)], thread, pool);
            project(l, thread, narrow_[size_t(me)]);
            warm(layer.linear[O], thread);
            pool.barrier();
            mix(l, thread, pool);
            low_rank(l, O, 1, mixed_inputs_[size_t(me)], thread, pool);
            add_product(l, O, thread, mixed_inputs_[size_t(me)]);
            warm(layer.linear[GATE], thread);
            warm(layer.linear[UP], thread);
            pool.barrier();
            prepare_norm(layer.feedforward_norm, thread, pool);
            low_rank(l, GATE, 2, narrow_[size_t(me)], thread, pool);
            gate(l, thread, narrow_[size_t(me)]);
            warm(layer.linear[DOWN], thread);
            pool.barrier();
            low_rank(l, DOWN, 1, wide_, thread, pool);
            add_product(l, DOWN, thread, wide_);
            if (l + 1 < depth) warm(m_.layers[size_t(l) + 1].linear[Q], thread);
            pool.barrier();
        }
        finish(thread, pool);
    }

private:
    static constexpr int QUERY_ROWS = 64, HEAD_CHUNK = 64;  // query rows of one unit; panels of one piece of the head
    struct Unit { int64_t token, count, row; int group; };
    struct Part { int64_t token; int group, block; };
    struct Best { float top, total; int64_t index; };

    static int64_t share(int64_t n, int i, int of) { return n * i / of; }

    // --- before the threads

    void find_segments() {
        for (int64_t i = 0; i < N_; ++i) {
            if (!segments_.empty() && c_.rows[i] == c_.rows[i - 1] && c_.positions[i] == c_.positions[i - 1] + 1)
                ++segments_.back().count;
            else
                segments_.push_back({i, 1, c_.rows[i], c_.positions[i]});
        }
    }

    void find_adapters() {
        if (!c_.adapters) return;
        for (int64_t i = 0; i < N_; ++i) {
            const LowRank* at = c_.adapters[i];
            if (!at) continue;
            if (!runs_.empty() && runs_.back().at == at && runs_.back().first + runs_.back().count == i &&
                runs_.back().count < RUN)
                ++runs_.back().count;
            else
                runs_.push_back({i, 1, at});
            for (int j = 0; j < s_.layers * PLACES; ++j) max_rank_ = std::max(max_rank_, at[j].rank);
        }
        adapted_ = !runs_.empty();
    }

    void find_units() {
        const int per_group = s_.heads / s_.kv_heads;
        const int64_t block = std::max(1, std::min(16, QUERY_ROWS / per_group));
        for (const Segment& s : segments_)
            for (int64_t t = 0; t < s.count; t += block)
                for (int g = 0; g < s_.kv_heads; ++g)
                    units_.push_back({s.first + t, std::min(block, s.count - t), s.row, g});
        // The longest first: what is left for the end is then short.
        std::stable_sort(units_.begin(), units_.end(), [&](const Unit& a, const Unit& b) {
            return c_.positions[a.token] > c_.positions[b.token];
        });
    }

    void find_parts(Arena& memory) {
        for (int64_t t = 0; t < N_; ++t)
            for (int g = 0; g < s_.kv_heads; ++g)
                for (int b = 0; b <= int(c_.positions[t] / KEYS); ++b) parts_.push_back({t, g, b});
        const int per_group = s_.heads / s_.kv_heads;
        part_values_ = memory.array<float>(int64_t(parts_.size()) * per_group * s_.head_dim);
        part_sums_.resize(parts_.size() * size_t(per_group));
    }

    // Asks for the beginning of a thread's share of the next product, so that it arrives during the barrier.
    void warm(const Linear& w, int thread) const {
        prefetch_bytes(w.panel(int(share(w.panels, thread, threads_))), AHEAD);
    }

    // --- small steps per token

    void begin(int thread) {
        const int half = s_.head_dim / 2;
        for (int64_t t = share(N_, thread, threads_); t < share(N_, thread + 1, threads_); ++t) {
            const uint16_t* row = m_.embedding + c_.tokens[t] * s_.hidden;
            for (int i = 0; i < s_.hidden; i += LANES) store(x_ + t * s_.hidden + i, load_bf16(row + i));
            for (int i = 0; i < half; ++i) {
                float angle = static_cast<float>(c_.positions[t]) * m_.frequencies[i];
                turn_[t * s_.head_dim + i] = cosf(angle), turn_[t * s_.head_dim + half + i] = sinf(angle);
            }
        }
    }

    bool adapted(int64_t token) const { return adapted_ && c_.adapters[token]; }

    // Writes one token's activations in the form that the products take.
    void put(const float* x, const Inputs& to, int64_t at, bool with_half) {
        if (s_.quantised)
            for (int b = 0; b < to.blocks(); ++b)
                quantise_block(load(x + b * BLOCK), load(x + b * BLOCK + LANES), to, at, b);
        if (!s_.quantised || with_half)
            for (int i = 0; i < to.K; i += LANES) store_bf16(to.half + at * to.K + i, load(x + i));
    }

    void norm_row(const float* x, const float* weight, float* out) {
        F squares = zero();
        for (int i = 0; i < s_.hidden; i += LANES) squares = fma(load(x + i), load(x + i), squares);
        F inverse = set1(1.0f / std::sqrt(sum(squares) / static_cast<float>(s_.hidden) + s_.eps));
        for (int i = 0; i < s_.hidden; i += LANES) store(out + i, mul(mul(load(x + i), inverse), load(weight + i)));
    }

    void prepare_norm(const float* weight, int thread, Pool& pool) {
        float* row = row_[size_t(thread)];
        const Inputs& to = narrow_[size_t(alone_ ? thread : 0)];
        const int64_t from = alone_ ? 0 : share(N_, thread, threads_), end = alone_ ? N_ : share(N_, thread + 1, threads_);
        for (int64_t t = from; t < end; ++t) {
            norm_row(x_ + t * s_.hidden, weight, row);
            put(row, to, t, adapted(t));
        }
        if (!alone_) pool.barrier();
    }

    // --- low-rank updates

    // update_[token, first feature of the place …] = scaling · B (A x), for the tokens that have an adapter.
    void low_rank(int layer, int first, int count, const Inputs& x, int thread, Pool& pool) {
        if (!adapted_) return;
        int64_t ld = 0;
        for (int i = 0; i < count; ++i) ld += m_.layers[size_t(layer)].linear[first + i].out;
        int64_t item = 0;
        for (const AdapterRun& run : runs_) {
            int64_t column = 0;
            for (int i = 0; i < count; ++i, ++item) {
                const Linear& w = m_.layers[size_t(layer)].linear[first + i];
                const LowRank& low = run.at[layer * PLACES + first + i];
                if (low.rank && item % threads_ == thread) low_rank_run(low, w, run, x, update_ + column, ld, thread);
                column += w.out;
            }
        }
        pool.barrier();
    }

    void low_rank_run(const LowRank& low, const Linear& w, const AdapterRun& run, const Inputs& x, float* out, int64_t ld,
                      int thread) {
        float* h = low_[size_t(thread)];
        int r = 0;
        for (; r + 4 <= low.rank; r += 4) down_rows<4>(low, r, w.in, run, x, h);
        for (; r < low.rank; ++r) down_rows<1>(low, r, w.in, run, x, h);
        int o = 0;
        for (; o + 8 * LANES <= w.out; o += 8 * LANES) up_columns<8>(low, o, w.out, run, h, out, ld);
        for (; o < w.out; o += LANES) up_columns<1>(low, o, w.out, run, h, out, ld);
    }

    template <int R>
    void down_rows(const LowRank& low, int r, int in, const AdapterRun& run, const Inputs& x, float* h) {
        for (int64_t t = 0; t < run.count; ++t) {
            const uint16_t* half = x.half + (run.first + t) * x.K;
            F acc[R];
            for (int i = 0; i < R; ++i) acc[i] = zero();
            for (int k = 0; k < in; k += 2 * LANES)
                for (int i = 0; i < R; ++i)
                    acc[i] = dot_bf16(acc[i], iload(low.a + int64_t(r + i) * in + k), iload(half + k));
            for (int i = 0; i < R; ++i) h[t * low.rank + r + i] = sum(acc[i]) * low.scaling;
        }
    }

    template <int P>
    void up_columns(const LowRank& low, int o, int out_size, const AdapterRun& run, const float* h, float* out,
                    int64_t ld) {
        for (int64_t t = 0; t < run.count; ++t) {
            F acc[P];
            for (int p = 0; p < P; ++p) acc[p] = zero();
            for (int r = 0; r < low.rank; ++r) {
                F x = set1(h[t * low.rank + r]);
                for (int p = 0; p < P; ++p)
                    acc[p] = fma(x, load_bf16(low.b + int64_t(r) * out_size + o + p * LANES), acc[p]);
            }
            for (int p = 0; p < P; ++p) store(out + (run.first + t) * ld + o + p * LANES, acc[p]);
        }
    }

    // Adds a place's update to a tile of its features from `feature` on.
    void add_update(int layer, int place, int64_t column, int64_t ld, int64_t token, int M, int feature, int count,
                    float* tile, int64_t tile_ld) {
        if (!adapted_) return;
        for (int m = 0; m < M; ++m) {
            if (!adapted(token + m)) continue;
            const LowRank& low = c_.adapters[token + m][layer * PLACES + place];
            if (!low.rank) continue;
            const float* from = update_ + (token + m) * ld + column + feature;
            float* y = tile + m * tile_ld;
            for (int i = 0; i < count; i += LANES) store(y + i, add(load(y + i), load(from + i)));
            if (!low.scale) continue;
            for (int i = 0; i < count; i += LANES)
                store(y + i, fma(load(y + i), load(low.scale + feature + i),
                                 low.shift ? load(low.shift + feature + i) : zero()));
        }
    }

    // --- attention

    void project(int l, int thread, const Inputs& x) {
        const Layer& layer = m_.layers[size_t(l)];
        const int D = s_.head_dim, panels = D / LANES, all = s_.heads + 2 * s_.kv_heads;
        const int64_t ld = m_.q_size() + 2 * m_.kv_size();
        alignas(64) float tile[TILE * WIDTH];
        for (int64_t chunk = 0; chunk < N_; chunk += CHUNK)
            for (int64_t u = share(all, thread, threads_); u < share(all, thread + 1, threads_); ++u) {
                const int place = u < s_.heads ? Q : u < s_.heads + s_.kv_heads ? K : V;
                const int head = int(place == Q ? u : place == K ? u - s_.heads : u - s_.heads - s_.kv_heads);
                const int64_t column = place == Q ? 0 : m_.q_size() + (place == V ? m_.kv_size() : 0);
                for (int64_t t = chunk; t < std::min(N_, chunk + CHUNK); t += TILE) {
                    const int M = int(std::min<int64_t>({TILE, N_ - t, chunk + CHUNK - t}));
                    tile_product(layer.linear[place], head * panels, panels, x, t, M, t == chunk, tile, D);
                    add_update(l, place, column, ld, t, M, head * D, D, tile, D);
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
        uint16_t* to = q_ + t * m_.q_size() + head * D;
        if (place != Q)
            to = static_cast<uint16_t*>((place == K ? c_.keys : c_.values)[l]) + c_.rows[t] * c_.row_stride +
                 head * c_.group_stride + c_.positions[t] * D;
        for (int i = 0; i < D; i += LANES) store_bf16(to + i, load(y + i));
    }

    void mix(int l, int thread, Pool& pool) {
        if (alone_) {
            for (size_t i = size_t(share(int64_t(parts_.size()), thread, threads_));
                 i < size_t(share(int64_t(parts_.size()), thread + 1, threads_)); ++i)
                attend_part(l, i, thread);
            pool.barrier();
            join_parts(mixed_[size_t(thread)]);
        } else {
            for (int i; (i = taken_[size_t(l)].fetch_add(1, std::memory_order_relaxed)) < int(units_.size());) {
                if (i + threads_ < int(units_.size())) prefetch_unit(l, units_[size_t(i + threads_)]);
                attend_unit(l, units_[size_t(i)], thread);
            }
            pool.barrier();
        }
        const size_t me = size_t(alone_ ? thread : 0);
        const int64_t from = alone_ ? 0 : share(N_, thread, threads_), end = alone_ ? N_ : share(N_, thread + 1, threads_);
        for (int64_t t = from; t < end; ++t) put(mixed_[me] + t * m_.q_size(), mixed_inputs_[me], t, adapted(t));
        if (!alone_) pool.barrier();
    }

    void fetch_block(int l, int64_t row, int group, int block, int count, int thread) {
        const int64_t at = row * c_.row_stride + group * c_.group_stride + int64_t(block) * KEYS * s_.head_dim;
        load_block(static_cast<const uint16_t*>(c_.keys[l]) + at, static_cast<const uint16_t*>(c_.values[l]) + at, count,
                   s_.head_dim, *blocks_[size_t(thread)]);
    }

    // The beginning of what a unit reads: its own loads run ahead of themselves from there.
    void prefetch_unit(int l, const Unit& unit) {
        const int64_t at = unit.row * c_.row_stride + unit.group * c_.group_stride;
        prefetch_bytes(static_cast<const uint16_t*>(c_.keys[l]) + at, 32 * NEXT * s_.head_dim);
        prefetch_bytes(static_cast<const uint16_t*>(c_.values[l]) + at, 32 * NEXT * s_.head_dim);
    }

    void attend_part(int l, size_t i, int thread) {
        const Part& part = parts_[i];
        const int D = s_.head_dim, per_group = s_.heads / s_.kv_heads;
        const int seen = int(std::min<int64_t>(KEYS, c_.positions[part.token] + 1 - int64_t(part.block) * KEYS));
        fetch_block(l, c_.rows[part.token], part.group, part.block, seen, thread);
        const int all_seen[QUERIES] = {seen, seen, seen, seen};
        for (int h = 0; h < per_group; h += QUERIES) {
            const int n = std::min(QUERIES, per_group - h);
            const uint16_t* q[QUERIES];
            Running* out = &part_sums_[i * size_t(per_group) + size_t(h)];
            for (int j = 0; j < n; ++j) {
                q[j] = q_ + part.token * m_.q_size() + (part.group * per_group + h + j) * D;
                out[j].values = part_values_ + (int64_t(i) * per_group + h + j) * D;
            }
            attend(*blocks_[size_t(thread)], seen, q, all_seen, n, D, score_scale(), out);
        }
    }

    void join_parts(float* mixed) {
        const int D = s_.head_dim, per_group = s_.heads / s_.kv_heads;
        Running into{};
        for (size_t i = 0; i < parts_.size(); ++i)
            if (parts_[i].block == 0)
                for (int h = 0; h < per_group; ++h) {
                    into.values = mixed + parts_[i].token * m_.q_size() + (parts_[i].group * per_group + h) * D;
                    for (size_t j = i; j < parts_.size() && (j == i || parts_[j].block); ++j)
                        join(into, part_sums_[j * size_t(per_group) + size_t(h)], D, j == i);
                    divide(into);
                }
    }

    void divide(Running& x) {
        F by = set1(1.0f / x.total);
        for (int d = 0; d < s_.head_dim; d += LANES) store(x.values + d, mul(load(x.values + d), by));
    }

    float score_scale() const { return 1.0f / std::sqrt(static_cast<float>(s_.head_dim)); }

    void attend_unit(int l, const Unit& unit, int thread) {
        const int D = s_.head_dim, per_group = s_.heads / s_.kv_heads, rows = int(unit.count) * per_group;
        Running total[QUERY_ROWS], fresh[QUERIES];
        const uint16_t* q[QUERY_ROWS];
        int64_t position[QUERY_ROWS];
        for (int r = 0; r < rows; ++r) {
            const int64_t t = unit.token + r / per_group;
            const int64_t at = t * m_.q_size() + (unit.group * per_group + r % per_group) * D;
            q[r] = q_ + at, position[r] = c_.positions[t], total[r].values = mixed_[0] + at;
        }
        const int64_t last = c_.positions[unit.token + unit.count - 1];
        for (int b = 0; b <= int(last / KEYS); ++b) {
            const int64_t begin = int64_t(b) * KEYS;
            const int count = int(std::min<int64_t>(KEYS, last + 1 - begin));
            fetch_block(l, unit.row, unit.group, b, count, thread);
            int r = 0;
            while (r < rows && position[r] < begin) ++r;  // those see nothing of this block
            while (r < rows) {
                const int n = std::min(QUERIES, rows - r);
                int seen[QUERIES];
                for (int j = 0; j < n; ++j) {
                    seen[j] = int(std::min<int64_t>(KEYS, position[r + j] + 1 - begin));
                    fresh[j].values = b ? running_[size_t(thread)] + j * D : total[r + j].values;
                }
                attend(*blocks_[size_t(thread)], count, q + r, seen, n, D, score_scale(), fresh);
                for (int j = 0; j < n; ++j) {
                    if (b) join(total[r + j], fresh[j], D, false);
                    else total[r + j] = fresh[j];
                }
                r += n;
            }
        }
        for (int r = 0; r < rows; ++r) divide(total[r]);
    }

    // --- products into the residual stream, and the feed-forward

    void add_product(int l, int place, int thread, const Inputs& x) {
        const Linear& w = m_.layers[size_t(l)].linear[place];
        alignas(64) float tile[TILE * WIDTH];
        const int from = int(share(w.panels, thread, threads_)), end = int(share(w.panels, thread + 1, threads_));
        for (int64_t chunk = 0; chunk < N_; chunk += CHUNK)
            for (int p = from; p < end; p += 4)
                for (int64_t t = chunk; t < std::min(N_, chunk + CHUNK); t += TILE) {
                    const int M = int(std::min<int64_t>({TILE, N_ - t, chunk + CHUNK - t})), count = std::min(4, end - p);
                    tile_product(w, p, count, x, t, M, t == chunk, tile, 64);
                    add_update(l, place, 0, w.out, t, M, p * LANES, count * LANES, tile, 64);
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
        for (int64_t chunk = 0; chunk < N_; chunk += CHUNK)
            for (int64_t i = share(blocks, thread, threads_); i < share(blocks, thread + 1, threads_); ++i)
                for (int64_t t = chunk; t < std::min(N_, chunk + CHUNK); t += TILE) {
                    const int M = int(std::min<int64_t>({TILE, N_ - t, chunk + CHUNK - t}));
                    tile_product(g, int(2 * i), 2, x, t, M, t == chunk, a, BLOCK);
                    tile_product(u, int(2 * i), 2, x, t, M, t == chunk, b, BLOCK);
                    add_update(l, GATE, 0, ld, t, M, int(i) * BLOCK, BLOCK, a, BLOCK);
                    add_update(l, UP, s_.feedforward, ld, t, M, int(i) * BLOCK, BLOCK, b, BLOCK);
                    for (int m = 0; m < M; ++m) {
                        F y = silu_times(load(a + m * BLOCK), load(b + m * BLOCK));
                        F z = silu_times(load(a + m * BLOCK + LANES), load(b + m * BLOCK + LANES));
                        if (s_.quantised) quantise_block(y, z, wide_, t + m, int(i));
                        if (!s_.quantised || adapted(t + m)) {
                            uint16_t* half = wide_.half + (t + m) * s_.feedforward + i * BLOCK;
                            store_bf16(half, y), store_bf16(half + LANES, z);
                        }
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
            put(row, last_, i, false);
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
    bool adapted_ = false;
    int32_t max_rank_ = 0;
    int64_t W_ = 0;
    float *x_, *turn_, *update_ = nullptr, *part_values_ = nullptr;
    uint16_t* q_;
    Inputs wide_, last_;
    std::vector<Inputs> narrow_, mixed_inputs_;
    std::vector<float*> mixed_, row_, running_, low_;
    std::vector<Block*> blocks_;
    std::vector<Segment> segments_;
    std::vector<AdapterRun> runs_;
    std::vector<Unit> units_;
    std::vector<Part> parts_;
    std::vector<Running> part_sums_;
    std::vector<Best> chunk_best_;
    std::vector<std::atomic<int>> taken_;
};
