// What the kernel holds (packed weights, scratch memory) and what one call brings. The structs of the call are mirrored
// field by field in library.py.
#pragma once
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "pack.h"
#include "products.h"

enum Place { Q = 0, K = 1, V = 2, O = 3, GATE = 4, UP = 5, DOWN = 6, LAYER_INPUT_GATE = 7, LAYER_INPUT_DOWN = 8, PLACES = 9 };

extern "C" {
struct Shape {
    int32_t layers, hidden, heads, kv_heads, head_dim, feedforward, vocabulary, threads;  // of several sizes the largest
    int32_t floats;             // 1: the blocks' weights are as wide as the embedding; 0: integers
    int32_t wide;               // 1: the embedding, keys, values and adapters are float32; 0: bfloat16
    int32_t chunk;              // tokens whose activations stay in the second-level cache while weights stream by
    int32_t activation, gated;  // see activations.h
    int32_t layer_norm;         // 1: the norms are layer norms; 0: RMS
    int32_t whole_norm;         // 1: queries and keys are normalised over the whole projection; 0: over each head
    int32_t parallel;           // 1: the feed-forward reads what attention read
    int32_t post;               // 1: the norms behind attention and feed-forward are of the residual sum
    int32_t positions, token_types;                // rows of these tables; 0: there is none
    int32_t experts, per_token, expert_size;       // 0: no layer has experts
    int32_t scoring, renormalise, groups, groups_chosen;  // see routing.h
    int32_t layer_input;               // features of the input that each layer has of its own (layer_inputs.h); 0: none
    float eps, embedding_scale, residual_scale, head_scale;
    float score_cap, logit_cap;  // 0: none
    float expert_scale, layer_input_scale;
};
// Rotary positions of some layers: `size` features of a head turn, by [size / 2] radians per token; `factor` is on cosines
// and sines.
struct Turning {
    const float* frequencies;
    int32_t size, interleaved;
    float factor;
};
// One adapter's pair at one linear: A [rank, in] and B transposed [rank, out], as wide as the shape says. rank 0: none
// there. With DoRA the outputs are then multiplied by scale [out], and shift [out] gives back what that takes from the
// bias; or null.
struct LowRank {
    const void *a, *b;
    int32_t rank;
    float scaling;
    const float *scale, *shift;
};
// Of a decoder, new tokens of rows of a cache. Of an encoder (lengths), whole texts behind each other, each token of which
// sees all of its own text: a token's row is the number of its text's first one, and keys and values are kept by nobody.
struct Call {
    int32_t tokens_count, scored_count, depth, padding;
    const int64_t *tokens, *rows, *positions, *scored;
    const int64_t *lengths, *types;             // an encoder's: of each token's text; which part of it (null: all are 0)
    void *const *keys, *const *values;          // per layer [R, G, C, D]
    const int64_t* places;                      // per layer C: position p stands at place p % C
    const LowRank* const* adapters;             // per token [layers · PLACES], or null; or null altogether
    float* logits;                              // [W, vocabulary], or null
    int64_t* best;                              // [W]
    float* top;                                 // [W]: the logit of `best`
    float* logsumexp;                           // [W]
    float* hidden;                              // [N, hidden], or null
};
}

// Whether each array comes from the C library by itself: AddressSanitizer then knows where it ends.
#ifdef __SANITIZE_ADDRESS__
constexpr bool APART = true;
#else
constexpr bool APART = false;
#endif

