// csrc/scaled_mm_sm90_blocks.cuh on the processor.
#include "sm90_emulation.h"

#include "scaled_mm_sm90_blocks.cuh"

#include "scaled_mm_emulated.h"

extern "C" void multiply(const Arguments* g, int* found) {
  const int steps = (g->k + kTile - 1) / kTile, columns = (g->n + kTile - 1) / kTile;
  const CUtensorMap a_scale_map{bytes_of(g->a_scale), steps, g->m * 4, g->a_scale_row * 4, 1, 1, 4, kTile * 4};
  const CUtensorMap b_scale_map{bytes_of(g->b_scale), columns, steps * 4, g->b_scale_row * 4, 1, 1, 4, kBoxFloats * 4};
  const auto kernel = g->shared ? blocks_kernel<true, __nv_bfloat16> : blocks_kernel<false, __nv_bfloat16>;
  multiply_by(*g, true, kTile, kCluster, kGroups, kFours, kThreads, kSharedBytes, found,
              [&](const auto& a_map, const auto& a_rest, const auto& b_map, const auto& out_map, const auto&... rest) {
                kernel(a_map, a_rest, b_map, a_scale_map, b_scale_map, out_map, rest...);
              });
}
