// SM90, FP8 with scales by block, tiles of 128 rows (scaled_mm_sm90_blocks.cuh): the launch.

#include "ceil_div.h"
#include "scaled_mm.h"
#include "scaled_mm_sm90_blocks.cuh"
#include "scaled_mm_sm90_sharing.h"
#include "tensor_map.h"

namespace qcore_cuda {
namespace {

// Rows and columns of floats, so many elements apart.
struct Scales {
  const float* data;
  int64_t rows, columns, row, column;

  // Whether the copy engine can bring parts of rows.
  bool has_map() const {
    return column == 1 && row >= columns && row % 4 == 0 && reinterpret_cast<uintptr_t>(data) % 16 == 0;
  }
};

constexpr int kSide = 32;  // of what a block of threads copies
__global__ void copy_scales(Scales from, float* to, int64_t row) {
  __shared__ float tile[kSide][kSide + 1];
  begin_turn();
  const int64_t r = blockIdx.y * kSide, c = blockIdx.x * kSide;
  if (r + threadIdx.x < from.rows && c + threadIdx.y < from.columns) {
    tile[threadIdx.y][threadIdx.x] = from.data[(r + threadIdx.x) * from.row + (c + threadIdx.y) * from.column];
  }
  __syncthreads();
  if (r + threadIdx.y < from.rows && c + threadIdx.x < from.columns) {
    to[(r + threadIdx.y) * row + c + threadIdx.x] = tile[threadIdx.x][threadIdx.y];
  }
}

// A map of scales, of a copy if need be, which `kept` keeps.
CUtensorMap scales_map(const char* op, const ScaledMM& p, Scales scales, int box, std::optional<Tensor>& kept) {
  if (!scales.has_map()) {
    const int64_t row = ceil_div(scales.columns, 4) * 4;
    kept = new_tensor(p.device, {scales.rows * row}, ScalarType::Float);
    auto* const to = static_cast<float*>(kept->data_ptr());
    const dim3 grid(static_cast<unsigned>(ceil_div(scales.columns, kSide)),
                    static_cast<unsigned>(ceil_div(scales.rows, kSide)));
    copy_scales<<<grid, dim3(kSide, kSide), 0, p.stream>>>(scales, to, row);
    check_launch(op);
    scales = {to, scales.rows, scales.columns, row, 1};
  }
  return float_matrix_map(op, scales.data, scales.rows, scales.columns, scales.row, 1, box);
}

template <bool SHARED, typename Out>
void launch(const ScaledMM& p) {
  const char* op = "cutlass_scaled_mm";
  const auto kernel = blocks_kernel<SHARED, Out>;
  static std::atomic<uint64_t> allowed{0};
  allow_shared(op, reinterpret_cast<const void*>(kernel), kSharedBytes, p.device, allowed);
  const RowMaps a_maps = row_maps(op, p.a, p.m, p.k, p.a_stride, kTile / kCluster);
  const CUtensorMap b_map = byte_matrix_map(op, p.b, p.n, p.k, p.b_stride, kTile);
  const CUtensorMap out_map = byte_matrix_map(op, p.out, p.m, int64_t{p.n} * 2, p.out_stride * 2, 16);
  const Division division(p, kTile, kTile * kCluster, p.sm_count / kCluster, SHARED, kCluster * kGroups,
                          kFours * 4 * 128);
  const int64_t steps = division.tiles.steps;
  std::optional<Tensor> of_a, of_b;
  const CUtensorMap a_scale_map =
      scales_map(op, p, {p.a_scale, steps, p.m, p.a_scale_k, p.a_scale_m}, kTile, of_a);
  const CUtensorMap b_scale_map =
      scales_map(op, p, {p.b_scale, ceil_div(p.n, kTile), steps, p.b_scale_n, p.b_scale_k}, kBoxFloats, of_b);
  const LaunchShape shape{dim3(static_cast<unsigned>(division.clusters * kCluster)), kThreads, kSharedBytes, p.stream,
                          p.early_launch};
  launch_kernel(op, shape, kernel, a_maps.whole, a_maps.rest, b_map, a_scale_map, b_scale_map, out_map, p, division.tiles,
                division.meeting);
}

}  // namespace

void scaled_mm_sm90_blocks(const ScaledMM& p, bool shared) {
  with_out_type(p.out_bf16, [&](auto zero) {
    using Out = decltype(zero);
    shared ? launch<true, Out>(p) : launch<false, Out>(p);
  });
}

}  // namespace qcore_cuda
