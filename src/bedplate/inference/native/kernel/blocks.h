// Products of weights in blocks with activations in bytes.
#pragma once
#include "formats.h"

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

// The int8 form of one block of 32 values, as two vectors. NaN and infinity reach the scale, so they are not lost; the
// bytes are then 0, as they are where the inverse of the scale would be infinite.
INLINE void quantise_block(F a, F b, const Inputs& to, int64_t token, int block) {
    float top = any_nan(add(a, b)) ? NAN : largest(fmax(fabs(a), fabs(b)));
    float scale = top / 127.0f;
    const bool fine = top > 1e-36f && top <= 3.4e38f;
    const F inverse = set1(fine ? 127.0f / top : 0.0f);
    I x = fine ? to_int(mul(a, inverse)) : izero(), y = fine ? to_int(mul(b, inverse)) : izero();
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
struct TwoBits {
    static constexpr int BYTES = 128;
    template <int M> using Dot = ByteSums;
    struct High { I first, second; };
    static INLINE_MEMBER High high(const uint8_t* at) { return {iload(at), iload(at + 64)}; }
    static INLINE_MEMBER void words(const uint8_t*, const High& h, int i, I& lo, I& hi) {
        lo = iand(shifted_right(h.first, 2 * i), 0x03030303), hi = iand(shifted_right(h.second, 2 * i), 0x03030303);
    }
};
struct ThreeBits {
    static constexpr int BYTES = 192;
    template <int M> using Dot = ByteSums;
    struct High { I first, second, third; };
    static INLINE_MEMBER High high(const uint8_t* at) { return {iload(at), iload(at + 64), iload(at + 128)}; }
    static INLINE_MEMBER void words(const uint8_t*, const High& h, int i, I& lo, I& hi) {
        I third = i < 2 ? shifted_left(h.third, 2 - i) : shifted_right(h.third, i - 2);
        lo = ior(iand(shifted_right(h.first, 2 * i), 0x03030303), iand(third, 0x04040404));
        hi = ior(iand(shifted_right(h.second, 2 * i), 0x03030303), iand(shifted_right(h.third, i + 2), 0x04040404));
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

// What is known of one token's activations in a block (see Inputs).
struct Known {
    float scale, scaled_sum;
    int32_t offset;
    const int32_t* halves;
};

// How sums become numbers. TURNS: whether a token's are best finished before the next one's begin.
// Products of values 0 … n, times a scale, and a minimum that is added.
struct WithLeast {
    static constexpr bool TURNS = false;
    struct Scale { F d, least; };
    template <class Dot> static INLINE_MEMBER void start(Dot&, const Known&) {}
    template <class Dot> static INLINE_MEMBER F added(F to, const Dot& dot, const Scale& by, const Known& x) {
        to = fma(to_float(dot.total()), mul(by.d, set1(x.scale)), to);
        return fma(by.least, set1(x.scaled_sum), to);
    }
};
// Of values about −128 Σ, times a scale.
struct AboutByte {
    static constexpr bool TURNS = true;
    struct Scale { F d; };
    template <class Dot> static INLINE_MEMBER void start(Dot& dot, const Known& x) { dot.start(x.offset); }
    template <class Dot> static INLINE_MEMBER F added(F to, const Dot& dot, const Scale& by, const Known& x) {
        return fma(to_float(dot.total()), mul(by.d, set1(x.scale)), to);
    }
};
// The same of values about 32 or (DOWN = 3) 4, with a scale for each 16 inputs.
template <int DOWN>
struct HalvesAbout {
    static constexpr bool TURNS = true;
    struct Scale { F first, second; };
    template <class Dot> static INLINE_MEMBER void start(Dot& dot, const Known& x) {
        const int32_t about[] = {x.halves[0] >> DOWN, x.halves[1] >> DOWN};
        dot.start(about);
    }
    template <class Dot> static INLINE_MEMBER F added(F to, const Dot& dot, const Scale& by, const Known& x) {
        to = fma(to_float(dot.first()), mul(by.first, set1(x.scale)), to);
        return fma(to_float(dot.second()), mul(by.second, set1(x.scale)), to);
    }
};
// Scales and minima for each 16 inputs; the minima are of −32 Σ.
struct HalvesWithLeast {
    static constexpr bool TURNS = true;
    struct Scale { F first, second, first_least, second_least; };
    template <class Dot> static INLINE_MEMBER void start(Dot&, const Known&) {}
    template <class Dot> static INLINE_MEMBER F added(F to, const Dot& dot, const Scale& by, const Known& x) {
        to = fma(to_float(dot.first()), mul(by.first, set1(x.scale)), to);
        to = fma(to_float(dot.second()), mul(by.second, set1(x.scale)), to);
        to = fma(by.first_least, set1(x.scale * static_cast<float>(x.halves[0])), to);
        return fma(by.second_least, set1(x.scale * static_cast<float>(x.halves[1])), to);
    }
};

// A form: values of blocks, how sums of their products are scaled, and where the scales are: SIZE bytes of a block, BEFORE
// bytes before each IN_SPAN of them.
template <class Values>
struct Own : Values, WithLeast {
    static constexpr int SIZE = Values::BYTES + 64, BEFORE = 0, IN_SPAN = 1;
    static INLINE_MEMBER Scale scale(const uint8_t* at, const uint8_t*, int) {
        return {load_half(at + Values::BYTES), load_half(at + Values::BYTES + 32)};
    }
};
// Values about a centre, which is taken away as a minimum.
template <class Values, int Centre>
struct Centred : Values, WithLeast {
    static constexpr int SIZE = Values::BYTES, BEFORE = BEFORE_FEW, IN_SPAN = 2;
    static INLINE_MEMBER Scale scale(const uint8_t*, const uint8_t* before, int block) {
        F d = load_half(before + 32 * block);
        return {d, mul(d, set1(-Centre))};
    }
};
#ifndef BEDPLATE_AVX512
using CentredNibbles = Centred<Nibbles, 8>;
using CentredFive = Centred<FiveBits, 16>;
#else
// Or moved up to the top of their bytes, where that centre is 128: products of bytes begin with what is to be taken away,
// which spares a multiplication for each token. A sixteenth or an eighth of the scale is exact.
struct HighNibbles : Nibbles {
    static constexpr float PART = 1.0f / 16;
    static INLINE_MEMBER void words(const uint8_t* at, const High&, int i, I& lo, I& hi) {
        I both = iload(at + 64 * i);
        lo = iand(shifted_left(both, 4), int32_t(0xf0f0f0f0)), hi = iand(both, int32_t(0xf0f0f0f0));
    }
};
struct HighFive : FiveBits {
    static constexpr float PART = 1.0f / 8;
    static INLINE_MEMBER void words(const uint8_t* at, const High& h, int i, I& lo, I& hi) {
        I both = iload(at + 64 * i);
        lo = ior(iand(shifted_left(both, 3), 0x78787878), iand(shifted_left(h.bits, 7 - i), int32_t(0x80808080)));
        hi = ior(iand(shifted_right(both, 1), 0x78787878), iand(shifted_left(h.bits, 3 - i), int32_t(0x80808080)));
    }
};
template <class Values>
struct CentredHigh : Values, AboutByte {
    static constexpr int SIZE = Values::BYTES, BEFORE = BEFORE_FEW, IN_SPAN = 2;
    template <int M> using Dot = SumsOf<M, ByteDot>;
    static INLINE_MEMBER Scale scale(const uint8_t*, const uint8_t* before, int block) {
        return {mul(load_half(before + 32 * block), set1(Values::PART))};
    }
};
using CentredNibbles = CentredHigh<HighNibbles>;
using CentredFive = CentredHigh<HighFive>;
#endif
// Nibbles are numbers of values.
template <class Table>
struct LookedUp : Nibbles, AboutByte {
    static constexpr int SIZE = Nibbles::BYTES, BEFORE = BEFORE_FEW, IN_SPAN = Table::IN_SPAN;
    template <int> using Dot = ByteDot;
    static INLINE_MEMBER void words(const uint8_t* at, const High& h, int i, I& lo, I& hi) {
        Nibbles::words(at, h, i, lo, hi);
        lo = ready_bytes(looked_up(Table::VALUES, lo)), hi = ready_bytes(looked_up(Table::VALUES, hi));
    }
    static INLINE_MEMBER Scale scale(const uint8_t*, const uint8_t* before, int block) { return {Table::scale(before, block)}; }
};
// Values as bytes + 128: those of IQ4_NL, and twice those of MXFP4.
struct NonLinear {
    static constexpr int IN_SPAN = 2;
    static constexpr uint8_t VALUES[16] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};
    static INLINE_MEMBER F scale(const uint8_t* before, int block) { return load_half(before + 32 * block); }
};
struct FourBitFloats {
    static constexpr int IN_SPAN = 4;
    static constexpr uint8_t VALUES[16] = {128, 129, 130, 131, 132, 134, 136, 140, 128, 127, 126, 125, 124, 122, 120, 116};
    static INLINE_MEMBER F scale(const uint8_t* before, int block) {
        return floats(shifted_left(load_bytes(before + 16 * block), 23));
    }
};
// Of K types: scales of a span, times factors of its blocks.
template <class Values>
struct Spanned : Values, WithLeast {
    static constexpr int SIZE = Values::BYTES, BEFORE = BEFORE_SPAN, IN_SPAN = SPAN;
    template <int M> using Dot = SumsOf<M, typename Values::template Dot<M>>;
    static INLINE_MEMBER Scale scale(const uint8_t*, const uint8_t* before, int block) {
        const uint8_t* factors = before + 64 + block * 32;
        return {mul(load_half(before), load_unsigned(factors)), mul(load_half(before + 32), load_unsigned(factors + 16))};
    }
};
template <class Values, int DOWN>
struct SpannedHalves : Values, HalvesAbout<DOWN> {
    static constexpr int SIZE = Values::BYTES, BEFORE = BEFORE_SPAN, IN_SPAN = SPAN;
    using Scale = typename HalvesAbout<DOWN>::Scale;
    static INLINE_MEMBER Scale scale(const uint8_t*, const uint8_t* before, int block) {
        const uint8_t* factors = before + 64 + block * 32;
        F d = load_half(before);
        return {mul(d, load_signed(factors)), mul(d, load_signed(factors + 16))};
    }
};
struct SpannedTwoBits : TwoBits, HalvesWithLeast {
    static constexpr int SIZE = TwoBits::BYTES, BEFORE = BEFORE_SPAN, IN_SPAN = SPAN;
    static INLINE_MEMBER Scale scale(const uint8_t*, const uint8_t* before, int block) {
        I first = load_bytes(before + 64 + block * 32), second = load_bytes(before + 80 + block * 32);
        F d = load_half(before), least = mul(load_half(before + 32), set1(1.0f / 32));
        return {mul(d, to_float(iand(first, 15))), mul(d, to_float(iand(second, 15))),
                mul(least, to_float(shifted_right(first, 4))), mul(least, to_float(shifted_right(second, 4)))};
    }
};

// ahead: the weights come from memory, so they are asked for so many bytes before they are needed; 0: not now.
template <class Form, int M, int P>
void block_panels(const uint8_t* w, int64_t panel_bytes, const Inputs& x, int64_t token, int64_t ahead, float* out, int64_t ld) {
    const int blocks = x.blocks();
    const int8_t* q = x.q + token * x.K;
    auto known = [&](int m, int b) -> Known {
        const int64_t at = (token + m) * blocks + b;
        return {x.scale[at], x.scaled_sum[at], x.offset[at], x.halves + 2 * at};
    };
    const uint8_t* before = w;
    F acc[M][P];
    for (int m = 0; m < M; ++m)
        for (int p = 0; p < P; ++p) acc[m][p] = zero();
    for (int b = 0; b < blocks; ++b, w += Form::SIZE) {
        if constexpr (Form::BEFORE > 0)
            if (b % Form::IN_SPAN == 0) {
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
            by[p] = Form::scale(at, before + p * panel_bytes, b % Form::IN_SPAN), high[p] = Form::high(at);
        }
        auto input = [&](int m, int at) { return bcast(q + m * x.K + b * BLOCK + at); };
        auto start = [&](int m) { for (int p = 0; p < P; ++p) Form::start(dot[m][p], known(m, b)); };
        auto finish = [&](int m) {
            for (int p = 0; p < P; ++p) acc[m][p] = Form::added(acc[m][p], dot[m][p], by[p], known(m, b));
        };
        constexpr bool words_first = WORDS_FIRST || P > 1;
        if constexpr (words_first) {  // of several panels each input is read once
            for (int m = 0; m < M; ++m) start(m);
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
            for (int m = 0; m < M; ++m) {
                start(m);
                for (int i = 0; i < 4; ++i) dot[m][0].add(lo[i], hi[i], input(m, 4 * i), input(m, 4 * i + 16));
                if constexpr (Form::TURNS) finish(m);
            }
        }
        if constexpr (words_first || !Form::TURNS)
            for (int m = 0; m < M; ++m) finish(m);
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
