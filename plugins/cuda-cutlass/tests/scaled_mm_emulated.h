// A whole scaled product on the processor, cluster after cluster; for one kernel, whose file is included before.
#pragma once

#include "scaled_mm_arguments.h"
#include "scaled_mm_share.h"

// Runs `kernel(a_map, a_rest, b_map, out_map, p, tiles, meeting)` for tiles of so many rows and columns of a cluster, and blocks
// that give `sums` each. `found`: how many tiles there are, how many clusters share some, flags that are left.
template <typename Kernel>
void multiply_by(const Arguments& g, bool by_block, int rows, int blocks, int groups, int fours, int threads,
                 int shared_bytes, int* found, Kernel kernel) {
  constexpr int kSide = 128;
  const CUtensorMap a_map{bytes_of(g.a), g.m, g.k, g.k, rows / blocks, 1};
  const CUtensorMap a_rest{bytes_of(g.a), g.m, g.k, g.k, g.m % (rows / blocks), 1}, b_map{bytes_of(g.b), g.n, g.k, g.k, kSide, 1};
  const CUtensorMap out_map{bytes_of(g.out), g.m, g.n * 2, g.n * 2, 16, 1};
  const int columns = kSide * blocks;
  Tiles tiles{(g.m + rows - 1) / rows, (g.n + columns - 1) / columns, (g.k + kSide - 1) / kSide, 0, 0};
  tiles.whole = tiles.count();
  if (g.shared) {
    const Share share(tiles.count(), g.clusters, tiles.steps);
    tiles.whole = static_cast<int>(share.whole);
    tiles.sharers = static_cast<int>(share.sharers);
  }
  const int clusters = std::max(tiles.sharers, std::min(tiles.whole, g.clusters));
  std::vector<float4> sums(static_cast<size_t>(clusters) * blocks * groups * fours * 128);
  std::vector<uint8_t> flags(clusters * blocks * groups);
  emulation::run_grid(clusters, blocks, threads, shared_bytes, g.seed, [&] {
    kernel(a_map, a_rest, b_map, out_map, problem_of(g, by_block), tiles, sm90::Meeting{sums.data(), flags.data()});
  });
  found[0] = tiles.count(), found[1] = tiles.sharers;
  found[2] = static_cast<int>(std::count(flags.begin(), flags.end(), 1));
}
