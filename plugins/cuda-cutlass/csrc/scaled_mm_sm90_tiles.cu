// SM90, FP8 and int8, tiles of 64, 128 or 256 rows (scaled_mm_sm90_tiles.cuh): the launch.

#include "scaled_mm.h"
#include "scaled_mm_sm90_sharing.h"
#include "scaled_mm_sm90_tiles.cuh"
#include "tensor_map.h"

namespace qcore_cuda {
namespace {

template <class Element, typename S, typename Out, bool BY_BLOCK>
void launch(const ScaledMM& p, bool shared) {
  const char* op = "cutlass_scaled_mm";
  const auto kernel = tiles_kernel<Element, S, Out, BY_BLOCK>;
  static_assert(S::kStages >= 3 && S::kStages * 16 <= 1024);
  static std::atomic<uint64_t> allowed{0};
  allow_shared(op, reinterpret_cast<const void*>(kernel), kSharedBytes, p.device, allowed);
  const RowMaps a_maps = row_maps(op, p.a, p.m, p.k, p.a_stride, S::kRows / S::kCluster);
  const CUtensorMap b_map = byte_matrix_map(op, p.b, p.n, p.k, p.b_stride, kTileN);
  const CUtensorMap out_map = byte_matrix_map(op, p.out, p.m, int64_t{p.n} * 2, p.out_stride * 2, 16);
  const Division division(p, S::kRows, kTileN * S::kCluster, p.sm_count / S::kCluster, shared, S::kCluster * kGroups,
                          S::kFours * 4 * 128);
  const LaunchShape shape{dim3(static_cast<unsigned>(division.clusters * S::kCluster)), kThreads, kSharedBytes,
                          p.stream, p.early_launch};
  launch_kernel(op, shape, kernel, a_maps.whole, a_maps.rest, b_map, out_map, p, division.tiles, division.meeting);
}

template <typename S>
void launch_by_row(const ScaledMM& p, bool shared) {
  with_out_type(p.out_bf16, [&](auto zero) {
    using Out = decltype(zero);
    p.is_fp8 ? launch<E4m3, S, Out, false>(p, shared) : launch<Int8, S, Out, false>(p, shared);
  });
}

}  // namespace

void scaled_mm_sm90_tiles(const ScaledMM& p, int rows, bool shared) {
  if (p.by_block) {
    return with_out_type(p.out_bf16, [&](auto zero) {
      launch<E4m3, Shape<1, true, 1>, decltype(zero), true>(p, shared);
    });
  }
  if (rows == 64) return launch_by_row<Shape<1, true, 1>>(p, shared);
  if (rows == 128) return launch_by_row<Shape<1, false, 2>>(p, shared);
  launch_by_row<Shape<2, false, 2>>(p, shared);
}

}  // namespace qcore_cuda
