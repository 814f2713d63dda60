// Which instruction sets this processor and its operating system offer. Compiled for the baseline of its architecture, so
// that asking is always safe; levels.py says which of them each level of the kernel needs.
#include <cstdint>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <setjmp.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <mutex>
#endif

namespace {
constexpr uint64_t TILE_STATE = 3 << 17;
uint64_t enabled_state() {  // what the operating system saves: 6 is AVX, 0xe6 AVX-512, TILE_STATE tiles
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
    if ((state & TILE_STATE) == TILE_STATE) bit(d, 24, 10), bit(d, 25, 11), bit(d, 22, 12);  // amx tile, int8, bf16
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

#if defined(__linux__)
namespace {
thread_local sigjmp_buf* probing = nullptr;
struct sigaction before_ill, before_segv;

void on_fault(int signal, siginfo_t*, void*) {
    if (probing) siglongjmp(*probing, 1);
    sigaction(signal, signal == SIGILL ? &before_ill : &before_segv, nullptr);  // another thread's: it meets its own handler
}

// Four products of bytes and two of bfloat16, by tiles of one row, as code bytes, for assemblers that do not know the
// instructions. Returns whether the sums, 24 and 6, are right.
bool multiply_tiles() {
    struct alignas(64) {
        uint8_t palette = 1, start = 0, reserved[14] = {};
        uint16_t bytes[16] = {4, 4, 4};
        uint8_t rows[16] = {1, 1, 1};
    } shapes;
    const uint32_t bytes[] = {0x03030303, 0x02020202}, halves[] = {0x3fc03fc0, 0x40004000};
    uint32_t sums[2] = {};
    const uint32_t *first = bytes, *second = halves;
    uint32_t* to = sums;
    __asm__ volatile(
        ".byte 0xc4,0xe2,0x78,0x49,0x00\n\t"            // ldtilecfg (%%rax)
        ".byte 0xc4,0xe2,0x7b,0x49,0xc0\n\t"            // tilezero %%tmm0
        ".byte 0xc4,0xe2,0x7b,0x4b,0x0c,0x11\n\t"       // tileloadd (%%rcx,%%rdx), %%tmm1
        "add $4, %%rcx\n\t"
        ".byte 0xc4,0xe2,0x7b,0x4b,0x14,0x11\n\t"       // tileloadd (%%rcx,%%rdx), %%tmm2
        ".byte 0xc4,0xe2,0x6a,0x5e,0xc1\n\t"            // tdpbsud %%tmm2, %%tmm1, %%tmm0
        ".byte 0xc4,0xe2,0x7a,0x4b,0x04,0x16\n\t"       // tilestored %%tmm0, (%%rsi,%%rdx)
        ".byte 0xc4,0xe2,0x7b,0x49,0xc0\n\t"            // tilezero %%tmm0
        ".byte 0xc4,0xe2,0x7b,0x4b,0x0c,0x17\n\t"       // tileloadd (%%rdi,%%rdx), %%tmm1
        "add $4, %%rdi\n\t"
        ".byte 0xc4,0xe2,0x7b,0x4b,0x14,0x17\n\t"       // tileloadd (%%rdi,%%rdx), %%tmm2
        ".byte 0xc4,0xe2,0x6a,0x5c,0xc1\n\t"            // tdpbf16ps %%tmm2, %%tmm1, %%tmm0
        "add $4, %%rsi\n\t"
        ".byte 0xc4,0xe2,0x7a,0x4b,0x04,0x16\n\t"       // tilestored %%tmm0, (%%rsi,%%rdx)
        ".byte 0xc4,0xe2,0x78,0x49,0xc0"                // tilerelease
        : "+c"(first), "+D"(second), "+S"(to) : "a"(&shapes), "d"(4L) : "memory");
    return sums[0] == 24 && sums[1] == 0x40c00000;  // 6.0f
}
}  // namespace

// Whether this process may use tiles, which flags do not say: 0; what the system answers where it gives no permission
// (errno's number); −1 where they are not executed; −2 where they compute something else.
// https://docs.kernel.org/arch/x86/xstate.html
extern "C" __attribute__((visibility("default"))) int bedplate_tiles() {
    constexpr long REQUEST = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM
    if (syscall(SYS_arch_prctl, REQUEST, TILE_DATA)) return errno;
    static std::mutex one_at_a_time;
    std::lock_guard<std::mutex> hold(one_at_a_time);
    struct sigaction action {};
    action.sa_sigaction = on_fault, action.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigaction(SIGILL, &action, &before_ill), sigaction(SIGSEGV, &action, &before_segv);
    sigjmp_buf back;
    volatile int result = -1;
    if (!sigsetjmp(back, 1)) {
        probing = &back;
        result = multiply_tiles() ? 0 : -2;
    }
    probing = nullptr;
    sigaction(SIGILL, &before_ill, nullptr), sigaction(SIGSEGV, &before_segv, nullptr);
    return result;
}
#else
extern "C" __attribute__((visibility("default"))) int bedplate_tiles() { return -1; }
#endif

#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>

extern "C" __attribute__((visibility("default"))) uint64_t bedplate_features() {
    const unsigned long first = getauxval(AT_HWCAP), second = getauxval(AT_HWCAP2);
    return (first >> 20 & 1u) | (second >> 13 & 1u) << 1;  // asimddp, i8mm
}

#else
extern "C" __attribute__((visibility("default"))) uint64_t bedplate_features() { return 0; }
#endif
