// Matrices from what they are stored as to panels (formats.h): floats, and the block types of GGUF files by the numbers that
// those have there (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, gguf's own quants.py). Nothing is rounded.
#pragma once
#include "formats.h"

enum Source {
    FROM_F32 = 0, FROM_Q4_0 = 2, FROM_Q4_1 = 3, FROM_Q5_0 = 6, FROM_Q5_1 = 7, FROM_Q8_0 = 8, FROM_Q2_K = 10, FROM_Q3_K = 11,
    FROM_Q4_K = 12, FROM_Q5_K = 13, FROM_Q6_K = 14, FROM_IQ4_NL = 20, FROM_BF16 = 30, FROM_MXFP4 = 39
};

// The format that holds a source's values as they are, and how many bytes hold how many values there; −1: none does.
struct Stored {
    int format;
    int64_t bytes, values;
};
inline Stored stored_as(int source) {
    switch (source) {
        case FROM_F32: return {F32, 4, 1};
        case FROM_BF16: return {BF16, 2, 1};
        case FROM_Q8_0: return {INT8, 34, BLOCK};
        case FROM_Q4_0: return {C4, 18, BLOCK};
        case FROM_Q4_1: return {INT4, 20, BLOCK};
        case FROM_Q5_0: return {C5, 22, BLOCK};
        case FROM_Q5_1: return {INT5, 24, BLOCK};
        case FROM_IQ4_NL: return {NL4, 18, BLOCK};
        case FROM_MXFP4: return {FP4, 17, BLOCK};
        case FROM_Q2_K: return {K2, 84, SPAN * BLOCK};
        case FROM_Q3_K: return {K3, 110, SPAN * BLOCK};
        case FROM_Q4_K: return {K4, 144, SPAN * BLOCK};
        case FROM_Q5_K: return {K5, 176, SPAN * BLOCK};
        case FROM_Q6_K: return {K6, 210, SPAN * BLOCK};
        default: return {-1, 0, 1};
    }
}

