// The SM90 tiles that were compiled, and which one suits a problem.
#pragma once

#include <string_view>

#include "scaled_mm.h"

#ifdef QCORE_CUDA_SM90A
#include "sm90_tile_names.h"  // made by CMake: QCORE_SM90_TILES(X), X(name) for each

namespace qcore_cuda {

using RunScaledMM = void (*)(const ScaledMM&);

// QCORE_SM90_TILES(X) is X(name, INT8) or X(name, NO_INT8) for each tile; the latter are for FP8 alone.
#define QCORE_DECLARE_FP8(name)                 \
  void sm90_##name##_fp8_bf16(const ScaledMM&); \
  void sm90_##name##_fp8_f16(const ScaledMM&);
#define QCORE_DECLARE_NO_INT8(name) QCORE_DECLARE_FP8(name)
#define QCORE_DECLARE_INT8(name)                 \
  QCORE_DECLARE_FP8(name)                        \
  void sm90_##name##_int8_bf16(const ScaledMM&); \
  void sm90_##name##_int8_f16(const ScaledMM&);
#define QCORE_DECLARE(name, types) QCORE_DECLARE_##types(name)
QCORE_SM90_TILES(QCORE_DECLARE)

struct Sm90Tile {
  std::string_view name;
  RunScaledMM by_type[2][2];  // [is_fp8][out_bf16]; null for types that it was not compiled for

  bool takes(const ScaledMM& p) const { return by_type[p.is_fp8][p.out_bf16] != nullptr; }
  void run(const ScaledMM& p) const { by_type[p.is_fp8][p.out_bf16](p); }
};

#define QCORE_OF_INT8(name) {sm90_##name##_int8_f16, sm90_##name##_int8_bf16}
#define QCORE_OF_NO_INT8(name) {nullptr, nullptr}
#define QCORE_ENTRY(name, types) {#name, {QCORE_OF_##types(name), {sm90_##name##_fp8_f16, sm90_##name##_fp8_bf16}}},
inline constexpr Sm90Tile kSm90Tiles[] = {QCORE_SM90_TILES(QCORE_ENTRY)};
#undef QCORE_DECLARE
#undef QCORE_DECLARE_FP8
#undef QCORE_DECLARE_INT8
#undef QCORE_DECLARE_NO_INT8
#undef QCORE_ENTRY
#undef QCORE_OF_INT8
#undef QCORE_OF_NO_INT8

// Tiles of scaled_mm_sm90_tiles.
struct OwnTile {
  std::string_view name;
  int rows;
};
inline constexpr OwnTile kOwnTiles[] = {{"sm90_64", 64}, {"sm90_128", 128}, {"sm90_256", 256}};

// ---- which kernel ------------------------------------------------------------------------------
// From runs of every path on an H200, of which no result file is kept: `benchmarks/cuda_scaled_mm.py --paths` makes
// one. cuda_scaled_mm.json has the times of what is chosen here.

inline constexpr std::string_view kColumns = "sm90_columns";
inline constexpr std::string_view kTile64 = "t64x128x128_1x1_pingpong";
inline constexpr std::string_view kTile128 = "t128x128x128_2x1_pingpong";
inline constexpr std::string_view kTile256 = "t128x256x128_2x1_cooperative";

// Few rows are over when the weight has been read. More: small tiles if they are done in one go, and
// large ones where there is much to do.
inline std::string_view best_sm90_path(const ScaledMM& p) {
  if (p.m <= 32) return kColumns;
  if (p.m <= 128 || ceil_div(p.m, 64) * ceil_div(p.n, 128) <= p.sm_count) return kTile64;
  const double work = static_cast<double>(p.m) * p.n * p.k;
  if (p.is_fp8) return work >= 4e11 ? "sm90_256" : kTile128;
  return p.k >= 8192 ? kTile256 : kTile128;
}

inline std::string_view best_sm90_block_path(const ScaledMM& p) {
  if (p.m <= 32) return kColumns;
  const int64_t along_n = ceil_div(p.n, 128);
  if (p.m <= 64 || ceil_div(p.m, 64) * along_n <= p.sm_count) return "sm90_64";
  if (ceil_div(p.m, 128) * along_n <= p.sm_count) return "sm90_128";
  return "sm90_256";
}

// The best path that was compiled.
inline std::string_view choose_sm90_path(const ScaledMM& p) {
  if (p.by_block) return best_sm90_block_path(p);
  const std::string_view best = best_sm90_path(p);
  if (best.front() != 't') return best;
  std::string_view other;
  for (const Sm90Tile& tile : kSm90Tiles) {
    if (tile.name == best && tile.takes(p)) return best;
    if (other.empty() && tile.takes(p)) other = tile.name;
  }
  return other;
}

}  // namespace qcore_cuda
#endif
