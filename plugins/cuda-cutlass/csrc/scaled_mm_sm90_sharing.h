// Of a launch of the 8-bit kernels of large tiles on SM90: which tiles several clusters share, and their memory.
#pragma once

#include <algorithm>
#include <optional>

#include "ceil_div.h"
#include "handed_sums.cuh"
#include "meeting_flags.h"
#include "scaled_mm.h"
#include "scaled_mm_share.h"
#include "scaled_mm_sm90_walk.cuh"

namespace qcore_cuda {

// How a launch divides its tiles among clusters.
struct Division {
  Tiles tiles;
  int clusters;  // that are launched
  sm90::Meeting meeting = {};
  std::optional<Tensor> sums;  // where clusters that share tiles leave theirs

  // Tiles of `rows` rows and `columns` columns, of a cluster, and 128 of K a step, for at most `most` clusters. If
  // `shared`, and if that can be, the last are shared: `givers` of a cluster then have `each` sums of a tile.
  Division(const ScaledMM& p, int rows, int columns, int most, bool shared, int givers, int each)
      : tiles{static_cast<int>(ceil_div(p.m, rows)), static_cast<int>(ceil_div(p.n, columns)),
              static_cast<int>(ceil_div(p.k, 128))} {
    tiles.whole = tiles.count();
    if (shared) share(p, most, givers, each);
    clusters = std::max(tiles.sharers, std::min(tiles.whole, most));
  }

 private:
  void share(const ScaledMM& p, int most, int givers, int each) {
    const Share share(tiles.count(), most, tiles.steps);
    if (share.sharers == 0 || share.sharers * givers > kMeetingFlags) return;
    if ((tiles.count() - share.whole) * tiles.steps * share.sharers > 2147483647) return;
    uint8_t* const flags = meeting_flags(p.device, p.stream);
    if (!flags) return;
    sums = new_tensor(p.device, {share.sharers * givers * each}, ScalarType::Float);
    tiles.whole = static_cast<int>(share.whole);
    tiles.sharers = static_cast<int>(share.sharers);
    meeting = {static_cast<float4*>(sums->data_ptr()), flags};
  }
};

}  // namespace qcore_cuda
