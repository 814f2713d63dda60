// Matrices from what they are stored as to panels (formats.h): floats, and the block types of GGUF files by the numbers that
// those have there (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, gguf's own quants.py). Nothing is rounded.
#pragma once
#include "formats.h"

enum Source {
    FROM_F32 = 0, FROM_Q4_0 = 2, FROM_Q4_1 = 3, FROM_Q5_0 = 6, FROM_Q5_1 = 7, FROM_Q8_0 = 8, FROM_Q4_K = 12, FROM_Q5_K = 13,
    FROM_Q6_K = 14, FROM_BF16 = 30
};

// The format that holds a source's values as they are; −1: none does.
inline int format_of(int source) {
    switch (source) {
        case FROM_F32: return F32;
        case FROM_BF16: return BF16;
        case FROM_Q8_0: return INT8;
        case FROM_Q4_0: case FROM_Q4_1: return INT4;
        case FROM_Q5_0: case FROM_Q5_1: return INT5;
        case FROM_Q4_K: return K4;
        case FROM_Q5_K: return K5;
        case FROM_Q6_K: return K6;
        default: return -1;
    }
}

// Bytes of a row of `in` values.
inline int64_t row_size(int source, int in) {
    const int64_t blocks = in / BLOCK, spans = blocks / SPAN;
    switch (source) {
        case FROM_F32: return int64_t(in) * 4;
        case FROM_BF16: return int64_t(in) * 2;
        case FROM_Q8_0: return blocks * 34;
        case FROM_Q4_0: return blocks * 18;
        case FROM_Q4_1: return blocks * 20;
        case FROM_Q5_0: return blocks * 22;
        case FROM_Q5_1: return blocks * 24;
        case FROM_Q4_K: return spans * 144;
        case FROM_Q5_K: return spans * 176;
        default: return spans * 210;
    }
}

// A float16 times −2^power: exact, but where the smallest numbers lose bits or the largest become infinite.
inline uint16_t negative_times(const uint8_t* half, int power) {
    uint16_t h;
    std::memcpy(&h, half, 2);
    float x = -half_value(h) * static_cast<float>(1 << power);
    if (std::fabs(x) >= 65520.0f) return x < 0 ? 0xfc00 : 0x7c00;
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    const uint32_t sign = bits >> 16 & 0x8000u, exponent = bits >> 23 & 255u;
    if (x != x) return uint16_t(sign | 0x7e00u);
    if (exponent >= 113) return uint16_t(sign | ((bits & 0x7fffffffu) - (112u << 23)) >> 13);
    return uint16_t(sign | uint32_t(std::fabs(x) * 16777216.0f));  // in steps of 2^-24
}

// What a span of a K type says of its block b: six bits of scale and six of minimum, spread over twelve bytes.
inline void k_factors(const uint8_t* packed, int b, uint8_t& scale, uint8_t& minimum) {
    if (b < 4) {
        scale = packed[b] & 63, minimum = packed[b + 4] & 63;
    } else {
        scale = uint8_t((packed[b + 4] & 15) | (packed[b - 4] >> 6) << 4);
        minimum = uint8_t(packed[b + 4] >> 4 | (packed[b] >> 6) << 4);
    }
}

// One lane of a block of 32 values q (0 … 63): its nibbles, and (bits > 0) what is above them.
inline void put_values(const uint8_t* q, int bits, uint8_t* to, int lane) {
    for (int i = 0; i < 16; ++i) to[i / 4 * 64 + lane * 4 + i % 4] = uint8_t((q[i] & 15) | (q[i + 16] & 15) << 4);
    for (int i = 0; bits && i < 16; ++i) {
        uint8_t* high = to + 256 + lane * 4 + i % 4;
        if (bits == 1) *high |= uint8_t(q[i] >> 4 << (i / 4) | q[i + 16] >> 4 << (i / 4 + 4));
        else *high |= uint8_t(q[i] >> 4 << (i / 4 * 2)), high[64] |= uint8_t(q[i + 16] >> 4 << (i / 4 * 2));
    }
}

