// One matrix's products, by tiles and without them, for test_native_tiles.py.
#include "model.h"
#include "tile_choice.h"

#pragma GCC visibility push(default)
extern "C" {
// data: [out, …] as `source` stores them; x: [tokens, in]; to: [tokens, panels · 16]. tiles_from: see Linear.
void tiles_product(int source, int in, int out, const void* data, const float* x, int tokens, int from, float* to) {
    Arena memory;
    Linear w;
    w.format = stored_as(source).format, w.in = in, w.out = out, w.panels = (out + LANES - 1) / LANES;
    w.panel_bytes = panel_size(w.format, in), w.tiles_from = from;
    w.data = memory.take(w.panels * w.panel_bytes);
    pack(w, source, data, 0, w.panels);
    const Reads form = reads(w.format);
    const Inputs inputs = make_inputs(memory, tokens, in, form, form);
    for (int t = 0; t < tokens; ++t)
        for (int b = 0; b < in / BLOCK; ++b) {
            const float* at = x + int64_t(t) * in + b * BLOCK;
            put_block(load(at), load(at + LANES), inputs, t, b, form);
        }
    const Tiles tiles;
    const int ld = w.panels * LANES, count = (tokens + TILE - 1) / TILE;
    for (int t = 0; t < tokens; t += TILE)
        tile_product(w, 0, w.panels, inputs, t, std::min(TILE, tokens - t), {t / TILE, count}, to + t * ld, ld);
}

int tiles_measured(int format) { return measured_tiles_from(format); }

// Two calls of a kernel in one thread; between them another library loads shapes of its own, or releases the registers.
void tiles_beside_others(float* to) {
    alignas(64) uint16_t halves[TILE_ROWS * BLOCK];
    for (uint16_t& half : halves) half = 0x3f80;
    Inputs x;
    x.K = BLOCK, x.half = halves;
    Linear w;
    w.in = BLOCK, w.out = LANES, w.panels = 1, w.panel_bytes = 1024, w.data = reinterpret_cast<uint8_t*>(halves);
    for (int call = 0; call < 3; ++call) {
        {
            const Tiles tiles;
            tile_product(w, 0, 1, x, 0, 1, NO_TURN, to + call * LANES, LANES);
        }
        TileShapes other;
        other.palette = 1, other.rows[3] = 1, other.bytes[3] = 4;
        tile_configure(other);
        if (call == 1) tile_release();
    }
}
}
#pragma GCC visibility pop
