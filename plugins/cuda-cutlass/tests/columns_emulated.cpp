// csrc/scaled_mm_sm90_columns.cuh on the processor.
#include "sm90_emulation.h"

#include "scaled_mm_sm90_columns.cuh"

#include "scaled_mm_arguments.h"

template <class Element, int ROWS, bool BY_BLOCK, Pair PAIR>
void run_for_rows(const Arguments& g, int* found) {
  ScaledMM p = problem_of(g, BY_BLOCK);
  p.out = g.out, p.out_stride = g.n, p.out_bf16 = true;
  p.sm_count = g.clusters;
  const Cut cut = cut_columns<Given>(p, ROWS, PAIR == Pair::kK ? 2 : 1);
  constexpr int kBlocks = PAIR == Pair::kNone ? 1 : 2, kFetchers = PAIR == Pair::kA ? 2 : 1;
  const int boxes = cut.boxes ? cut.shares : 1, a_boxes = cut.boxes ? cut.a_pieces(kFetchers) : 1;
  const int clusters = static_cast<int>(ceil_div(g.n, cut.columns * kFetchers));
  const CUtensorMap a_map{bytes_of(g.a), g.m, g.k, g.k, cut.a_rows(ROWS, kFetchers), a_boxes}, b_map{bytes_of(g.b), g.n, g.k, g.k, cut.columns, boxes};
  emulation::whole_warpgroups = true;
  emulation::run_grid(clusters, kBlocks, kThreads, kSharedBytes, g.seed, [&] {
    columns_kernel<Element, ROWS, BY_BLOCK, PAIR, Given>(b_map, a_map, p, cut, Given{});
  });
  found[0] = cut.shares, found[1] = cut.steps, found[2] = 0;
}

template <class Element, bool BY_BLOCK, Pair PAIR>
void run(const Arguments& g, int* found) {
  if (g.m <= 8) run_for_rows<Element, 8, BY_BLOCK, PAIR>(g, found);
  else if (g.m <= 16) run_for_rows<Element, 16, BY_BLOCK, PAIR>(g, found);
  else if (BY_BLOCK || g.m <= 32) run_for_rows<Element, 32, BY_BLOCK, PAIR>(g, found);
  else if constexpr (!BY_BLOCK) run_for_rows<Element, 64, false, PAIR>(g, found);
}

// For so many processors as g->clusters says; with scales by block two blocks share K if g->shared says so.
extern "C" void multiply(const Arguments* g, int* found) {
  if (g->int8) g->shared ? run<Int8, false, Pair::kA>(*g, found) : run<Int8, false, Pair::kNone>(*g, found);
  else if (!g->a_scale_row) g->shared ? run<E4m3, false, Pair::kA>(*g, found) : run<E4m3, false, Pair::kNone>(*g, found);
  else g->shared ? run<E4m3, true, Pair::kK>(*g, found) : run<E4m3, true, Pair::kNone>(*g, found);
}
