// The SM90 tiles that were compiled, and which one suits a problem.
#pragma once

#include <string_view>

#include "scaled_mm.h"

#ifdef QCORE_CUDA_SM90A
#include "sm90_tile_names.h"  // made by CMake: QCORE_SM90_TILES(X), X(name) for each

namespace qcore_cuda {

using RunScaledMM = void (*)(const ScaledMM&);

#define QCORE_DECLARE(name)                   \
  void sm90_##name##_fp8_bf16(const ScaledMM&); \
  void sm90_##name##_fp8_f16(const ScaledMM&);  \
  void sm90_##name##_int8_bf16(const ScaledMM&); \
  void sm90_##name##_int8_f16(const ScaledMM&);
QCORE_SM90_TILES(QCORE_DECLARE)
#undef QCORE_DECLARE

struct Sm90Tile {
  std::string_view name;
  RunScaledMM by_type[2][2];  // [is_fp8][out_bf16]

  void run(const ScaledMM& p) const { by_type[p.is_fp8][p.out_bf16](p); }
};

#define QCORE_ENTRY(name) \
  {#name, {{sm90_##name##_int8_f16, sm90_##name##_int8_bf16}, {sm90_##name##_fp8_f16, sm90_##name##_fp8_bf16}}},
inline constexpr Sm90Tile kSm90Tiles[] = {QCORE_SM90_TILES(QCORE_ENTRY)};
#undef QCORE_ENTRY

// The name of a tile, or "" to leave the problem to the other kernels.
inline std::string_view choose_sm90_path(const ScaledMM& p) {
  if (p.m <= kSkinnyMaxM) return "sm90_decode";
  if (p.m <= 128) return "t64x128x128_1x1_pingpong";
  const int64_t tiles = ceil_div(p.m, 128) * ceil_div(p.n, 256);
  return tiles >= p.sm_count ? "t128x256x128_2x1_cooperative" : "t128x128x128_2x1_pingpong";
}

}  // namespace qcore_cuda
#endif
