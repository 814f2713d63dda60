// How matrices lie in memory, packed for sixteen lanes. A panel is 16 output features; its lanes are those features.
//
// Formats (weights W [out, in], blocks of 32 along `in`, spans of so many blocks):
//   f32:  word k of a panel holds features' input k.                                  64 bytes per input
//   bf16: word k of a panel holds features' inputs 2k, 2k+1.                          64 bytes per 2 inputs
//   int8: per two blocks 16 words of four bytes q + 128, then their float16 scales.    1,088 bytes per two blocks
//   int4: per block 4 words (low nibbles: inputs 0…15, high: 16…31), 16 scales and 16 minima in float16. 320 bytes
//   int5: per block the same 4 words, one of fifth bits, scales and minima.            384 bytes
//   c4, c5: two blocks' scales in float16, then those blocks without their own; values are about 8, about 16. 64 + 2 · 256,
//         64 + 2 · 320 bytes
//   nl4:  the same, nibbles being numbers of a table's values.                         64 + 2 · 256 bytes
//   fp4:  the same of four blocks; a scale is a power of two, of which a byte is the exponent. 64 + 4 · 256 bytes
//   k4, k5: per span of 8 blocks 16 scales and 16 minima in float16, and for each of its blocks what they are multiplied by,
//         16 and 16 bytes; then its blocks, as in int4 and int5.                       320 + 8 · 256, 320 + 8 · 320 bytes
//   k6:   the same, with two factors a block, of its inputs 0…15 and 16…31, signed; a block has 4 words of nibbles and 2 of
//         two bits, and its values are q − 32.                                         320 + 8 · 384 bytes
//   k2:   the same, a block's factors being a nibble for its scale and one for its minimum, for each half of its inputs; a
//         block has 2 words of two bits.                                               320 + 8 · 128 bytes
//   k3:   as k6, with 2 words of two bits and one of the third; its values are q − 4.  320 + 8 · 192 bytes
// In all of them a value is exactly what a GGUF file's own block says (pack.h), so that nothing is quantised twice.
#pragma once
#include "simd.h"

constexpr int BLOCK = 32, SPAN = 8;   // inputs of a block; blocks of a K type's span
enum Format { BF16 = 0, INT8 = 1, INT4 = 2, F32 = 3, INT5 = 4, K4 = 5, K5 = 6, K6 = 7, C4 = 8, C5 = 9, NL4 = 10, FP4 = 11, K2 = 12, K3 = 13 };
enum Reads { HALVES, BYTES, FLOATS };  // the form of the activations
constexpr int64_t BEFORE_SPAN = 320;   // bytes of what stands before the blocks of a K type's span
constexpr int64_t BEFORE_FEW = 64;     // the same of two or four blocks

inline Reads reads(int format) {
    if (format == F32) return FLOATS;
    return format != BF16 ? BYTES : PAIRS ? HALVES : FLOATS;
}

// How a panel is laid out: spans of so many blocks, each with so many bytes beside them. The last span may hold fewer.
struct Layout {
    int blocks;
    int64_t beside, block;
    constexpr int64_t span() const { return beside + blocks * block; }
};

constexpr Layout layout_of(int format) {
    switch (format) {
        case F32: return {1, 0, 2048};
        case BF16: return {1, 0, 1024};
        case INT8: return {2, 64, 512};
        case INT4: return {1, 64, 256};
        case INT5: return {1, 64, 320};
        case C4: case NL4: return {2, BEFORE_FEW, 256};
        case C5: return {2, BEFORE_FEW, 320};
        case FP4: return {4, BEFORE_FEW, 256};
        case K2: return {SPAN, BEFORE_SPAN, 128};
        case K3: return {SPAN, BEFORE_SPAN, 192};
        case K4: return {SPAN, BEFORE_SPAN, 256};
        case K5: return {SPAN, BEFORE_SPAN, 320};
        default: return {SPAN, BEFORE_SPAN, 384};
    }
}

inline int64_t panel_size(int format, int in) {
    const Layout layout = layout_of(format);
    return (in / BLOCK + layout.blocks - 1) / layout.blocks * layout.span();
}

struct Linear {
    int format = BF16, in = 0, out = 0, panels = 0;
    int64_t panel_bytes = 0;
    uint8_t* data = nullptr;
    const float* bias = nullptr;  // [panels · 16] or null
    int tiles_from = 1;           // tokens; of fewer the products are not by tiles, where the level has them
    const uint8_t* panel(int i) const { return data + i * panel_bytes; }
};
