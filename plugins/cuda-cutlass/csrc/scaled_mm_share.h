// Which tiles of a product clusters of blocks share, where there are not as many for each. Nothing here needs a GPU,
// so that tests can ask it.
#pragma once

#include <algorithm>
#include <cstdint>

namespace qcore_cuda {

// The first `whole` tiles are each one cluster's. Of the others `sharers` clusters have the same number of steps along
// K (within one): all clusters, or a few less if tiles are then in equal parts, for which fewer sums go to and fro.
struct Share {
  static constexpr int64_t kMost = 4;        // clusters that share a tile
  static constexpr int64_t kLeastSteps = 4;  // of a cluster

  int64_t whole, sharers = 0;

  Share(int64_t tiles, int64_t clusters, int64_t steps) : whole(tiles) {
    const int64_t left = tiles % clusters;
    if (left == 0) return;
    if (tiles < clusters) {
      const int64_t parts = std::min({clusters / tiles, kMost, steps / kLeastSteps});
      const int64_t equal = parts * tiles;
      const bool many_idle = equal * 20 < clusters * 17;
      const bool can_use_all = clusters < kMost * tiles && clusters * kLeastSteps <= tiles * steps;
      sharers = many_idle && can_use_all ? clusters : equal;
      if (sharers > tiles) whole = 0;
      else sharers = 0;
    } else {
      whole = tiles - left;
      if (left * kMost < clusters) whole -= clusters;  // or each of those few would be shared by too many
      sharers = clusters;
      if ((tiles - whole) * steps < clusters * kLeastSteps) whole = tiles, sharers = 0;
    }
  }
};

}  // namespace qcore_cuda
