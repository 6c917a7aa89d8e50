// wfp_linear: x [..., K] times weights that are small floats, or that a table gives their value; products
// and sums are float32. packed, scale, perm, chunks and offset are those of wna16_linear, as wna16_pack makes
// them of codes of 4 or 8 bits, but
//
//   codes  "e2m1"     4 bits
//          "e4m3"     8 bits, of which a word has slot 2j at bit 8j of its low half and slot 2j + 1 there in
//                     its high half. There is no NaN: 0x7f is 480
//                     Scales of both may be bytes: e4m3 (Char; torch checks no op that takes Float8_e4m3fn
//                     against its schema), or e8m0 (Byte); no NaN and no 2^-127
//          "lookup4", "lookup8"   the values of the codes are in `table`, float32 [16] or [256]
//
// and `weight_scale` multiplies the result. Activations are taken as they are (""), or rounded:
//
//   activations  "e4m3", "e4m3fnuz"   with a scale for each `group` of inputs; -1: for each row; 0: for all,
//                                     which is input_scale, if given. Of a row, or all, a computed scale
//                                     covers input_bound at most. Groups only with codes of e4m3
//                "mxfp4", "mxfp8"     in blocks of 32
//                "nvfp4"              in blocks of 16, whose scales have a scale: with group -1 for each row;
//                                     with 0 for all, which is input_scale, if given
//
// A group of inputs must lie in whole words: scales and g_idx of the weights can be chosen so that it does.

#include <limits>
#include <string_view>

#include "wna16.h"

namespace qcore_cpu {
namespace {

constexpr const char* kOp = "wfp_linear";

using Maybe = const std::optional<Tensor>&;

bool given(Maybe t) { return t && t->numel() > 0; }

const float* one_float(const char* name, Maybe t) {
  if (!t) return nullptr;
  check_dtype(kOp, name, *t, ScalarType::Float);
  QCORE_CHECK(t->numel() == 1, kOp, ": ", name, " has shape ", shape_of(*t), "; it must have one element");
  return static_cast<const float*>(t->data_ptr());
}

// ---- weights ---------------------------------------------------------------------------------

enum class Codes { e2m1, e4m3, lookup4, lookup8 };

Codes find_codes(std::string_view name) {
  if (name == "e2m1") return Codes::e2m1;
  if (name == "e4m3") return Codes::e4m3;
  if (name == "lookup4") return Codes::lookup4;
  if (name == "lookup8") return Codes::lookup8;
  QCORE_CHECK(false, kOp, ": codes is '", std::string(name), "'; allowed: e2m1, e4m3, lookup4, lookup8");
}

int bits_of(Codes codes) { return codes == Codes::e2m1 || codes == Codes::lookup4 ? 4 : 8; }
bool has_table(Codes codes) { return codes == Codes::lookup4 || codes == Codes::lookup8; }

const Wna16Kernels& kernel_of(Codes codes, bool bf16) {
  const IsaKernels& isa = active_isa();
  if (has_table(codes)) return isa.lookup[codes == Codes::lookup8];
  return (codes == Codes::e2m1 ? isa.e2m1 : isa.e4m3)[bf16];
}

Wna16Weights check_weights(Codes codes, const Tensor& packed, const Tensor& scale, Maybe perm,
                           const Tensor& chunks, Maybe offset, Maybe table, int64_t k, int64_t n) {
  const std::optional<Tensor> none;
  Wna16Weights w = qcore_cpu::check_weights(kOp, packed, scale, none, perm, chunks, bits_of(codes), k, n,
                                            offset, none, none, !has_table(codes));
  QCORE_CHECK(given(table) == has_table(codes), kOp, ": table is ", given(table) ? "" : "not ",
                  "given; codes of lookup4 and lookup8 need it, and no others");
  if (has_table(codes)) {
    check_tensor(kOp, "table", *table, ScalarType::Float, {int64_t{1} << bits_of(codes)});
    w.table = static_cast<const float*>(table->data_ptr());
  }
  QCORE_CHECK(!w.offset.data || has_table(codes), kOp,
                  ": offset is given; only codes of lookup4 and lookup8 have one");
  return w;
}

// ---- activations -----------------------------------------------------------------------------

SmallFloat find_format(std::string_view name) {
  if (name == "e4m3") return SmallFloat::e4m3;
  if (name == "e4m3fnuz") return SmallFloat::e4m3fnuz;
  if (name == "mxfp4") return SmallFloat::mxfp4;
  if (name == "mxfp8") return SmallFloat::mxfp8;
  if (name == "nvfp4") return SmallFloat::nvfp4;
  QCORE_CHECK(false, kOp, ": activations is '", std::string(name),
                  "'; allowed: '', e4m3, e4m3fnuz, mxfp4, mxfp8, nvfp4");
}

class SmallFloatRows : public RoundedRows {
 public:
  // `row_scale` [rows] holds what else multiplies a row, and gets its scale, if it has only one.
  SmallFloatRows(const RowRounding& rounding, bool share, const Wna16Weights& w, int64_t slots,
                 const Rows& x, float* row_scale)
      : isa_(active_isa()), rounding_(rounding), w_(w), slots_(slots), x_(x), row_scale_(row_scale),
        groups_(rounding.group ? ceil_div(x.k, rounding.group) : 1) {
    if (share && !rounding.scale) {
      shared_ = common_scale();
      rounding_.scale = &shared_;
    }
  }
  SmallFloatRows(const SmallFloatRows&) = delete;
  SmallFloatRows& operator=(const SmallFloatRows&) = delete;

