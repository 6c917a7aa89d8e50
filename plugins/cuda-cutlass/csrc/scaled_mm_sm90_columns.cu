// SM90, few rows of codes: launches of scaled_mm_sm90_columns.cuh.

#include "scaled_mm_sm90_columns.cuh"

namespace qcore_cuda {
namespace {

template <typename Element, bool BY_BLOCK>
void launch_for_rows(const ScaledMM& p) {
  if (p.m <= 8) return launch_columns<Element, 8, BY_BLOCK>(p);
  if (p.m <= 16) return launch_columns<Element, 16, BY_BLOCK>(p);
  if (BY_BLOCK || p.m <= 32) return launch_columns<Element, 32, BY_BLOCK>(p);
  if constexpr (!BY_BLOCK) launch_columns<Element, 64, false>(p);
}

}  // namespace

void scaled_mm_sm90_columns(const ScaledMM& p) {
  if (!p.is_fp8) return launch_for_rows<Int8, false>(p);
  p.by_block ? launch_for_rows<E4m3, true>(p) : launch_for_rows<E4m3, false>(p);
}

}  // namespace qcore_cuda
