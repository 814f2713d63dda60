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

// Coefficients: Chebyshev fits of (tanh √z / √z − 1) / z up to z = 0.36, of erf √z / √z − 1 up to 0.81, and of −ln erfc t / t
// from 0.9 to 4, beyond which erf is 1 in float32.
INLINE F tanh(F x) {
    static constexpr float small[] = {-6.2763905e-3f, 2.11162163e-2f, -5.38751388e-2f, 1.3332924e-1f, -3.33333304e-1f};
    F z = mul(x, x), size = fabs(x);
    F near = fma(mul(x, z), polynomial(z, small), x);
    F far = sub(set1(1.0f), div(set1(2.0f), add(set1(1.0f), exp(mul(size, set1(2.0f))))));
    return where_below(size, set1(0.6f), near, signed_as(far, x));
}

INLINE F erf(F x) {
    static constexpr float small[] = {-6.10698957e-4f, 5.01535735e-3f, -2.67813398e-2f,
                                      1.12822121e-1f,  -3.76125306e-1f, 1.28379155e-1f};
    static constexpr float large[] = {-9.19429911e-7f, 3.21648972e-5f,  -4.82600556e-4f, 4.24022891e-3f,
                                      -2.49956498e-2f, 1.0766800e-1f, 6.34278314e-1f,  1.12886585f};
    F z = mul(x, x), size = fabs(x), t = where_below(size, set1(4.0f), size, set1(4.0f));
    F near = fma(x, polynomial(z, small), x);
    F far = sub(set1(1.0f), exp(mul(sub(zero(), t), polynomial(t, large))));
    return where_below(size, set1(0.9f), near, add(signed_as(far, x), mul(x, zero())));  // NaN stays NaN
}

INLINE F activated(int kind, F x) {
    switch (kind) {
        case GELU: return mul(mul(x, set1(0.5f)), add(set1(1.0f), erf(mul(x, set1(0.70710678f)))));
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
