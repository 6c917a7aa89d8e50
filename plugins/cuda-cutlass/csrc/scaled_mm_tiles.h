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

// ---- which kernel ------------------------------------------------------------------------------
// From one measurement on an H200, by a script that is not in the repository yet; no result file. In
// microseconds, FP8, for N x K of
//                     4096 x 4096   28672 x 4096   4096 x 14336
//   M = 1      skinny       10.2           39.1           29.3
//              decode       10.0           41.9           22.3
//              64 x 128     11.3           34.6           28.8
//   M = 32     decode       14.1           60.4           24.3
//              64 x 128     10.5           34.9           26.0
//   M = 256    64 x 128     10             54             26
//              128 x 128                   50.6
//   M = 1024   128 x 128    25.2          160             84
//              128 x 256    25.6          164             76
//   M = 8192   128 x 128   176           1581            761
//              128 x 256   185           1538            639
// int8 is like it.
struct Choice {
  int64_t most_m;
  int64_t least_k;
  int64_t most_weight;  // bytes of b
  std::string_view path;
};

constexpr int64_t kAny = int64_t{1} << 62;
inline constexpr std::string_view kTile64 = "t64x128x128_1x1_pingpong";
inline constexpr std::string_view kTile128 = "t128x128x128_2x1_pingpong";
inline constexpr std::string_view kTile256 = "t128x256x128_2x1_cooperative";

// The first that fits.
inline constexpr Choice kFewRows[] = {
    {32, 8192, kAny, "sm90_decode"},   // a long K is shared by blocks
    {16, 0, 32 << 20, "skinny"},       // over before a tile's pipeline is full
    {128, 0, kAny, kTile64},
};

// More rows: small tiles if they are done in one go; the largest where a tile has much to do (K) or
// where there are many.
inline std::string_view tile_for_many_rows(const ScaledMM& p) {
  if (ceil_div(p.m, 64) * ceil_div(p.n, 128) <= p.sm_count) return kTile64;
  const int64_t outputs = static_cast<int64_t>(p.m) * p.n;
  return p.k >= 8192 || outputs >= int64_t{1} << 27 ? kTile256 : kTile128;
}

inline std::string_view best_sm90_path(const ScaledMM& p) {
  const int64_t weight = static_cast<int64_t>(p.n) * p.k;
  for (const Choice& c : kFewRows) {
    if (p.m <= c.most_m && p.k >= c.least_k && weight <= c.most_weight) return c.path;
  }
  return tile_for_many_rows(p);
}

// The best path that was compiled.
inline std::string_view choose_sm90_path(const ScaledMM& p) {
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
