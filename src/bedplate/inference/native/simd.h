// Sixteen lanes: the only place that knows the instruction set. F holds 16 float32, I holds 16 int32 (or 64 bytes).
// With AVX-512 VNNI and BF16 each function is one or a few instructions; without (or with BEDPLATE_PLAIN defined) it is
// plain C++ on the compiler's vector types, with the same meaning. Both are exact in integers; float results may differ
// between the two in the last bit, never within one of them.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#if !defined(BEDPLATE_PLAIN) && defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && \
    defined(__AVX512VNNI__) && defined(__AVX512BF16__)
#define BEDPLATE_AVX512 1
#include <immintrin.h>
#endif

constexpr int LANES = 16;
#define INLINE static inline __attribute__((always_inline))

#ifdef BEDPLATE_AVX512

using F = __m512;
using I = __m512i;

INLINE F zero() { return _mm512_setzero_ps(); }
INLINE I izero() { return _mm512_setzero_si512(); }
INLINE F load(const float* p) { return _mm512_loadu_ps(p); }
INLINE void store(float* p, F x) { _mm512_storeu_ps(p, x); }
INLINE I iload(const void* p) { return _mm512_loadu_si512(p); }
INLINE void istore(void* p, I x) { _mm512_storeu_si512(p, x); }
INLINE F set1(float x) { return _mm512_set1_ps(x); }
INLINE I iset1(int32_t x) { return _mm512_set1_epi32(x); }
INLINE I bcast(const void* p) { int32_t x; std::memcpy(&x, p, 4); return _mm512_set1_epi32(x); }
INLINE F add(F a, F b) { return _mm512_add_ps(a, b); }
INLINE F sub(F a, F b) { return _mm512_sub_ps(a, b); }
INLINE F mul(F a, F b) { return _mm512_mul_ps(a, b); }
INLINE F div(F a, F b) { return _mm512_div_ps(a, b); }
INLINE F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
INLINE F fmax(F a, F b) { return _mm512_max_ps(a, b); }
INLINE F fmin(F a, F b) { return _mm512_min_ps(a, b); }
INLINE F fabs(F a) { return _mm512_abs_ps(a); }
INLINE I iadd(I a, I b) { return _mm512_add_epi32(a, b); }
INLINE float sum(F a) { return _mm512_reduce_add_ps(a); }
INLINE float largest(F a) { return _mm512_reduce_max_ps(a); }
INLINE int32_t isum(I a) { return _mm512_reduce_add_epi32(a); }
INLINE F to_float(I a) { return _mm512_cvtepi32_ps(a); }
INLINE I to_int(F a) { return _mm512_cvtps_epi32(a); }  // to nearest, ties to even
INLINE void store_bytes(int8_t* p, I a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(a));
}
INLINE I low_nibbles(I a) { return _mm512_and_si512(a, _mm512_set1_epi8(15)); }
INLINE I high_nibbles(I a) { return low_nibbles(_mm512_srli_epi16(a, 4)); }
// Per lane: a + sum of four products of unsigned bytes and signed bytes.
INLINE I dot_bytes(I a, I u, I s) { return _mm512_dpbusd_epi32(a, u, s); }
// Per lane: a + the sum of two products of bfloat16.
INLINE F dot_bf16(F a, I x, I y) { return _mm512_dpbf16_ps(a, (__m512bh)x, (__m512bh)y); }
INLINE F load_half(const void* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
}
INLINE F load_bf16(const uint16_t* p) {
    __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}
