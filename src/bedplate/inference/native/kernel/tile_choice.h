// From how many tokens on products of bytes are by tiles: as this machine measures it, once for each format. Their results
// are the same bits either way.
#pragma once
#include <chrono>
#include <mutex>
#include <vector>

#include "products.h"

#ifndef BEDPLATE_TILES
inline int tiles_from(int) { return 1; }
#elif defined(BEDPLATE_TILES_FROM)  // for tests, whose results must not follow the machine
inline int tiles_from(int) { return BEDPLATE_TILES_FROM; }
#else
// The fewest tokens from which on tiles are faster; TILE + 1: they never are.
inline int measured_tiles_from(int format) {
    constexpr int K = 1024, PANELS = 4, ROUNDS = 5;
    Linear w;
    w.format = format, w.in = K, w.out = PANELS * LANES, w.panels = PANELS, w.panel_bytes = panel_size(format, K);
    std::vector<uint8_t> weights(size_t(PANELS * w.panel_bytes));
    std::vector<int8_t> q(TILE * K, 1);
    std::vector<float> scales(TILE * K / BLOCK, 1.0f), out(TILE * PANELS * LANES);
    std::vector<int32_t> sums(TILE * K / BLOCK * 2);
    Inputs x;
    x.K = K, x.q = q.data(), x.scale = x.scaled_sum = scales.data(), x.offset = x.halves = sums.data();
    w.data = weights.data();
    const Tiles tiles;
    const auto seconds = [&](int tokens, int from) {
        w.tiles_from = from;
        const auto began = std::chrono::steady_clock::now();
        tile_product(w, 0, PANELS, x, 0, tokens, NO_TURN, out.data(), PANELS * LANES);
        return std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
    };
    int from = TILE + 1;
    for (const int tokens : {32, 24, 16, 12, 8, 6, 4, 3, 2, 1}) {
        double by_tiles = 1e9, without = 1e9;
        for (int i = 0; i < ROUNDS; ++i)
            by_tiles = std::min(by_tiles, seconds(tokens, 1)), without = std::min(without, seconds(tokens, TILE + 1));
        if (by_tiles >= without) break;
        from = tokens;
    }
    return from;
}

inline int tiles_from(int format) {
    static std::mutex measuring;
    static int known[K3 + 1] = {};  // 0: not yet
    if (reads(format) != BYTES) return 1;
    std::lock_guard<std::mutex> hold(measuring);
    if (!known[format]) known[format] = measured_tiles_from(format);
    return known[format];
}
#endif
