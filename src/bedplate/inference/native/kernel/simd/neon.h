// Sixteen lanes in four NEON registers: Armv8 with dotprod; BEDPLATE_I8MM: and products of unsigned by signed bytes.
#pragma once
#include <arm_neon.h>

constexpr int BYTE_TILE = 8, FLOAT_TILE = 4;  // tokens at once in a product of bytes and of floats
constexpr int panels_beside(int tokens) { return tokens > 2 ? 1 : 2; }  // of floats: their sums stay in registers
constexpr bool WORDS_FIRST = true;  // each word of weights meets all tokens of a tile before the next is read
constexpr bool NIBBLES_BY_TWO = false;
constexpr int GROUP_SUMS = 4;  // sums of 16 lanes at once in attention

struct F { float32x4_t a, b, c, d; };
struct I { int32x4_t a, b, c, d; };

INLINE F set1(float x) { float32x4_t y = vdupq_n_f32(x); return {y, y, y, y}; }
INLINE I iset1(int32_t x) { int32x4_t y = vdupq_n_s32(x); return {y, y, y, y}; }
INLINE F zero() { return set1(0.0f); }
INLINE I izero() { return iset1(0); }
INLINE F load(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}; }
INLINE void store(float* p, F x) {
    vst1q_f32(p, x.a), vst1q_f32(p + 4, x.b), vst1q_f32(p + 8, x.c), vst1q_f32(p + 12, x.d);
}
INLINE int32x4_t quarter_load(const uint8_t* p) { return vreinterpretq_s32_u8(vld1q_u8(p)); }  // of any alignment
INLINE I iload(const void* p) {
    const uint8_t* q = static_cast<const uint8_t*>(p);
    return {quarter_load(q), quarter_load(q + 16), quarter_load(q + 32), quarter_load(q + 48)};
}
INLINE void istore(void* p, I x) {
    uint8_t* q = static_cast<uint8_t*>(p);
    vst1q_u8(q, vreinterpretq_u8_s32(x.a)), vst1q_u8(q + 16, vreinterpretq_u8_s32(x.b));
    vst1q_u8(q + 32, vreinterpretq_u8_s32(x.c)), vst1q_u8(q + 48, vreinterpretq_u8_s32(x.d));
}
INLINE I bcast(const void* p) { int32_t x; std::memcpy(&x, p, 4); return iset1(x); }
INLINE F add(F x, F y) {
    return {vaddq_f32(x.a, y.a), vaddq_f32(x.b, y.b), vaddq_f32(x.c, y.c), vaddq_f32(x.d, y.d)};
}
INLINE F sub(F x, F y) {
    return {vsubq_f32(x.a, y.a), vsubq_f32(x.b, y.b), vsubq_f32(x.c, y.c), vsubq_f32(x.d, y.d)};
}
INLINE F mul(F x, F y) {
    return {vmulq_f32(x.a, y.a), vmulq_f32(x.b, y.b), vmulq_f32(x.c, y.c), vmulq_f32(x.d, y.d)};
}
INLINE F div(F x, F y) {
    return {vdivq_f32(x.a, y.a), vdivq_f32(x.b, y.b), vdivq_f32(x.c, y.c), vdivq_f32(x.d, y.d)};
}
INLINE F fma(F x, F y, F z) {
    return {vfmaq_f32(z.a, x.a, y.a), vfmaq_f32(z.b, x.b, y.b), vfmaq_f32(z.c, x.c, y.c), vfmaq_f32(z.d, x.d, y.d)};
}
// Where one of the two is NaN, the second, as on x86: NEON's own maximum would give NaN.
INLINE float32x4_t quarter_max(float32x4_t x, float32x4_t y) { return vbslq_f32(vcgtq_f32(x, y), x, y); }
INLINE float32x4_t quarter_min(float32x4_t x, float32x4_t y) { return vbslq_f32(vcltq_f32(x, y), x, y); }
INLINE F fmax(F x, F y) {
    return {quarter_max(x.a, y.a), quarter_max(x.b, y.b), quarter_max(x.c, y.c), quarter_max(x.d, y.d)};
}
INLINE F fmin(F x, F y) {
    return {quarter_min(x.a, y.a), quarter_min(x.b, y.b), quarter_min(x.c, y.c), quarter_min(x.d, y.d)};
}
INLINE F fabs(F x) { return {vabsq_f32(x.a), vabsq_f32(x.b), vabsq_f32(x.c), vabsq_f32(x.d)}; }
INLINE float32x4_t quarter_where(float32x4_t x, float32x4_t y, float32x4_t yes, float32x4_t no) {
    return vbslq_f32(vcltq_f32(x, y), yes, no);
}
INLINE F where_below(F x, F y, F yes, F no) {
    return {quarter_where(x.a, y.a, yes.a, no.a), quarter_where(x.b, y.b, yes.b, no.b),
            quarter_where(x.c, y.c, yes.c, no.c), quarter_where(x.d, y.d, yes.d, no.d)};
}
INLINE float32x4_t quarter_signed_as(float32x4_t x, float32x4_t y) {
    return vbslq_f32(vdupq_n_u32(0x80000000u), y, x);
}
INLINE F signed_as(F x, F y) {
    return {quarter_signed_as(x.a, y.a), quarter_signed_as(x.b, y.b), quarter_signed_as(x.c, y.c),
            quarter_signed_as(x.d, y.d)};
}
INLINE I iadd(I x, I y) {
    return {vaddq_s32(x.a, y.a), vaddq_s32(x.b, y.b), vaddq_s32(x.c, y.c), vaddq_s32(x.d, y.d)};
}
INLINE float sum(F x) { return vaddvq_f32(vaddq_f32(vaddq_f32(x.a, x.b), vaddq_f32(x.c, x.d))); }
INLINE float largest(F x) {
    float32x4_t y = quarter_max(quarter_max(x.a, x.b), quarter_max(x.c, x.d));
    y = quarter_max(y, vextq_f32(y, y, 2));
    return vgetq_lane_f32(quarter_max(y, vrev64q_f32(y)), 0);
}
INLINE int32_t isum(I x) { return vaddvq_s32(vaddq_s32(vaddq_s32(x.a, x.b), vaddq_s32(x.c, x.d))); }
INLINE F to_float(I x) { return {vcvtq_f32_s32(x.a), vcvtq_f32_s32(x.b), vcvtq_f32_s32(x.c), vcvtq_f32_s32(x.d)}; }
INLINE I to_int(F x) {  // to nearest, ties to even
    return {vcvtnq_s32_f32(x.a), vcvtnq_s32_f32(x.b), vcvtnq_s32_f32(x.c), vcvtnq_s32_f32(x.d)};
}
INLINE I words(F x) {
    return {vreinterpretq_s32_f32(x.a), vreinterpretq_s32_f32(x.b), vreinterpretq_s32_f32(x.c),
            vreinterpretq_s32_f32(x.d)};
}
INLINE F floats(I x) {
    return {vreinterpretq_f32_s32(x.a), vreinterpretq_f32_s32(x.b), vreinterpretq_f32_s32(x.c),
            vreinterpretq_f32_s32(x.d)};
}
INLINE void store_bytes(int8_t* p, I x) {
    int16x8_t low = vcombine_s16(vqmovn_s32(x.a), vqmovn_s32(x.b)), high = vcombine_s16(vqmovn_s32(x.c), vqmovn_s32(x.d));
    vst1q_s8(p, vcombine_s8(vqmovn_s16(low), vqmovn_s16(high)));
}
INLINE int32x4_t quarter_low(int32x4_t x) {
    return vreinterpretq_s32_u8(vandq_u8(vreinterpretq_u8_s32(x), vdupq_n_u8(15)));
}
INLINE int32x4_t quarter_high(int32x4_t x) { return vreinterpretq_s32_u8(vshrq_n_u8(vreinterpretq_u8_s32(x), 4)); }
INLINE I low_nibbles(I x) { return {quarter_low(x.a), quarter_low(x.b), quarter_low(x.c), quarter_low(x.d)}; }
INLINE I high_nibbles(I x) { return {quarter_high(x.a), quarter_high(x.b), quarter_high(x.c), quarter_high(x.d)}; }
INLINE I iand(I x, int32_t mask) {
    int32x4_t m = vdupq_n_s32(mask);
    return {vandq_s32(x.a, m), vandq_s32(x.b, m), vandq_s32(x.c, m), vandq_s32(x.d, m)};
}
INLINE I ior(I x, I y) { return {vorrq_s32(x.a, y.a), vorrq_s32(x.b, y.b), vorrq_s32(x.c, y.c), vorrq_s32(x.d, y.d)}; }
INLINE int32x4_t quarter_shifted(int32x4_t x, int by) {  // right where `by` is negative
    return vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(x), vdupq_n_s32(by)));
}
INLINE I shifted_left(I x, int by) {
    return {quarter_shifted(x.a, by), quarter_shifted(x.b, by), quarter_shifted(x.c, by), quarter_shifted(x.d, by)};
}
INLINE I shifted_right(I x, int by) { return shifted_left(x, -by); }
INLINE F widened_bytes(int8x16_t x) {
    int16x8_t low = vmovl_s8(vget_low_s8(x)), high = vmovl_s8(vget_high_s8(x));
    return to_float({vmovl_s16(vget_low_s16(low)), vmovl_s16(vget_high_s16(low)), vmovl_s16(vget_low_s16(high)),
                     vmovl_s16(vget_high_s16(high))});
}
INLINE F load_signed(const uint8_t* p) { return widened_bytes(vreinterpretq_s8_u8(vld1q_u8(p))); }
INLINE I load_bytes(const uint8_t* p) {
    uint8x16_t x = vld1q_u8(p);
    uint16x8_t low = vmovl_u8(vget_low_u8(x)), high = vmovl_u8(vget_high_u8(x));
    auto wide = [](uint16x4_t quarter) { return vreinterpretq_s32_u32(vmovl_u16(quarter)); };
    return {wide(vget_low_u16(low)), wide(vget_high_u16(low)), wide(vget_low_u16(high)), wide(vget_high_u16(high))};
}
INLINE I looked_up(const uint8_t* table, I at) {  // bytes: those of a table of 16
    const uint8x16_t all = vld1q_u8(table);
    auto of = [all](int32x4_t quarter) { return vreinterpretq_s32_u8(vqtbl1q_u8(all, vreinterpretq_u8_s32(quarter))); };
    return {of(at.a), of(at.b), of(at.c), of(at.d)};
}
INLINE bool any_nan(F x) {
    uint32x4_t good = vandq_u32(vandq_u32(vceqq_f32(x.a, x.a), vceqq_f32(x.b, x.b)),
                                vandq_u32(vceqq_f32(x.c, x.c), vceqq_f32(x.d, x.d)));
    return vminvq_u32(good) == 0;
}
INLINE float32x4_t quarter_half(const uint8_t* p) {
    return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p)));
}
INLINE F load_half(const void* p) {
    const uint8_t* q = static_cast<const uint8_t*>(p);
    return {quarter_half(q), quarter_half(q + 8), quarter_half(q + 16), quarter_half(q + 24)};
}
INLINE float32x4_t widened(const uint16_t* p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
INLINE F load(const uint16_t* p) { return {widened(p), widened(p + 4), widened(p + 8), widened(p + 12)}; }
INLINE uint16x4_t narrowed(float32x4_t x) {  // to nearest, ties to even; NaN stays NaN
    uint32x4_t bits = vreinterpretq_u32_f32(x), odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    uint16x4_t rounded = vshrn_n_u32(vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff))), 16);
    uint16x4_t quiet = vorr_u16(vshrn_n_u32(bits, 16), vdup_n_u16(64));
    return vbsl_u16(vmovn_u32(vceqq_f32(x, x)), rounded, quiet);
}
INLINE void store(uint16_t* p, F x) {
    vst1_u16(p, narrowed(x.a)), vst1_u16(p + 4, narrowed(x.b));
    vst1_u16(p + 8, narrowed(x.c)), vst1_u16(p + 12, narrowed(x.d));
}
// Words of two bfloat16, lower and upper.
INLINE F lower(I x) {
    return floats({vshlq_n_s32(x.a, 16), vshlq_n_s32(x.b, 16), vshlq_n_s32(x.c, 16), vshlq_n_s32(x.d, 16)});
}
INLINE F upper(I x) {
    const int32x4_t high = vdupq_n_s32(int32_t(0xffff0000));
    return floats({vandq_s32(x.a, high), vandq_s32(x.b, high), vandq_s32(x.c, high), vandq_s32(x.d, high)});
}
// The first n lanes of x, `other` in the rest.
INLINE float32x4_t quarter_first(float32x4_t x, int n, float32x4_t other) {
    const int32_t lanes[4] = {0, 1, 2, 3};
    return vbslq_f32(vcltq_s32(vld1q_s32(lanes), vdupq_n_s32(n)), x, other);
}
INLINE F first_lanes(F x, int n, F other) {
    return {quarter_first(x.a, n, other.a), quarter_first(x.b, n - 4, other.b), quarter_first(x.c, n - 8, other.c),
            quarter_first(x.d, n - 12, other.d)};
}
INLINE float32x4_t quarter_power(float32x4_t x, float32x4_t n) {
    int32x4_t e = vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127)), 23);
    return vmulq_f32(x, vreinterpretq_f32_s32(e));
}
INLINE F power_of_two(F x, F n) {
    return {quarter_power(x.a, n.a), quarter_power(x.b, n.b), quarter_power(x.c, n.c), quarter_power(x.d, n.d)};
}
INLINE F nearest(F x) { return {vrndnq_f32(x.a), vrndnq_f32(x.b), vrndnq_f32(x.c), vrndnq_f32(x.d)}; }
// 4 × 4 words in place.
INLINE void turn(int32x4_t& p, int32x4_t& q, int32x4_t& r, int32x4_t& s) {
    int64x2_t a = vreinterpretq_s64_s32(vtrn1q_s32(p, q)), b = vreinterpretq_s64_s32(vtrn2q_s32(p, q));
    int64x2_t c = vreinterpretq_s64_s32(vtrn1q_s32(r, s)), d = vreinterpretq_s64_s32(vtrn2q_s32(r, s));
    p = vreinterpretq_s32_s64(vtrn1q_s64(a, c)), q = vreinterpretq_s32_s64(vtrn1q_s64(b, d));
    r = vreinterpretq_s32_s64(vtrn2q_s64(a, c)), s = vreinterpretq_s32_s64(vtrn2q_s64(b, d));
}
// 16 × 16 words: in place, word c of row r becomes word r of row c.
INLINE void transpose(I* x) {
    for (int r = 0; r < 16; r += 4) {
        turn(x[r].a, x[r + 1].a, x[r + 2].a, x[r + 3].a), turn(x[r].b, x[r + 1].b, x[r + 2].b, x[r + 3].b);
        turn(x[r].c, x[r + 1].c, x[r + 2].c, x[r + 3].c), turn(x[r].d, x[r + 1].d, x[r + 2].d, x[r + 3].d);
    }
    auto swap = [](int32x4_t& p, int32x4_t& q) { int32x4_t kept = p; p = q, q = kept; };
    for (int i = 0; i < 4; ++i) {
        swap(x[i].b, x[4 + i].a), swap(x[i].c, x[8 + i].a), swap(x[i].d, x[12 + i].a);
        swap(x[4 + i].c, x[8 + i].b), swap(x[4 + i].d, x[12 + i].b), swap(x[8 + i].d, x[12 + i].c);
    }
}
INLINE void prefetch(const void* p) { __builtin_prefetch(p, 0, 3); }

