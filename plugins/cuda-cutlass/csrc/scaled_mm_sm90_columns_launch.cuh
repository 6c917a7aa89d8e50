// The launch of scaled_mm_sm90_columns.cuh's kernel.
#pragma once

#include <atomic>

#include "scaled_mm.h"
#include "scaled_mm_sm90_columns.cuh"
#include "tensor_map.h"

namespace qcore_cuda {
namespace {

template <typename Element, int ROWS, bool BY_BLOCK, int BLOCKS = 1, class Source = Given>
void launch_columns(const ScaledMM& p, const Source& source = {}) {
  const char* op = "cutlass_scaled_mm";
  const auto kernel = columns_kernel<Element, ROWS, BY_BLOCK, BLOCKS, Source>;
  // The sums take the stages' place.
  static_assert(kGroups * ROWS * (kTile + 1) * 4 <= kSharedBytes - 1024 - kBarrierBytes);
  static std::atomic<uint64_t> allowed{0};
  allow_shared(op, reinterpret_cast<const void*>(kernel), kSharedBytes, p.device, allowed);
  const Cut cut = cut_columns<Source>(p, ROWS, BLOCKS);
  const auto map = [&](const void* data, int64_t rows, int64_t stride, int box_rows, bool boxes) {
    return boxes ? byte_boxes_map(op, data, rows, p.k, stride, box_rows, cut.shares)
                 : byte_matrix_map(op, data, rows, p.k, stride, box_rows);
  };
  const CUtensorMap b_map = map(p.b, p.n, p.b_stride, cut.columns, cut.boxes);
  const CUtensorMap a_map = Source::kHere ? b_map : map(p.a, p.m, p.a_stride, cut.a_rows, cut.a_boxes(ROWS));
  const auto clusters = static_cast<unsigned>(ceil_div(p.n, cut.columns));
  const LaunchShape shape{dim3(clusters * BLOCKS), kThreads, kSharedBytes, p.stream, p.early_launch, {BLOCKS, 1, 1}};
  launch_kernel(op, shape, kernel, b_map, a_map, p, cut, source);
}

}  // namespace
}  // namespace qcore_cuda
