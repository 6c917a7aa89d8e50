// Which kernel multiplies 8-bit matrices on SM90 the fastest, from times of all of them at some weights
// (scaled_mm_path_table.h). Nothing here needs a GPU, so that tests can ask it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <iterator>
#include <string_view>

#include "ceil_div.h"
#include "scaled_mm_path_table.h"
#include "scaled_mm_share.h"

namespace qcore_cuda::choice {

// Microseconds, roughly: tiles in turns on all processors, or the bytes; and rows of zeros, of the last tiles alone. What
// else a kernel takes is about the same for weights that are alike, and so divides out.
inline double modelled(const Path& path, int64_t m, int64_t n, int64_t k) {
  const auto fourth = [](double v) { return v * v * v * v; };
  const auto real = [](int64_t v) { return static_cast<double>(v); };
  double turns = 0, begin = kBegin;
  if (path.rows) {  // else a kernel without tiles
    // Of clusters.
    const int64_t down = ceil_div(m, path.rows * path.cluster_rows);
    const int64_t tiles = down * ceil_div(n, path.columns * path.cluster_columns);
    const int64_t each = path.cluster_rows * path.cluster_columns;
    turns = real(ceil_div(tiles * each, kProcessors));
    if (path.brings_zeros) {
      const int64_t empty = down * path.rows * path.cluster_rows - m, across = tiles / down * path.cluster_columns;
      begin += kEmptyRow * real(empty * k * ceil_div(across, kProcessors));
    }
    if (path.shared) {
      const int64_t clusters = kProcessors / each;
      const Share share(tiles, clusters, ceil_div(k, 128));
      if (share.sharers) {
        turns = real(share.whole) / real(clusters) + real(tiles - share.whole) / real(share.sharers);
        begin += kHand + kHandRow * path.rows;
      }
    }
  }
  const double work = turns * (real(k) * path.us_per_input + kEachTile);
  const double bytes = real(n * k + m * k + 2 * m * n) / kBytesPerUs;
  return begin + std::sqrt(std::sqrt(fourth(work) + fourth(bytes)));
}

// A path's time at the measured weight that is most like this one and at so many rows or the next more, by what the
// problem should take in proportion. If later ones are faster by less than kNear, the first are taken: the kernel for
// few rows, which fetches weights before its turn (times of one product after another do not show that; early_launch.cuh),
// and the tile that was the best of large ones most often (power limits these). Empty if none of those that
// `can` run was measured.
template <size_t PATHS, typename Can>
std::string_view fastest(const Path (&paths)[PATHS], const float (&times)[kWeightCount][kRowCount][PATHS], int64_t m,
                         int64_t n, int64_t k, const Can& can) {
  const auto unlike = [&](const Weight& w) {
    return (static_cast<double>(std::max<int64_t>(n, w.n)) / static_cast<double>(std::min<int64_t>(n, w.n))) *
           (static_cast<double>(std::max<int64_t>(k, w.k)) / static_cast<double>(std::min<int64_t>(k, w.k)));
  };
  const Weight* const like = std::min_element(std::begin(kWeights), std::end(kWeights), [&](const Weight& a, const Weight& b) {
    return unlike(a) < unlike(b);
  });
  const int* const rows = std::min(std::lower_bound(std::begin(kRows), std::end(kRows), m), std::end(kRows) - 1);
  std::string_view best;
  double least = 0;
  for (size_t i = 0; i < PATHS; ++i) {
    const double measured = times[like - kWeights][rows - kRows][i];
    if (measured == 0 || !can(paths[i].name)) continue;
    const double time = measured * modelled(paths[i], m, n, k) / modelled(paths[i], *rows, like->n, like->k);
    if (best.empty() || time < kNear * least) {
      best = paths[i].name;
      least = time;
    }
  }
  return best;
}

}  // namespace qcore_cuda::choice
