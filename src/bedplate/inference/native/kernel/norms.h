// Norms of one row, in float32.
#pragma once
#include "simd.h"

INLINE void scaled_row(float* x, int size, float by) {
    for (int i = 0; i < size; i += LANES) store(x + i, mul(load(x + i), set1(by)));
}

// x → x / rms(x) · weight (+ bias), the mean taken away before that where `centred`; x and out may be the same.
inline void norm_row(const float* x, int size, float eps, bool centred, const float* weight, const float* bias, float* out) {
    F shift = zero(), squares = zero();
    if (centred) {
        F total = zero();
        for (int i = 0; i < size; i += LANES) total = add(total, load(x + i));
        shift = set1(sum(total) / static_cast<float>(size));
    }
    for (int i = 0; i < size; i += LANES) {
        F y = sub(load(x + i), shift);
        squares = fma(y, y, squares);
    }
    F inverse = set1(1.0f / std::sqrt(sum(squares) / static_cast<float>(size) + eps));
    for (int i = 0; i < size; i += LANES) {
        F y = mul(mul(sub(load(x + i), shift), inverse), load(weight + i));
        store(out + i, bias ? add(y, load(bias + i)) : y);
    }
}
