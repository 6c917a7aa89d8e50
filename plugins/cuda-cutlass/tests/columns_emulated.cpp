// csrc/scaled_mm_sm90_columns.cuh on the processor.
#include "sm90_emulation.h"

#include "scaled_mm_sm90_columns.cuh"

#include "scaled_mm_arguments.h"

template <class Element, int ROWS, bool BY_BLOCK, int BLOCKS>
void run_for_rows(const Arguments& g) {
  ScaledMM p = problem_of(g, BY_BLOCK);
  p.out = g.out, p.out_stride = g.n, p.out_bf16 = true;
  p.sm_count = g.clusters;
  const Cut cut = cut_columns<Given>(p, ROWS, BLOCKS);
  const int boxes = cut.boxes ? cut.shares : 1, clusters = static_cast<int>(ceil_div(g.n, cut.columns));
  const CUtensorMap a_map{bytes_of(g.a), g.m, g.k, g.k, cut.a_rows, boxes}, b_map{bytes_of(g.b), g.n, g.k, g.k, cut.columns, boxes};
  emulation::whole_warpgroups = true;
  emulation::run_grid(clusters, BLOCKS, kThreads, kSharedBytes, g.seed, [&] {
    columns_kernel<Element, ROWS, BY_BLOCK, BLOCKS, Given>(b_map, a_map, p, cut, Given{});
  });
}

template <class Element, bool BY_BLOCK, int BLOCKS>
void run(const Arguments& g) {
  with_rows<BY_BLOCK>(g.m, [&](auto rows) { run_for_rows<Element, decltype(rows)::value, BY_BLOCK, BLOCKS>(g); });
}

// For so many processors as g->clusters says; with scales by block two blocks share K if g->shared says so.
extern "C" void multiply(const Arguments* g, int*) {
  if (g->int8) run<Int8, false, 1>(*g);
  else if (!g->a_scale_row) run<E4m3, false, 1>(*g);
  else if (g->shared) run<E4m3, true, 2>(*g);
  else run<E4m3, true, 1>(*g);
}
