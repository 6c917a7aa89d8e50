// SM90, a medium number of rows (w4_mid_m_kernel.cuh): what its kernel is given.
#pragma once

#include "w4_codes.cuh"
#include "w4_mid_m_plan.h"

namespace qcore_cuda::mid_m {

struct Problem {
  const void* scales;  // [groups, n]
  GptqZeros zeros;
  const float* column_scales;  // [n]; or null; of floats
  const void* bias;            // [n_out]; or null
  void* out;                   // [m, n_out], dense
  bool bias_float, out_float;
  bool after;    // scales meet sums, not weights
  int x_rows;    // of a box of x
  bool x_boxes;  // rows of x are whole boxes, as those of words are: several are one copy
  int m, n, n_out;   // columns that there are, a multiple of 32, and that are wanted
  int pieces;        // of K
  int groups, group_halves;  // inputs of a group / 32
  Plan plan;
  Slots slots;
  Layout layout;

  bool has_x_boxes(int64_t x_k) const { return x_k % kPieceK == 0 && x_rows == 8 * plan.row_tiles; }
  // Of the copy engine's boxes of words: those of a stage.
  int word_box_rows(int bits) const { return box_pieces(bits) * kPieceK * bits / 32; }
  int box_pieces(int bits) const { return plan.k_warps * stage_pieces(bits, plan.row_tiles); }
};

// All but the addresses. `k` and `n` of the weight; where `wish` has no warps, the division is chosen here.
// `scaled`: see NvFp4.
inline Problem problem_of(int64_t m, int64_t k, int64_t n, int64_t n_out, int bits, int64_t group_size,
                          int64_t groups, const GptqZeros& zeros, Plan wish, int sm_count, bool floats = false,
                          bool scaled = false) {
  Problem p{};
  p.zeros = zeros;
  p.m = static_cast<int>(m);
  p.n = static_cast<int>(n);
  p.n_out = static_cast<int>(n_out);
  p.pieces = static_cast<int>((k + kPieceK - 1) / kPieceK);
  p.groups = static_cast<int>(groups);
  p.group_halves = scaled ? 1 : group_size >= k ? 2 * p.pieces : static_cast<int>(group_size / 32);
  const bool whole = p.group_halves % 2 == 0, keeps = whole || floats;
  p.plan = plan_for(m, n_out, k, bits, keeps, sm_count);
  if (wish.column_warps) {
    const int tiles = wish.row_tiles > (keeps ? 0 : 2) ? wish.row_tiles : p.plan.row_tiles;
    p.plan = {tiles, wish.column_warps, wish.k_warps ? wish.k_warps : k_warps_for(wish.column_warps), wish.split};
  }
  p.after = whole && p.plan.row_tiles <= 2;
  p.slots = slots_for(p.plan, bits, p.group_halves);
  p.layout = layout_for(p.plan, bits, zeros.words != nullptr, p.slots.count);
  // Beyond the last row zeros come, but slowly: some of them cost more than a copy for each piece.
  p.x_rows = 8 * p.plan.row_tiles;
  if (p.plan.row_tiles > 2 && p.m <= p.x_rows - 4) p.x_rows = p.m;
  return p;
}

template <int BITS, int ROW_TILES>
struct Shape {
  static constexpr int kRows = 8 * ROW_TILES;
  static constexpr int kPieces = stage_pieces(BITS, ROW_TILES);
  static constexpr int kWordRows = kPieceK * BITS / 32, kWordBytes = kWordRows * 128;
  static constexpr int kXBytes = kRows * 128;
};

}  // namespace qcore_cuda::mid_m
