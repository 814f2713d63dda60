// Sixteen lanes in two AVX registers: AVX2, FMA, F16C; BEDPLATE_VNNI: and AVX-VNNI's products of bytes.
#pragma once
#include <immintrin.h>

constexpr int BYTE_TILE = 8, FLOAT_TILE = 4;  // tokens at once in a product of bytes and of floats
constexpr int panels_beside(int tokens) { return tokens > 2 ? 1 : 2; }  // of floats: their sums stay in registers
constexpr bool WORDS_FIRST = true;  // each word of weights meets all tokens of a tile before the next is read
constexpr bool NIBBLES_BY_TWO = false;
constexpr int GROUP_SUMS = 4;  // sums of 16 lanes at once in attention

struct F { __m256 a, b; };
struct I { __m256i a, b; };

INLINE F zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
INLINE I izero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
INLINE __m256i half_load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
INLINE F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
INLINE void store(float* p, F x) { _mm256_storeu_ps(p, x.a), _mm256_storeu_ps(p + 8, x.b); }
INLINE I iload(const void* p) { return {half_load(p), half_load(static_cast<const char*>(p) + 32)}; }
INLINE void istore(void* p, I x) {
    _mm256_storeu_si256(static_cast<__m256i*>(p), x.a), _mm256_storeu_si256(static_cast<__m256i*>(p) + 1, x.b);
}
INLINE F set1(float x) { __m256 y = _mm256_set1_ps(x); return {y, y}; }
INLINE I iset1(int32_t x) { __m256i y = _mm256_set1_epi32(x); return {y, y}; }
INLINE I bcast(const void* p) { int32_t x; std::memcpy(&x, p, 4); return iset1(x); }
INLINE F add(F x, F y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
INLINE F sub(F x, F y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
INLINE F mul(F x, F y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
INLINE F div(F x, F y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
INLINE F fma(F x, F y, F z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
INLINE F fmax(F x, F y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
INLINE F fmin(F x, F y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
INLINE F fabs(F x) {
    __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
INLINE F where_below(F x, F y, F yes, F no) {
    return {_mm256_blendv_ps(no.a, yes.a, _mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ)),
            _mm256_blendv_ps(no.b, yes.b, _mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ))};
}
INLINE __m256 half_signed(__m256 x, __m256 y) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return _mm256_or_ps(_mm256_andnot_ps(sign, x), _mm256_and_ps(sign, y));
}
INLINE F signed_as(F x, F y) { return {half_signed(x.a, y.a), half_signed(x.b, y.b)}; }
INLINE I iadd(I x, I y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
INLINE float sum(F x) {
    __m256 y = _mm256_add_ps(x.a, x.b);
    __m128 z = _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
    z = _mm_add_ps(z, _mm_movehl_ps(z, z));
    return _mm_cvtss_f32(_mm_add_ss(z, _mm_movehdup_ps(z)));
}
INLINE float largest(F x) {
    __m256 y = _mm256_max_ps(x.a, x.b);
    __m128 z = _mm_max_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
    z = _mm_max_ps(z, _mm_movehl_ps(z, z));
    return _mm_cvtss_f32(_mm_max_ss(z, _mm_movehdup_ps(z)));
}
INLINE int32_t isum(I x) {
    __m256i y = _mm256_add_epi32(x.a, x.b);
    __m128i z = _mm_add_epi32(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1));
    z = _mm_add_epi32(z, _mm_shuffle_epi32(z, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(z, _mm_shuffle_epi32(z, 0xb1)));
}
INLINE F to_float(I x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
INLINE I to_int(F x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }  // to nearest, ties to even
INLINE I words(F x) { return {_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)}; }
INLINE F floats(I x) { return {_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }
INLINE void store_bytes(int8_t* p, I x) {
    __m256i h = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xd8);
    __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(h), _mm256_extracti128_si256(h, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
}
INLINE __m256i half_nibbles(__m256i x) { return _mm256_and_si256(x, _mm256_set1_epi8(15)); }
INLINE I low_nibbles(I x) { return {half_nibbles(x.a), half_nibbles(x.b)}; }
INLINE I high_nibbles(I x) {
    return {half_nibbles(_mm256_srli_epi16(x.a, 4)), half_nibbles(_mm256_srli_epi16(x.b, 4))};
}
INLINE I iand(I x, int32_t mask) {
    __m256i m = _mm256_set1_epi32(mask);
    return {_mm256_and_si256(x.a, m), _mm256_and_si256(x.b, m)};
}
INLINE I ior(I x, I y) { return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }
INLINE I shifted_left(I x, int by) { return {_mm256_slli_epi32(x.a, by), _mm256_slli_epi32(x.b, by)}; }
INLINE I shifted_right(I x, int by) { return {_mm256_srli_epi32(x.a, by), _mm256_srli_epi32(x.b, by)}; }
INLINE __m128i eight_bytes(const uint8_t* p) { return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)); }
INLINE I load_bytes(const uint8_t* p) {
    return {_mm256_cvtepu8_epi32(eight_bytes(p)), _mm256_cvtepu8_epi32(eight_bytes(p + 8))};
}
INLINE F load_signed(const uint8_t* p) {
    return to_float({_mm256_cvtepi8_epi32(eight_bytes(p)), _mm256_cvtepi8_epi32(eight_bytes(p + 8))});
}
INLINE I looked_up(const uint8_t* table, I at) {  // bytes: those of a table of 16
    __m256i all = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
    return {_mm256_shuffle_epi8(all, at.a), _mm256_shuffle_epi8(all, at.b)};
}
INLINE bool any_nan(F x) {
    __m256 bad = _mm256_or_ps(_mm256_cmp_ps(x.a, x.a, _CMP_UNORD_Q), _mm256_cmp_ps(x.b, x.b, _CMP_UNORD_Q));
    return _mm256_movemask_ps(bad) != 0;
}
INLINE F load_half(const void* p) {
    const __m128i* q = static_cast<const __m128i*>(p);
    return {_mm256_cvtph_ps(_mm_loadu_si128(q)), _mm256_cvtph_ps(_mm_loadu_si128(q + 1))};
}
INLINE __m256 widened(const uint16_t* p) {
    __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}
INLINE F load(const uint16_t* p) { return {widened(p), widened(p + 8)}; }
INLINE __m256i narrowed(__m256 x) {  // to nearest, ties to even; NaN stays NaN
    __m256i bits = _mm256_castps_si256(x), high = _mm256_srli_epi32(bits, 16);
    __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256 bad = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
    __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(64));
    return _mm256_blendv_epi8(_mm256_srli_epi32(rounded, 16), quiet, _mm256_castps_si256(bad));
}
INLINE void store(uint16_t* p, F x) {
    __m256i h = _mm256_permute4x64_epi64(_mm256_packus_epi32(narrowed(x.a), narrowed(x.b)), 0xd8);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), h);
}
// Words of two bfloat16, lower and upper.
INLINE F lower(I x) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(x.a, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(x.b, 16))};
}
INLINE F upper(I x) {
    __m256i high = _mm256_set1_epi32(int32_t(0xffff0000));
    return {_mm256_castsi256_ps(_mm256_and_si256(x.a, high)), _mm256_castsi256_ps(_mm256_and_si256(x.b, high))};
}
// The first n lanes of x, `other` in the rest.
INLINE F first_lanes(F x, int n, F other) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), count = _mm256_set1_epi32(n);
    __m256i low = _mm256_cmpgt_epi32(count, lane);
    __m256i high = _mm256_cmpgt_epi32(count, _mm256_add_epi32(lane, _mm256_set1_epi32(8)));
    return {_mm256_blendv_ps(other.a, x.a, _mm256_castsi256_ps(low)),
            _mm256_blendv_ps(other.b, x.b, _mm256_castsi256_ps(high))};
}
INLINE __m256 half_power(__m256 x, __m256 n) {
    __m256i e = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(x, _mm256_castsi256_ps(e));
}
INLINE F power_of_two(F x, F n) { return {half_power(x.a, n.a), half_power(x.b, n.b)}; }
INLINE F nearest(F x) {
    constexpr int how = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(x.a, how), _mm256_round_ps(x.b, how)};
}
// 8 × 8 words in place.
INLINE void half_transpose(__m256i* x) {
    __m256i s[8], t[8];
    for (int r = 0; r < 8; r += 2)
        s[r] = _mm256_unpacklo_epi32(x[r], x[r + 1]), s[r + 1] = _mm256_unpackhi_epi32(x[r], x[r + 1]);
    for (int r = 0; r < 8; r += 4)
        for (int i = 0; i < 2; ++i) {
            t[r + 2 * i] = _mm256_unpacklo_epi64(s[r + i], s[r + i + 2]);
            t[r + 2 * i + 1] = _mm256_unpackhi_epi64(s[r + i], s[r + i + 2]);
        }
    for (int i = 0; i < 4; ++i) {
        x[i] = _mm256_permute2x128_si256(t[i], t[i + 4], 0x20);
        x[i + 4] = _mm256_permute2x128_si256(t[i], t[i + 4], 0x31);
    }
}
// 16 × 16 words: in place, word c of row r becomes word r of row c.
INLINE void transpose(I* x) {
    __m256i q[8];
    for (int r = 0; r < 8; ++r) q[r] = x[r].a;
    half_transpose(q);
    for (int r = 0; r < 8; ++r) x[r].a = q[r];
    for (int r = 0; r < 8; ++r) q[r] = x[r + 8].b;
    half_transpose(q);
    for (int r = 0; r < 8; ++r) x[r + 8].b = q[r];
    __m256i p[8];
    for (int r = 0; r < 8; ++r) q[r] = x[r].b, p[r] = x[r + 8].a;
    half_transpose(q), half_transpose(p);
    for (int r = 0; r < 8; ++r) x[r].b = p[r], x[r + 8].a = q[r];
}
INLINE void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }  // the second-level cache

