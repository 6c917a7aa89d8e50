// How the kernel for a medium number of rows divides its work. Nothing here needs a GPU, so that tests can ask
// it.
#pragma once

#include <algorithm>
#include <cstdint>

#include "ceil_div.h"
#include "remembered.h"

namespace qcore_cuda::mid_m {

constexpr int kPieceK = 64;        // inputs that a warp takes at a time
constexpr int kWarpColumns = 32;   // columns of a warp
constexpr int kMostColumnWarps = 8;
constexpr int kMostSplit = 8;      // blocks of a cluster
constexpr int kMostStages = 8;

// A block: 8 * row_tiles rows, column_warps * 32 columns, and a part of K, of which its k_warps take turns.
struct Plan {
  int row_tiles, column_warps, k_warps, split;
};

// Warps of a block that multiply, by registers; and of one that shares its processor with another.
constexpr int most_warps(int row_tiles) { return row_tiles == 8 ? 15 : 16; }
constexpr int kHalfWarps = 8;
constexpr int blocks_at_a_time(const Plan& p) {
  return p.row_tiles == 8 || p.column_warps * p.k_warps > kHalfWarps ? 1 : 2;
}
// What a block may have of a processor's shared memory.
constexpr int kMostShared = 225 * 1024;
constexpr int shared_of_block(const Plan& p) { return (kMostShared + 1024) / blocks_at_a_time(p) - 1024; }

// Pieces of a stage for each warp.
constexpr int stage_pieces(int bits, int row_tiles) { return row_tiles <= 4 && bits == 4 ? 2 : 1; }

// Groups of an odd number of halves of a piece need weights that are scaled before they are multiplied: integers only
// where there are more than 16 rows, for that rounds them.
inline int row_tiles_for(int64_t m, bool keeps_weights) {
  if (m <= 16 && keeps_weights) return m <= 8 ? 1 : 2;
  return m <= 32 ? 4 : 8;
}

// Rows of scales that a stage brings, one for each group in it or, where groups are neither parts of a stage nor
// stages of theirs, for each half of a piece.
struct Slots {
  int count, halves;  // halves of pieces that a slot is for
  bool boxes;         // they are rows of the scales that follow each other: one copy
};

inline Slots slots_for(const Plan& p, int bits, int group_halves) {
  const int halves = 2 * p.k_warps * stage_pieces(bits, p.row_tiles);
  if (halves % group_halves == 0) return {halves / group_halves, group_halves, true};
  if (group_halves % halves == 0) return {1, halves, true};
  return {halves, 1, false};
}

// How a stage lies in shared memory: words of each warp's columns; activations, piece after piece; scales; zero
// points.
struct Layout {
  int x_offset, scale_offset, zero_offset, stage_bytes, stages, shared_bytes;
  int scale_bytes, zero_bytes;  // of a slot
};

inline Layout layout_for(const Plan& p, int bits, bool zeros, int slots) {
  const auto up = [](int bytes, int to) { return (bytes + to - 1) / to * to; };
  const int pieces = p.k_warps * stage_pieces(bits, p.row_tiles), rows = 8 * p.row_tiles;
  Layout l{};
  l.scale_bytes = p.column_warps * kWarpColumns * 2;
  l.zero_bytes = zeros ? p.column_warps * kWarpColumns * bits / 8 : 0;
  l.x_offset = p.column_warps * pieces * kPieceK * bits / 32 * 128;
  l.scale_offset = l.x_offset + pieces * rows * 128;
  l.zero_offset = up(l.scale_offset + slots * l.scale_bytes, 128);
  l.stage_bytes = up(l.zero_offset + slots * l.zero_bytes, 1024);
  constexpr int kBarriers = kMostStages * 16, kSlack = 1024;  // the ring begins at a multiple of 1024
  l.stages = std::min(kMostStages, (shared_of_block(p) - kBarriers - kSlack) / l.stage_bytes);
  const int sums = p.k_warps * rows * (p.column_warps * kWarpColumns + 4) * 4;
  l.shared_bytes = std::max(l.stages * l.stage_bytes, up(sums, 1024)) + kBarriers + kSlack;
  return l;
}

// With as much as there may be of scales and zero points.
inline Layout most_layout(const Plan& p, int bits) { return layout_for(p, bits, true, slots_for(p, bits, 1).count); }

// Of blocks that share a processor.
inline int k_warps_for(int column_warps) { return column_warps > 4 ? 1 : column_warps > 2 ? 2 : 4; }

// Cycles of the busiest processor of an H200, as fitted by benchmarks/cuda_plans.py to every plan's times at 17 weights
// of 4 and 8 bits and up to six numbers of rows each (benchmarks/results/cuda_mixed_plans.json): of these 74 problems 51
// get a plan within 3 % of the fastest, on average one that takes 3 % longer, at worst (1024 x 4096, 64 rows) 31 %.
inline double cost(const Plan& p, int64_t m, int64_t n, int64_t k, int bits, int sm_count) {
  const int64_t blocks = ceil_div(n, kWarpColumns * p.column_warps) * p.split * ceil_div(m, 8 * p.row_tiles);
  const int64_t of_warp = stage_pieces(bits, p.row_tiles), of_stage = p.k_warps * of_warp;
  const int64_t stages = ceil_div(ceil_div(k, kPieceK * of_stage), p.split);
  const int64_t each = ceil_div(blocks, sm_count);  // one after another or together: it is the same work
  const int64_t rounds = ceil_div(each, blocks_at_a_time(p));
  const double words = bits / 4.0, rows = p.row_tiles, columns = p.column_warps;
  const double pieces = static_cast<double>(stages * of_stage) * columns;  // of a block's warps
  // Of a piece of a warp: its words come from memory, with the activations, of which the block's columns share a
  // piece, through L2. Where some processors have fewer blocks, memory has more for the others.
  const double share = std::max(0.707 * static_cast<double>(each), static_cast<double>(blocks) / sm_count);
  const double comes = share * std::max(55.4 * words, 11.2 * (words + rows / columns));
  // Few warps at a time do not keep up with memory.
  const double warps = columns * p.k_warps * static_cast<double>(std::min<int64_t>(each, blocks_at_a_time(p)));
  const double few = 1 + 0.383 * std::max(0.0, 1 - warps / 16);
  // A processor has so many instructions for each; and a warp alone is not faster than these wait for each other.
  const double issued = pieces * static_cast<double>(each) * (3.51 * rows + 41.7 * words);
  const double alone = static_cast<double>(rounds * stages * of_warp) * (310.0 * words + 42.5 * rows);
  // Sums go through shared memory; a cluster's are waited for, and read by its other blocks.
  const double parts = p.split == 1 ? 0 : 805.0 + 402.0 * rows * columns;
  const double sums = 33.5 * rows * columns * p.k_warps;
  return std::max({pieces * comes * few, issued, alone}) +
         std::max(static_cast<double>(rounds), 0.555 * static_cast<double>(each)) * (1210.0 + parts + sums);
}

// Fewest first, so that of equals the one with fewer warps side by side and fewer parts is taken.
inline Plan best_plan(int64_t m, int64_t n, int64_t k, int bits, bool keeps_weights, int sm_count) {
  Plan best{};
  double least = 0;
  for (int times = 1; times <= 2; ++times) {
    for (int split = 1; split <= kMostSplit; split *= 2) {
      for (int column_warps = 1; column_warps <= kMostColumnWarps; ++column_warps) {
        const Plan p{row_tiles_for(m, keeps_weights), column_warps, times * k_warps_for(column_warps), split};
        if (p.column_warps * p.k_warps > most_warps(p.row_tiles)) continue;
        const int64_t stage_k = int64_t{kPieceK} * p.k_warps * stage_pieces(bits, p.row_tiles);
        if (split * times > 1 && k < 2 * split * stage_k) continue;
        if (most_layout(p, bits).stages < 2) continue;  // one would wait for itself
        const double of_this = cost(p, m, n, k, bits, sm_count);
        if (best.split == 0 || of_this < least) {
          best = p;
          least = of_this;
        }
      }
    }
  }
  return best;
}

// The same, remembered: to weigh all plans takes half as long as a launch.
inline Plan plan_for(int64_t m, int64_t n, int64_t k, int bits, bool keeps_weights, int sm_count) {
  return remembered(std::array<int64_t, 6>{m, n, k, bits, keeps_weights, sm_count},
                    [&] { return best_plan(m, n, k, bits, keeps_weights, sm_count); });
}

}  // namespace qcore_cuda::mid_m
