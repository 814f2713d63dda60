// Sixteen lanes: these files are the only place that knows the instruction set. F holds 16 float32, I holds 16 int32 (or
// 64 bytes). The build chooses one level, with the compiler flags that go with it (see levels.py):
//   BEDPLATE_AVX512 (with BEDPLATE_BF16: products of bfloat16), BEDPLATE_AVX2 (with BEDPLATE_VNNI: products of bytes),
//   BEDPLATE_NEON (with BEDPLATE_I8MM), or none of them: plain C++ (with BEDPLATE_BF16: to the same effect).
// BEDPLATE_TILES besides: tiles.h.
// All are exact in integers; float results may differ between levels by rounding, never within one of them.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

constexpr int LANES = 16;
#define INLINE static inline __attribute__((always_inline))
#define INLINE_MEMBER inline __attribute__((always_inline))
// Arrays of sums: GCC keeps them in registers only in loops that are unrolled whole.
#define UNROLL _Pragma("GCC unroll 16")

// A float16, exactly.
INLINE float half_value(uint16_t h) {
    uint32_t sign = (h & 0x8000u) << 16, rest = h & 0x7fffu, bits;
    float x;
    if (rest >= 0x7c00u) bits = sign | 0x7f800000u | ((rest & 0x3ffu) << 13);
    else if (rest >= 0x400u) bits = sign | ((rest << 13) + (112u << 23));
    else { x = static_cast<float>(rest) * 5.9604644775390625e-8f; return sign ? -x : x; }
    std::memcpy(&x, &bits, 4);
    return x;
}

#if defined(BEDPLATE_AVX512)
#include "simd/avx512.h"
#elif defined(BEDPLATE_AVX2)
#include "simd/avx2.h"
#elif defined(BEDPLATE_NEON)
#include "simd/neon.h"
#else
#include "simd/plain.h"
#endif

#ifndef BEDPLATE_AVX512
template <int, class Apart> using SumsOf = Apart;  // sums of products of so many tokens
#endif

INLINE F load_unsigned(const uint8_t* p) { return to_float(load_bytes(p)); }

// Whether bfloat16 weights, keys and values are multiplied as they are; else they are widened to float32 first.
#ifdef BEDPLATE_BF16
constexpr bool PAIRS = true;
#else
constexpr bool PAIRS = false;
#endif

// e^x within 2 units in the last place for x in [-87, 88]; smaller x give about 1e-38, e^0 is 1 exactly. NaN stays NaN: of
// two lanes, one of them NaN, fmax and fmin give the second.
INLINE F exp(F x) {
    x = fmin(set1(88.0f), fmax(set1(-87.0f), x));
    F n = nearest(mul(x, set1(1.44269504089f)));
    F r = fma(n, set1(-0.693359375f), x);
    r = fma(n, set1(2.12194440e-4f), r);
    F p = fma(r, set1(1.9875691500e-4f), set1(1.3981999507e-3f));
    p = fma(p, r, set1(8.3334519073e-3f));
    p = fma(p, r, set1(4.1665795894e-2f));
    p = fma(p, r, set1(1.6666665459e-1f));
    p = fma(p, r, set1(5.0000001201e-1f));
    p = add(fma(p, mul(r, r), r), set1(1.0f));
    return power_of_two(p, n);
}
INLINE float exp1(float x) { alignas(64) float out[16]; store(out, exp(set1(x))); return out[0]; }
INLINE void prefetch_bytes(const void* from, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) prefetch(static_cast<const char*>(from) + i);
}
