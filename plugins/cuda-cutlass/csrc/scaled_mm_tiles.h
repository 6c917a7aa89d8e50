// The SM90 tiles that were compiled, and which one suits a problem.
#pragma once

#include <cmath>
#include <string_view>

#include "scaled_mm.h"
#include "scaled_mm_path_table.h"

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

// That of the measured weight that is most like the problem's, for so many rows.
template <size_t COUNT>
std::string_view measured_path(const PathEntry (&entries)[COUNT], const ScaledMM& p) {
  const auto off = [&](const PathEntry& e) {
    return std::abs(std::log2(static_cast<float>(p.n) / static_cast<float>(e.n))) +
           std::abs(std::log2(static_cast<float>(p.k) / static_cast<float>(e.k)));
  };
  const PathEntry* best = &entries[0];
  float least = off(*best);
  for (const PathEntry& entry : entries) {
    if (entry.n == best->n && entry.k == best->k) {
      // The entries of a weight follow each other, fewest rows first.
      if (best->rows < p.m) best = &entry;
      continue;
    }
    const float here = off(entry);
    if (here < least) {
      least = here;
      best = &entry;
    }
  }
  return best->path;
}

// The best path that was compiled.
inline std::string_view choose_sm90_path(const ScaledMM& p) {
  const std::string_view best = p.by_block ? measured_path(kFp8BlockPaths, p)
                                : p.is_fp8 ? measured_path(kFp8Paths, p)
                                           : measured_path(kInt8Paths, p);
  if (best.front() != 't') return best;  // not one of these tiles
  std::string_view other;
  for (const Sm90Tile& tile : kSm90Tiles) {
    if (tile.name == best && tile.takes(p)) return best;
    if (other.empty() && tile.takes(p)) other = tile.name;
  }
  return other;
}

}  // namespace qcore_cuda
#endif
