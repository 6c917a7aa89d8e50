// small_float_linear: weights of e2m1 (4 bits) or e4m3 (8 bits), activations in 16 bits, by the kernels of packed
// integers.
//
//   q_weight       int32 [K * bits / 32, N]   GPTQ's words; of 4 bits in the order of gptq_shuffle
//   scales         [K / group_size, N]; of groups of 16 (NVFP4) uint8 [K / 32, N, 2], see NvFp4 in w4_codes.cuh
//   column_scales  float32 [N]: sums are multiplied by these. Where there is one group, scales are then ones, for
//                  kernels that have to have some in 16 bits

#include "gptq.cuh"

namespace qcore_cuda {
namespace {

// A weight whole, [k, n], rounded once: a thread makes a word's numbers.
template <class KIND, typename T>
__global__ void __launch_bounds__(256) whole_kernel(const uint32_t* __restrict__ words, const void* __restrict__ scales,
                                                    ScaleType type, const float* __restrict__ column_scales,
                                                    int group_size, int64_t rows, int64_t k, int n, T* __restrict__ out) {
  constexpr int BITS = KIND::kBits, kCount = 32 / BITS;
  const int column = blockIdx.x * blockDim.x + threadIdx.x;
  if (column >= n) return;
  const float of_column = column_scales[column];
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    const uint32_t word = words[row * n + column];
    const int64_t at = row * kCount / group_size * n + column;  // a group has whole words
    float scale;
    if constexpr (KIND::kScaled) {
      scale = nvfp4_scale(static_cast<const uint8_t*>(scales)[2 * at + row * kCount / 16 % 2]);
    } else {
      scale = scale_at(scales, type, at);
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int bit = BITS == 4 ? (i >> 1) * BITS + (i & 1) * 16 : i * BITS;
      const float value = float_of<KIND>(word >> bit & ((1u << BITS) - 1)) * scale;
      if (row * kCount + i < k) assign_to(out[(row * kCount + i) * n + column], value * of_column);
    }
  }
}

// The product by the weight made whole, where `multiply_by` does not know how its scales lie: they are of two kinds.
Tensor multiply_whole(const char* op, const Tensor& a, const GptqWeight& w, const Tensor* bias, int64_t columns,
                      bool out_float, const Launch& launch) {
  const int64_t k = a.size(a.dim() - 1);
  const Tensor whole = new_tensor(a, {k, w.n});
  const dim3 grid(static_cast<unsigned>(ceil_div(w.n, 256)),
                  static_cast<unsigned>(std::min<int64_t>(w.words.size(0), 65535)));
  const auto run = [&](auto kind, auto zero) {
    using T = decltype(zero);
    whole_kernel<decltype(kind), T><<<grid, 256, 0, launch.stream()>>>(
        static_cast<const uint32_t*>(w.words.data_ptr()), w.scales.data_ptr(), scale_type_of(w.scales), w.column_scales,
        static_cast<int>(w.group_size), w.words.size(0), k, static_cast<int>(w.n), static_cast<T*>(whole.data_ptr()));
  };
  const auto with_kind = [&](auto zero) { w.scaled ? run(NvFp4{}, zero) : run(E4M3{}, zero); };
  if (dtype_of(a) == ScalarType::Half) with_kind(__half{});
  else with_kind(__nv_bfloat16{});
  check_launch(op);
  const Tensor used = columns == w.n ? whole : torch::stable::narrow(const_cast<Tensor&>(whole), 1, 0, columns);
  const Tensor out = product(a, used, out_float);
  if (bias) add_bias(out, *bias, false, launch.stream());
  return out;
}

GptqWeight float_weight(const char* op, const Tensor& a, const Tensor& q_weight, const Tensor& scales,
                        const Tensor* column_scales, int64_t bits, int64_t group_size) {
  check_activations(op, a);
  QCORE_CHECK(bits == 4 || bits == 8, op, ": bits is ", bits, "; allowed: 4 (e2m1), 8 (e4m3)");
  const bool scaled = bits == 4 && group_size == 16;
  QCORE_CHECK(bits == 8 || scaled || dtype_of(a) == ScalarType::BFloat16, op, ": a is ", dtype_name(dtype_of(a)),
              "; beside e2m1 in groups of 32 and more only BFloat16");
  QCORE_CHECK(q_weight.dim() == 2 && scales.dim() == (scaled ? 3 : 2), op, ": q_weight has shape ", shape_of(q_weight),
                  " and scales ", shape_of(scales), "; the first must have two dimensions, and scales ", scaled ? 3 : 2);
  const int64_t n = q_weight.size(1), k = q_weight.size(0) * 32 / bits, groups = scales.size(0);
  QCORE_CHECK(k % 32 == 0 && k >= a.size(a.dim() - 1) && n % 32 == 0 && n > 0, op, ": q_weight has codes of [", k, ", ", n,
                  "]; both must be multiples of 32, and the first at least a's ", a.size(a.dim() - 1), " columns");
  QCORE_CHECK(scaled || (group_size > 0 && group_size % 32 == 0), op, ": group_size is ", group_size,
              "; it must be a multiple of 32", bits == 4 ? ", or 16" : "");
  if (scaled) group_size = 32;  // that have two scales
  QCORE_CHECK(groups == ceil_div(k, group_size), op, ": scales have ", groups, " rows; ", k, " inputs in groups of ",
                  group_size, " have ", ceil_div(k, group_size));
  check_tensor(op, "q_weight", q_weight, a, {ScalarType::Int}, {q_weight.size(0), n});
  if (scaled) check_tensor(op, "scales", scales, a, {ScalarType::Byte}, {groups, n, 2});
  else check_tensor(op, "scales", scales, a, {ScalarType::Half, ScalarType::BFloat16, ScalarType::Float}, {groups, n});
  GptqWeight w{q_weight, static_cast<int>(bits), true, k, n, scales, {nullptr, 0, 0, 0}, group_size, nullptr, nullptr};
  w.floats = true;
  w.scaled = scaled;
  QCORE_CHECK(!scaled || column_scales, op, ": no column_scales; groups of 16 need them");
  if (column_scales) {
    QCORE_CHECK(groups == 1 || scaled || bits == 8, op, ": column_scales with ", groups, " groups of ", group_size,
                "; beside e2m1 they are for one group, or groups of 16");
    check_tensor(op, "column_scales", *column_scales, a, {ScalarType::Float}, {n});
    QCORE_CHECK(aligned_16(*column_scales), op, ": column_scales must begin at a multiple of 16 bytes");
    w.column_scales = static_cast<const float*>(column_scales->data_ptr());
  }
  return w;
}

Tensor small_float_linear(const Tensor& a, const Tensor& q_weight, const Tensor& scales,
                          const std::optional<Tensor>& column_scales, const std::optional<Tensor>& bias, int64_t bits,
                          int64_t group_size, int64_t in_features, int64_t out_features, bool out_float, int64_t way) {
  const char* op = "small_float_linear";
  const GptqWeight w = float_weight(op, a, q_weight, scales, present(column_scales), bits, group_size);
  const int64_t k = a.size(a.dim() - 1);
  QCORE_CHECK(k == in_features, op, ": a has shape ", shape_of(a), "; its last dimension must be ", in_features);
  QCORE_CHECK(out_features >= 0 && out_features <= w.n, op, ": out_features is ", out_features, "; q_weight has ", w.n,
                  " columns");
  const Tensor* added = present(bias);
  if (added) check_tensor(op, "bias", *added, a, {dtype_of(a), ScalarType::Float}, {out_features});
  const int32_t device = a.get_device_index();
  const Ways can = ways_of(w, dtype_of(a), out_float, device);
  const int64_t m = a.numel() / k;
  // No weight is rounded in groups of 16 or 32 either, so that they need not stay with the kernel for few rows as
  // integers do.
  const int64_t few_rows = can.mid ? 0 : -1;
  Way taken = way_for(can, m, out_features, k, device_facts(device).sm_count, few_rows);
  if (way >= 0) {
    const bool fits[] = {can.few, can.mid, can.sm90, true};
    QCORE_CHECK(way < 4 && fits[way], op, ": way is ", way, "; of few (0), medium (1) and many rows (2) and whole (3) "
                    "this weight has no such kernel here");
    taken = static_cast<Way>(way);
  }
  const bool two_kinds = w.column_scales && (w.scaled || w.group_size < w.k);
  if (taken == Way::kWhole && two_kinds && a.numel() * out_features > 0) {
    return multiply_whole(op, a, w, added, out_features, out_float, Launch(a));
  }
  return multiply_by(taken, op, a, w, added, out_features, out_float, Launch(a));
}

}  // namespace
}  // namespace qcore_cuda

STABLE_TORCH_LIBRARY_FRAGMENT(qcore_cuda, m) {
  m.def("small_float_linear(Tensor a, Tensor q_weight, Tensor scales, Tensor? column_scales, Tensor? bias, int bits, "
        "int group_size, SymInt in_features, SymInt out_features, bool out_float=False, int way=-1) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(qcore_cuda, CUDA, m) {
  m.impl("small_float_linear", TORCH_BOX(&qcore_cuda::small_float_linear));
}
