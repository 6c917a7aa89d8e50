// csrc/scaled_mm_sm90_tiles.cuh on the processor.
#include "sm90_emulation.h"

#include "scaled_mm_sm90_tiles.cuh"

#include "scaled_mm_emulated.h"

template <class S, bool BY_BLOCK>
void run(const Arguments& g, int* found) {
  multiply_by(g, BY_BLOCK, S::kRows, S::kCluster, kGroups, S::kFours, kThreads, kSharedBytes, found,
              tiles_kernel<S, __nv_bfloat16, BY_BLOCK>);
}

// Tiles of g->rows rows; with scales by block of 64.
extern "C" void multiply(const Arguments* g, int* found) {
  if (g->a_scale_row) run<Shape<1, true, 1>, true>(*g, found);
  else if (g->rows == 64) run<Shape<1, true, 1>, false>(*g, found);
  else if (g->rows == 128) run<Shape<1, false, 2>, false>(*g, found);
  else run<Shape<2, false, 2>, false>(*g, found);
}
