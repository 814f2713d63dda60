// Matrix products of weights packed for sixteen lanes. A panel is 16 output features; its lanes are those features.
//
// Formats (weights W [out, in], blocks of 32 along `in`):
//   f32:  word k of a panel holds features' input k.                                  64 bytes per input
//   bf16: word k of a panel holds features' inputs 2k, 2k+1.                          64 bytes per 2 inputs
//   int8: per two blocks 16 words of four bytes q + 128, then their float16 scales.    1,088 bytes per two blocks
//   int4: per block 4 words (low nibbles: inputs 0…15, high: 16…31), 16 scales and 16 minima in float16. 320 bytes
// Activations are int8 with one scale per token and block for int8 and int4; for bf16 they are bfloat16 where the level
// multiplies pairs of those, else float32, as for f32. The order of additions over `in` is fixed and the same for every
// number of tokens, so a token's result does not depend on what else is in the batch.
#pragma once
#include <algorithm>

#include "simd.h"

constexpr int BLOCK = 32;
constexpr int TILE = 8;            // tokens of one tile
constexpr int WIDTH = 256;         // features of one tile row, at most
enum Format { BF16 = 0, INT8 = 1, INT4 = 2, F32 = 3 };
enum Reads { HALVES, BYTES, FLOATS };  // the form of the activations

inline Reads reads(int format) {
    return format == INT8 || format == INT4 ? BYTES : format == BF16 && PAIRS ? HALVES : FLOATS;
}

struct Linear {
    int format = BF16, in = 0, out = 0, panels = 0;
    int64_t panel_bytes = 0;
    uint8_t* data = nullptr;
    const float* bias = nullptr;  // [panels · 16] or null
    const uint8_t* panel(int i) const { return data + i * panel_bytes; }
};

// Activations of several tokens: int8 `q` [T, K], per block of 32 `scale` and `scaled_sum` (scale · Σq) and `offset`
// (−128 Σq); `half` [T, K] in bfloat16; `full` [T, K] in float32. Which of them are filled, the weights' format says.
struct Inputs {
    int K = 0;
    int8_t* q = nullptr;
    float *scale = nullptr, *scaled_sum = nullptr;
    int32_t* offset = nullptr;
    uint16_t* half = nullptr;
    float* full = nullptr;
    int blocks() const { return K / BLOCK; }
};

inline int64_t panel_size(int format, int in) {
    int64_t blocks = in / BLOCK;
    if (format == F32) return blocks * 2048;
    return format == BF16 ? blocks * 1024 : format == INT8 ? (blocks + 1) / 2 * 1088 : blocks * 320;
}

// quants: f32 [out, in] words; bf16 [out, in] halfwords; int8 [out, in] signed bytes; int4 [out, in/32, 16] bytes, low nibble = first half.
// scales, minima: float16 [out, in/32]. Panels first … end − 1 are written. Rows beyond `out` in the last panel are zeros.
inline void pack(Linear& w, const void* quants, const uint16_t* scales, const uint16_t* minima, int first, int end) {
    int blocks = w.in / BLOCK;
    for (int p = first; p < end; ++p) {
        uint8_t* panel = w.data + p * w.panel_bytes;
        std::memset(panel, 0, w.panel_bytes);
        for (int lane = 0; lane < LANES && p * LANES + lane < w.out; ++lane) {
            int64_t row = p * LANES + lane;
            if (w.format == F32) {
                const char* from = static_cast<const char*>(quants) + row * w.in * 4;
                for (int k = 0; k < w.in; ++k) std::memcpy(panel + k * 64 + lane * 4, from + k * 4, 4);
            } else if (w.format == BF16) {
                const char* from = static_cast<const char*>(quants) + row * w.in * 2;
                for (int k = 0; k < w.in / 2; ++k) std::memcpy(panel + k * 64 + lane * 4, from + k * 4, 4);
            } else if (w.format == INT8) {
                const int8_t* from = static_cast<const int8_t*>(quants) + row * w.in;
                for (int b = 0; b < blocks; ++b) {
                    uint8_t* to = panel + b / 2 * 1088 + b % 2 * 512;
                    for (int i = 0; i < BLOCK; ++i)
                        to[i / 4 * 64 + lane * 4 + i % 4] = static_cast<uint8_t>(from[b * BLOCK + i] + 128);
                    std::memcpy(panel + b / 2 * 1088 + 1024 + b % 2 * 32 + lane * 2, scales + row * blocks + b, 2);
                }
            } else {
                for (int b = 0; b < blocks; ++b) {
                    const uint8_t* from = static_cast<const uint8_t*>(quants) + (row * blocks + b) * 16;
                    uint8_t* to = panel + b * 320;
                    for (int i = 0; i < 16; ++i) to[i / 4 * 64 + lane * 4 + i % 4] = from[i];
                    std::memcpy(to + 256 + lane * 2, scales + row * blocks + b, 2);
                    std::memcpy(to + 288 + lane * 2, minima + row * blocks + b, 2);
                }
            }
        }
    }
}

