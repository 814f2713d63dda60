// Which instruction sets this processor and its operating system offer. Compiled for the baseline of its architecture, so
// that asking is always safe; levels.py says which of them each level of the kernel needs.
#include <cstdint>

#if defined(__x86_64__)
#include <cpuid.h>

namespace {
uint64_t enabled_state() {  // what the operating system saves: 6 is AVX, 0xe6 AVX-512
    uint32_t low = 0, high = 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return uint64_t(high) << 32 | low;
}
}  // namespace

extern "C" __attribute__((visibility("default"))) uint64_t bedplate_features() {
    uint32_t a = 0, b = 0, c = 0, d = 0, found = 0;
    auto bit = [&](uint32_t word, int at, int name) { found |= (word >> at & 1u) << name; };
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1u)) return 0;  // no xgetbv, so no AVX
    const uint64_t state = enabled_state();
    if ((state & 6) != 6) return 0;
    bit(c, 12, 0);  // fma
    bit(c, 29, 1);  // f16c
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return found;
    const uint32_t subleaves = a;
    bit(b, 5, 2);   // avx2
    if ((state & 0xe6) == 0xe6) {
        bit(b, 16, 3), bit(b, 17, 4), bit(b, 30, 5), bit(b, 31, 6);  // avx512 f, dq, bw, vl
        bit(c, 11, 7);                                               // avx512 vnni
    }
    if (subleaves >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) {
        bit(a, 4, 8);                                 // avx-vnni
        if ((state & 0xe6) == 0xe6) bit(a, 5, 9);     // avx512 bf16
    }
    return found;
}

#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>

extern "C" __attribute__((visibility("default"))) uint64_t bedplate_features() {
    const unsigned long first = getauxval(AT_HWCAP), second = getauxval(AT_HWCAP2);
    return (first >> 20 & 1u) | (second >> 13 & 1u) << 1;  // asimddp, i8mm
}

#else
extern "C" __attribute__((visibility("default"))) uint64_t bedplate_features() { return 0; }
#endif
