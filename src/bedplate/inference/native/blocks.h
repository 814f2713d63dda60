// Products of weights in blocks with activations in bytes.
#pragma once
#include <type_traits>

#include "formats.h"

constexpr int64_t AHEAD = 4096;  // bytes between what is read and what is asked for

// Activations of several tokens: int8 `q` [T, K], per block of 32 `scale` and `scaled_sum` (scale · Σq), `offset` (−128 Σq)
// and `halves` (−32 Σq of its first 16, and of its last); `half` [T, K] in bfloat16; `full` [T, K] in float32. Which of them
// are filled, the weights' format says.
struct Inputs {
    int K = 0;
    int8_t* q = nullptr;
    float *scale = nullptr, *scaled_sum = nullptr;
    int32_t *offset = nullptr, *halves = nullptr;
    uint16_t* half = nullptr;
    float* full = nullptr;
    int blocks() const { return K / BLOCK; }
};

// The int8 form of one block of 32 values, as two vectors. NaN and infinity reach the scale, so they are not lost.
INLINE void quantise_block(F a, F b, const Inputs& to, int64_t token, int block) {
    float top = any_nan(add(a, b)) ? NAN : largest(fmax(fabs(a), fabs(b)));
    float scale = top / 127.0f, inverse = top > 0 ? 127.0f / top : 0.0f;
    I x = to_int(mul(a, set1(inverse))), y = to_int(mul(b, set1(inverse)));
    int8_t* q = to.q + token * to.K + block * BLOCK;
    store_bytes(q, x), store_bytes(q + 16, y);
    int32_t first = isum(x), second = isum(y), total = first + second;
    int64_t at = token * to.blocks() + block;
    to.scale[at] = scale, to.scaled_sum[at] = scale * static_cast<float>(total), to.offset[at] = -128 * total;
    to.halves[2 * at] = -32 * first, to.halves[2 * at + 1] = -32 * second;
}

// --- what differs between the formats whose values are nibbles with something above them: bytes of a block, and of what
// stands before a span of blocks; the words of four inputs each, the first 16 and the last 16; how products are scaled.

struct Nibbles {
    static constexpr int BYTES = 256;
    template <int M> using Dot = SumsOf<M, NibbleDot>;
    struct High {};
    static INLINE_MEMBER High high(const uint8_t*) { return {}; }
    static INLINE_MEMBER void words(const uint8_t* at, const High&, int i, I& lo, I& hi) {
        I both = iload(at + 64 * i);
        lo = low_nibbles(both), hi = high_nibbles(both);
    }
};
struct FiveBits {
    static constexpr int BYTES = 320;
    template <int M> using Dot = SumsOf<M, ByteSums>;
    struct High { I bits; };
    static INLINE_MEMBER High high(const uint8_t* at) { return {iload(at + 256)}; }
    static INLINE_MEMBER void words(const uint8_t* at, const High& h, int i, I& lo, I& hi) {
        I both = iload(at + 64 * i);
        lo = ior(low_nibbles(both), iand(shifted_left(h.bits, 4 - i), 0x10101010));
        hi = ior(high_nibbles(both), iand(shifted_right(h.bits, i), 0x10101010));
    }
};
struct SixBits {
    static constexpr int BYTES = 384;
    template <int M> using Dot = ByteSums;
    struct High { I first, second; };
    static INLINE_MEMBER High high(const uint8_t* at) { return {iload(at + 256), iload(at + 320)}; }
    static INLINE_MEMBER I above(I bits, int i) {
        return iand(i < 2 ? shifted_left(bits, 4 - 2 * i) : shifted_right(bits, 2 * i - 4), 0x30303030);
    }
    static INLINE_MEMBER void words(const uint8_t* at, const High& h, int i, I& lo, I& hi) {
        I both = iload(at + 64 * i);
        lo = ior(low_nibbles(both), above(h.first, i)), hi = ior(high_nibbles(both), above(h.second, i));
    }
};