// The int8 form of one block of 32 values, as two vectors. NaN and infinity reach the scale, so they are not lost.
INLINE void quantise_block(F a, F b, const Inputs& to, int64_t token, int block) {
    float top = any_nan(add(a, b)) ? NAN : largest(fmax(fabs(a), fabs(b)));
    float scale = top / 127.0f, inverse = top > 0 ? 127.0f / top : 0.0f;
    I x = to_int(mul(a, set1(inverse))), y = to_int(mul(b, set1(inverse)));
    int8_t* q = to.q + token * to.K + block * BLOCK;
    store_bytes(q, x), store_bytes(q + 16, y);
    int32_t total = isum(iadd(x, y));
    int64_t at = token * to.blocks() + block;
    to.scale[at] = scale, to.scaled_sum[at] = scale * static_cast<float>(total), to.offset[at] = -128 * total;
}

constexpr int AHEAD = 4096;  // bytes between what is read and what is prefetched

// `cold`: the weights come from memory, so they are asked for before they are needed.
template <int M, int P>
void int4_panels(const uint8_t* w, int64_t panel_bytes, const Inputs& x, int64_t token, bool cold, float* out, int64_t ld) {
    const int blocks = x.blocks();
    const int8_t* q = x.q + token * x.K;
    const float *scale = x.scale + token * blocks, *total = x.scaled_sum + token * blocks;
    F acc[M][P];
    for (int m = 0; m < M; ++m)
        for (int p = 0; p < P; ++p) acc[m][p] = zero();
    for (int b = 0; b < blocks; ++b, w += 320) {
        NibbleDot dot[M][P];
        F d[P], least[P];
        for (int p = 0; p < P; ++p) {
            const uint8_t* at = w + p * panel_bytes;
            if (cold)
                for (int i = 0; i < 5; ++i) prefetch(at + AHEAD + 64 * i);
            d[p] = load_half(at + 256), least[p] = load_half(at + 288);
        }
        auto use = [&](int i, int m, int p, I lo, I hi) {
            const int8_t* a = q + m * x.K + b * BLOCK + 4 * i;
            dot[m][p].add(lo, hi, bcast(a), bcast(a + 16));
        };
        if constexpr (WORDS_FIRST) {
            for (int i = 0; i < 4; ++i)
                for (int p = 0; p < P; ++p) {
                    I both = iload(w + p * panel_bytes + 64 * i), lo = low_nibbles(both), hi = high_nibbles(both);
                    for (int m = 0; m < M; ++m) use(i, m, p, lo, hi);
                }
        } else {
            I lo[P][4], hi[P][4];
            for (int p = 0; p < P; ++p)
                for (int i = 0; i < 4; ++i) {
                    I both = iload(w + p * panel_bytes + 64 * i);
                    lo[p][i] = low_nibbles(both), hi[p][i] = high_nibbles(both);
                }
            for (int m = 0; m < M; ++m)
                for (int i = 0; i < 4; ++i)
                    for (int p = 0; p < P; ++p) use(i, m, p, lo[p][i], hi[p][i]);
        }
        for (int m = 0; m < M; ++m) {
            F by = set1(scale[m * blocks + b]), sums = set1(total[m * blocks + b]);
            for (int p = 0; p < P; ++p) {
                acc[m][p] = fma(to_float(dot[m][p].total()), mul(d[p], by), acc[m][p]);
                acc[m][p] = fma(least[p], sums, acc[m][p]);
            }
        }
    }
    for (int m = 0; m < M; ++m)
        for (int p = 0; p < P; ++p) store(out + m * ld + p * LANES, acc[m][p]);
}

