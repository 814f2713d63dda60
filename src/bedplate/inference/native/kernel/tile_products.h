// Products by tiles of 16 tokens times a panel. Bytes: a tile gives the same integers as products of words do, and they are
// scaled and added in the same order, so that a token's result is the same bits by tiles or without them, and it is free
// which of them a number of tokens takes: what is faster here. Pairs of bfloat16: a tile adds in an order of its own, so all
// products of them are by tiles, those of one token too.
#pragma once
#include "blocks.h"
#include "tiles.h"

#ifdef BEDPLATE_TILES
#include <type_traits>

template <int P>
void pair_tiles(const uint8_t* w, int64_t panel_bytes, const Inputs& x, int64_t token, int M, int64_t ahead, float* out, int64_t ld) {
    const uint16_t* a = x.half + token * x.K;
    const int64_t row = int64_t(x.K) * 2, to = ld * 4;
    Tiles::use(PAIR_BYTES, M);
    tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
    for (int k = 0; k < x.K; k += BLOCK, w += 1024) {
        tile_load<6>(w, 64);
        if constexpr (P == 2) tile_load<7>(w + panel_bytes, 64);
        tile_load<4>(a + k, row);
        tile_dot_pairs<0, 4, 6>();
        if constexpr (P == 2) tile_dot_pairs<1, 4, 7>();
        if (M > TILE_ROWS) {
            tile_load<5>(a + TILE_ROWS * x.K + k, row);
            tile_dot_pairs<2, 5, 6>();
            if constexpr (P == 2) tile_dot_pairs<3, 5, 7>();
        }
        for (int p = 0; ahead && p < P; ++p) prefetch_bytes(w + p * panel_bytes + ahead, 1024);
    }
    tile_store<0>(out, to);
    if constexpr (P == 2) tile_store<1>(out + LANES, to);
    if (M <= TILE_ROWS) return;
    tile_store<2>(out + TILE_ROWS * ld, to);
    if constexpr (P == 2) tile_store<3>(out + TILE_ROWS * ld + LANES, to);
}

// Stored as they are multiplied.
struct Bytes : AboutByte {
    static constexpr int SIZE = 512, BEFORE = 0, IN_SPAN = 2, BEHIND = 64;
    static INLINE_MEMBER Scale scale(const uint8_t*, const uint8_t* before, int block) {
        return {load_half(before + IN_SPAN * SIZE + 32 * block)};
    }
};
template <class Form> constexpr bool AS_STORED = std::is_same_v<Form, Bytes>;
template <class Form> constexpr int64_t SPAN_BYTES = Form::BEFORE + Form::IN_SPAN * Form::SIZE;
template <> inline constexpr int64_t SPAN_BYTES<Bytes> = Bytes::IN_SPAN * Bytes::SIZE + Bytes::BEHIND;

// A block's sums of one token, as `Form` scales them: of all its inputs, or of the first 16 and of the last.
struct TileSums {
    I s = izero(), t = izero();
    INLINE_MEMBER void start(int32_t offset) { s = iset1(offset); }
    INLINE_MEMBER void start(const int32_t* halves) { s = iset1(halves[0]), t = iset1(halves[1]); }
    INLINE_MEMBER I first() const { return s; }
    INLINE_MEMBER I second() const { return t; }
    INLINE_MEMBER I total() const { return s; }
};
template <class Form> constexpr bool BY_HALVES = false;
template <class Values, int DOWN> inline constexpr bool BY_HALVES<SpannedHalves<Values, DOWN>> = true;
template <> inline constexpr bool BY_HALVES<SpannedTwoBits> = true;

constexpr int GROUP = 8;  // blocks whose weights are unpacked at once, for all tokens of the call

// One panel's.
template <class Form>
class ByteTiles {
public:
    ByteTiles(const uint8_t* panel, const Inputs& x, int64_t token, int M, int64_t ahead)
        : panel_(panel), x_(x), token_(token), M_(M), ahead_(ahead) {}

    void run(float* out, int64_t ld) {
        Tiles::use(BYTE_BYTES, M_);
        if (PARTS == 2) std::memset(bytes_, 0, sizeof(bytes_));  // each part's other half stays so
        for (int m = 0; m < M_; ++m) store(out + m * ld, zero());
        for (int b = 0; b < x_.blocks(); b += GROUP) {
            const int count = std::min(GROUP, x_.blocks() - b);
            for (int g = 0; g < count; ++g) unpack(b + g, g);
            rows<0>(b, count, out, ld);
            if (M_ > TILE_ROWS) rows<TILE_ROWS>(b, count, out + TILE_ROWS * ld, ld);
        }
    }

private:
    static constexpr int PARTS = BY_HALVES<Form> ? 2 : 1;
    struct AllKnown { const float *scale, *scaled_sum; const int32_t *offset, *halves; };  // of all tokens and blocks on

    void unpack(int block, int g) {
        const uint8_t* before = panel_ + block / Form::IN_SPAN * SPAN_BYTES<Form>;
        const uint8_t* at = before + Form::BEFORE + block % Form::IN_SPAN * Form::SIZE;
        by_[g] = Form::scale(at, before, block % Form::IN_SPAN);
        if (ahead_) prefetch_bytes(at + ahead_, Form::SIZE);
        weights_[g] = AS_STORED<Form> ? at : bytes_[g][0];
        if constexpr (!AS_STORED<Form>) {
            const auto high = Form::high(at);
            for (int i = 0; i < 4; ++i) {
                I lo, hi;
                Form::words(at, high, i, lo, hi);
                istore(bytes_[g][0] + 64 * i, lo), istore(bytes_[g][PARTS - 1] + 64 * (i + 4), hi);
            }
        }
    }

