// Softmax attention of new tokens over a cache of keys and values, in blocks of 128 keys from position 0, merged in their
// order (https://arxiv.org/abs/2205.14135): a query's arithmetic depends on its own position only.
//
// Two ways with one interface. Pairs: keys and values are bfloat16 and multiplied as they are, in pairs, where the level
// has that instruction. Floats: they are bfloat16 or float32, and the products are float32. A way has the types of its
// cache, of its queries and of its weights, a Block of keys (and values) turned to what scores and mix read.
#pragma once
#include <algorithm>
#include <type_traits>

#include "activations.h"

constexpr int KEYS = 128;
constexpr int QUERIES = 4;   // query rows computed together
constexpr int MAX_HEAD = 512;
constexpr int NEXT = 3;      // groups of 16 keys between what is read and what is prefetched

// The running softmax of one query row: largest score, sum, and weighted values [D], not yet divided.
struct Running {
    float top, total;
    float* values;
};

// 16 rows of D from `from`, of which n exist, in `spare` where rows that do not exist would be read. The first `unseen` are
// zeros: what stands there may be anything, and no weight of 0 makes nothing of a NaN.
template <class T>
const T* whole_group(const T* from, int n, int D, T* spare, int unseen = 0) {
    if (n >= 16 && unseen <= 0) return from;
    n = std::min(n, 16), unseen = std::clamp(unseen, 0, 16);
    std::memcpy(spare, from, size_t(n) * size_t(D) * sizeof(T));
    std::memset(spare + n * D, 0, size_t(16 - n) * size_t(D) * sizeof(T));
    std::memset(spare, 0, size_t(unseen) * size_t(D) * sizeof(T));
    return spare;
}

template <class T>
struct Floats {
    using Cached = T;
    using Number = float;  // of queries and of weights

    // Keys turned so that lanes are keys; values are read where they are.
    struct Block {
        alignas(64) float keys[MAX_HEAD][KEYS];
        const T* values;
        int first;
    };

    // k, v: [count, D] of the block's keys; values before `first` are seen by nobody, and not read.
    static void load_block(const T* k, const T* v, int first, int count, int D, Block& to) {
        const int groups = (count + 15) / 16;
        to.values = v, to.first = first;
        for (int g = 0; g < groups; ++g) {
            alignas(64) T spare[16 * MAX_HEAD];
            prefetch_bytes(k + int64_t(g + NEXT) * 16 * D, int64_t(sizeof(T)) * 16 * D);
            prefetch_bytes(v + int64_t(g) * 16 * D, int64_t(sizeof(T)) * 16 * D);
            const T* from = whole_group(k + int64_t(g) * 16 * D, count - g * 16, D, spare);
            for (int c = 0; c < D; c += 16) {
                I rows[16];
                for (int r = 0; r < 16; ++r) rows[r] = words(load(from + r * D + c));
                transpose(rows);
                for (int i = 0; i < 16; ++i) istore(&to.keys[c + i][g * 16], rows[i]);
            }
        }
    }

    template <int N, int G>
    static INLINE_MEMBER void scores(const Block& block, int group, const float* const* q, int D, float (*out)[KEYS]) {
        F acc[N][G];
        UNROLL
        for (int n = 0; n < N; ++n)
            UNROLL
            for (int g = 0; g < G; ++g) acc[n][g] = zero();
        for (int i = 0; i < D; ++i) {
            F k[G];
            UNROLL
            for (int g = 0; g < G; ++g) k[g] = load(&block.keys[i][(group + g) * 16]);
            UNROLL
            for (int n = 0; n < N; ++n) {
                F x = set1(q[n][i]);
                UNROLL
                for (int g = 0; g < G; ++g) acc[n][g] = fma(k[g], x, acc[n][g]);
            }
        }
        UNROLL
        for (int n = 0; n < N; ++n)
            UNROLL
            for (int g = 0; g < G; ++g) store(out[n] + (group + g) * 16, acc[n][g]);
    }

