// Matrix products of packed weights (formats.h). Activations are int8 with one scale per token and block for weights of
// integers; for bf16 they are bfloat16 where the level multiplies pairs of those, else float32, as for f32. The order of
// additions over `in` is fixed and the same for every number of tokens, so a token's result does not depend on what else is
// in the batch.
#pragma once
#include <algorithm>

#include "blocks.h"
#include "tile_products.h"

#ifdef BEDPLATE_TILES
constexpr int TILE = 2 * TILE_ROWS;  // tokens of one tile
#else
constexpr int TILE = 8;            // tokens of one tile
#endif
constexpr int AT_ONCE = 8;         // blocks of features between two products that one tile takes at once

// P panels at once, so that enough additions are under way to hide each one's latency.
template <int M, int P>
void float_panels(const uint8_t* w, int64_t panel_bytes, const Inputs& x, int64_t token, int64_t ahead, float* out, int64_t ld) {
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
            if (ahead) prefetch(w + p * panel_bytes + ahead);
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
void bf16_panels(const uint8_t* w, int64_t panel_bytes, const Inputs& x, int64_t token, int64_t ahead, float* out, int64_t ld) {
    const uint16_t* h = x.half + token * x.K;
    F acc[M][P];
    UNROLL
    for (int m = 0; m < M; ++m)
        UNROLL
        for (int p = 0; p < P; ++p) acc[m][p] = zero();
    for (int k = 0; k < x.K / 2; ++k, w += 64) {
        I u[P];
        UNROLL
        for (int p = 0; p < P; ++p) {
            u[p] = iload(w + p * panel_bytes);
            if (ahead) prefetch(w + p * panel_bytes + ahead);
        }
        UNROLL
        for (int m = 0; m < M; ++m) {
            I a = bcast(h + m * x.K + 2 * k);
            UNROLL
            for (int p = 0; p < P; ++p) acc[m][p] = dot_bf16(acc[m][p], u[p], a);
        }
    }
    UNROLL
    for (int m = 0; m < M; ++m)
        UNROLL
        for (int p = 0; p < P; ++p) store(out + m * ld + p * LANES, acc[m][p]);
}
#else
// The weights are widened in registers.
template <int M, int P>
void bf16_panels(const uint8_t* w, int64_t panel_bytes, const Inputs& x, int64_t token, int64_t ahead, float* out, int64_t ld) {
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
            if (ahead) prefetch(w + p * panel_bytes + ahead);
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

template <int M>
INLINE void byte_panel(const Linear& w, const uint8_t* at, const Inputs& x, int64_t token, int64_t ahead, float* out, int64_t ld) {
    const int64_t n = w.panel_bytes;
    switch (w.format) {
        case INT8: return int8_panels<M, 1>(at, n, x, token, ahead, out, ld);
        case INT4: return block_panels<Own<Nibbles>, M, 1>(at, n, x, token, ahead, out, ld);
        case INT5: return block_panels<Own<FiveBits>, M, 1>(at, n, x, token, ahead, out, ld);
        case C4: return block_panels<CentredNibbles, M, 1>(at, n, x, token, ahead, out, ld);
        case C5: return block_panels<CentredFive, M, 1>(at, n, x, token, ahead, out, ld);
        case NL4: return block_panels<LookedUp<NonLinear>, M, 1>(at, n, x, token, ahead, out, ld);
        case FP4: return block_panels<LookedUp<FourBitFloats>, M, 1>(at, n, x, token, ahead, out, ld);
        case K2: return block_panels<SpannedTwoBits, M, 1>(at, n, x, token, ahead, out, ld);
        case K3: return block_panels<SpannedHalves<ThreeBits, 3>, M, 1>(at, n, x, token, ahead, out, ld);
        case K4: return block_panels<Spanned<Nibbles>, M, 1>(at, n, x, token, ahead, out, ld);
        case K5: return block_panels<Spanned<FiveBits>, M, 1>(at, n, x, token, ahead, out, ld);
        default: return block_panels<SpannedHalves<SixBits, 0>, M, 1>(at, n, x, token, ahead, out, ld);
    }
}

// Several panels at once are of floats, or two of nibbles.
template <int M, int P>
INLINE void panels(const Linear& w, int panel, const Inputs& x, int64_t token, int64_t ahead, float* out, int64_t ld) {
    const uint8_t* at = w.panel(panel);
    switch (w.format) {
        case BF16: return bf16_panels<M, P>(at, w.panel_bytes, x, token, ahead, out, ld);
        case F32: return float_panels<M, P>(at, w.panel_bytes, x, token, ahead, out, ld);
        default:
            if constexpr (P == 1) return byte_panel<M>(w, at, x, token, ahead, out, ld);
            if constexpr (M == 4 && P == 2) {
                if (w.format == INT4) block_panels<Own<Nibbles>, M, P>(at, w.panel_bytes, x, token, ahead, out, ld);
                else block_panels<CentredNibbles, M, P>(at, w.panel_bytes, x, token, ahead, out, ld);
            }
    }
}

// Bytes between what is read and what is asked for, in products of so many tokens, as measured on one core of a Zen 4 with
// AVX-512 and AVX2. One token's run through the weights so fast that the processor's own look-ahead brings them best, and
// what is asked for far ahead holds it up (four bits: 30 GB/s without, 19 with 4,096 ahead). More tokens do not keep it
// busy (eight bits, eight tokens: 7 GB/s without, 18 with 4,096 ahead, 22 with 8,192).
constexpr int64_t NEAR = 1024, FAR = 8192;
template <int M>
int64_t ahead_of(int format) {
#ifdef BEDPLATE_NEON  // measured nowhere
    return FAR / 2;
#endif
    if (reads(format) != BYTES) return 4 * M > FLOAT_TILE ? FAR : NEAR;
    return M > 1 ? FAR : format == INT8 ? NEAR : 0;
}

// Of `tiles` tiles of tokens that meet the same panels one after the other, this one. A lone one asks for its own weights a
// little ahead; of several each asks for a part of the next panels, so that memory is never idle.
constexpr int MAX_TILES = 1 << 20;
struct Turn {
    int tile, tiles;
    template <int M>
    int64_t ahead(const Linear& w, int panel, int count) const {
        if (tiles == 1) return ahead_of<M>(w.format);
        return panel % tiles == tile ? count * w.panel_bytes : 0;
    }
};
constexpr Turn NO_TURN{MAX_TILES, MAX_TILES};  // asks for nothing

// Floats take several panels at once, so that enough sums are under way to hide each addition's latency; of eight tokens
// nibbles take half of them with two panels, so that each input is read once for both.
template <int M>
void product(const Linear& w, int panel, int count, const Inputs& x, int64_t token, const Turn& turn, float* out, int64_t ld) {
    int p = 0;
    constexpr int P = panels_beside(M);
    if (reads(w.format) != BYTES)
        for (; p + P <= count; p += P) panels<M, P>(w, panel + p, x, token, turn.ahead<M>(w, p, count), out + p * LANES, ld);
    if constexpr (M == 8 && NIBBLES_BY_TWO)
        for (; (w.format == INT4 || w.format == C4) && p + 2 <= count; p += 2) {
            panels<4, 2>(w, panel + p, x, token, turn.ahead<M>(w, p, count), out + p * LANES, ld);
            panels<4, 2>(w, panel + p, x, token + 4, 0, out + 4 * ld + p * LANES, ld);
        }
    for (; p < count; ++p) panels<M, 1>(w, panel + p, x, token, turn.ahead<M>(w, p, count), out + p * LANES, ld);
}

// Features [16 panel, 16 (panel + count)) of tokens [token, token + M) (M ≤ TILE) into out [M, ld], bias added.
inline void tile_product(const Linear& w, int panel, int count, const Inputs& x, int64_t token, int M, const Turn& turn,
                         float* out, int64_t ld) {
    const int most = reads(w.format) == BYTES ? BYTE_TILE : FLOAT_TILE;
    int done = 0;
#ifdef BEDPLATE_TILES
    if (reads(w.format) == HALVES || (reads(w.format) == BYTES && M >= w.tiles_from)) {
        const int64_t ahead = M > 1 ? turn.ahead<TILE>(w, 0, count) : turn.ahead<1>(w, 0, count);
        if (reads(w.format) == HALVES) pair_tiles(w, panel, count, x, token, M, ahead, out, ld);
        else byte_tiles(w, panel, count, x, token, M, ahead, out, ld);
        done = M;
    }
#endif
    while (done < M) {
        int left = std::min(M - done, most), now = left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
        float* to = out + done * ld;
        if (now == 8) product<8>(w, panel, count, x, token + done, done ? NO_TURN : turn, to, ld);
        else if (now == 4) product<4>(w, panel, count, x, token + done, done ? NO_TURN : turn, to, ld);
        else if (now == 2) product<2>(w, panel, count, x, token + done, done ? NO_TURN : turn, to, ld);
        else product<1>(w, panel, count, x, token + done, done ? NO_TURN : turn, to, ld);
        done += now;
    }
    if (w.bias)
        for (int m = 0; m < M; ++m)
            for (int p = 0; p < count; ++p) {
                float* y = out + m * ld + p * LANES;
                store(y, add(load(y), load(w.bias + (panel + p) * LANES)));
            }
}
