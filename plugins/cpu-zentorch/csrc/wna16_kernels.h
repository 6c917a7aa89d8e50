// wna16 for one instruction set; included by isa_<name>.cpp after its vec_*.h.
//
// A chunk's sum over its inputs is taken in order, with one fma (or one dot product) a step, and then
// folded (wna16_fold.h). The narrow and the wide kernel do exactly this for every output, hence a row's
// result is bit for bit the same whatever other rows are in the batch.

#include "unroll.h"
#include "wna16_fold.h"
#include "wna16_rows.h"
#include "wna16_digits.h"
#include "wna16_narrow.h"
#include "wna16_wide.h"

namespace {

template <class Dot, int bits>
constexpr Wna16Kernels wna16_table() {
  return {Dot::rows,
          Dot::slots * 4 / step_bytes<Dot>,
          sizeof(typename Dot::Side),
          [](int rows) { return Dot::padded(rows); },
          Wna16Rows<Dot, bits>::pack,
          Wna16Narrow<Dot, bits>::template run<>,
          Wna16Wide<Dot, bits>::run};
}

// The tables of all widths: `table_of` is asked with each as a constant.
template <class TableOf>
constexpr void fill(Wna16Kernels (&tables)[kWidths], const TableOf& table_of) {
  repeat<kWidths>([&](auto i) { tables[i] = table_of(Index<kCodeWords[i].bits>()); });
}

}  // namespace
