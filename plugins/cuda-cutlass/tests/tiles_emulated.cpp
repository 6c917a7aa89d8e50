// csrc/scaled_mm_sm90_tiles.cuh on the processor.
#include "sm90_emulation.h"

#include "scaled_mm_sm90_tiles.cuh"

#include "scaled_mm_emulated.h"

template <class Element, class S, bool BY_BLOCK = false>
void run(const Arguments& g, int* found) {
  multiply_by(g, BY_BLOCK, S::kRows, S::kCluster, kGroups, S::kFours, kThreads, kSharedBytes, found,
              tiles_kernel<Element, S, __nv_bfloat16, BY_BLOCK>);
}

template <class Element>
void run_by_row(const Arguments& g, int* found) {
  if (g.rows == 64) run<Element, Shape<1, true, 1>>(g, found);
  else if (g.rows == 128) run<Element, Shape<1, false, 2>>(g, found);
  else run<Element, Shape<2, false, 2>>(g, found);
}

// Tiles of g->rows rows; with scales by block of 64.
extern "C" void multiply(const Arguments* g, int* found) {
  if (g->a_scale_row) run<E4m3, Shape<1, true, 1>, true>(*g, found);
  else if (g->int8) run_by_row<Int8>(*g, found);
  else run_by_row<E4m3>(*g, found);
}