    template <int N, int G>
    static INLINE_MEMBER void mix(const Block& block, int count, int D, int feature, float (*weights)[KEYS],
                                  float* const* out) {
        F acc[N][G];
        UNROLL
        for (int n = 0; n < N; ++n)
            UNROLL
            for (int g = 0; g < G; ++g) acc[n][g] = zero();
        for (int i = block.first; i < count; ++i) {
            F v[G];
            UNROLL
            for (int g = 0; g < G; ++g) v[g] = load(block.values + int64_t(i) * D + feature + g * 16);
            UNROLL
            for (int n = 0; n < N; ++n) {
                F p = set1(weights[n][i]);
                UNROLL
                for (int g = 0; g < G; ++g) acc[n][g] = fma(v[g], p, acc[n][g]);
            }
        }
        UNROLL
        for (int n = 0; n < N; ++n)
            UNROLL
            for (int g = 0; g < G; ++g) store(out[n] + feature + g * 16, acc[n][g]);
    }
};

#ifdef BEDPLATE_BF16
struct Pairs {
    using Cached = uint16_t;
    using Number = uint16_t;

    // One block's keys turned so that lanes are keys (pair of features by pair), and values so that a word holds two keys.
    struct Block {
        alignas(64) uint32_t keys[MAX_HEAD / 2][KEYS];
        alignas(64) uint32_t values[KEYS / 2 * MAX_HEAD];  // [KEYS / 2, D]: without gaps, which would share lines of a cache
        int first;
    };

    // k, v: [count, D] of the block's keys; those beyond count become zeros where a whole group of 16 is read, and so do
    // values before `first`, which nobody sees.
    static void load_block(const uint16_t* k, const uint16_t* v, int first, int count, int D, Block& to) {
        const int groups = (count + 15) / 16;
        to.first = first;
        for (int g = 0; g < groups; ++g) {
            const int n = count - g * 16;
            const int64_t ahead = int64_t(g + NEXT) * 16 * D;  // the next block follows this one
            prefetch_bytes(k + ahead, 32 * D);
            prefetch_bytes(v + ahead, 32 * D);
            alignas(64) uint16_t spare[16 * MAX_HEAD];
            const uint16_t* from = whole_group(k + int64_t(g) * 16 * D, n, D, spare);
            int c = 0;
            for (; c + 32 <= D; c += 32) {
                I turned[16];
                transpose(from + c, int64_t(D) * 2, turned);
                for (int i = 0; i < 16; ++i) istore(&to.keys[c / 2 + i][g * 16], turned[i]);
            }
            for (; c < D; c += 2)
                for (int r = 0; r < 16; ++r) std::memcpy(&to.keys[c / 2][g * 16 + r], from + r * D + c, 4);
            const uint16_t* values = whole_group(v + int64_t(g) * 16 * D, n, D, spare, first - g * 16);
            for (int r = 0; r < 16; r += 2)
                for (int d = 0; d < D; d += 16)
                    istore(to.values + (g * 16 + r) / 2 * D + d, interleave(values + r * D + d, values + (r + 1) * D + d));
        }
    }

    template <int N, int G>
    static INLINE_MEMBER void scores(const Block& block, int group, const uint16_t* const* q, int D, float (*out)[KEYS]) {
        F acc[N][G];
        UNROLL
        for (int n = 0; n < N; ++n)
            UNROLL
            for (int g = 0; g < G; ++g) acc[n][g] = zero();
        for (int i = 0; i < D / 2; ++i) {
            I k[G];
            UNROLL
            for (int g = 0; g < G; ++g) k[g] = iload(&block.keys[i][(group + g) * 16]);
            UNROLL
            for (int n = 0; n < N; ++n) {
                I x = bcast(q[n] + 2 * i);
                UNROLL
                for (int g = 0; g < G; ++g) acc[n][g] = dot_bf16(acc[n][g], k[g], x);
            }
        }
        UNROLL
        for (int n = 0; n < N; ++n)
            UNROLL
            for (int g = 0; g < G; ++g) store(out[n] + (group + g) * 16, acc[n][g]);
    }

    template <int N, int G>
    static INLINE_MEMBER void mix(const Block& block, int count, int D, int feature, uint16_t (*weights)[KEYS],
                                  float* const* out) {
        const int pairs = (count + 15) / 16 * 8;
        F acc[N][G];
        UNROLL
        for (int n = 0; n < N; ++n)
            UNROLL
            for (int g = 0; g < G; ++g) acc[n][g] = zero();
        for (int i = block.first / 2; i < pairs; ++i) {
            I v[G];
            UNROLL
            for (int g = 0; g < G; ++g) v[g] = iload(block.values + i * D + feature + g * 16);
            UNROLL
            for (int n = 0; n < N; ++n) {
                I p = bcast(weights[n] + 2 * i);
                UNROLL
                for (int g = 0; g < G; ++g) acc[n][g] = dot_bf16(acc[n][g], v[g], p);
            }
        }
        UNROLL
        for (int n = 0; n < N; ++n)
            UNROLL
            for (int g = 0; g < G; ++g) store(out[n] + feature + g * 16, acc[n][g]);
    }
};
#endif