// Scales in the block itself.
template <class Values>
struct Own : Values {
    static constexpr int SIZE = Values::BYTES + 64, BEFORE = 0;
    static constexpr bool HALVED = false;
    struct Scale { F d, least; };
    static INLINE_MEMBER Scale scale(const uint8_t* at, const uint8_t*, int) {
        return {load_half(at + Values::BYTES), load_half(at + Values::BYTES + 32)};
    }
};
// Scales of a span, times those of its blocks; HALVED: one of each 16 inputs, and no minimum.
template <class Values, bool Two>
struct Spanned : Values {
    static constexpr int SIZE = Values::BYTES, BEFORE = BEFORE_SPAN;
    template <int M> using Dot = std::conditional_t<Two, ByteSums, SumsOf<M, typename Values::template Dot<M>>>;
    static constexpr bool HALVED = Two;
    struct Scale { F d, least; };
    static INLINE_MEMBER Scale scale(const uint8_t*, const uint8_t* before, int block) {
        const uint8_t* factors = before + 64 + block * 32;
        F d = load_half(before);
        if constexpr (Two) return {mul(d, load_signed(factors)), mul(d, load_signed(factors + 16))};
        else return {mul(d, load_unsigned(factors)), mul(load_half(before + 32), load_unsigned(factors + 16))};
    }
};

// ahead: the weights come from memory, so they are asked for so many bytes before they are needed; 0: not now.
template <class Form, int M, int P>
void block_panels(const uint8_t* w, int64_t panel_bytes, const Inputs& x, int64_t token, int64_t ahead, float* out, int64_t ld) {
    const int blocks = x.blocks();
    const int8_t* q = x.q + token * x.K;
    const float *scale = x.scale + token * blocks, *total = x.scaled_sum + token * blocks;
    const int32_t* halves = x.halves + token * blocks * 2;
    const uint8_t* before = w;
    F acc[M][P];
    for (int m = 0; m < M; ++m)
        for (int p = 0; p < P; ++p) acc[m][p] = zero();
    for (int b = 0; b < blocks; ++b, w += Form::SIZE) {
        if constexpr (Form::BEFORE > 0)
            if (b % SPAN == 0) {
                before = w, w += Form::BEFORE;
                if (ahead)
                    for (int p = 0; p < P; ++p) prefetch_bytes(before + p * panel_bytes + ahead, Form::BEFORE);
            }
        typename Form::template Dot<M> dot[M][P];
        typename Form::Scale by[P];
        typename Form::High high[P];
        for (int p = 0; p < P; ++p) {
            const uint8_t* at = w + p * panel_bytes;
            if (ahead)
                for (int i = 0; i < Form::SIZE / 64; ++i) prefetch(at + ahead + 64 * i);
            by[p] = Form::scale(at, before + p * panel_bytes, b % SPAN), high[p] = Form::high(at);
            if constexpr (Form::HALVED)
                for (int m = 0; m < M; ++m) dot[m][p].start(halves + (m * blocks + b) * 2);
        }
        auto input = [&](int m, int at) { return bcast(q + m * x.K + b * BLOCK + at); };
        if constexpr (WORDS_FIRST || P > 1) {  // of several panels each input is read once
            for (int i = 0; i < 4; ++i) {
                I lo[P], hi[P];
                for (int p = 0; p < P; ++p) Form::words(w + p * panel_bytes, high[p], i, lo[p], hi[p]);
                for (int m = 0; m < M; ++m) {
                    const I first = input(m, 4 * i), second = input(m, 4 * i + 16);
                    for (int p = 0; p < P; ++p) dot[m][p].add(lo[p], hi[p], first, second);
                }
            }
        } else {
            I lo[4], hi[4];
            for (int i = 0; i < 4; ++i) Form::words(w, high[0], i, lo[i], hi[i]);
            for (int m = 0; m < M; ++m)
                for (int i = 0; i < 4; ++i) dot[m][0].add(lo[i], hi[i], input(m, 4 * i), input(m, 4 * i + 16));
        }
        for (int m = 0; m < M; ++m) {
            F times = set1(scale[m * blocks + b]), sums = set1(total[m * blocks + b]);
            for (int p = 0; p < P; ++p) {
                if constexpr (Form::HALVED) {
                    acc[m][p] = fma(to_float(dot[m][p].first()), mul(by[p].d, times), acc[m][p]);
                    acc[m][p] = fma(to_float(dot[m][p].second()), mul(by[p].least, times), acc[m][p]);
                } else {
                    acc[m][p] = fma(to_float(dot[m][p].total()), mul(by[p].d, times), acc[m][p]);
                    acc[m][p] = fma(by[p].least, sums, acc[m][p]);
                }
            }
        }
    }
    for (int m = 0; m < M; ++m)
        for (int p = 0; p < P; ++p) store(out + m * ld + p * LANES, acc[m][p]);
}

template <int M, int P>
void int8_panels(const uint8_t* w, int64_t panel_bytes, const Inputs& x, int64_t token, int64_t ahead, float* out, int64_t ld) {
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
            if (ahead)
                for (int i = 0; i < 9; ++i) prefetch(w + p * panel_bytes + ahead + 64 * i);
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
