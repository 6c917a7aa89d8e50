// How SM90's kernel for many rows (w4_sm90_kernel.cuh) divides its work: the tile, and the parts of K that blocks of a
// cluster have. Nothing here needs a GPU, so that tests can ask it.
#pragma once

#include <algorithm>
#include <cstdint>

#include "ceil_div.h"

namespace qcore_cuda::many {

struct Tile {
  int rows, columns;     // of activations, of the weight
  double alone, beside;  // cycles of 64 inputs: of a block, and of one that shares its processor
};
// These and the other cycles are fitted to times of 4 bits on an H200. In benchmarks/results/cuda_many_plans.json, which
// has the divisions of 135 products, what they choose takes 0.4 % longer than the fastest on average, 6 % at worst.
constexpr Tile kTiles[] = {{64, 128, 509, 924}, {128, 128, 659, 659}, {128, 256, 1340, 1340}, {256, 128, 1320, 1320}};
constexpr int kTileCount = sizeof(kTiles) / sizeof(kTiles[0]);
constexpr int kMostParts = 8, kLeastPartK = 256;

// The number of the tile of so many rows and columns; -1: there is none.
inline int tile_of(int64_t rows, int64_t columns) {
  for (int i = 0; i < kTileCount; ++i) {
    if (kTiles[i].rows == rows && kTiles[i].columns == columns) return i;
  }
  return -1;
}

struct Plan {
  int tile = 0;   // of kTiles
  int parts = 0;  // of K; 0: whole tiles, which pairs of blocks take one after another
  int given = 0;  // of whole tiles: times 64 inputs of the last ones, which pairs without a tile take over
};

// Pairs of tiles for so many pairs of blocks. Some of these have tiles of their own, each as many as the others or one
// less. The rest help those that have most, each of them the same number of others or fewer.
struct Help {
  int64_t rounds, owners, helpers = 0, helped = 0, each = 0;

  Help(int64_t pairs, int64_t clusters) : rounds(ceil_div(pairs, clusters)), owners(ceil_div(pairs, rounds)) {
    if (owners == clusters) return;
    helped = pairs - (rounds - 1) * owners;
    each = ceil_div(helped, clusters - owners);
    helpers = ceil_div(helped, each);
  }
};

constexpr double kBegin = 1540, kStore = 442;  // cycles, as the next

// So much is given that who helps is done when the others are; to hand sums over takes time, too. `cycles`: of 64 inputs.
inline int given_for(const Help& help, const Tile& tile, double cycles, int64_t pieces) {
  constexpr double kGive = 2660, kGiveBytes = 44.7;
  if (help.helpers == 0) return 0;
  const double give = kGive + 4.0 * tile.rows * tile.columns / kGiveBytes;
  const double all = help.rounds * pieces * cycles + (help.rounds - 1) * kStore;
  const int64_t given = static_cast<int64_t>((all - help.each * give) / ((help.each + 1) * cycles));
  return static_cast<int>(std::clamp<int64_t>(given / 2 * 2, 0, (pieces - 1) / 2 * 2));  // a stage may have two
}

// Cycles of 64 inputs of a tile, where so many clusters of so many blocks are at work: blocks share processors where there
// are more than fit without. `clusters(tile, blocks)`: how many a device has at a time.
template <typename Clusters>
double cycles_of(const Plan& plan, int64_t at_once, const Clusters& clusters) {
  constexpr int kAlone = 1;  // a tile whose blocks share no processor
  const Tile& tile = kTiles[plan.tile];
  return at_once > clusters(kAlone, std::max(plan.parts, 2)) ? tile.beside : tile.alone;
}

// Cycles, about. Each round of clusters waits for its first data, and at the end stores, or adds up its parts: blocks wait
// for the slowest, and what they read of each other comes with so many bytes a cycle. Help must be worth it by kWorth:
// without it nothing waits for anything in memory.
template <typename Clusters>
double cost(const Plan& plan, int64_t m, int64_t n, int64_t k, const Clusters& clusters) {
  constexpr double kTake = 2090, kTakeEach = 1.27, kWorth = 1.04, kMeet = 102, kMeetEach = 673, kBytes = 17.8;
  const Tile& tile = kTiles[plan.tile];
  const int64_t across = ceil_div(n, tile.columns), down = ceil_div(m, tile.rows), pieces = ceil_div(k, 64);
  const int blocks = std::max(plan.parts, 2);
  const int64_t wanted = plan.parts ? down * across : down * ceil_div(across, 2);
  const int64_t places = clusters(plan.tile, blocks), at_a_time = std::min(places, wanted);
  const int64_t rounds = ceil_div(wanted, at_a_time);
  if (plan.given) {
    const Help help(wanted, places);
    const double cycles = cycles_of(plan, help.owners + help.helpers, clusters);
    return kWorth * (kBegin + (rounds * pieces - plan.given) * cycles + rounds * kStore + kTake + kTakeEach * help.each);
  }
  const double last = cycles_of(plan, wanted - (rounds - 1) * at_a_time, clusters);
  const double each = (rounds - 1) * cycles_of(plan, at_a_time, clusters) + last;
  if (!plan.parts) return kBegin + pieces * each + rounds * kStore;
  const double read = 4.0 * tile.rows * tile.columns * (plan.parts - 1) / plan.parts;
  return rounds * (kBegin + kMeet + kMeetEach * plan.parts + read / kBytes) + ceil_div(pieces, plan.parts) * each;
}

// `few_help`: whether clusters with tiles of 64 rows can help each other.
template <typename Clusters>
Plan plan_for(int64_t m, int64_t n, int64_t k, bool few_help, const Clusters& clusters) {
  Plan best;
  double least = -1;
  const auto weigh = [&](const Plan& plan) {
    const double cycles = cost(plan, m, n, k, clusters);
    if (least < 0 || cycles < least) {
      least = cycles;
      best = plan;
    }
  };
  for (int tile = 0; tile < kTileCount; ++tile) {
    const int rows = kTiles[tile].rows;
    if (rows > 64 && m <= rows / 2) continue;
    if (rows > 64 || few_help) {
      const Help help(ceil_div(m, rows) * ceil_div(n, 2 * kTiles[tile].columns), clusters(tile, 2));
      const double cycles = cycles_of({tile}, help.owners + help.helpers, clusters);
      const int given = given_for(help, kTiles[tile], cycles, ceil_div(k, 64));
      if (given > 0) weigh({tile, 0, given});
    }
    for (int parts = 0; parts <= kMostParts; ++parts) {
      if (parts == 1 || (parts && k < int64_t{kLeastPartK} * parts)) continue;
      // More than one round and a half of parts was not measured.
      if (parts && 2 * ceil_div(m, rows) * ceil_div(n, kTiles[tile].columns) > int64_t{3} * clusters(tile, parts)) continue;
      weigh({tile, parts});
    }
  }
  return best;
}

}  // namespace qcore_cuda::many