template <int M, int P>
void int8_panels(const uint8_t* w, int64_t panel_bytes, const Inputs& x, int64_t token, bool cold, float* out, int64_t ld) {
    const int blocks = x.blocks();
    const int8_t* q = x.q + token * x.K;
    const float* scale = x.scale + token * blocks;
    const int32_t* offset = x.offset + token * blocks;
    F acc[M][P];
    for (int m = 0; m < M; ++m)
        for (int p = 0; p < P; ++p) acc[m][p] = zero();
    for (int b = 0; b < blocks; w += b % 2 ? 576 : 512, ++b) {
        F d[P];
        for (int p = 0; p < P; ++p) {
            if (cold)
                for (int i = 0; i < 9; ++i) prefetch(w + p * panel_bytes + AHEAD + 64 * i);
            d[p] = load_half(w + p * panel_bytes + (b % 2 ? 544 : 1024));
        }
        auto bytes = [&](int p, int i) { return ready_bytes(iload(w + p * panel_bytes + 64 * i)); };
        auto add = [&](ByteDot& dot, int m, int i, I first, I second) {
            const int8_t* a = q + m * x.K + b * BLOCK + 4 * i;
            dot.add(first, second, bcast(a), bcast(a + 16));
        };
        auto finish = [&](ByteDot& dot, int m, int p) {
            acc[m][p] = fma(to_float(dot.total()), mul(d[p], set1(scale[m * blocks + b])), acc[m][p]);
        };
        for (int p = 0; p < P; ++p) {
            if constexpr (WORDS_FIRST) {
                ByteDot dot[M];
                for (int m = 0; m < M; ++m) dot[m].start(offset[m * blocks + b]);
                for (int i = 0; i < 4; ++i) {
                    I first = bytes(p, i), second = bytes(p, i + 4);
                    for (int m = 0; m < M; ++m) add(dot[m], m, i, first, second);
                }
                for (int m = 0; m < M; ++m) finish(dot[m], m, p);
            } else {
                I u[8];
                for (int i = 0; i < 8; ++i) u[i] = bytes(p, i);
                for (int m = 0; m < M; ++m) {
                    ByteDot dot;
                    dot.start(offset[m * blocks + b]);
                    for (int i = 0; i < 4; ++i) add(dot, m, i, u[i], u[i + 4]);
                    finish(dot, m, p);
                }
            }
        }
    }
    for (int m = 0; m < M; ++m)
        for (int p = 0; p < P; ++p) store(out + m * ld + p * LANES, acc[m][p]);
}

// Where a vector is a struct of several registers, GCC keeps sums in registers only in loops that are unrolled whole.
#define UNROLL _Pragma("GCC unroll 16")

// P panels at once, so that enough additions are under way to hide each one's latency.
template <int M, int P>
void float_panels(const uint8_t* w, int64_t panel_bytes, const Inputs& x, int64_t token, bool cold, float* out, int64_t ld) {
    const float* a = x.full + token * x.K;
    F acc[M][P];
    UNROLL
    for (int m = 0; m < M; ++m)
        UNROLL
        for (int p = 0; p < P; ++p) acc[m][p] = zero();
    for (int k = 0; k < x.K; ++k, w += 64) {
        F u[P];
        UNROLL
        for (int p = 0; p < P; ++p) {
            u[p] = load(reinterpret_cast<const float*>(w + p * panel_bytes));
            if (cold) prefetch(w + p * panel_bytes + AHEAD);
        }
        UNROLL
        for (int m = 0; m < M; ++m) {
            F y = set1(a[m * x.K + k]);
            UNROLL
            for (int p = 0; p < P; ++p) acc[m][p] = fma(u[p], y, acc[m][p]);
        }
    }
    UNROLL
    for (int m = 0; m < M; ++m)
        UNROLL
        for (int p = 0; p < P; ++p) store(out + m * ld + p * LANES, acc[m][p]);
}