// Bytes of a row of `in` values.
inline int64_t row_size(int source, int in) {
    const Stored stored = stored_as(source);
    return in / stored.values * stored.bytes;
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

// The same of values below 8: two bits each of the first 16 and of the last, and (third) the bits above them.
inline void put_few(const uint8_t* q, bool third, uint8_t* to, int lane) {
    for (int i = 0; i < BLOCK; ++i) {
        uint8_t* word = to + lane * 4 + i % 4;
        word[i / 16 * 64] |= uint8_t((q[i] & 3) << (i % 16 / 4 * 2));
        if (third) word[128] |= uint8_t(q[i] >> 2 << (i / 4));
    }
}

inline void pack_bytes(const uint8_t* from, int block, uint8_t* panel, int lane) {  // of Q8_0
    uint8_t* to = panel + block / 2 * layout_of(INT8).span() + block % 2 * 512;
    for (int i = 0; i < BLOCK; i += 4) {  // four at once, each with its sign turned: 128 more
        uint32_t four;
        std::memcpy(&four, from + 2 + i, 4);
        four ^= 0x80808080u;
        std::memcpy(to + i * 16 + lane * 4, &four, 4);
    }
    std::memcpy(panel + block / 2 * layout_of(INT8).span() + 1024 + block % 2 * 32 + lane * 2, from, 2);
}

// Blocks of 32 with a scale, and perhaps a minimum.
inline void pack_block(int source, const uint8_t* from, int block, uint8_t* panel, int lane) {
    const int format = stored_as(source).format;
    const Layout layout = layout_of(format);
    const bool five = format == INT5 || format == C5, own = format == INT4 || format == INT5;
    const uint8_t* at = from + (own ? 4 : format == FP4 ? 1 : 2);
    uint8_t *span = panel + block / layout.blocks * layout.span(), *to = span;
    const int in_span = block % layout.blocks;
    if (own) {
        uint8_t* scales = to + layout.block;
        std::memcpy(scales + lane * 2, from, 2);
        std::memcpy(scales + 32 + lane * 2, from + 2, 2);
    } else {
        to += layout.beside + in_span * layout.block;
        // A power of two's exponent as a float32 has it: 2^(e − 128), the two least of which are taken for 0.
        if (format == FP4) span[in_span * 16 + lane] = uint8_t(from[0] ? from[0] - 1 : 0);
        else std::memcpy(span + in_span * 32 + lane * 2, from, 2);
    }
    uint32_t high = 0, bits = 0;
    if (five) std::memcpy(&high, at, 4), at += 4;
    for (int i = 0; i < 16; i += 4) std::memcpy(to + i * 16 + lane * 4, at + i, 4);  // nibbles lie as they are to lie
    if (!five) return;
    // Bit 4 i + k to bit i of byte k: a product spreads four bits to four bytes.
    for (int i = 0; i < 8; ++i) bits |= ((high >> 4 * i & 15) * 0x00204081u & 0x01010101u) << i;
    std::memcpy(to + 256 + lane * 4, &bits, 4);
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

// A span of Q2_K: a scale and a minimum of four bits for each 16 values, two bits each, d, dmin.
inline void pack_k2(const uint8_t* from, uint8_t* to, int lane) {
    std::memcpy(to + lane * 2, from + 80, 2);
    std::memcpy(to + 32 + lane * 2, from + 82, 2);
    for (int b = 0; b < SPAN; ++b) {
        uint8_t* factors = to + 64 + b * 32;
        factors[lane] = from[2 * b], factors[16 + lane] = from[2 * b + 1];
        uint8_t q[BLOCK];
        for (int i = 0; i < BLOCK; ++i) q[i] = from[16 + b / 4 * 32 + i] >> (b % 4 * 2) & 3;
        put_few(q, false, to + BEFORE_SPAN + b * layout_of(K2).block, lane);
    }
}

// A span of Q3_K: third bits, two bits each, factors of 16 values in six bits and 32 too large, d.
inline void pack_k3(const uint8_t* from, uint8_t* to, int lane) {
    const uint8_t *pairs = from + 32, *packed = from + 96;
    std::memcpy(to + lane * 2, from + 108, 2);
    for (int b = 0; b < SPAN; ++b) {
        for (int h = 0; h < 2; ++h) {
            const int i = 2 * b + h;
            const int low = packed[i % 8] >> (i / 8 * 4) & 15, high = packed[8 + i % 4] >> (i / 4 * 2) & 3;
            to[64 + b * 32 + h * 16 + lane] = uint8_t((low | high << 4) - 32);
        }
        uint8_t q[BLOCK];
        for (int i = 0; i < BLOCK; ++i)
            q[i] = uint8_t((pairs[b / 4 * 32 + i] >> (b % 4 * 2) & 3) | (from[i] >> b & 1) << 2);
        put_few(q, true, to + BEFORE_SPAN + b * layout_of(K3).block, lane);
    }
}

// One lane of a span of a K type.
inline void pack_span(int format, const uint8_t* from, uint8_t* to, int lane) {
    switch (format) {
        case K2: return pack_k2(from, to, lane);
        case K3: return pack_k3(from, to, lane);
        case K4: return pack_k(false, from, to, lane);
        case K5: return pack_k(true, from, to, lane);
        default: return pack_k6(from, to, lane);
    }
}

// from: [out, row_size] bytes. Panels first … end − 1 are written. Rows beyond `out` in the last panel are zeros.
inline void pack(Linear& w, int source, const void* from, int first, int end) {
    const int64_t row_bytes = row_size(source, w.in), bytes = stored_as(source).bytes;
    const Layout layout = layout_of(w.format);
    const int blocks = w.in / BLOCK;
    for (int p = first; p < end; ++p) {
        uint8_t* panel = w.data + p * w.panel_bytes;
        std::memset(panel, 0, size_t(w.panel_bytes));
        for (int lane = 0; lane < LANES && p * LANES + lane < w.out; ++lane) {
            const uint8_t* row = static_cast<const uint8_t*>(from) + int64_t(p * LANES + lane) * row_bytes;
            if (w.format == F32 || w.format == BF16) {
                for (int64_t k = 0; k < row_bytes / 4; ++k) std::memcpy(panel + k * 64 + lane * 4, row + k * 4, 4);
            } else if (layout.blocks == SPAN) {
                for (int s = 0; s < blocks / SPAN; ++s) pack_span(w.format, row + s * bytes, panel + s * layout.span(), lane);
            } else if (w.format == INT8) {
                for (int b = 0; b < blocks; ++b) pack_bytes(row + b * bytes, b, panel, lane);
            } else {
                for (int b = 0; b < blocks; ++b) pack_block(source, row + b * bytes, b, panel, lane);
            }
        }
    }
}