  Tile round(int64_t row, int count) const override {
    thread_local Workspace space;
    const int64_t line_bytes = align_line(x_.k * 4), value_bytes = align_line(count * x_.k * 2);
    char* line = space.reserve(line_bytes + value_bytes + count * groups_ * 4);
    auto* values = reinterpret_cast<uint16_t*>(line + line_bytes);
    auto* scales = reinterpret_cast<float*>(line + line_bytes + value_bytes);
    for (int r = 0; r < count; ++r) {
      isa_.round_row(rounding_, x_.row(row + r), x_.dtype, x_.k, reinterpret_cast<float*>(line),
                     values + r * x_.k, scales + r * groups_);
      if (!rounding_.group) row_scale_[row + r] *= scales[r];
    }
    return {values, scales};
  }

  void scale_sides(const Tile& tile, int count, char* sides, int64_t panel_rows,
                   int64_t first) const override {
    if (!rounding_.group) return;
    for (int64_t c = 0; c < w_.chunks; ++c) {
      const int64_t slot = w_.chunk_begin[c] * slots_;
      const int64_t group = (w_.perm ? w_.perm[slot] : slot) / rounding_.group;
      auto* side = reinterpret_cast<ScaledSide*>(sides) + c * panel_rows + first;
      for (int r = 0; r < count; ++r) side[r].scale = tile.scales[r * groups_ + group];
    }
  }

  // Whether the inputs of each chunk have one scale.
  bool fits() const {
    bool fits = true;
    for (int64_t c = 0; rounding_.group && c < w_.chunks; ++c) {
      int64_t group = -1;
      for (int64_t s = w_.chunk_begin[c] * slots_; s < w_.chunk_begin[c + 1] * slots_; ++s) {
        const int64_t input = w_.perm ? w_.perm[s] : s < w_.k ? s : -1;
        if (input < 0) continue;
        fits = fits && (group < 0 || group == input / rounding_.group);
        group = input / rounding_.group;
      }
      fits = fits && (!w_.perm || w_.perm[w_.chunk_begin[c] * slots_] >= 0);
    }
    return fits;
  }

 private:
  float common_scale() const {
    thread_local Workspace space;
    float* line = reinterpret_cast<float*>(space.reserve(x_.k * 4));
    float amax = 0.0f;
    for (int64_t row = 0; row < x_.rows && amax == amax; ++row) {
      const float found = isa_.row_amax(x_.row(row), x_.dtype, x_.k, line);
      amax = found <= amax ? amax : found;
    }
    amax = amax > rounding_.bound ? rounding_.bound : amax;
    const float limit = rounding_.format == SmallFloat::nvfp4      ? 448.0f * 6.0f
                        : rounding_.format == SmallFloat::e4m3fnuz ? 224.0f
                                                                   : 448.0f;
    return amax == 0.0f ? 1.0f : amax / limit == 0.0f ? 1.0f : amax / limit;
  }

