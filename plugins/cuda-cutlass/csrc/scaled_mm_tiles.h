// The SM90 tiles that were compiled, and which one suits a problem.
#pragma once

#include <algorithm>
#include <iterator>
#include <string_view>

#include "remembered.h"
#include "scaled_mm.h"
#include "scaled_mm_choice.h"

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

// Tiles of scaled_mm_sm90_tiles and, with scales by block, scaled_mm_sm90_blocks.
struct OwnTile {
  std::string_view name;
  int rows;
  bool shared;

  bool blocks(const ScaledMM& p) const { return p.by_block && rows == 128; }  // scaled_mm_sm90_blocks takes it
  bool has_room(const ScaledMM& p) const { return !blocks(p) || p.k <= kBlocksMostK; }
  bool takes(const ScaledMM& p) const { return !(p.by_block && rows > 128) && has_room(p); }
  void run(const ScaledMM& p) const {
    if (blocks(p)) scaled_mm_sm90_blocks(p, shared);
    else scaled_mm_sm90_tiles(p, rows, shared);
  }
};
inline constexpr OwnTile kOwnTiles[] = {{"sm90_64", 64, false},        {"sm90_128", 128, false},
                                        {"sm90_256", 256, false},      {"sm90_64_shared", 64, true},
                                        {"sm90_128_shared", 128, true}, {"sm90_256_shared", 256, true}};

// The best path that was compiled; empty if there is none.
inline std::string_view choose_sm90_path(const ScaledMM& p) {
  const auto can = [&](std::string_view name) {
    if (name == "sm90_columns") return true;
    const auto is = [&](const auto& tile) { return tile.name == name && tile.takes(p); };
    return std::any_of(std::begin(kSm90Tiles), std::end(kSm90Tiles), is) ||
           std::any_of(std::begin(kOwnTiles), std::end(kOwnTiles), is);
  };
  return remembered(std::array<int64_t, 5>{p.m, p.n, p.k, p.is_fp8, p.by_block}, [&] {
    if (p.by_block) return choice::fastest(choice::kFp8BlockPaths, choice::kFp8BlockTimes, p.m, p.n, p.k, can);
    if (p.is_fp8) return choice::fastest(choice::kFp8Paths, choice::kFp8Times, p.m, p.n, p.k, can);
    return choice::fastest(choice::kInt8Paths, choice::kInt8Times, p.m, p.n, p.k, can);
  });
}

}  // namespace qcore_cuda
#endif
