// csrc/scaled_mm_sm90_blocks.cuh on the processor: a whole product, cluster after cluster.
#include "sm90_emulation.h"

#include "scaled_mm_share.h"
#include "scaled_mm_sm90_blocks.cuh"

using namespace qcore_cuda;

struct Arguments {
  const void *a, *b, *a_scale, *b_scale, *bias;
  void* out;
  int m, n, k, a_scale_row, b_scale_row;
  int clusters, shared, seed;
};

// Returns how many tiles there are, and how many clusters share some of them.
extern "C" void multiply(const Arguments* g, int* found) {
  const auto bytes = [](const void* data) { return static_cast<const uint8_t*>(data); };
  const int steps = (g->k + kTile - 1) / kTile, columns = (g->n + kTile - 1) / kTile;
  const CUtensorMap a_map{bytes(g->a), g->m, g->k, g->k, kTile / kCluster, 1};
  const CUtensorMap b_map{bytes(g->b), g->n, g->k, g->k, kTile, 1};
  const CUtensorMap a_scale_map{bytes(g->a_scale), steps, g->m * 4, g->a_scale_row * 4, 1, 1, 4, kTile * 4};
  const CUtensorMap b_scale_map{bytes(g->b_scale), columns, steps * 4, g->b_scale_row * 4, 1, 1, 4, kBoxFloats * 4};
  const CUtensorMap out_map{bytes(g->out), g->m, g->n * 2, g->n * 2, 16, 1};
  ScaledMM p{};
  p.m = g->m, p.n = g->n, p.k = g->k;
  p.bias = g->bias;
  p.by_block = true;
  Tiles tiles{(g->m + kTile - 1) / kTile, (columns + kCluster - 1) / kCluster, steps, 0, 0};
  tiles.whole = tiles.count();
  if (g->shared) {
    const Share share(tiles.count(), g->clusters, steps);
    tiles.whole = static_cast<int>(share.whole);
    tiles.sharers = static_cast<int>(share.sharers);
  }
  const int clusters = std::max(tiles.sharers, std::min(tiles.whole, g->clusters));
  std::vector<float4> sums(static_cast<size_t>(clusters) * kCluster * kGroups * kFours * 128);
  std::vector<uint8_t> flags(clusters * kCluster * kGroups);
  const Meeting meeting{sums.data(), flags.data()};
  const auto kernel = g->shared ? blocks_kernel<true, __nv_bfloat16> : blocks_kernel<false, __nv_bfloat16>;
  emulation::blocks_of_grid = clusters * kCluster;
  for (int cluster = 0; cluster < clusters; ++cluster) {
    emulation::run_cluster(kThreads, kSharedBytes, kCluster, 0, 0, g->seed + cluster, [&] {
      emulation::block().index.x = cluster * kCluster + emulation::self().block;
      kernel(a_map, b_map, a_scale_map, b_scale_map, out_map, p, tiles, meeting);
    });
    emulation::begun.clear();
  }
  found[0] = tiles.count(), found[1] = tiles.sharers;
  found[2] = static_cast<int>(std::count(flags.begin(), flags.end(), 1));
}
