// small_float_linear: weights of e2m1 (4 bits) or e4m3 (8 bits), activations in 16 bits, by the kernels of packed
// integers.
//
//   q_weight       int32 [K * bits / 32, N]   GPTQ's words; of 4 bits in the order of gptq_shuffle
//   scales         [K / group_size, N]
//   column_scales  float32 [N], where there is one group: scales are then ones, for kernels that have to
//                  have some in 16 bits, and sums are multiplied by these

#include "gptq.cuh"

namespace qcore_cuda {
namespace {

GptqWeight float_weight(const char* op, const Tensor& a, const Tensor& q_weight, const Tensor& scales,
                        const Tensor* column_scales, int64_t bits, int64_t group_size) {
  check_activations(op, a);
  QCORE_CHECK(bits == 4 || bits == 8, op, ": bits is ", bits, "; allowed: 4 (e2m1), 8 (e4m3)");
  QCORE_CHECK(bits == 8 || dtype_of(a) == ScalarType::BFloat16, op, ": a is ", dtype_name(dtype_of(a)),
              "; beside e2m1 only BFloat16");
  QCORE_CHECK(q_weight.dim() == 2 && scales.dim() == 2, op, ": q_weight has shape ", shape_of(q_weight),
                  " and scales ", shape_of(scales), "; both must have two dimensions");
  const int64_t n = q_weight.size(1), k = q_weight.size(0) * 32 / bits, groups = scales.size(0);
  QCORE_CHECK(k % 32 == 0 && k >= a.size(a.dim() - 1) && n % 32 == 0 && n > 0, op, ": q_weight has codes of [", k, ", ", n,
                  "]; both must be multiples of 32, and the first at least a's ", a.size(a.dim() - 1), " columns");
  QCORE_CHECK(group_size > 0 && group_size % 32 == 0, op, ": group_size is ", group_size, "; it must be a multiple of 32");
  QCORE_CHECK(groups == ceil_div(k, group_size), op, ": scales have ", groups, " rows; ", k, " inputs in groups of ",
                  group_size, " have ", ceil_div(k, group_size));
  check_tensor(op, "q_weight", q_weight, a, {ScalarType::Int}, {q_weight.size(0), n});
  check_tensor(op, "scales", scales, a, {ScalarType::Half, ScalarType::BFloat16, ScalarType::Float}, {groups, n});
  GptqWeight w{q_weight, static_cast<int>(bits), true, k, n, scales, {nullptr, 0, 0, 0}, group_size, nullptr, nullptr};
  w.floats = true;
  if (column_scales) {
    QCORE_CHECK(groups == 1, op, ": column_scales with ", groups, " groups; they are for one");
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
  // Powers of two round no weight, so that groups of 32 need not stay with the kernel for few rows as integers do.
  // It reads weights of middling size faster, though (benchmarks/results/cuda_formats.json).
  const int64_t few_rows = can.mid && !can.whole_pieces ? (w.k * w.n <= 2 * kSmallWeight ? kFewRowsBesideMid : 0) : -1;
  Way taken = way_for(can, m, out_features, k, device_facts(device).sm_count, few_rows);
  if (way >= 0) {
    const bool fits[] = {can.few, can.mid, can.sm90, true};
    QCORE_CHECK(way < 4 && fits[way], op, ": way is ", way, "; of few (0), medium (1) and many rows (2) and whole (3) "
                    "this weight has no such kernel here");
    taken = static_cast<Way>(way);
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