// Joins a block's softmax into the running one. `first`: there is nothing to join with yet.
inline void join(Running& into, const Running& block, int D, bool first) {
    if (first) {
        into.top = block.top, into.total = block.total;
        std::memcpy(into.values, block.values, size_t(D) * 4);
        return;
    }
    float top = into.top > block.top ? into.top : block.top;
    float old = exp1(into.top - top), fresh = exp1(block.top - top);
    into.top = top;
    into.total = into.total * old + block.total * fresh;
    for (int d = 0; d < D; d += 16)
        store(into.values + d, fma(load(into.values + d), set1(old), mul(load(block.values + d), set1(fresh))));
}

// What is done to scores: x → scale · x, then x → cap · tanh(x / cap), where cap is not 0 (Gemma-2, arXiv 2408.00118).
struct Scores {
    float scale, cap;
    INLINE_MEMBER F of(F x) const {
        F y = mul(x, set1(scale));
        return cap > 0 ? capped(y, cap) : y;
    }
};

// Which of a block's keys a query row sees: `begin` … `end` − 1, one at least.
struct Seen {
    int begin, end;
    INLINE_MEMBER F only(F x, int group, F other) const {
        F y = first_lanes(x, end - group * 16, other);
        return begin > group * 16 ? first_lanes(other, begin - group * 16, y) : y;
    }
};

// Softmax over one block for N query rows.
template <class Arithmetic, int N>
void attend_rows(const typename Arithmetic::Block& block, int count, const typename Arithmetic::Number* const* q, const Seen* seen, int D,
                 const Scores& how, Running* out) {
    alignas(64) float s[N][KEYS];
    alignas(64) typename Arithmetic::Number weights[N][KEYS];
    float* to[N];
    const int groups = (count + 15) / 16;
    int g = 0;
    constexpr int G = N * 4 <= GROUP_SUMS ? 4 : N * 2 <= GROUP_SUMS ? 2 : 1;
    for (; g + G <= groups; g += G) Arithmetic::template scores<N, G>(block, g, q, D, s);
    if constexpr (G == 4)
        for (; g + 2 <= groups; g += 2) Arithmetic::template scores<N, 2>(block, g, q, D, s);
    for (; g < groups; ++g) Arithmetic::template scores<N, 1>(block, g, q, D, s);
    for (int n = 0; n < N; ++n) {
        const F none = set1(-3.0e38f);
        F top = none;
        for (int i = 0; i < groups; ++i) {
            F x = seen[n].only(how.of(load(s[n] + i * 16)), i, none);
            store(s[n] + i * 16, x);
            top = fmax(top, x);
        }
        out[n].top = largest(top);
        F total = zero();
        for (int i = 0; i < groups; ++i) {
            F p = exp(sub(load(s[n] + i * 16), set1(out[n].top)));
            store(weights[n] + i * 16, seen[n].only(p, i, zero()));
            total = add(total, load(weights[n] + i * 16));  // as rounded
        }
        out[n].total = sum(total);
        to[n] = out[n].values;
    }
    int d = 0;
    for (; d + 16 * G <= D; d += 16 * G) Arithmetic::template mix<N, G>(block, count, D, d, weights, to);
    if constexpr (G == 4)
        for (; d + 32 <= D; d += 32) Arithmetic::template mix<N, 2>(block, count, D, d, weights, to);
    for (; d < D; d += 16) Arithmetic::template mix<N, 1>(block, count, D, d, weights, to);
}

template <class Arithmetic>
void attend(const typename Arithmetic::Block& block, int count, const typename Arithmetic::Number* const* q, const Seen* seen, int N, int D,
            const Scores& how, Running* out) {
    if (N == 4) attend_rows<Arithmetic, 4>(block, count, q, seen, D, how, out);
    else if (N == 3) attend_rows<Arithmetic, 3>(block, count, q, seen, D, how, out);
    else if (N == 2) attend_rows<Arithmetic, 2>(block, count, q, seen, D, how, out);
    else attend_rows<Arithmetic, 1>(block, count, q, seen, D, how, out);
}
