// Sixteen lanes in plain C++ on the compiler's vector types: what every other level must agree with.
#pragma once

constexpr int BYTE_TILE = 4, FLOAT_TILE = 4;
constexpr int panels_beside(int) { return 1; }
constexpr bool WORDS_FIRST = true;  // each word of weights meets all tokens of a tile before the next is read
constexpr bool NIBBLES_BY_TWO = false;
constexpr int GROUP_SUMS = 4;  // sums of 16 lanes at once in attention

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
INLINE F where_below(F a, F b, F yes, F no) { return a < b ? yes : no; }
INLINE F signed_as(F a, F b) { return (F)(((I)a & 0x7fffffff) | ((I)b & (int32_t)0x80000000)); }
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
INLINE bool any_nan(F a) {
    for (int i = 0; i < 16; ++i) if (a[i] != a[i]) return true;
    return false;
}
INLINE F lower(I x) { return (F)((U)x << 16); }
INLINE F upper(I x) { return (F)((U)x & 0xffff0000u); }
INLINE I words(F x) { return (I)x; }
INLINE F floats(I x) { return (F)x; }
INLINE I iand(I a, int32_t mask) { return a & mask; }
INLINE I ior(I a, I b) { return a | b; }
INLINE I shifted_left(I a, int by) { return (I)((U)a << by); }
INLINE I shifted_right(I a, int by) { return (I)((U)a >> by); }
INLINE I load_bytes(const uint8_t* p) { I x{}; for (int i = 0; i < 16; ++i) x[i] = p[i]; return x; }
INLINE I looked_up(const uint8_t* table, I at) {  // bytes: those of a table of 16
    uint8_t bytes[64];
    std::memcpy(bytes, &at, 64);
    for (uint8_t& byte : bytes) byte = table[byte];
    std::memcpy(&at, bytes, 64);
    return at;
}
INLINE F load_signed(const uint8_t* p) { F x{}; for (int i = 0; i < 16; ++i) x[i] = int8_t(p[i]); return x; }
INLINE F load_half(const void* p) {
    uint16_t h[16];
    std::memcpy(h, p, 32);
    F x{};
    for (int i = 0; i < 16; ++i) x[i] = half_value(h[i]);
    return x;
}
INLINE F load(const uint16_t* p) {
    U x{};
    for (int i = 0; i < 16; ++i) x[i] = static_cast<uint32_t>(p[i]) << 16;
    return (F)x;
}
INLINE void store(uint16_t* p, F x) {  // to nearest, ties to even; NaN stays NaN
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
INLINE void transpose(I* x) {
    for (int r = 0; r < 16; ++r)
        for (int c = 0; c < r; ++c) {
            int32_t w = x[r][c];
            x[r][c] = x[c][r], x[c][r] = w;
        }
}
INLINE void prefetch(const void* p) { __builtin_prefetch(p, 0, 3); }

INLINE I dot_words(I a, I u, I s) {  // u: bytes 0 … 255
    for (int j = 0; j < 4; ++j) {
        I x = (I)(((U)u >> (8 * j)) & 255u), y = (I)((U)s << (24 - 8 * j)) >> 24;
        a += x * y;
    }
    return a;
}
struct NibbleDot {
    I s = izero();
    INLINE_MEMBER void add(I lo, I hi, I first, I second) { s = dot_words(dot_words(s, lo, first), hi, second); }
    INLINE_MEMBER I total() const { return s; }
};
struct ByteSums {  // of bytes 0 … 63, the two sums apart
    I s = izero(), t = izero();
    INLINE_MEMBER void start(const int32_t* halves) { s = iset1(halves[0]), t = iset1(halves[1]); }
    INLINE_MEMBER void add(I lo, I hi, I first, I second) { s = dot_words(s, lo, first), t = dot_words(t, hi, second); }
    INLINE_MEMBER I first() const { return s; }
    INLINE_MEMBER I second() const { return t; }
    INLINE_MEMBER I total() const { return iadd(s, t); }
};
INLINE I ready_bytes(I stored) { return stored; }
struct ByteDot {
    I s = izero();
    INLINE_MEMBER void start(int32_t offset) { s = iset1(offset); }
    INLINE_MEMBER void add(I u, I v, I first, I second) { s = dot_words(dot_words(s, u, first), v, second); }
    INLINE_MEMBER I total() const { return s; }
};

#ifdef BEDPLATE_BF16
INLINE F dot_bf16(F a, I x, I y) { return fma(lower(x), lower(y), fma(upper(x), upper(y), a)); }
// 16 × 16 words: out[c] lane r = word c of row r; rows are `stride` bytes apart.
INLINE void transpose(const void* rows, int64_t stride, I* out) {
    for (int r = 0; r < 16; ++r) out[r] = iload(static_cast<const char*>(rows) + r * stride);
    transpose(out);
}
// 16 lanes of pairs (a[i], b[i]) of two rows of 16 halfwords.
INLINE I interleave(const uint16_t* a, const uint16_t* b) {
    I x{};
    for (int i = 0; i < 16; ++i) x[i] = int32_t(uint32_t(a[i]) | uint32_t(b[i]) << 16);
    return x;
}
#endif
