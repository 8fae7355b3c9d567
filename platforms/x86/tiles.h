// AMX tiles: how they are configured. Only for kernel units; see platforms/simd/lanes.h.
#pragma once

#include <immintrin.h>

#include "platforms/simd/lanes.h"

namespace mamba_edge {
namespace {

constexpr size_t kTileSize = 16;  // rows of a tile, and 32-bit numbers of a row

// Layout of `ldtilecfg`: Intel's manual, volume 1, section 18.2.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64);

// The compilers' intrinsics do not say which memory they read.
ME_INLINE void finish_writes() { __asm__ volatile("" ::: "memory"); }

ME_INLINE void load_config(const TileConfig& config) {
  __asm__ volatile("" ::"r"(&config) : "memory");
  _tile_loadconfig(&config);
}

}  // namespace
}  // namespace mamba_edge