  const IsaKernels& isa_;
  RowRounding rounding_;
  const Wna16Weights& w_;
  int64_t slots_;
  const Rows& x_;
  float* row_scale_;
  int64_t groups_;
  float shared_ = 1.0f;
};

// ---- the ops ---------------------------------------------------------------------------------

void wfp_linear_out(const Tensor& x, const Tensor& packed, const Tensor& scale, Maybe perm,
                    const Tensor& chunks, Maybe bias, std::string_view codes_name, int64_t k, int64_t n,
                    const Tensor& out, Maybe weight_scale, Maybe offset, Maybe table,
                    std::string_view activations, int64_t group, Maybe input_scale, Maybe input_bound) {
  const Codes codes = find_codes(codes_name);
  const Wna16Weights w = check_weights(codes, packed, scale, perm, chunks, offset, table, k, n);
  const Rows rows = as_rows(kOp, x, k);
  check_out(kOp, out, x, n);
  Output output = make_output(kOp, out, bias, n);
  const float* outer = one_float("weight_scale", weight_scale);
  const float* given_scale = one_float("input_scale", input_scale);
  const float* bound = one_float("input_bound", input_bound);
  QCORE_CHECK(group >= -1, kOp, ": group is ", group, "; it must be -1 (a row), 0 (all) or at least 1");
  const bool rounds = !activations.empty();
  RowRounding rounding{};
  if (rounds) {
    rounding.format = find_format(activations);
    rounding.scale = given_scale;
    rounding.bound = bound ? *bound : std::numeric_limits<float>::infinity();
    const bool plain = rounding.format == SmallFloat::e4m3 || rounding.format == SmallFloat::e4m3fnuz;
    rounding.group = plain && group > 0 ? group : 0;
    QCORE_CHECK(!rounding.group || codes == Codes::e4m3, kOp, ": group is ", group,
                    "; activations are rounded in groups with codes of e4m3 only");
    QCORE_CHECK(!given_scale || group == 0, kOp, ": input_scale is given; group is then 0, not ", group);
  }
  if (rows.rows == 0) return;

  const Wna16Kernels& kernel = kernel_of(codes, rounds || rows.dtype == Dtype::bf16);
  if (rounds || outer) {
    thread_local Workspace space;
    auto* row_scale = reinterpret_cast<float*>(space.reserve(rows.rows * 4));
    std::fill(row_scale, row_scale + rows.rows, outer ? *outer : 1.0f);
    output.row_scale = row_scale;
  }
  if (!rounds) return wna16_run(kernel, w, bits_of(codes), false, rows, output);
  const bool mx = rounding.format == SmallFloat::mxfp4 || rounding.format == SmallFloat::mxfp8;
  const SmallFloatRows rounded(rounding, group == 0 && !mx, w, 32 / bits_of(codes), rows,
                               const_cast<float*>(output.row_scale));
  QCORE_CHECK(rounded.fits(), kOp, ": group is ", group,
                  "; a chunk of the weights has inputs of several groups");
  wna16_run(kernel, w, bits_of(codes), false, rows, output, &rounded);
}

Tensor wfp_linear(const Tensor& x, const Tensor& packed, const Tensor& scale, Maybe perm,
                  const Tensor& chunks, Maybe bias, std::string_view codes, int64_t k, int64_t n,
                  std::optional<ScalarType> out_dtype, Maybe weight_scale, Maybe offset, Maybe table,
                  std::string_view activations, int64_t group, Maybe input_scale, Maybe input_bound) {
  const ScalarType type = out_dtype.value_or(x.scalar_type());
  float_dtype(kOp, out_dtype ? "out_dtype" : "x", type);
  QCORE_CHECK(x.dim() >= 1, kOp, ": x has no dimension; it must be [..., K]");
  QCORE_CHECK(n >= 1, kOp, ": out_features is ", n, "; it must be at least 1");
  Tensor out = torch::stable::new_empty(x, shape_with_last(x, n), type);
  wfp_linear_out(x, packed, scale, perm, chunks, bias, codes, k, n, out, weight_scale, offset, table,
                 activations, group, input_scale, input_bound);
  return out;
}

}  // namespace
}  // namespace qcore_cpu

STABLE_TORCH_LIBRARY_FRAGMENT(qcore_cpu, m) {
  m.def(
      "wfp_linear(Tensor x, Tensor packed, Tensor scale, Tensor? perm, Tensor chunks, Tensor? bias, "
      "str codes, int in_features, int out_features, ScalarType? out_dtype=None, "
      "Tensor? weight_scale=None, Tensor? offset=None, Tensor? table=None, str activations=\"\", "
      "int group=0, Tensor? input_scale=None, Tensor? input_bound=None) -> Tensor");
  m.def(
      "wfp_linear_out(Tensor x, Tensor packed, Tensor scale, Tensor? perm, Tensor chunks, Tensor? bias, "
      "str codes, int in_features, int out_features, Tensor(a!) out, Tensor? weight_scale=None, "
      "Tensor? offset=None, Tensor? table=None, str activations=\"\", int group=0, "
      "Tensor? input_scale=None, Tensor? input_bound=None) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(qcore_cpu, CPU, m) {
  m.impl("wfp_linear", TORCH_BOX(&qcore_cpu::wfp_linear));
  m.impl("wfp_linear_out", TORCH_BOX(&qcore_cpu::wfp_linear_out));
}
