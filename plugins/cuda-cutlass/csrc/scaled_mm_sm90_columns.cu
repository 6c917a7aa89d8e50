// SM90, few rows of codes: launches of scaled_mm_sm90_columns.cuh.

#include "scaled_mm_sm90_columns_launch.cuh"

namespace qcore_cuda {
namespace {

template <typename Element, bool BY_BLOCK, int BLOCKS = 1>
void launch_for_rows(const ScaledMM& p) {
  with_rows<BY_BLOCK>(p.m, [&](auto rows) { launch_columns<Element, decltype(rows)::value, BY_BLOCK, BLOCKS>(p); });
}

// With scales by block a step takes long, for however many columns: sums are waited for, and scaled. Two blocks that share
// K have half as many steps each if their warpgroups, of twice the columns, still share K by four.
bool in_pairs(const ScaledMM& p) { return ceil_div(p.n, p.sm_count / 2) <= kTile && p.k >= 1024; }

}  // namespace

void scaled_mm_sm90_columns(const ScaledMM& p) {
  if (!p.is_fp8) return launch_for_rows<Int8, false>(p);
  if (!p.by_block) return launch_for_rows<E4m3, false>(p);
  in_pairs(p) ? launch_for_rows<E4m3, true, 2>(p) : launch_for_rows<E4m3, true>(p);
}

}  // namespace qcore_cuda
