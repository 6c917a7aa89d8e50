// SM90, a few rows of floats that are quantized by the kernel that multiplies them (scaled_mm_sm90_columns.cuh).

#include "quantize_rows.h"
#include "scaled_mm_sm90_columns_launch.cuh"
#include "scaled_mm_sm90_rows.cuh"

namespace qcore_cuda {
namespace {

constexpr int kRows = 8, kLeastStages = 3;

// Every block makes the codes of all rows. That is faster than a kernel for it where they are few and short, and where a
// block has so many columns that it waits for them longer (benchmarks/results/cuda_scaled_mm.json, "fp8 layer" and "int8
// layer": "qcore" beside "qcore, two ops").
constexpr int kShort = 8192, kManyColumns = 128;

template <typename Element, typename Float, class Codec>
bool run(const ScaledMM& p, const Rows& x, const typename Codec::Params& params) {
  using Source = QuantizedHere<Float, Codec>;
  const auto* data = static_cast<const Float*>(x.data());
  if (!Source::fits(p.m, x.k) || x.stride % Source::kVec != 0 || !is_aligned(data, 16)) return false;
  const Cut cut = cut_columns<Source>(p, kRows);
  if (p.m > 1 && p.m * x.k > kShort && cut.columns < kManyColumns) return false;
  if (cut.stages < std::min(kLeastStages, cut.steps)) return false;
  launch_columns<Element, kRows, false>(p, Source{data, x.stride, static_cast<int>(x.k), params});
  return true;
}

template <typename Element, class Codec>
bool with_float(const ScaledMM& p, const Rows& x, const typename Codec::Params& params) {
  if (p.capability != 90) return false;
  switch (dtype_of(x.tensor)) {
    case ScalarType::Half: return run<Element, __half, Codec>(p, x, params);
    case ScalarType::BFloat16: return run<Element, __nv_bfloat16, Codec>(p, x, params);
    default: return false;
  }
}

}  // namespace

bool scaled_mm_sm90_fp8_by_row(const ScaledMM& p, const Rows& x, const float* upper_bound) {
  return with_float<E4m3, Fp8Row>(p, x, {nullptr, upper_bound});
}

bool scaled_mm_sm90_int8_by_row(const ScaledMM& p, const Rows& x) {
  return p.azp_adj ? with_float<Int8, Int8RowAzp>(p, x, {}) : with_float<Int8, Int8Row>(p, x, {});
}

}  // namespace qcore_cuda
