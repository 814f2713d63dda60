// AMX's instructions on a processor that has none: each is a fault there, of which the handler does what the instruction would
// have done (simd/tile_plain.h) and goes on behind it. So the code that compilers make of the real level's tiles is run,
// registers, strides and all. Encodings: Intel's manual, volume 2. Linux on x86-64.
#include <csignal>
#include <ucontext.h>

#include "tiles.h"

namespace {
template <int T = 0>
void on_tile(int t, int what, uint8_t* at, int64_t stride) {
    if constexpr (T < 8) {
        if (t != T) return on_tile<T + 1>(t, what, at, stride);
        if (what == 'Z') tile_zero<T>();
        else if (what == 'L') tile_load<T>(at, stride);
        else tile_store<T>(at, stride);
    }
}

constexpr int REGISTERS[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                             REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

struct Operand {
    uint8_t* at = nullptr;
    int64_t index = 0;
    int bytes = 0;  // of ModRM, SIB and displacement
};

Operand memory_of(const uint8_t* p, const greg_t* regs, int x, int b) {
    const int mod = p[0] >> 6, rm = p[0] & 7;
    Operand found;
    found.bytes = 1;
    int base = rm | b;
    if (rm == 4) {
        const uint8_t sib = p[found.bytes++];
        base = (sib & 7) | b;
        const int index = (sib >> 3 & 7) | x;
        if (index != 4) found.index = regs[REGISTERS[index]] << (sib >> 6);
    }
    int64_t displacement = 0;
    const bool none = mod == 0 && (base & 7) == 5;  // a displacement alone, or from the next instruction: not used here
    if (none) std::abort();
    if (mod == 1) displacement = int8_t(p[found.bytes++]);
    if (mod == 2) {
        int32_t wide;
        std::memcpy(&wide, p + found.bytes, 4);
        displacement = wide, found.bytes += 4;
    }
    found.at = reinterpret_cast<uint8_t*>(regs[REGISTERS[base]] + displacement);
    return found;
}

struct sigaction before;
long handled = 0;

void on_illegal(int, siginfo_t*, void* context) {
    greg_t* regs = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
    const uint8_t* p = reinterpret_cast<const uint8_t*>(regs[REG_RIP]);
    const int prefix = p[2] & 3, opcode = p[3], modrm = p[4];  // prefix: 0 none, 1 66, 2 F3, 3 F2
    const int x = p[1] & 0x40 ? 0 : 8, b = p[1] & 0x20 ? 0 : 8, third = ~p[2] >> 3 & 15;
    const bool vex = p[0] == 0xc4 && (p[1] & 31) == 2 && (p[2] & 0x84) == 0;
    const int reg = modrm >> 3 & 7, rm = modrm & 7;
    int length = 5;
    if (vex && opcode == 0x49 && prefix == 0 && modrm == 0xc0) {
        tile_release();
    } else if (vex && opcode == 0x49 && prefix == 0 && modrm < 0xc0) {
        const Operand m = memory_of(p + 4, regs, x, b);
        TileShapes shapes;
        std::memcpy(&shapes, m.at, sizeof(shapes));
        tile_configure(shapes);
        length = 4 + m.bytes;
    } else if (vex && opcode == 0x49 && prefix == 3) {
        on_tile(reg, 'Z', nullptr, 0);
    } else if (vex && opcode == 0x4b && (prefix == 2 || prefix == 3)) {
        const Operand m = memory_of(p + 4, regs, x, b);
        on_tile(reg, prefix == 3 ? 'L' : 'S', m.at, m.index);
        length = 4 + m.bytes;
    } else if (vex && opcode == 0x5e && prefix == 2) {
        plain_dot_bytes(reg, rm, third);
    } else if (vex && opcode == 0x5c && prefix == 2) {
        plain_dot_pairs(reg, rm, third);
    } else {
        sigaction(SIGILL, &before, nullptr);  // and meets its own handler once more
        return;
    }
    ++handled;
    regs[REG_RIP] += length;
}
}  // namespace

#pragma GCC visibility push(default)
extern "C" {
void traps_set() {
    struct sigaction action {};
    action.sa_sigaction = on_illegal, action.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigaction(SIGILL, &action, &before);
}
// Returns how many instructions were met.
long traps_remove() {
    sigaction(SIGILL, &before, nullptr);
    return handled;
}
}
#pragma GCC visibility pop