// Σ of 32 products of nibbles 0 … 15 and signed bytes, per lane: four words each of the first and the second 16 inputs.
// The same of bytes, stored as q + 128; `offset` is −128 Σ of the signed bytes.
#ifdef BEDPLATE_VNNI
#ifdef BEDPLATE_EVEX  // the same arithmetic in AVX-512's encoding, for tests on processors that have only that
INLINE __m256i half_dot(__m256i s, __m256i u, __m256i x) { return _mm256_dpbusd_epi32(s, u, x); }
#else
INLINE __m256i half_dot(__m256i s, __m256i u, __m256i x) { return _mm256_dpbusd_avx_epi32(s, u, x); }
#endif
struct NibbleDot {
    I s = izero(), t = izero();
    INLINE_MEMBER void add(I lo, I hi, I first, I second) {
        s = {half_dot(s.a, lo.a, first.a), half_dot(s.b, lo.b, first.b)};
        t = {half_dot(t.a, hi.a, second.a), half_dot(t.b, hi.b, second.b)};
    }
    INLINE_MEMBER I total() const { return iadd(s, t); }
};
struct ByteSums : NibbleDot {  // of bytes 0 … 63, the two sums apart
    INLINE_MEMBER void start(const int32_t* halves) { s = iset1(halves[0]), t = iset1(halves[1]); }
    INLINE_MEMBER I first() const { return s; }
    INLINE_MEMBER I second() const { return t; }
};
INLINE I ready_bytes(I stored) { return stored; }
struct ByteDot {
    I s = izero(), t = izero();
    INLINE_MEMBER void start(int32_t offset) { s = iset1(offset); }
    INLINE_MEMBER void add(I u, I v, I first, I second) {
        s = {half_dot(s.a, u.a, first.a), half_dot(s.b, u.b, first.b)};
        t = {half_dot(t.a, v.a, second.a), half_dot(t.b, v.b, second.b)};
    }
    INLINE_MEMBER I total() const { return iadd(s, t); }
};
#else
INLINE __m256i wide_sum(__m256i s) { return _mm256_madd_epi16(s, _mm256_set1_epi16(1)); }
struct NibbleDot {  // eight words of two products of at most 15 · 127 stay below 2^15: 16 bits hold a whole block
    I s = izero();
    INLINE_MEMBER void add(I lo, I hi, I first, I second) {
        s.a = _mm256_add_epi16(s.a, _mm256_maddubs_epi16(lo.a, first.a));
        s.b = _mm256_add_epi16(s.b, _mm256_maddubs_epi16(lo.b, first.b));
        s.a = _mm256_add_epi16(s.a, _mm256_maddubs_epi16(hi.a, second.a));
        s.b = _mm256_add_epi16(s.b, _mm256_maddubs_epi16(hi.b, second.b));
    }
    INLINE_MEMBER I total() const { return {wide_sum(s.a), wide_sum(s.b)}; }
};
struct ByteSums {  // of bytes 0 … 63, the two sums apart: pairs of products stay below 2^15, two of them do not
    I s = izero(), t = izero();
    INLINE_MEMBER void start(const int32_t* halves) { s = iset1(halves[0]), t = iset1(halves[1]); }
    static INLINE_MEMBER __m256i pairs(__m256i u, __m256i x) { return wide_sum(_mm256_maddubs_epi16(u, x)); }
    INLINE_MEMBER void add(I lo, I hi, I x, I y) {
        s.a = _mm256_add_epi32(s.a, pairs(lo.a, x.a)), s.b = _mm256_add_epi32(s.b, pairs(lo.b, x.b));
        t.a = _mm256_add_epi32(t.a, pairs(hi.a, y.a)), t.b = _mm256_add_epi32(t.b, pairs(hi.b, y.b));
    }
    INLINE_MEMBER I first() const { return s; }
    INLINE_MEMBER I second() const { return t; }
    INLINE_MEMBER I total() const { return iadd(s, t); }
};
// |w| · (x with w's sign): two products of at most 128 · 127 stay below 2^15, where (w + 128) · x would not.
INLINE I ready_bytes(I stored) {
    __m256i top = _mm256_set1_epi8(int8_t(0x80));
    return {_mm256_xor_si256(stored.a, top), _mm256_xor_si256(stored.b, top)};
}
INLINE __m256i half_dot(__m256i w, __m256i x) {
    return wide_sum(_mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w)));
}
struct ByteDot {
    I s = izero();
    INLINE_MEMBER void start(int32_t) {}
    INLINE_MEMBER void add(I w, I v, I first, I second) {
        s.a = _mm256_add_epi32(s.a, half_dot(w.a, first.a)), s.b = _mm256_add_epi32(s.b, half_dot(w.b, first.b));
        s.a = _mm256_add_epi32(s.a, half_dot(v.a, second.a)), s.b = _mm256_add_epi32(s.b, half_dot(v.b, second.b));
    }
    INLINE_MEMBER I total() const { return s; }
};
#endif
