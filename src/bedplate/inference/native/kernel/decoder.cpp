// The forward pass of a decoder or encoder on a CPU as one call; what of it a model has is data (Shape, Layer). LoRA by token.
// Results do not depend on how tokens are batched or chunked: see products.h and attention.h.
#include <exception>
#include <optional>

#include "texts.h"
#include "tile_choice.h"

namespace {
struct Handle {
    Model model;
    Pace paces[3];  // of a few tokens, of a batch that decodes, of prompts
    Arena memory;              // of one call, reused by the next
    std::deque<Arena> apart;   // the same of each thread's texts
};

const float* keep(Arena& arena, const float* from, int64_t count, int64_t padded) {
    float* to = arena.array<float>(padded);
    std::memset(to, 0, size_t(padded) * 4);
    std::memcpy(to, from, size_t(count) * 4);
    return to;
}

// Half of the second-level cache holds the activations; the other half is for the weights that stream by.
int32_t chunk_for(const Shape& s) {
    long cache = -1;
#ifdef _SC_LEVEL2_CACHE_SIZE
    cache = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
    if (cache <= 0) cache = 1 << 20;  // not said: what most processors have
    const Reads form = !s.floats ? BYTES : reads(s.wide ? F32 : BF16);
    const int64_t bytes = int64_t(std::max({s.hidden, s.feedforward, s.expert_size})) * (form == BYTES ? 1 : form == HALVES ? 2 : 4);
    return int32_t(std::min<int64_t>(std::max<int64_t>(cache / 2 / bytes / TILE, 32 / TILE), 512 / TILE) * TILE);
}

#ifdef BEDPLATE_BF16
using Narrow = Pairs;
#else
using Narrow = Floats<uint16_t>;
#endif

void add_matrix(Model& m, Linear& w, int source, int in, int out, const void* data, const float* bias) {
    w.format = stored_as(source).format, w.in = in, w.out = out, w.panels = (out + LANES - 1) / LANES;
    w.panel_bytes = panel_size(w.format, in);
    w.data = m.arena.take(w.panels * w.panel_bytes);
    w.tiles_from = tiles_from(w.format);
    // Packed by the threads that will read it: on machines of several memory nodes each share then lies near its reader.
    Pool& pool = Pool::shared();
    const int threads = m.shape.threads;
    std::lock_guard<std::mutex> one(pool.one_at_a_time);
    pool.run(threads, [&](int thread) {
        pack(w, source, data, int(share(w.panels, thread, threads)), int(share(w.panels, thread + 1, threads)));
    });
    if (bias) w.bias = keep(m.arena, bias, out, w.panels * LANES);
}

// Each share of the texts by one thread.
template <class Arithmetic>
void run_apart(Handle& h, std::deque<Texts>& shares, Pool& pool, Pace& pace) {
    const int hidden = h.model.shape.hidden;
    while (h.apart.size() < shares.size()) h.apart.emplace_back();
    std::deque<Forward<Arithmetic>> passes;
    for (size_t i = 0; i < shares.size(); ++i) {
        h.apart[i].restart();
        shares[i].ready(hidden, h.apart[i]);
        passes.emplace_back(h.model, shares[i].call, h.apart[i], 1);
    }
    pool.run(int(shares.size()), [&](int thread) {
        Pool nobody;  // to wait for
        nobody.run(1, [&](int) { passes[size_t(thread)].work(0, nobody); });
        shares[size_t(thread)].give(hidden);
    }, &pace);
}

template <class Arithmetic>
void run(Handle& h, const Call& call, Pool& pool) {
    const int most = h.model.shape.threads;
    Pace& pace = h.paces[call.tokens_count < ALONE ? 0 : call.tokens_count < 32 ? 1 : 2];
    const int threads = pace.threads(most);
    std::deque<Texts> shares = shared_texts(h.model, call, threads);
    if (!shares.empty()) return run_apart<Arithmetic>(h, shares, pool, pace);
    std::optional<ScoredTokens> scored;
    std::optional<Forward<Arithmetic>> last;
    if (ScoredTokens::few(call)) last.emplace(h.model, scored.emplace(call).call, h.memory, threads);
    Forward<Arithmetic> forward(h.model, call, h.memory, threads, last ? &*last : nullptr);
    pool.run(threads, [&](int thread) { forward.work(thread, pool); }, &pace);
}
}  // namespace