// Blocks of 32 with a scale, and a minimum or a centre.
inline void pack_block(int source, const uint8_t* from, int block, uint8_t* panel, int lane) {
    uint8_t q[BLOCK], minimum[2];
    if (source == FROM_Q8_0) {
        uint8_t* to = panel + block / 2 * 1088 + block % 2 * 512;
        for (int i = 0; i < BLOCK; ++i) to[i / 4 * 64 + lane * 4 + i % 4] = uint8_t(from[2 + i] + 128);
        std::memcpy(panel + block / 2 * 1088 + 1024 + block % 2 * 32 + lane * 2, from, 2);
        return;
    }
    const bool five = format_of(source) == INT5, centred = source == FROM_Q4_0 || source == FROM_Q5_0;
    const uint8_t* at = from + (centred ? 2 : 4);
    uint32_t high = 0;
    if (five) std::memcpy(&high, at, 4), at += 4;
    for (int i = 0; i < 16; ++i) {
        q[i] = uint8_t((at[i] & 15) | (high >> i & 1) << 4);
        q[i + 16] = uint8_t(at[i] >> 4 | (high >> (i + 16) & 1) << 4);
    }
    const uint16_t below = centred ? negative_times(from, five ? 4 : 3) : 0;
    std::memcpy(minimum, centred ? reinterpret_cast<const uint8_t*>(&below) : from + 2, 2);
    uint8_t* to = panel + block * (five ? 384 : 320);
    uint8_t* scales = to + (five ? 320 : 256);
    put_values(q, five, to, lane);
    std::memcpy(scales + lane * 2, from, 2);
    std::memcpy(scales + 32 + lane * 2, minimum, 2);
}

// A span of Q4_K or Q5_K: d, dmin, the factors, (the fifth bits,) and nibbles, two blocks of them in 32 bytes.
inline void pack_k(bool five, const uint8_t* from, uint8_t* to, int lane) {
    std::memcpy(to + lane * 2, from, 2);
    std::memcpy(to + 32 + lane * 2, from + 2, 2);
    to[32 + lane * 2 + 1] ^= 0x80;  // the minimum is taken away there and added here
    const uint8_t *fifth = from + 16, *nibbles = from + (five ? 48 : 16);
    for (int b = 0; b < SPAN; ++b) {
        uint8_t* factors = to + 64 + b * 32;
        k_factors(from + 4, b, factors[lane], factors[16 + lane]);
        uint8_t q[BLOCK];
        for (int i = 0; i < BLOCK; ++i) {
            q[i] = nibbles[b / 2 * 32 + i] >> (b % 2 * 4) & 15;
            if (five) q[i] |= uint8_t((fifth[i] >> b & 1) << 4);
        }
        put_values(q, five, to + BEFORE_SPAN + b * (five ? 320 : 256), lane);
    }
}

// A span of Q6_K: nibbles, two bits each, factors of 16 values, d.
inline void pack_k6(const uint8_t* from, uint8_t* to, int lane) {
    std::memcpy(to + lane * 2, from + 208, 2);
    for (int b = 0; b < SPAN; ++b) {
        uint8_t* factors = to + 64 + b * 32;
        factors[lane] = from[192 + 2 * b], factors[16 + lane] = from[192 + 2 * b + 1];
        const int half = b / 4, part = b % 4;  // of 128 values; of 32 values in it
        uint8_t q[BLOCK];
        for (int i = 0; i < BLOCK; ++i) {
            const uint8_t nibble = from[half * 64 + part % 2 * 32 + i] >> (part / 2 * 4) & 15;
            q[i] = uint8_t(nibble | (from[128 + half * 32 + i] >> (part * 2) & 3) << 4);
        }
        put_values(q, 2, to + BEFORE_SPAN + b * 384, lane);
    }
}

// from: [out, row_size] bytes. Panels first … end − 1 are written. Rows beyond `out` in the last panel are zeros.
inline void pack(Linear& w, int source, const void* from, int first, int end) {
    const int64_t row_bytes = row_size(source, w.in);
    const int blocks = w.in / BLOCK, spans = blocks / SPAN;
    for (int p = first; p < end; ++p) {
        uint8_t* panel = w.data + p * w.panel_bytes;
        std::memset(panel, 0, size_t(w.panel_bytes));
        for (int lane = 0; lane < LANES && p * LANES + lane < w.out; ++lane) {
            const uint8_t* row = static_cast<const uint8_t*>(from) + int64_t(p * LANES + lane) * row_bytes;
            if (w.format == F32 || w.format == BF16) {
                for (int64_t k = 0; k < row_bytes / 4; ++k) std::memcpy(panel + k * 64 + lane * 4, row + k * 4, 4);
            } else if (w.format == K6) {
                for (int s = 0; s < spans; ++s) pack_k6(row + s * 210, panel + s * (BEFORE_SPAN + SPAN * 384), lane);
            } else if (w.format == K4 || w.format == K5) {
                const int64_t size = w.format == K5 ? 320 : 256, bytes = w.format == K5 ? 176 : 144;
                for (int s = 0; s < spans; ++s) pack_k(w.format == K5, row + s * bytes, panel + s * (BEFORE_SPAN + SPAN * size), lane);
            } else {
                for (int b = 0; b < blocks; ++b) pack_block(source, row + b * (row_bytes / blocks), b, panel, lane);
            }
        }
    }
}
