// The decoder's forward pass on a CPU as one call (RMS norm, rotary grouped-query attention, SwiGLU; LoRA by token).
// Results do not depend on how tokens are batched or chunked: see products.h and attention.h.
#include <exception>

#include "forward.h"

namespace {
struct Handle {
    Model model;
    Arena memory;  // of one call, reused by the next
};

const float* keep(Arena& arena, const float* from, int64_t count, int64_t padded) {
    float* to = arena.array<float>(padded);
    std::memset(to, 0, size_t(padded) * 4);
    std::memcpy(to, from, size_t(count) * 4);
    return to;
}
}  // namespace

extern "C" {

const char* bedplate_instructions() {
#ifdef BEDPLATE_AVX512
    return "avx512";
#else
    return "plain";
#endif
}

// frequencies: [head_dim / 2] radians per token. embedding: [vocabulary, hidden] bfloat16, kept by the caller.
void* bedplate_new(const Shape* shape, const float* frequencies, const uint16_t* embedding, const float* norm) try {
    auto handle = std::make_unique<Handle>();
    Model& m = handle->model;
    m.shape = *shape;
    m.layers.resize(size_t(shape->layers));
    m.frequencies = keep(m.arena, frequencies, shape->head_dim / 2, shape->head_dim / 2);
    m.norm = keep(m.arena, norm, shape->hidden, shape->hidden);
    m.embedding = embedding;
    return handle.release();
} catch (const std::exception&) {
    return nullptr;
}

int bedplate_norms(void* handle, int layer, const float* attention, const float* feedforward) try {
    Model& m = static_cast<Handle*>(handle)->model;
    m.layers[size_t(layer)].attention_norm = keep(m.arena, attention, m.shape.hidden, m.shape.hidden);
    m.layers[size_t(layer)].feedforward_norm = keep(m.arena, feedforward, m.shape.hidden, m.shape.hidden);
    return 0;
} catch (const std::exception&) {
    return 1;
}

// place: see Place; −1 is the head. Copies and packs what it is given.
int bedplate_linear(void* handle, int layer, int place, int format, int in, int out, const void* quants,
                    const uint16_t* scales, const uint16_t* minima, const float* bias) try {
    Model& m = static_cast<Handle*>(handle)->model;
    Linear& w = place < 0 ? m.head : m.layers[size_t(layer)].linear[place];
    w.format = format, w.in = in, w.out = out, w.panels = (out + LANES - 1) / LANES;
    w.panel_bytes = panel_size(format, in);
    w.data = m.arena.take(w.panels * w.panel_bytes);
    pack(w, quants, scales, minima);
    if (bias) w.bias = keep(m.arena, bias, out, w.panels * LANES);
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
    Forward forward(h.model, *call, h.memory, h.model.shape.threads);
    pool.run(h.model.shape.threads, [&](int thread) { forward.work(thread, pool); });
    return 0;
} catch (const std::exception&) {
    return 1;
}
}