// Only these functions are seen from outside: levels may lie in one process without taking each other's code.
#pragma GCC visibility push(default)
extern "C" {

// The name of the level that this file was compiled for.
const char* bedplate_level() { return BEDPLATE_LEVEL; }

// embedding: [vocabulary, hidden], as wide as the shape says; positions, types, layer_inputs: such rows of learned positions, of the
// parts of a text, and of the inputs of single layers, or null. All are kept by the caller.
void* bedplate_new(const Shape* shape, const void* embedding, const void* positions, const void* types, const void* layer_inputs) try {
    auto handle = std::make_unique<Handle>();
    Model& m = handle->model;
    m.shape = *shape;
    m.shape.chunk = chunk_for(*shape);
    m.layers.resize(size_t(shape->layers));
    m.embedding = embedding, m.positions = positions, m.types = types, m.layer_input_rows = layer_inputs;
    return handle.release();
} catch (const std::exception&) {
    return nullptr;
}

// One more of the rotary positions that layers may have; they are numbered in this order.
int bedplate_turning(void* handle, int size, int interleaved, float factor, const float* frequencies) try {
    Model& m = static_cast<Handle*>(handle)->model;
    m.turnings.push_back({keep(m.arena, frequencies, size / 2, size / 2), size, interleaved, factor});
    return 0;
} catch (const std::exception&) {
    return 1;
}

// See Layer.
int bedplate_layer(void* handle, int layer, int window, int turning, int head_dim, int kv_heads, int source, float output_scale,
                   float score_scale) {
    Layer& one = static_cast<Handle*>(handle)->model.layers[size_t(layer)];
    one.window = window, one.turning = turning, one.head_dim = head_dim, one.kv_heads = kv_heads;
    one.source = source, one.output_scale = output_scale, one.score_scale = score_scale;
    return 0;
}

// which: see Vector. layer: −1 for the model's own. bias: or null.
int bedplate_vector(void* handle, int layer, int which, int size, const float* weight, const float* bias) try {
    Model& m = static_cast<Handle*>(handle)->model;
    Vectors& to = layer < 0 ? m.own : m.layers[size_t(layer)];
    to.weight[which] = keep(m.arena, weight, size, (size + LANES - 1) / LANES * LANES);
    if (bias) to.bias[which] = keep(m.arena, bias, size, (size + LANES - 1) / LANES * LANES);
    return 0;
} catch (const std::exception&) {
    return 1;
}

// place: see Place; −1 is the head, −2 the projection to the inputs of single layers. source: what `data` [out, …] is (see
// Source). Copies and packs what it is given.
int bedplate_linear(void* handle, int layer, int place, int source, int in, int out, const void* data,
                    const float* bias) try {
    Model& m = static_cast<Handle*>(handle)->model;
    Linear& to = place == -1 ? m.head : place < 0 ? m.layer_input : m.layers[size_t(layer)].linear[place];
    add_matrix(m, to, source, in, out, data, bias);
    return 0;
} catch (const std::exception&) {
    return 1;
}

// Each expert's first (its gate above the rest) or last matrix: data [experts, out, …], bias [experts, out] or null.
int bedplate_experts(void* handle, int layer, int last, int source, int in, int out, const void* data,
                     const float* bias) try {
    Model& m = static_cast<Handle*>(handle)->model;
    std::vector<Linear>& all = last ? m.layers[size_t(layer)].down : m.layers[size_t(layer)].gate_up;
    all.resize(size_t(m.shape.experts));
    const uint8_t* at = static_cast<const uint8_t*>(data);
    for (size_t e = 0; e < all.size(); ++e)
        add_matrix(m, all[e], source, in, out, at + int64_t(e) * out * row_size(source, in), bias ? bias + int64_t(e) * out : nullptr);
    return 0;
} catch (const std::exception&) {
    return 1;
}

int64_t bedplate_bytes(void* handle) { return static_cast<Handle*>(handle)->model.arena.used(); }

void bedplate_free(void* handle) { delete static_cast<Handle*>(handle); }

// 0, or 1 where memory ran out; then nothing but the cache's rows of these tokens has changed.
int bedplate_forward(void* handle, const Call* call) try {
    Handle& h = *static_cast<Handle*>(handle);
    Pool& pool = Pool::shared();
    std::lock_guard<std::mutex> one(pool.one_at_a_time);
    h.memory.restart();
    if (h.model.shape.wide) run<Floats<float>>(h, *call, pool);
    else run<Narrow>(h, *call, pool);
    return 0;
} catch (const std::exception&) {
    return 1;
}
}
#pragma GCC visibility pop
