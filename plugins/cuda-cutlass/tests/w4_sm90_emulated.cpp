// csrc/w4_sm90_kernel.cuh on the processor: a whole product, cluster after cluster.
#include "sm90_emulation.h"

#include "w4_sm90_kernel.cuh"
#include "w4_sm90_plan.h"

#include "w4_arguments.h"

using namespace qcore_cuda;

// Of g, row_tiles and column_warps are the tile's rows and columns, split the parts of K, and k_warps how many stages of
// the last tiles other clusters take over, of so many that there are at a time.
template <typename T, class KIND, class S, bool PARTS>
void run(const Arguments& g, int clusters, int* found) {
  const auto bytes = [](const void* data) { return static_cast<const uint8_t*>(data); };
  constexpr int kZeroBytes = S::kColumns * KIND::kBits / 8;
  const CUtensorMap x_map{bytes(g.x), g.m, g.x_k * 2, g.x_stride * 2, S::kRows / (PARTS ? 1 : 2), 1};
  const CUtensorMap w_map{bytes(g.words), g.k * KIND::kBits / 32, g.n * 4, g.n * 4, S::kPieces * S::kWordRows, 1, 4,
                          S::kColumns * 4};
  const CUtensorMap scale_map{bytes(g.scales), g.groups, g.n * 2, g.n * 2, 1, 1, 2, S::kColumns * 2};
  const CUtensorMap zero_map{bytes(g.zeros), g.groups, g.n * KIND::kBits / 8, g.n * KIND::kBits / 8, 1, 1, 4, kZeroBytes};
  Problem p{};
  p.column_scales = static_cast<const float*>(g.column_scales);
  p.bias = g.bias;
  p.bias_float = g.bias_float;
  p.out = g.out;
  p.m = g.m, p.n = g.n_out;
  const int pieces = (g.k + kPieceK - 1) / kPieceK;
  p.group_halves = KIND::kScaled ? 1 : g.group_size >= g.k ? 4 * pieces : g.group_size / 32;
  p.zero = g.zero;
  p.has_zeros = g.zeros != nullptr;
  p.zero_ones = !g.add ? 0 : KIND::kBits == 4 ? 0x11111111u : 0x01010101u;
  p.tiles_m = (g.m + S::kRows - 1) / S::kRows;
  p.tiles_n = (g.n_out + S::kColumns - 1) / S::kColumns;
  p.k_stages = (g.k + S::kStageK - 1) / S::kStageK;
  p.parts = PARTS ? g.split : 0;
  std::vector<float4> sums;
  std::vector<uint8_t> flags;
  if (PARTS) {
    clusters = p.tiles_m * p.tiles_n;
  } else {
    const int64_t pairs = p.tiles_m * ((p.tiles_n + 1) / 2);
    const many::Help help(pairs, clusters);
    clusters = static_cast<int>(std::min<int64_t>(pairs, clusters));
    if (S::kHelps && help.helpers && g.k_warps) {
      sums.resize(help.helped * 2 * S::kRows * S::kColumns / 4);
      flags.resize(help.helped * 2 * kGroups);
      p.helped = {static_cast<int>(help.helpers), static_cast<int>(help.helped), g.k_warps, {sums.data(), flags.data()}};
      clusters = static_cast<int>(help.owners + help.helpers);
    }
  }
  const int blocks = PARTS ? g.split : 2;
  emulation::blocks_of_grid = clusters * blocks;
  for (int cluster = 0; cluster < clusters; ++cluster) {
    emulation::run_cluster(S::kThreads, S::kSharedBytes, blocks, 0, 0, g.seed + cluster, [&] {
      emulation::block().index.x = cluster * blocks + emulation::self().block;
      w4_sm90_kernel<T, KIND, S, PARTS>(x_map, w_map, scale_map, zero_map, p);
    });
    emulation::begun.clear();
  }
  found[0] = p.helped.helpers;
  found[1] = static_cast<int>(std::count(flags.begin(), flags.end(), 1));
}

template <typename T, class KIND>
void run(const Arguments& g, int clusters, int* found) {
  const auto of_shape = [&](auto shape) {
    using S = decltype(shape);
    g.split ? run<T, KIND, S, true>(g, clusters, found) : run<T, KIND, S, false>(g, clusters, found);
  };
  constexpr int B = KIND::kBits;
  if (g.row_tiles == 64) of_shape(Shape<B, 64, 128, 2>{});
  else if (g.row_tiles == 256) of_shape(Shape<B, 256, 128, 2>{});
  else if (g.column_warps == 256) of_shape(Shape<B, 128, 256, 1>{});
  else of_shape(Shape<B, 128, 128, 1>{});
}

// `found`: how many clusters helped, and flags that are left.
extern "C" void multiply_many(const Arguments* g, int clusters, int* found) {
  const auto run = [&](auto kind) {
    using Kind = decltype(kind);
    g->bfloat ? ::run<__nv_bfloat16, Kind>(*g, clusters, found) : ::run<__half, Kind>(*g, clusters, found);
  };
  if (g->floats == 2) run(NvFp4{});
  else if (g->floats) run(E4M3{});
  else g->bits == 4 ? run(Integer<4>{}) : run(Integer<8>{});
}