INLINE int32x4_t quarter_dot(int32x4_t s, int32x4_t w, int32x4_t x) {
    return vdotq_s32(s, vreinterpretq_s8_s32(w), vreinterpretq_s8_s32(x));
}
// Σ of 32 products of nibbles 0 … 15 and signed bytes, per lane: four words each of the first and the second 16 inputs.
struct NibbleDot {
    I s = izero();
    INLINE_MEMBER void add(I lo, I hi, I first, I second) {
        s.a = quarter_dot(quarter_dot(s.a, lo.a, first.a), hi.a, second.a);
        s.b = quarter_dot(quarter_dot(s.b, lo.b, first.b), hi.b, second.b);
        s.c = quarter_dot(quarter_dot(s.c, lo.c, first.c), hi.c, second.c);
        s.d = quarter_dot(quarter_dot(s.d, lo.d, first.d), hi.d, second.d);
    }
    INLINE_MEMBER I total() const { return s; }
};
// The same of bytes 0 … 63, the two sums apart.
struct ByteSums {
    I s = izero(), t = izero();
    INLINE_MEMBER void start(const int32_t* halves) { s = iset1(halves[0]), t = iset1(halves[1]); }
    INLINE_MEMBER void add(I lo, I hi, I x, I y) {
        s.a = quarter_dot(s.a, lo.a, x.a), s.b = quarter_dot(s.b, lo.b, x.b);
        s.c = quarter_dot(s.c, lo.c, x.c), s.d = quarter_dot(s.d, lo.d, x.d);
        t.a = quarter_dot(t.a, hi.a, y.a), t.b = quarter_dot(t.b, hi.b, y.b);
        t.c = quarter_dot(t.c, hi.c, y.c), t.d = quarter_dot(t.d, hi.d, y.d);
    }
    INLINE_MEMBER I first() const { return s; }
    INLINE_MEMBER I second() const { return t; }
    INLINE_MEMBER I total() const { return iadd(s, t); }
};
// The same of bytes, stored as q + 128; `offset` is −128 Σ of the signed bytes.
#ifdef BEDPLATE_I8MM
INLINE I ready_bytes(I stored) { return stored; }
INLINE int32x4_t quarter_byte_dot(int32x4_t s, int32x4_t w, int32x4_t x) {
    return vusdotq_s32(s, vreinterpretq_u8_s32(w), vreinterpretq_s8_s32(x));
}
#else
INLINE int32x4_t quarter_signed(int32x4_t x) {
    return vreinterpretq_s32_u8(veorq_u8(vreinterpretq_u8_s32(x), vdupq_n_u8(0x80)));
}
INLINE I ready_bytes(I x) { return {quarter_signed(x.a), quarter_signed(x.b), quarter_signed(x.c), quarter_signed(x.d)}; }
INLINE int32x4_t quarter_byte_dot(int32x4_t s, int32x4_t w, int32x4_t x) { return quarter_dot(s, w, x); }
#endif
struct ByteDot {
    I s = izero();
#ifdef BEDPLATE_I8MM
    INLINE_MEMBER void start(int32_t offset) { s = iset1(offset); }
#else
    INLINE_MEMBER void start(int32_t) {}
#endif
    INLINE_MEMBER void add(I u, I v, I first, I second) {
        s.a = quarter_byte_dot(quarter_byte_dot(s.a, u.a, first.a), v.a, second.a);
        s.b = quarter_byte_dot(quarter_byte_dot(s.b, u.b, first.b), v.b, second.b);
        s.c = quarter_byte_dot(quarter_byte_dot(s.c, u.c, first.c), v.c, second.c);
        s.d = quarter_byte_dot(quarter_byte_dot(s.d, u.d, first.d), v.d, second.d);
    }
    INLINE_MEMBER I total() const { return s; }
};
