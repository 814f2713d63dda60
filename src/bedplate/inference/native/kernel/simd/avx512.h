// Sixteen lanes in one AVX-512 register: AVX-512 F, BW, VL, DQ and VNNI; BEDPLATE_BF16: and its products of bfloat16.
#pragma once
#include <immintrin.h>

#include <type_traits>

constexpr int BYTE_TILE = 8, FLOAT_TILE = 8;  // tokens at once in a product of bytes and of floats
constexpr int panels_beside(int tokens) { return tokens > 4 ? 2 : 4; }  // of floats: their sums stay in registers
constexpr bool WORDS_FIRST = false;  // each word of weights meets all tokens of a tile before the next is read
constexpr bool NIBBLES_BY_TWO = true;  // two panels beside each other, where there are eight tokens
constexpr int GROUP_SUMS = 16;  // sums of 16 lanes at once in attention

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
INLINE F where_below(F a, F b, F yes, F no) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), no, yes);
}
INLINE F signed_as(F a, F b) {
    const F sign = set1(-0.0f);
    return _mm512_or_ps(_mm512_andnot_ps(sign, a), _mm512_and_ps(sign, b));
}
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
INLINE I iand(I a, int32_t mask) { return _mm512_and_si512(a, iset1(mask)); }
INLINE I ior(I a, I b) { return _mm512_or_si512(a, b); }
INLINE I shifted_left(I a, int by) { return _mm512_slli_epi32(a, static_cast<unsigned>(by)); }
INLINE I shifted_right(I a, int by) { return _mm512_srli_epi32(a, static_cast<unsigned>(by)); }
INLINE __m128i sixteen_bytes(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
INLINE I load_bytes(const uint8_t* p) { return _mm512_cvtepu8_epi32(sixteen_bytes(p)); }
INLINE F load_signed(const uint8_t* p) {
    return to_float(_mm512_cvtepi8_epi32(sixteen_bytes(p)));
}
INLINE I looked_up(const uint8_t* table, I at) {  // bytes: those of a table of 16
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(sixteen_bytes(table)), at);
}
INLINE bool any_nan(F a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q) != 0; }
INLINE F load_half(const void* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
}
INLINE F load(const uint16_t* p) {
    __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}
#ifdef BEDPLATE_BF16
INLINE void store(uint16_t* p, F x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh(x));
}
#else
INLINE void store(uint16_t* p, F x) {  // to nearest, ties to even; NaN stays NaN
    I bits = _mm512_castps_si512(x), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), iset1(1));
    I rounded = _mm512_srli_epi32(iadd(bits, iadd(odd, iset1(0x7fff))), 16);
    I quiet = _mm512_or_si512(_mm512_srli_epi32(bits, 16), iset1(64));
    I kept = _mm512_mask_blend_epi32(_mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), rounded, quiet);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(kept));
}
#endif
// Words of two bfloat16, lower and upper.
INLINE F lower(I x) { return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16)); }
INLINE F upper(I x) { return _mm512_castsi512_ps(_mm512_and_si512(x, iset1(int32_t(0xffff0000)))); }
// The first n lanes of x, `other` in the rest.
INLINE F first_lanes(F x, int n, F other) {
    __mmask16 m = n >= 16 ? 0xffff : n <= 0 ? 0 : static_cast<__mmask16>((1u << n) - 1);
    return _mm512_mask_blend_ps(m, other, x);
}
INLINE F power_of_two(F x, F n) { return _mm512_scalef_ps(x, n); }
INLINE F nearest(F x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// 16 × 16 words: in place, word c of row r becomes word r of row c.
INLINE void transpose(I* x) {
    I s[16];
    for (int r = 0; r < 16; r += 4) {  // the 4 × 4 words inside each 128-bit lane
        I a = _mm512_unpacklo_epi32(x[r], x[r + 1]), b = _mm512_unpackhi_epi32(x[r], x[r + 1]);
        I c = _mm512_unpacklo_epi32(x[r + 2], x[r + 3]), d = _mm512_unpackhi_epi32(x[r + 2], x[r + 3]);
        s[r] = _mm512_unpacklo_epi64(a, c), s[r + 1] = _mm512_unpackhi_epi64(a, c);
        s[r + 2] = _mm512_unpacklo_epi64(b, d), s[r + 3] = _mm512_unpackhi_epi64(b, d);
    }
    for (int i = 0; i < 4; ++i) {  // then the 4 × 4 lanes
        I a = _mm512_shuffle_i32x4(s[i], s[4 + i], 0x88), b = _mm512_shuffle_i32x4(s[i], s[4 + i], 0xdd);
        I c = _mm512_shuffle_i32x4(s[8 + i], s[12 + i], 0x88), d = _mm512_shuffle_i32x4(s[8 + i], s[12 + i], 0xdd);
        x[i] = _mm512_shuffle_i32x4(a, c, 0x88), x[8 + i] = _mm512_shuffle_i32x4(a, c, 0xdd);
        x[4 + i] = _mm512_shuffle_i32x4(b, d, 0x88), x[12 + i] = _mm512_shuffle_i32x4(b, d, 0xdd);
    }
}
INLINE I words(F x) { return _mm512_castps_si512(x); }
INLINE F floats(I x) { return _mm512_castsi512_ps(x); }
INLINE void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }  // the second-level cache

// Σ of 32 products of nibbles 0 … 15 and signed bytes, per lane: four words each of the first and the second 16 inputs.
// Two sums, so that two additions are under way at once.
struct NibbleDot {
    I s = izero(), t = izero();
    INLINE_MEMBER void add(I lo, I hi, I first, I second) {
        s = _mm512_dpbusd_epi32(s, lo, first), t = _mm512_dpbusd_epi32(t, hi, second);
    }
    INLINE_MEMBER I total() const { return iadd(s, t); }
};
// The same of bytes 0 … 63, the two sums apart.
struct ByteSums : NibbleDot {
    INLINE_MEMBER void start(const int32_t* halves) { s = iset1(halves[0]), t = iset1(halves[1]); }
    INLINE_MEMBER I first() const { return s; }
    INLINE_MEMBER I second() const { return t; }
};
// Of many tokens there are additions enough under way, and one sum leaves registers for other things.
struct OneSum {
    I s = izero();
    INLINE_MEMBER void start(int32_t of) { s = iset1(of); }
    INLINE_MEMBER void add(I lo, I hi, I first, I second) {
        s = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(s, lo, first), hi, second);
    }
    INLINE_MEMBER I total() const { return s; }
};
template <int M, class Apart> using SumsOf = std::conditional_t<(M >= 4), OneSum, Apart>;
// The same of bytes, stored as q + 128; `offset` is −128 Σ of the signed bytes.
INLINE I ready_bytes(I stored) { return stored; }
struct ByteDot {
    I s = izero(), t = izero();
    INLINE_MEMBER void start(int32_t offset) { s = iset1(offset); }
    INLINE_MEMBER void add(I u, I v, I first, I second) {
        s = _mm512_dpbusd_epi32(s, u, first), t = _mm512_dpbusd_epi32(t, v, second);
    }
    INLINE_MEMBER I total() const { return iadd(s, t); }
};

#ifdef BEDPLATE_BF16
// Per lane: a + the sum of two products of bfloat16.
INLINE F dot_bf16(F a, I x, I y) { return _mm512_dpbf16_ps(a, (__m512bh)x, (__m512bh)y); }
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
#endif
