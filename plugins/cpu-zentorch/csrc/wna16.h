// The loops over rows and columns that the ops with packed weights share (wna16.cpp).
#pragma once

#include "op_support.h"

namespace qcore_cpu {

// The weights that wna16_pack made, checked; `op` names who asks. An empty tensor is as good as none. With
// `small_scales`, scales may be e4m3 (Char) or e8m0 (Byte).
Wna16Weights check_weights(const char* op, const Tensor& packed, const Tensor& scale,
                           const std::optional<Tensor>& zero, const std::optional<Tensor>& perm,
                           const Tensor& chunks, int64_t bits, int64_t k, int64_t n,
                           const std::optional<Tensor>& offset,
                           const std::optional<Tensor>& super_scale,
                           const std::optional<Tensor>& super_offset, bool small_scales = false);

// Rows that are rounded before they are packed. Called by several threads, each for rows of its own.
class RoundedRows {
 public:
  virtual ~RoundedRows() = default;
  struct Tile {
    const uint16_t* values;  // bfloat16, a row after the other
    const float* scales;
  };
  // Valid until the thread asks for another.
  virtual Tile round(int64_t row, int count) const = 0;
  // The tile's scales to its sides, the first of which in each chunk is side `first` of a panel.
  virtual void scale_sides(const Tile& tile, int count, char* sides, int64_t panel_rows,
                           int64_t first) const = 0;
};

// x times the weights, with `kernel`; x has at least one row. If there is `rounded`, its rows are taken, and
// x says how many there are. `per_row`: see Wna16Kernels::pack_rows.
void wna16_run(const Wna16Kernels& kernel, const Wna16Weights& w, int64_t bits, bool per_row,
               const Rows& x, const Output& out, const RoundedRows* rounded = nullptr);

}  // namespace qcore_cpu
