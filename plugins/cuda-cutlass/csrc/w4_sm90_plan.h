// How SM90's kernel for many rows (w4_sm90_kernel.cuh) divides its work: the tile, and the parts of K that blocks of a
// cluster have. Nothing here needs a GPU, so that tests can ask it.
#pragma once

#include <algorithm>
#include <cstdint>

namespace qcore_cuda::many {

struct Tile {
  int rows, columns;     // of activations, of the weight
  double alone, beside;  // cycles of 64 inputs: of a block, and of one that shares its processor
};
// These and the other cycles are fitted to times of 4 bits on an H200. In benchmarks/results/cuda_many_plans.json, which
// has every division of 72 products, what they choose takes 0.5 % longer than the fastest on average, 7 % at worst.
constexpr Tile kTiles[] = {{64, 128, 470, 880}, {128, 128, 632, 632}, {128, 256, 1200, 1200}, {256, 128, 1090, 1090}};
constexpr int kTileCount = sizeof(kTiles) / sizeof(kTiles[0]);
constexpr int kMostParts = 8, kLeastPartK = 256;

struct Plan {
  int tile = 0;   // of kTiles
  int parts = 0;  // of K; 0: whole tiles, which pairs of blocks take one after another
};

// Cycles, about. `clusters(tile, blocks)`: how many clusters of so many blocks a device has at a time. Each round of
// them waits for its first data, and at the end stores, or adds up its parts: blocks wait for the slowest, and what they
// read of each other comes with 13 bytes a cycle. Blocks share processors as soon as there are more clusters than fit
// without.
template <typename Clusters>
double cost(const Plan& plan, int64_t m, int64_t n, int64_t k, const Clusters& clusters) {
  constexpr double kBegin = 5140, kStore = 3530, kMeet = 759, kMeetEach = 169, kBytes = 13.1;
  constexpr int kAlone = 1;  // a tile whose blocks share no processor
  const auto up = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  const Tile& tile = kTiles[plan.tile];
  const int64_t across = up(n, tile.columns), down = up(m, tile.rows), pieces = up(k, 64);
  const int blocks = std::max(plan.parts, 2);
  const int64_t wanted = plan.parts ? down * across : down * up(across, 2);
  const int64_t at_a_time = std::min<int64_t>(clusters(plan.tile, blocks), wanted);
  const double piece = at_a_time > clusters(kAlone, blocks) ? tile.beside : tile.alone;
  const double rounds = static_cast<double>(up(wanted, at_a_time));
  if (!plan.parts) return kBegin + rounds * (pieces * piece + kStore);
  const double read = 4.0 * tile.rows * tile.columns * (plan.parts - 1) / plan.parts;
  return rounds * (kBegin + up(pieces, plan.parts) * piece + kMeet + kMeetEach * plan.parts + read / kBytes);
}

template <typename Clusters>
Plan plan_for(int64_t m, int64_t n, int64_t k, const Clusters& clusters) {
  Plan best;
  double least = -1;
  for (int tile = 0; tile < kTileCount; ++tile) {
    const int rows = kTiles[tile].rows;
    if (rows > 64 && m <= rows / 2) continue;
    // Half empty, such tiles took up to a third longer than full ones, why ever.
    if (rows == 256 && m <= 512 && (m - 1) % 256 < 128) continue;
    for (int parts = 0; parts <= kMostParts; ++parts) {
      if (parts == 1 || (parts && k < int64_t{kLeastPartK} * parts)) continue;
      const Plan plan{tile, parts};
      const double cycles = cost(plan, m, n, k, clusters);
      if (least < 0 || cycles < least) {
        least = cycles;
        best = plan;
      }
    }
  }
  return best;
}

}  // namespace qcore_cuda::many