// Memory that is handed out and freed as a whole, in large pages where the system has them.
class Arena {
public:
    ~Arena() { release(); }
    // Everything that was handed out is free again; the memory itself is kept, in one piece.
    void restart() {
        int64_t all = 0;
        for (auto& piece : pieces_) all += int64_t(piece.second);
        if (APART) {
            release();
        } else if (pieces_.size() > 1) {
            release();
            add_piece(all);
        } else if (all) {
            next_ = static_cast<uint8_t*>(pieces_[0].first), left_ = all;
        }
        used_ = 0;
    }
    uint8_t* take(int64_t bytes) {
        if (APART) {
            add_piece(bytes = std::max<int64_t>(bytes, 1));
        } else {
            bytes = (bytes + 127) / 64 * 64;
            if (bytes > left_) add_piece(bytes > PIECE ? (bytes + PAGE - 1) / PAGE * PAGE : PIECE);
        }
        uint8_t* given = next_;
        next_ += bytes, left_ -= bytes, used_ += bytes;
        return given;
    }
    template <class T> T* array(int64_t count) { return reinterpret_cast<T*>(take(count * int64_t(sizeof(T)))); }
    int64_t used() const { return used_; }

private:
    void add_piece(int64_t size) {
        if (APART) {
            void* alone = nullptr;
            if (posix_memalign(&alone, 64, size_t(size))) throw std::bad_alloc();
            pieces_.emplace_back(alone, size_t(size));
            next_ = static_cast<uint8_t*>(alone), left_ = size;
            return;
        }
        void* p = mmap(nullptr, size_t(size), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
        madvise(p, size_t(size), MADV_HUGEPAGE);
#endif
        pieces_.emplace_back(p, size_t(size));
        next_ = static_cast<uint8_t*>(p), left_ = size;
    }
    void release() {
        for (auto& piece : pieces_) {
            if (APART) std::free(piece.first);
            else munmap(piece.first, piece.second);
        }
        pieces_.clear();
        next_ = nullptr, left_ = 0;
    }

    static constexpr int64_t PAGE = 2 << 20, PIECE = 16 * PAGE;
    std::vector<std::pair<void*, size_t>> pieces_;
    uint8_t* next_ = nullptr;
    int64_t left_ = 0, used_ = 0;
};

// Vectors of a layer, or of the model itself: null where it has none; a router is [experts, hidden]. A norm without a weight is not there.
enum Vector {
    ATTENTION_NORM = 0, ATTENTION_AFTER_NORM = 1, FEEDFORWARD_NORM = 2, FEEDFORWARD_AFTER_NORM = 3, QUERY_NORM = 4,
    KEY_NORM = 5, SINKS = 6, EMBEDDING_NORM = 7, FINAL_NORM = 8, ROUTER = 9, ROUTER_BIAS = 10, SELECTION_BIAS = 11,
    SHARED_GATE = 12, VALUE_NORM = 13, ROUTER_SCALE = 14, EXPERT_SCALE = 15, BESIDE_NORM = 16, BESIDE_AFTER_NORM = 17,
    DENSE_AFTER_NORM = 18, LAYER_INPUT_NORM = 19, LAYER_INPUT_AFTER_NORM = 20, VECTORS = 21
};

struct Vectors {
    const float *weight[VECTORS] = {}, *bias[VECTORS] = {};
};

struct Layer : Vectors {
    // Those of the feed-forward, or of the shared expert, where there is one. None for keys and values where they are
    // another layer's, and none for values where they are what the product of keys gives.
    Linear linear[PLACES];
    std::vector<Linear> gate_up, down;   // each expert's: its gate's features before the others
    // Whether the experts stand beside the feed-forward, with norms of their own.
    bool beside() const { return weight[BESIDE_NORM] != nullptr; }
    int32_t window = 0;    // how many tokens a query sees; 0: all
    int32_t turning = -1;  // which of the model's rotary positions; −1: none
    int32_t head_dim = 0, kv_heads = 0;
    int32_t source = 0;    // the layer whose keys and values it reads: as a rule its own number
    float output_scale = 1, score_scale = 1;
};

struct Model {
    Shape shape{};
    Arena arena;
    std::vector<Layer> layers;
    std::vector<Turning> turnings;
    Linear head, layer_input;
    Vectors own;
    const void* embedding = nullptr;  // [vocabulary, hidden], the torch model's own
    const void* positions = nullptr;  // [positions, hidden], the same; or null
    const void* types = nullptr;      // [token_types, hidden], the same; or null
    const void* layer_input_rows = nullptr;  // [vocabulary, layers · layer_input], the same; or null

    // The form of the activations that the blocks' weights are multiplied with.
    Reads form() const { return !shape.floats ? BYTES : reads(shape.wide ? F32 : BF16); }

    // Of the largest layer, which is how far tokens stand apart where each layer puts its own.
    int q_size() const { return shape.heads * shape.head_dim; }
    int kv_size() const { return shape.kv_heads * shape.head_dim; }
    const Layer& layer(int l) const { return layers[size_t(l)]; }
    bool beside() const {
        return std::any_of(layers.begin(), layers.end(), [](const Layer& layer) { return layer.beside(); });
    }
};

// Writes 32 of a row's activations in the form that products of `form` take.
INLINE void put_block(F a, F b, const Inputs& to, int64_t at, int block, Reads form) {
    const int64_t from = at * to.K + int64_t(block) * BLOCK;
    if (form == BYTES) quantise_block(a, b, to, at, block);
    else if (form == HALVES) store(to.half + from, a), store(to.half + from + LANES, b);
    else store(to.full + from, a), store(to.full + from + LANES, b);
}

// A row of activations to another place.
inline void copy_row(const Inputs& from, int64_t row, const Inputs& to, int64_t at) {
    const size_t K = size_t(from.K), blocks = K / BLOCK;
    const auto copy = [&](auto* target, const auto* source, size_t count) {
        if (target) std::memcpy(target + size_t(at) * count, source + size_t(row) * count, count * sizeof(*target));
    };
    copy(to.q, from.q, K), copy(to.half, from.half, K), copy(to.full, from.full, K);
    copy(to.scale, from.scale, blocks), copy(to.scaled_sum, from.scaled_sum, blocks);
    copy(to.offset, from.offset, blocks), copy(to.halves, from.halves, 2 * blocks);
}

// Room for the forms `first` and `second` (which may be the same).
inline Inputs make_inputs(Arena& arena, int64_t tokens, int K, Reads first, Reads second) {
    Inputs x;
    x.K = K;
    if (first == HALVES || second == HALVES) x.half = arena.array<uint16_t>(tokens * K);
    if (first == FLOATS || second == FLOATS) x.full = arena.array<float>(tokens * K);
    if (first != BYTES && second != BYTES) return x;
    x.q = arena.array<int8_t>(tokens * K);
    x.scale = arena.array<float>(tokens * x.blocks());
    x.scaled_sum = arena.array<float>(tokens * x.blocks());
    x.offset = arena.array<int32_t>(tokens * x.blocks());
    x.halves = arena.array<int32_t>(tokens * x.blocks() * 2);
    return x;
}
