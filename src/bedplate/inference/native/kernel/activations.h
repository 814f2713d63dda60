// The functions between a feed-forward's products, and of caps: on sixteen lanes, as exact as their sums in float32.
#pragma once
#include "simd.h"

enum Activation { SILU = 0, GELU = 1, GELU_TANH = 2, RELU = 3, RELU2 = 4, QUICK_GELU = 5, CLAMPED_SILU = 6 };

// x / (1 + e^−by·x)
INLINE F sigmoid_times(F x, float by) { return div(x, add(set1(1.0f), exp(mul(x, set1(-by))))); }

// A polynomial, its highest coefficient first.
template <int N>
INLINE F polynomial(F x, const float (&of)[N]) {
    F y = set1(of[0]);
    for (int i = 1; i < N; ++i) y = fma(y, x, set1(of[i]));
    return y;
}

// Coefficients: Chebyshev fit of (tanh √z / √z − 1) / z up to z = 0.36; minimax fits of −(log₂ Φ(−u) + 1) / u up to 5.8, where
// errors count as much as they change u · Φ(−u), and of 2^r for r of −½ … ½.
INLINE F tanh(F x) {
    static constexpr float small[] = {-6.2763905e-3f, 2.11162163e-2f, -5.38751388e-2f, 1.3332924e-1f, -3.33333304e-1f};
    F z = mul(x, x), size = fabs(x);
    F near = fma(mul(x, z), polynomial(z, small), x);
    F far = sub(set1(1.0f), div(set1(2.0f), add(set1(1.0f), exp(mul(size, set1(2.0f))))));
    return where_below(size, set1(0.6f), near, signed_as(far, x));
}

// x · Φ(x) = max(x, 0) − u · Φ(−u) of u = |x|, without a difference of nearly equal numbers and with one exponential:
// Φ(−u) = 2^−(1 + u · P(u)). Beyond 5.8 what is taken away is below 2e-8. ±∞ and NaN give NaN.
INLINE F gelu(F x) {
    static constexpr float normal[] = {-2.41340672e-7f, 5.45133844e-6f,  -4.95403438e-5f, 2.00851631e-4f, 1.42558405e-4f,
                                       -7.10401079e-3f, 5.25408164e-2f, 4.59188938e-1f,  1.15110791f};
    static constexpr float power[] = {1.53458022e-4f, 1.33999309e-3f, 9.61848907e-3f, 5.55032864e-2f,
                                      2.40226462e-1f, 6.93147182e-1f, 1.0f};
    F u = fmin(set1(5.8f), fabs(x)), y = sub(set1(-1.0f), mul(u, polynomial(u, normal)));
    F whole = nearest(y), tail = power_of_two(polynomial(sub(y, whole), power), whole);
    return fma(x, zero(), sub(fmax(zero(), x), mul(u, tail)));
}

INLINE F activated(int kind, F x) {
    switch (kind) {
        case GELU: return gelu(x);
        case GELU_TANH: {  // x/2 · (1 + tanh u) = x / (1 + e^−2u)
            F u = mul(x, fma(mul(x, x), set1(0.044715f * 0.79788456f), set1(0.79788456f)));
            return div(x, add(set1(1.0f), exp(mul(u, set1(-2.0f)))));
        }
        case RELU: return fmax(zero(), x);
        case RELU2: { F y = fmax(zero(), x); return mul(y, y); }
        case QUICK_GELU: return sigmoid_times(x, 1.702f);
        default: return sigmoid_times(x, 1.0f);
    }
}

// What a gated feed-forward makes of its gate and what passes it. Clamped (gpt-oss): (u + 1) · g · σ(1.702 g), g at most 7, u
// between −7 and 7.
INLINE F gated(int kind, F gate, F up) {
    if (kind != CLAMPED_SILU) return mul(activated(kind, gate), up);
    F g = fmin(set1(7.0f), gate), u = fmin(set1(7.0f), fmax(set1(-7.0f), up));
    return mul(sigmoid_times(g, 1.702f), add(u, set1(1.0f)));
}

// x → cap · tanh(x / cap)
INLINE F capped(F x, float cap) { return mul(tanh(div(x, set1(cap))), set1(cap)); }