    // Sixteen tokens from FIRST on, or what is left of them.
    template <int FIRST>
    void rows(int block, int blocks, float* out, int64_t ld) {
        const int64_t in_row = x_.blocks(), at = (token_ + FIRST) * in_row + block;
        const AllKnown first{x_.scale + at, x_.scaled_sum + at, x_.offset + at, x_.halves + 2 * at};
        if (M_ - FIRST >= TILE_ROWS) {
            F sums[TILE_ROWS];  // in registers
            UNROLL
            for (int m = 0; m < TILE_ROWS; ++m) sums[m] = load(out + m * ld);
            for (int g = 0; g < blocks; ++g) {
                multiply<FIRST>(block + g, g);
                UNROLL
                for (int m = 0; m < TILE_ROWS; ++m) sums[m] = added(sums[m], first, m, g, in_row);
            }
            UNROLL
            for (int m = 0; m < TILE_ROWS; ++m) store(out + m * ld, sums[m]);
            return;
        }
        for (int g = 0; g < blocks; ++g) {
            multiply<FIRST>(block + g, g);
            for (int m = 0; m < M_ - FIRST; ++m) store(out + m * ld, added(load(out + m * ld), first, m, g, in_row));
        }
    }

    template <int FIRST>
    INLINE_MEMBER void multiply(int block, int g) {
        constexpr int C = FIRST ? 2 : 0, A = FIRST ? 5 : 4;
        tile_load<A>(x_.q + (token_ + FIRST) * x_.K + block * BLOCK, x_.K);
        tile_load<6>(weights_[g], 64);
        tile_zero<C>();
        tile_dot_bytes<C, A, 6>();
        tile_store<C>(products_[0], 64);
        if constexpr (PARTS == 2) {
            tile_load<7>(bytes_[g][1], 64);
            tile_zero<C + 1>();
            tile_dot_bytes<C + 1, A, 7>();
            tile_store<C + 1>(products_[1], 64);
        }
    }

    INLINE_MEMBER F added(F to, const AllKnown& of, int m, int g, int64_t in_row) const {
        const int64_t at = m * in_row + g;
        const Known known{of.scale[at], of.scaled_sum[at], of.offset[at], of.halves + 2 * at};
        TileSums dot;
        Form::start(dot, known);
        dot.s = iadd(dot.s, iload(products_[0][m]));
        if constexpr (PARTS == 2) dot.t = iadd(dot.t, iload(products_[1][m]));
        return Form::added(to, dot, by_[g], known);
    }

    const uint8_t* panel_;
    const Inputs& x_;
    const int64_t token_;
    const int M_;
    const int64_t ahead_;
    const uint8_t* weights_[GROUP];
    typename Form::Scale by_[GROUP];
    alignas(64) uint8_t bytes_[GROUP][PARTS][AS_STORED<Form> ? 1 : 512];
    alignas(64) int32_t products_[PARTS][TILE_ROWS][LANES];
};

// As `tile_product`, without the bias.
inline void byte_tiles(const Linear& w, int panel, int count, const Inputs& x, int64_t token, int M, int64_t ahead, float* out, int64_t ld) {
    const auto all = [&]<class Form>(Form*) {
        for (int p = 0; p < count; ++p)
            ByteTiles<Form>(w.panel(panel + p), x, token, M, ahead).run(out + p * LANES, ld);
    };
    switch (w.format) {
        case INT8: return all(static_cast<Bytes*>(nullptr));
        case INT4: return all(static_cast<Own<Nibbles>*>(nullptr));
        case INT5: return all(static_cast<Own<FiveBits>*>(nullptr));
        case C4: return all(static_cast<CentredNibbles*>(nullptr));
        case C5: return all(static_cast<CentredFive*>(nullptr));
        case NL4: return all(static_cast<LookedUp<NonLinear>*>(nullptr));
        case FP4: return all(static_cast<LookedUp<FourBitFloats>*>(nullptr));
        case K2: return all(static_cast<SpannedTwoBits*>(nullptr));
        case K3: return all(static_cast<SpannedHalves<ThreeBits, 3>*>(nullptr));
        case K4: return all(static_cast<Spanned<Nibbles>*>(nullptr));
        case K5: return all(static_cast<Spanned<FiveBits>*>(nullptr));
        default: return all(static_cast<SpannedHalves<SixBits, 0>*>(nullptr));
    }
}

inline void pair_tiles(const Linear& w, int panel, int count, const Inputs& x, int64_t token, int M, int64_t ahead, float* out, int64_t ld) {
    int p = 0;
    for (; p + 2 <= count; p += 2) pair_tiles<2>(w.panel(panel + p), w.panel_bytes, x, token, M, ahead, out + p * LANES, ld);
    if (p < count) pair_tiles<1>(w.panel(panel + p), w.panel_bytes, x, token, M, ahead, out + p * LANES, ld);
}
#endif
