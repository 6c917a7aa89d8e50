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
  constexpr int kBoxRows = S::kRows / (PARTS ? 1 : 2);
  const CUtensorMap x_map{bytes(g.x), g.m, g.x_k * 2, g.x_stride * 2, kBoxRows, 1};
  CUtensorMap x_rest = x_map;
  x_rest.box_rows = g.m % kBoxRows;
  const CUtensorMap rows{bytes(g.words), g.k * KIND::kBits / 32, g.n * 4, g.n * 4, S::kPieces * S::kWordRows, 1, 4,
                         S::kColumns * 4};
  const CUtensorMap lanes{bytes(g.words), g.k / 64, g.n * 32, g.n * 32, S::kPieces, S::kColumns / 32, 4, 1024};
  const CUtensorMap w_map = kInLanes<KIND> ? lanes : rows;
  const CUtensorMap scale_map{bytes(g.scales), g.groups, g.n * 2, g.n * 2, 1, 1, 2, S::kColumns * 2};
  const CUtensorMap zero_map{bytes(g.zeros), g.groups, g.n * KIND::kBits / 8, g.n * KIND::kBits / 8, 1, 1, 4, kZeroBytes};
  const auto* const zeros = static_cast<const uint32_t*>(g.zeros);
  Problem p = problem_of(g.m, g.k, g.n_out, KIND::kBits, g.group_size, {zeros, 0, g.zero, g.add}, KIND::kScaled);
  p.column_scales = static_cast<const float*>(g.column_scales);
  p.bias = g.bias;
  p.bias_float = g.bias_float;
  p.out = g.out;
  take_tiles<S>(p, g.k);
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
  emulation::run_grid(clusters, PARTS ? g.split : 2, S::kThreads, S::kSharedBytes, g.seed,
                      [&] { w4_sm90_kernel<T, KIND, S, PARTS>(x_map, x_rest, w_map, scale_map, zero_map, p); });
  found[0] = p.helped.helpers;
  found[1] = static_cast<int>(std::count(flags.begin(), flags.end(), 1));
}

template <typename T, class KIND>
void run(const Arguments& g, int clusters, int* found) {
  with_tile(many::tile_of(g.row_tiles, g.column_warps), [&](auto tile) {
    using S = ShapeAt<KIND, decltype(tile)::value>;
    g.split ? run<T, KIND, S, true>(g, clusters, found) : run<T, KIND, S, false>(g, clusters, found);
  });
}

// `found`: how many clusters helped, and flags that are left.
extern "C" void multiply_many(const Arguments* g, int clusters, int* found) {
  const auto run = [&](auto kind) {
    using Kind = decltype(kind);
    g->bfloat ? ::run<__nv_bfloat16, Kind>(*g, clusters, found) : ::run<__half, Kind>(*g, clusters, found);
  };
  if (g->lanes) ::run<__nv_bfloat16, Lanes>(*g, clusters, found);
  else if (g->floats == 2) run(NvFp4{});
  else if (g->floats) run(E4M3{});
  else if (g->bfloat && !g->zeros && g->zero == 1 << (g->bits - 1)) {
    if (g->bits == 4) ::run<__nv_bfloat16, Subnormal<4>>(*g, clusters, found);
    else ::run<__nv_bfloat16, Subnormal<8>>(*g, clusters, found);
  }
  else g->bits == 4 ? run(Integer<4>{}) : run(Integer<8>{});
}
