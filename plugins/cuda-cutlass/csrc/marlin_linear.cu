// Products with weights in Marlin's layout by generated kernels, and `marlin_linear`, a layer in one call.

#include <algorithm>

#include "marlin/params.h"
#include "marlin_call.h"
#include "marlin_select.h"
#include "quantize.cuh"
#include "w4_support.h"

namespace qcore_cuda {
namespace {

bool is_wide(ScalarType type) { return type == ScalarType::Half || type == ScalarType::BFloat16; }

// The scheme of a call; group_blocks is -2 where there is none.
MarlinScheme scheme_of(const MarlinCall& call) {
  MarlinScheme s{};
  switch (dtype_of(call.a->tensor)) {
    case ScalarType::Half: s.act = qcore_marlin::kF16; break;
    case ScalarType::BFloat16: s.act = qcore_marlin::kBF16; break;
    case ScalarType::Char: s.act = qcore_marlin::kS8; break;
    default: s.act = qcore_marlin::kActE4m3;
  }
  s.weight = static_cast<int>(call.type);  // the same order
  s.bf16_out = call.out_type == ScalarType::BFloat16;
  s.float_zeros = call.float_zeros;
  switch (call.scale_type) {
    case MarlinScale::kE4m3: s.scale = qcore_marlin::kE4m3Scale; break;
    case MarlinScale::kE8m0: s.scale = qcore_marlin::kE8m0Scale; break;
    default: s.scale = qcore_marlin::kOwnScale;
  }
  const bool own = call.scale_type == (s.bf16_out ? MarlinScale::kBFloat16 : MarlinScale::kHalf);
  s.group_blocks = call.g_idx ? 0 : call.group_size == 0 ? -1 : call.group_size % 16 ? -2 : static_cast<int>(call.group_size / 16);
  const bool float_scales = call.scale_type == MarlinScale::kFloat && s.group_blocks == -1;
  if (s.scale == qcore_marlin::kOwnScale && !own && !float_scales) s.group_blocks = -2;
  if (is_wide(dtype_of(call.a->tensor)) && dtype_of(call.a->tensor) != call.out_type) s.group_blocks = -2;
  return s;
}

template <typename T>
const T* pointer(const Tensor* t) {
  return t ? static_cast<const T*>(t->data_ptr()) : nullptr;
}

}  // namespace

bool run_marlin(const MarlinCall& call, const Tensor& out, const Launch& launch) {
  const int32_t device = static_cast<int32_t>(call.a->tensor.get_device_index());
  const MarlinScheme scheme = scheme_of(call);
  if (scheme.group_blocks == -2) return false;
  const MarlinKernel* kernel = find_marlin_kernel(scheme, device, call.a->m, call.n);
  if (!kernel) return false;

  const int64_t steps = ceil_div(call.k, kernel->tile_k);
  const int64_t all = steps * ceil_div(call.n, kernel->tile_n) * ceil_div(call.a->m, kernel->tile_m);
  QCORE_CHECK(all < (int64_t{1} << 30), call.op, ": ", call.a->m, " rows are too many for one call");
  const int64_t counters = call.workspace->numel();
  int64_t blocks = std::min<int64_t>({all, counters, int64_t{device_facts(device).sm_count} * kernel->blocks});
  const int64_t of_block = ceil_div(all, blocks);
  blocks = ceil_div(all, of_block);
  const bool shares = of_block % steps != 0;  // some tile is done by several blocks
  const Tensor partials = new_tensor(
      call.a->tensor, {shares ? 2 * blocks * kernel->tile_m * kernel->tile_n : 4}, ScalarType::Float);

  qcore_marlin::Params p{};
  p.a = call.a->data();
  p.b = call.words->data_ptr();
  p.scales = call.scales->data_ptr();
  p.zeros = pointer<void>(call.zeros);
  p.g_idx = pointer<int>(call.g_idx);
  p.a_scales = pointer<float>(call.a_scales);
  p.a_scale_stride = call.a_scales && call.a_scales->numel() > 1 ? 1 : 0;
  p.global_scale = pointer<float>(call.global_scale);
  p.bias = pointer<void>(call.bias);
  p.c = out.data_ptr();
  p.partials = static_cast<float*>(partials.data_ptr());
  p.counters = static_cast<int*>(call.workspace->data_ptr());
  p.lda = call.a->stride;
  p.ldc = call.n_out;
  p.m = static_cast<int>(call.a->m);
  p.n = static_cast<int>(call.n);
  p.k = static_cast<int>(call.k);
  p.k_in = static_cast<int>(std::min(call.a->k, call.k));
  p.n_out = static_cast<int>(call.n_out);
  p.groups = static_cast<int>(call.scales->size(0));
  p.float_scales = call.scale_type == MarlinScale::kFloat;
  p.plain_bias = call.plain_bias;

  void* arguments[] = {&p};
  const cudaError_t error = cudaLaunchKernel(kernel->function, dim3(static_cast<unsigned>(blocks)), dim3(kernel->threads),
                                             arguments, static_cast<size_t>(kernel->shared), launch.stream());
  QCORE_CHECK(error == cudaSuccess, call.op, ": ", cudaGetErrorString(error));
  return true;
}

namespace {

// x [..., at most K] times the weight, padded to n columns; scales in Marlin's order, bias in that of outputs.
Tensor marlin_linear(const Tensor& x, const Tensor& weight, const Tensor& scales, const std::optional<Tensor>& zeros,
                     const std::optional<Tensor>& g_idx, const std::optional<Tensor>& perm,
                     const std::optional<Tensor>& a_scales, const std::optional<Tensor>& global_scale,
                     const std::optional<Tensor>& bias, const Tensor& workspace, int64_t b_type_id, int64_t out_features,
                     std::optional<ScalarType> dtype) {
  const ScalarType out_dtype = dtype.value_or(dtype_of(x));
  const char* op = "marlin_linear";
  check_dtype(op, "x", x, {ScalarType::Half, ScalarType::BFloat16, ScalarType::Char, ScalarType::Float8_e4m3fn});
  const bool wide = is_wide(dtype_of(x));
  const CodeType type = marlin_code_type(op, b_type_id);
  const int64_t pack = 32 / marlin_bits(type), k_of = wide ? 16 : 32;
  check_same_device(op, "weight", weight, x);
  check_dtype(op, "weight", weight, {ScalarType::Int});
  check_contiguous(op, "weight", weight);
  QCORE_CHECK(weight.dim() == 2 && weight.numel() > 0 && weight.size(1) * pack % (16 * 64) == 0, op, ": weight has shape ",
              shape_of(weight), "; it must be Marlin's [K / 16, N * 16 / ", pack, "] with N a multiple of 64");
  const int64_t k = weight.size(0) * 16, n = weight.size(1) * pack / 16;
  QCORE_CHECK(k % k_of == 0, op, ": weight has K=", k, "; it must be a multiple of ", k_of);
  QCORE_CHECK(out_features > 0 && out_features <= n, op, ": out_features is ", out_features, "; the weight has ", n);
  QCORE_CHECK(x.dim() >= 1 && x.size(x.dim() - 1) <= k, op, ": x has shape ", shape_of(x), "; its last dimension is at most ", k);
  QCORE_CHECK(is_wide(out_dtype) && (!wide || out_dtype == dtype_of(x)), op, ": out_dtype is ", dtype_name(out_dtype),
              "; it must be Half or BFloat16, and that of x where x has 16 bits");

  const Tensor* by_input = present(g_idx);
  MarlinScales kind{MarlinScale::kHalf, 0};
  if (by_input) {
    check_tensor(op, "g_idx", *by_input, x, {ScalarType::Int}, {k});
    check_tensor(op, "scales", scales, x, {out_dtype}, {scales.size(0), n});
    kind = {out_dtype == ScalarType::Half ? MarlinScale::kHalf : MarlinScale::kBFloat16, 16};
  } else {
    kind = check_marlin_scales(op, scales, x, type, k, n);
  }
  const Tensor* all_zeros = present(zeros);
  const bool needs_zeros = type == CodeType::kUint4 || type == CodeType::kUint8;
  QCORE_CHECK((all_zeros != nullptr) == needs_zeros, op, ": zeros are ", all_zeros ? "given" : "not given",
              "; uint4 and uint8 need them, other types have none");
  const bool float_zeros = all_zeros && dtype_of(*all_zeros) == ScalarType::Half;
  if (float_zeros) check_tensor(op, "zeros", *all_zeros, x, {ScalarType::Half}, {scales.size(0), n});
  else if (all_zeros) check_tensor(op, "zeros", *all_zeros, x, {ScalarType::Int}, {scales.size(0), n / pack});
  const Tensor* of_all = present(global_scale);
  QCORE_CHECK((of_all != nullptr) == (kind.type == MarlinScale::kE4m3), op, ": global_scale is ", of_all ? "given" : "not given",
              "; it goes with scales of Float8_e4m3fn, and only with them");
  if (of_all) check_tensor(op, "global_scale", *of_all, x, {ScalarType::Float}, {1});
  const Tensor* with_bias = present(bias);
  if (with_bias) check_tensor(op, "bias", *with_bias, x, {out_dtype}, {out_features});
  check_same_device(op, "workspace", workspace, x);
  check_dtype(op, "workspace", workspace, {ScalarType::Int});
  QCORE_CHECK(workspace.numel() > 0, op, ": workspace is empty; it must be zeros, one for each processor or more");

  const Launch launch(x);
  Tensor out = new_tensor(x, shape_with_last(x, out_features), out_dtype);
  if (out.numel() == 0) return out;
  const Tensor* order = present(perm);
  if (order) check_tensor(op, "perm", *order, x, {ScalarType::Int}, {k});
  QCORE_CHECK(wide || !order, op, ": perm goes with activations of 16 bits");
  const Rows rows = wide ? ready_rows(op, "x", x, order ? static_cast<const int32_t*>(order->data_ptr()) : nullptr, k, launch.stream())
                         : as_rows(op, "x", x);
  const Tensor* of_rows = present(a_scales);
  QCORE_CHECK(of_rows || wide, op, ": a_scales are not given; 8-bit activations need them");
  if (of_rows) {
    check_same_device(op, "a_scales", *of_rows, x);
    check_dtype(op, "a_scales", *of_rows, {ScalarType::Float});
    QCORE_CHECK(of_rows->numel() == 1 || of_rows->numel() == rows.m, op, ": a_scales has shape ", shape_of(*of_rows),
                "; it must have one element, or ", rows.m);
    QCORE_CHECK(wide || (rows.k % 16 == 0 && rows.stride % 16 == 0 && is_aligned(rows.data(), 16)), op,
                ": x of 8 bits must have rows of whole 16 bytes");
  }
  const MarlinCall call{op, &rows, out_dtype, type, kind.type, kind.group_size, float_zeros, n, k, out_features,
                        &weight, &scales, all_zeros, by_input, of_rows, of_all, with_bias, true, &workspace};
  QCORE_CHECK(run_marlin(call, out, launch), op, ": no kernel for x of ", dtype_name(dtype_of(x)), ", this weight's type and groups of ",
              kind.group_size ? kind.group_size : k, " was compiled; qcore_cuda.marlin.prepare compiles it where nvcc or NVRTC is");
  return out;
}

}  // namespace
}  // namespace qcore_cuda

STABLE_TORCH_LIBRARY_FRAGMENT(qcore_cuda, m) {
  m.def("marlin_linear(Tensor x, Tensor weight, Tensor scales, Tensor? zeros, Tensor? g_idx, Tensor? perm, "
        "Tensor? a_scales, Tensor? global_scale, Tensor? bias, Tensor workspace, int b_type_id, SymInt out_features, "
        "ScalarType? out_dtype) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(qcore_cuda, CUDA, m) { m.impl("marlin_linear", TORCH_BOX(&qcore_cuda::marlin_linear)); }
