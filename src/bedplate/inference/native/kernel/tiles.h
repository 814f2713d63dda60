// Tiles: 16 rows of tokens times a panel, many products at once, in registers of their own (BEDPLATE_AMX), or, for tests, in
// plain C++ that computes the same bits.
#pragma once
#include "simd.h"

#ifdef BEDPLATE_TILES
#if defined(BEDPLATE_AVX2) || defined(BEDPLATE_NEON)
#error "their bytes of weights are signed, or their words of activations in another order"
#endif
// As the processor reads it: bytes of a row, and rows, of each of eight registers.
struct alignas(64) TileShapes {
    uint8_t palette = 0, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
};
static_assert(sizeof(TileShapes) == 64);

#ifdef BEDPLATE_AMX
#include "simd/tile_amx.h"
#else
#include "simd/tile_plain.h"
#endif

constexpr int TILE_ROWS = 16, PAIR_BYTES = 64, BYTE_BYTES = 32;  // bytes of a row of activations: 32 inputs

// What the registers of this thread hold. Any library may have loaded shapes of its own since the last call, or may need
// that none are: each call of the kernel begins with nothing loaded and leaves nothing.
class Tiles {
public:
    Tiles() { loaded_ = 0; }
    ~Tiles() {
        if (loaded_) tile_release();
        loaded_ = 0;
    }
    Tiles(const Tiles&) = delete;

    // Registers 0 … 3: sums of the first tokens times the first and second panel, and of the tokens from 16 on; 4, 5: those
    // tokens' activations; 6, 7: the panels' weights.
    static void use(int bytes, int tokens) {
        const int wanted = bytes << 8 | tokens;
        if (loaded_ == wanted) return;
        const uint8_t first = uint8_t(tokens < TILE_ROWS ? tokens : TILE_ROWS);
        const uint8_t rest = uint8_t(tokens > TILE_ROWS ? tokens - TILE_ROWS : 1);
        TileShapes shapes;
        shapes.palette = 1;
        for (int t = 0; t < 8; ++t) {
            shapes.bytes[t] = t == 4 || t == 5 ? uint16_t(bytes) : 64;
            shapes.rows[t] = t > 5 ? uint8_t(bytes / 4) : t < 2 || t == 4 ? first : rest;
        }
        tile_configure(shapes);
        loaded_ = wanted;
    }

    // The first tile instruction of a thread takes as long as a thousand products: the system makes room for its registers.
    static void warm() {
        use(PAIR_BYTES, 1);
        tile_release();
        loaded_ = 0;
    }

private:
    static inline thread_local int loaded_ = 0;
};
#else
struct Tiles {
    Tiles() {}  // so that it may stand unused
    static void warm() {}
};
#endif