#ifdef BEDPLATE_BF16
template <int M, int P>
void bf16_panels(const uint8_t* w, int64_t panel_bytes, const Inputs& x, int64_t token, bool cold, float* out, int64_t ld) {
    const uint16_t* h = x.half + token * x.K;
    F acc[M][P];
    for (int m = 0; m < M; ++m)
        for (int p = 0; p < P; ++p) acc[m][p] = zero();
    for (int k = 0; k < x.K / 2; ++k, w += 64) {
        I u[P];
        for (int p = 0; p < P; ++p) {
            u[p] = iload(w + p * panel_bytes);
            if (cold) prefetch(w + p * panel_bytes + AHEAD);
        }
        for (int m = 0; m < M; ++m) {
            I a = bcast(h + m * x.K + 2 * k);
            for (int p = 0; p < P; ++p) acc[m][p] = dot_bf16(acc[m][p], u[p], a);
        }
    }
    for (int m = 0; m < M; ++m)
        for (int p = 0; p < P; ++p) store(out + m * ld + p * LANES, acc[m][p]);
}
#else
// The weights are widened in registers.
template <int M, int P>
void bf16_panels(const uint8_t* w, int64_t panel_bytes, const Inputs& x, int64_t token, bool cold, float* out, int64_t ld) {
    const float* a = x.full + token * x.K;
    F acc[M][P];
    UNROLL
    for (int m = 0; m < M; ++m)
        UNROLL
        for (int p = 0; p < P; ++p) acc[m][p] = zero();
    for (int k = 0; k < x.K; k += 2, w += 64) {
        F even[P], odd[P];
        UNROLL
        for (int p = 0; p < P; ++p) {
            I both = iload(w + p * panel_bytes);
            even[p] = lower(both), odd[p] = upper(both);
            if (cold) prefetch(w + p * panel_bytes + AHEAD);
        }
        UNROLL
        for (int m = 0; m < M; ++m) {
            F y = set1(a[m * x.K + k]), z = set1(a[m * x.K + k + 1]);
            UNROLL
            for (int p = 0; p < P; ++p) acc[m][p] = fma(odd[p], z, fma(even[p], y, acc[m][p]));
        }
    }
    UNROLL
    for (int m = 0; m < M; ++m)
        UNROLL
        for (int p = 0; p < P; ++p) store(out + m * ld + p * LANES, acc[m][p]);
}
#endif

template <int M, int P>
INLINE void panels(const Linear& w, int panel, const Inputs& x, int64_t token, bool cold, float* out, int64_t ld) {
    const uint8_t* at = w.panel(panel);
    if (w.format == INT4) int4_panels<M, P>(at, w.panel_bytes, x, token, cold, out, ld);
    else if (w.format == INT8) int8_panels<M, P>(at, w.panel_bytes, x, token, cold, out, ld);
    else if (w.format == F32) float_panels<M, P>(at, w.panel_bytes, x, token, cold, out, ld);
    else bf16_panels<M, P>(at, w.panel_bytes, x, token, cold, out, ld);
}

// Floats take several panels at once, so that enough sums are under way to hide each addition's latency.
template <int M>
void product(const Linear& w, int panel, int count, const Inputs& x, int64_t token, bool cold, float* out, int64_t ld) {
    int p = 0;
    constexpr int P = panels_beside(M);
    if (reads(w.format) != BYTES)
        for (; p + P <= count; p += P) panels<M, P>(w, panel + p, x, token, cold, out + p * LANES, ld);
    for (; p < count; ++p) panels<M, 1>(w, panel + p, x, token, cold, out + p * LANES, ld);
}

// Features [16 panel, 16 (panel + count)) of tokens [token, token + M) (M ≤ TILE) into out [M, ld], bias added.
inline void tile_product(const Linear& w, int panel, int count, const Inputs& x, int64_t token, int M, bool cold,
                         float* out, int64_t ld) {
    const int most = reads(w.format) == BYTES ? BYTE_TILE : FLOAT_TILE;
    int done = 0;
    while (done < M) {
        int left = std::min(M - done, most), now = left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
        float* to = out + done * ld;
        if (now == 8) product<8>(w, panel, count, x, token + done, cold && !done, to, ld);
        else if (now == 4) product<4>(w, panel, count, x, token + done, cold && !done, to, ld);
        else if (now == 2) product<2>(w, panel, count, x, token + done, cold && !done, to, ld);
        else product<1>(w, panel, count, x, token + done, cold && !done, to, ld);
        done += now;
    }
    if (w.bias)
        for (int m = 0; m < M; ++m)
            for (int p = 0; p < count; ++p) {
                float* y = out + m * ld + p * LANES;
                store(y, add(load(y), load(w.bias + (panel + p) * LANES)));
            }
}
