// How matrices lie in memory, packed for sixteen lanes. A panel is 16 output features; its lanes are those features.
//
// Formats (weights W [out, in], blocks of 32 along `in`, spans of 8 blocks):
//   f32:  word k of a panel holds features' input k.                                  64 bytes per input
//   bf16: word k of a panel holds features' inputs 2k, 2k+1.                          64 bytes per 2 inputs
//   int8: per two blocks 16 words of four bytes q + 128, then their float16 scales.    1,088 bytes per two blocks
//   int4: per block 4 words (low nibbles: inputs 0…15, high: 16…31), 16 scales and 16 minima in float16. 320 bytes
//   int5: per block the same 4 words, one of fifth bits, scales and minima.            384 bytes
//   k4, k5: per span 16 scales and 16 minima in float16, and for each of its blocks what they are multiplied by, 16 and 16
//         bytes; then its blocks, as in int4 and int5.                                 320 + 8 · 256, 320 + 8 · 320 bytes
//   k6:   the same, with two factors a block, of its inputs 0…15 and 16…31, signed; a block has 4 words of nibbles and 2 of
//         two bits, and its values are q − 32.                                         320 + 8 · 384 bytes
// In all of them a value is exactly what a GGUF file's own block says (pack.h), so that nothing is quantised twice.
#pragma once
#include "simd.h"

constexpr int BLOCK = 32, SPAN = 8;
enum Format { BF16 = 0, INT8 = 1, INT4 = 2, F32 = 3, INT5 = 4, K4 = 5, K5 = 6, K6 = 7 };
enum Reads { HALVES, BYTES, FLOATS };  // the form of the activations
constexpr int64_t BEFORE_SPAN = 320;   // bytes of what stands before a span's blocks

inline Reads reads(int format) {
    if (format == F32) return FLOATS;
    return format != BF16 ? BYTES : PAIRS ? HALVES : FLOATS;
}

inline int64_t panel_size(int format, int in) {
    const int64_t blocks = in / BLOCK;
    switch (format) {
        case F32: return blocks * 2048;
        case BF16: return blocks * 1024;
        case INT8: return (blocks + 1) / 2 * 1088;
        case INT4: return blocks * 320;
        case INT5: return blocks * 384;
        case K4: return blocks / SPAN * BEFORE_SPAN + blocks * 256;
        case K5: return blocks / SPAN * BEFORE_SPAN + blocks * 320;
        default: return blocks / SPAN * BEFORE_SPAN + blocks * 384;
    }
}

struct Linear {
    int format = BF16, in = 0, out = 0, panels = 0;
    int64_t panel_bytes = 0;
    uint8_t* data = nullptr;
    const float* bias = nullptr;  // [panels · 16] or null
    const uint8_t* panel(int i) const { return data + i * panel_bytes; }
};
