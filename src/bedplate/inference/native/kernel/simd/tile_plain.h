// Tiles in plain C++, to the letter of what Intel's manual (volume 2) says of AMX's instructions, for tests on machines that
// have none. What would be a fault there ends the process here.
#pragma once
#include <cstdlib>

struct PlainTiles {
    TileShapes shapes{};
    uint8_t rows[8][16][64];
    int row_count(int t) const { return shapes.palette == 1 && shapes.rows[t] ? shapes.rows[t] : (std::abort(), 0); }
    // The shapes of C, A and B must go together.
    void check(int c, int a, int b) const {
        const bool fit = row_count(c) == row_count(a) && shapes.bytes[c] == shapes.bytes[b] && row_count(b) == shapes.bytes[a] / 4;
        if (!fit || c == a || c == b || a == b) std::abort();
    }
};
inline thread_local PlainTiles plain_tiles;

INLINE void tile_configure(const TileShapes& shapes) {
    if (shapes.palette != 1) std::abort();
    for (int t = 0; t < 8; ++t)
        if (shapes.rows[t] > 16 || shapes.bytes[t] > 64 || (shapes.rows[t] == 0) != (shapes.bytes[t] == 0)) std::abort();
    plain_tiles.shapes = shapes;
    std::memset(plain_tiles.rows, 0, sizeof(plain_tiles.rows));
}
INLINE void tile_release() { plain_tiles.shapes = {}; }
template <int T> INLINE void tile_zero() {
    plain_tiles.row_count(T);
    std::memset(plain_tiles.rows[T], 0, sizeof(plain_tiles.rows[T]));
}
template <int T> INLINE void tile_load(const void* from, int64_t stride) {
    tile_zero<T>();
    for (int r = 0; r < plain_tiles.row_count(T); ++r)
        std::memcpy(plain_tiles.rows[T][r], static_cast<const uint8_t*>(from) + r * stride, plain_tiles.shapes.bytes[T]);
}
template <int T> INLINE void tile_store(void* to, int64_t stride) {
    for (int r = 0; r < plain_tiles.row_count(T); ++r)
        std::memcpy(static_cast<uint8_t*>(to) + r * stride, plain_tiles.rows[T][r], plain_tiles.shapes.bytes[T]);
}

// TDPBSUD: signed bytes of A, unsigned bytes of B, sums modulo 2^32.
inline void plain_dot_bytes(int c, int a, int b) {
    PlainTiles& t = plain_tiles;
    t.check(c, a, b);
    for (int m = 0; m < t.row_count(c); ++m)
        for (int k = 0; k < t.row_count(b); ++k)
            for (int n = 0; n < t.shapes.bytes[c] / 4; ++n) {
                uint32_t sum;
                std::memcpy(&sum, &t.rows[c][m][4 * n], 4);
                for (int i = 0; i < 4; ++i)
                    sum += uint32_t(int32_t(int8_t(t.rows[a][m][4 * k + i])) * int32_t(t.rows[b][k][4 * n + i]));
                std::memcpy(&t.rows[c][m][4 * n], &sum, 4);
            }
}
template <int C, int A, int B> INLINE void tile_dot_bytes() { plain_dot_bytes(C, A, B); }

// A number that is too small to be normal counts as 0, read or written.
INLINE float flushed(float x) { return x > -1.17549435e-38f && x < 1.17549435e-38f ? std::copysign(0.0f, x) : x; }
INLINE float bf16_value(const uint8_t* at) {
    uint16_t half;
    std::memcpy(&half, at, 2);
    const uint32_t bits = uint32_t(half) << 16;
    float x;
    std::memcpy(&x, &bits, 4);
    return flushed(x);
}
// a · b + c, rounded once: a product of two bfloat16 is exact in a double, and their sum lies on no tie that it did not before.
INLINE float fused(float a, float b, float c) { return flushed(float(double(a) * double(b) + double(c))); }

// TDPBF16PS: the even and the odd products of a row of A each from 0 in the order of k, their sum, that to C.
inline void plain_dot_pairs(int c, int a, int b) {
    PlainTiles& t = plain_tiles;
    t.check(c, a, b);
    const int columns = t.shapes.bytes[c] / 4;
    for (int m = 0; m < t.row_count(c); ++m) {
        float even[16] = {}, odd[16] = {};
        for (int k = 0; k < t.row_count(b); ++k) {
            const uint8_t* pair = &t.rows[a][m][4 * k];
            const float x = bf16_value(pair), y = bf16_value(pair + 2);
            for (int n = 0; n < columns; ++n) {
                even[n] = fused(x, bf16_value(&t.rows[b][k][4 * n]), even[n]);
                odd[n] = fused(y, bf16_value(&t.rows[b][k][4 * n + 2]), odd[n]);
            }
        }
        for (int n = 0; n < columns; ++n) {
            float sum;
            std::memcpy(&sum, &t.rows[c][m][4 * n], 4);
            sum = flushed(flushed(sum) + flushed(even[n] + odd[n]));
            std::memcpy(&t.rows[c][m][4 * n], &sum, 4);
        }
    }
}
template <int C, int A, int B> INLINE void tile_dot_pairs() { plain_dot_pairs(C, A, B); }