INLINE void store_bf16(uint16_t* p, F x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh(x));
}
// The first n lanes of x, `other` in the rest.
INLINE F first_lanes(F x, int n, F other) {
    __mmask16 m = n >= 16 ? 0xffff : n <= 0 ? 0 : static_cast<__mmask16>((1u << n) - 1);
    return _mm512_mask_blend_ps(m, other, x);
}
INLINE F power_of_two(F x, F n) { return _mm512_scalef_ps(x, n); }
INLINE F nearest(F x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// 16 × 16 words: out[c] lane r = word c of row r; rows are `stride` bytes apart.
INLINE void transpose(const void* rows, int64_t stride, I* out) {
    const char* p = static_cast<const char*>(rows);
    I s[16], u[16];
    for (int c = 0; c < 4; ++c)
        for (int r = 0; r < 4; ++r) {  // four rows' 16-byte pieces in one register: loads, not shuffles
            const char* q = p + c * 16 + r * stride;
            I x = _mm512_castsi128_si512(_mm_loadu_si128(reinterpret_cast<const __m128i*>(q)));
            x = _mm512_inserti32x4(x, _mm_loadu_si128(reinterpret_cast<const __m128i*>(q + 4 * stride)), 1);
            x = _mm512_inserti32x4(x, _mm_loadu_si128(reinterpret_cast<const __m128i*>(q + 8 * stride)), 2);
            s[c * 4 + r] = _mm512_inserti32x4(x, _mm_loadu_si128(reinterpret_cast<const __m128i*>(q + 12 * stride)), 3);
        }
    // Each 128-bit lane L now holds rows 4L … 4L+3 once the 4 × 4 words inside it are turned.
    for (int c = 0; c < 4; ++c) {
        I a = _mm512_unpacklo_epi32(s[c * 4], s[c * 4 + 1]), b = _mm512_unpackhi_epi32(s[c * 4], s[c * 4 + 1]);
        I d = _mm512_unpacklo_epi32(s[c * 4 + 2], s[c * 4 + 3]), e = _mm512_unpackhi_epi32(s[c * 4 + 2], s[c * 4 + 3]);
        u[c * 4] = _mm512_unpacklo_epi64(a, d), u[c * 4 + 1] = _mm512_unpackhi_epi64(a, d);
        u[c * 4 + 2] = _mm512_unpacklo_epi64(b, e), u[c * 4 + 3] = _mm512_unpackhi_epi64(b, e);
    }
    for (int c = 0; c < 16; ++c) out[c] = u[c];
}
// 16 lanes of pairs (a[i], b[i]) of two rows of 16 halfwords.
INLINE I interleave(const uint16_t* a, const uint16_t* b) {
    I x = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(a)));
    I y = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(b)));
    return _mm512_or_si512(x, _mm512_slli_epi32(y, 16));
}
INLINE void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

#else

typedef float F __attribute__((vector_size(64)));
typedef int32_t I __attribute__((vector_size(64)));
typedef uint32_t U __attribute__((vector_size(64)));
typedef uint8_t B __attribute__((vector_size(64)));

INLINE F set1(float x) { return F{} + x; }
INLINE I iset1(int32_t x) { return I{} + x; }
INLINE F zero() { return F{}; }
INLINE I izero() { return I{}; }
INLINE F load(const float* p) { F x; std::memcpy(&x, p, 64); return x; }
INLINE void store(float* p, F x) { std::memcpy(p, &x, 64); }
INLINE I iload(const void* p) { I x; std::memcpy(&x, p, 64); return x; }
INLINE void istore(void* p, I x) { std::memcpy(p, &x, 64); }
INLINE I bcast(const void* p) { int32_t x; std::memcpy(&x, p, 4); return iset1(x); }
INLINE F add(F a, F b) { return a + b; }
INLINE F sub(F a, F b) { return a - b; }
INLINE F mul(F a, F b) { return a * b; }
INLINE F div(F a, F b) { return a / b; }
INLINE F fma(F a, F b, F c) { return a * b + c; }
INLINE F fmax(F a, F b) { return a > b ? a : b; }
INLINE F fmin(F a, F b) { return a < b ? a : b; }
INLINE F fabs(F a) { return (F)((I)a & 0x7fffffff); }
INLINE I iadd(I a, I b) { return a + b; }
INLINE float sum(F a) { float s = 0; for (int i = 0; i < 16; ++i) s += a[i]; return s; }
INLINE float largest(F a) { float s = a[0]; for (int i = 1; i < 16; ++i) s = a[i] > s ? a[i] : s; return s; }
INLINE int32_t isum(I a) { int32_t s = 0; for (int i = 0; i < 16; ++i) s += a[i]; return s; }
INLINE F to_float(I a) { return __builtin_convertvector(a, F); }
INLINE F nearest(F x) {  // exact below 2^22 in size, which is all that is asked of it
    const F magic = set1(12582912.0f);
    return (x + magic) - magic;
}
INLINE I to_int(F a) { return __builtin_convertvector(nearest(a), I); }
INLINE void store_bytes(int8_t* p, I a) { for (int i = 0; i < 16; ++i) p[i] = static_cast<int8_t>(a[i]); }
INLINE I low_nibbles(I a) { return a & 0x0f0f0f0f; }
INLINE I high_nibbles(I a) { return (I)((U)a >> 4) & 0x0f0f0f0f; }
INLINE I dot_bytes(I a, I u, I s) {
    for (int j = 0; j < 4; ++j) {
        I x = (I)(((U)u >> (8 * j)) & 255u), y = (I)((U)s << (24 - 8 * j)) >> 24;
        a += x * y;
    }
    return a;
}
INLINE F dot_bf16(F a, I x, I y) {
    F lx = (F)((U)x << 16), ly = (F)((U)y << 16);
    F hx = (F)((U)x & 0xffff0000u), hy = (F)((U)y & 0xffff0000u);
    return hx * hy + (lx * ly + a);
}
INLINE float half_value(uint16_t h) {
    uint32_t sign = (h & 0x8000u) << 16, rest = h & 0x7fffu, bits;
    float x;
    if (rest >= 0x7c00u) bits = sign | 0x7f800000u | ((rest & 0x3ffu) << 13);
    else if (rest >= 0x400u) bits = sign | ((rest << 13) + (112u << 23));
    else { x = static_cast<float>(rest) * 5.9604644775390625e-8f; return sign ? -x : x; }
    std::memcpy(&x, &bits, 4);
    return x;
}
INLINE F load_half(const void* p) {
    uint16_t h[16];
    std::memcpy(h, p, 32);
    F x{};
    for (int i = 0; i < 16; ++i) x[i] = half_value(h[i]);
    return x;
}
INLINE F load_bf16(const uint16_t* p) {
    U x{};
    for (int i = 0; i < 16; ++i) x[i] = static_cast<uint32_t>(p[i]) << 16;
    return (F)x;
}
INLINE void store_bf16(uint16_t* p, F x) {  // to nearest, ties to even; NaN stays NaN
    U b = (U)x;
    U r = (b + (0x7fffu + ((b >> 16) & 1u))) >> 16;
    for (int i = 0; i < 16; ++i) p[i] = static_cast<uint16_t>(x[i] == x[i] ? r[i] : (b[i] >> 16) | 64u);
}
INLINE F first_lanes(F x, int n, F other) {
    for (int i = 0; i < 16; ++i) if (i >= n) x[i] = other[i];
    return x;
}
INLINE F power_of_two(F x, F n) {
    I e = (__builtin_convertvector(n, I) + 127) << 23;
    return x * (F)e;
}
INLINE void transpose(const void* rows, int64_t stride, I* out) {
    for (int r = 0; r < 16; ++r) {
        int32_t w[16];
        std::memcpy(w, static_cast<const char*>(rows) + r * stride, 64);
        for (int c = 0; c < 16; ++c) out[c][r] = w[c];
    }
}
INLINE I interleave(const uint16_t* a, const uint16_t* b) {
    U x{};
    for (int i = 0; i < 16; ++i) x[i] = a[i] | (static_cast<uint32_t>(b[i]) << 16);
    return (I)x;
}
INLINE void prefetch(const void* p) { __builtin_prefetch(p, 0, 3); }

#endif

// e^x within 2 units in the last place for x in [-87, 88]; smaller x give about 1e-38, e^0 is 1 exactly.
INLINE F exp(F x) {
    x = fmin(fmax(x, set1(-87.0f)), set1(88.0f));
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
