// cutlass_scaled_fp4_mm: checks, and which generation's kernel runs.

#include "nvfp4_mm.h"

namespace qcore_cuda {
namespace {

constexpr const char* kOp = "cutlass_scaled_fp4_mm";

// Scales of `rows` rows in the 128x4 order: as bytes, as e4m3, or as words of four of them.
const void* check_scales(const char* name, const Tensor& scale, const Tensor& a, int64_t rows, int64_t k) {
  check_same_device(kOp, name, scale, a);
  check_dtype(kOp, name, scale, {ScalarType::Byte, ScalarType::Float8_e4m3fn, ScalarType::Int});
  check_contiguous(kOp, name, scale);
  const int64_t wanted = ceil_div(rows, 128) * 128 * ceil_div(k, 64) * 4;
  const int64_t bytes = scale.numel() * (dtype_of(scale) == ScalarType::Int ? 4 : 1);
  QCORE_CHECK(bytes == wanted, kOp, ": ", name, " has shape ", shape_of(scale), ", ", bytes, " bytes; for ", rows,
              " rows and K = ", k, " it must have ", wanted);
  return scale.data_ptr();
}

bool begins_at_16(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

NvFp4MM check(const Tensor& out, const Tensor& a, const Tensor& b, const Tensor& block_scale_a,
              const Tensor& block_scale_b, const Tensor& alpha) {
  NvFp4MM p{};
  check_cuda(kOp, "a", a);
  check_dtype(kOp, "a", a, {ScalarType::Byte});
  QCORE_CHECK(a.dim() == 2, kOp, ": a has shape ", shape_of(a), "; it must be [M, K / 2]");
  check_contiguous(kOp, "a", a);
  QCORE_CHECK(b.dim() == 2, kOp, ": b has shape ", shape_of(b), "; it must be [N, K / 2]");
  const int64_t m = a.size(0), n = b.size(0), k = a.size(1) * 2;
  check_tensor(kOp, "b", b, a, {ScalarType::Byte}, {n, k / 2});
  check_tensor(kOp, "out", out, a, {ScalarType::BFloat16, ScalarType::Half}, {m, n});
  constexpr int64_t kMost = 2147483647;
  QCORE_CHECK(m <= kMost && n <= kMost && k <= kMost, kOp, ": M, N, K = ", m, ", ", n, ", ", k,
              "; no size may exceed ", kMost);
  QCORE_CHECK(k % 32 == 0 && n % 8 == 0, kOp, ": K is ", k, ", N ", n,
              "; they must be multiples of 32 and 8 (pad a and b with zeros)");
  p.m = static_cast<int>(m);
  p.n = static_cast<int>(n);
  p.k = static_cast<int>(k);
  p.a = a.data_ptr();
  p.b = b.data_ptr();
  p.out = out.data_ptr();
  p.a_scale = check_scales("block_scale_a", block_scale_a, a, m, k);
  p.b_scale = check_scales("block_scale_b", block_scale_b, a, n, k);
  QCORE_CHECK(m == 0 || n == 0 || (begins_at_16(p.a) && begins_at_16(p.b) && begins_at_16(p.out) &&
                                   begins_at_16(p.a_scale) && begins_at_16(p.b_scale)),
              kOp, ": a, b, their scales and out must begin at multiples of 16 bytes");
  check_same_device(kOp, "alpha", alpha, a);
  check_dtype(kOp, "alpha", alpha, {ScalarType::Float});
  QCORE_CHECK(alpha.numel() == 1, kOp, ": alpha has shape ", shape_of(alpha), "; it must have one element");
  p.alpha = static_cast<const float*>(alpha.data_ptr());
  p.out_bf16 = out.scalar_type() == ScalarType::BFloat16;
  return p;
}

void run(const NvFp4MM& p, int capability) {
#ifdef QCORE_CUDA_SM100A
  if (capability == 100) return p.out_bf16 ? nvfp4_mm_sm100_bf16(p) : nvfp4_mm_sm100_f16(p);
#endif
#ifdef QCORE_CUDA_SM120A
  if (capability == 120) return p.out_bf16 ? nvfp4_mm_sm120_bf16(p) : nvfp4_mm_sm120_f16(p);
#endif
  fail(kOp, ": this library has no such product for sm_", capability, "; it is written for sm_100a and sm_120a");
}

void cutlass_scaled_fp4_mm(const Tensor& out, const Tensor& a, const Tensor& b, const Tensor& block_scale_a,
                           const Tensor& block_scale_b, const Tensor& alpha) {
  NvFp4MM p = check(out, a, b, block_scale_a, block_scale_b, alpha);
  QCORE_CHECK(p.k > 0, kOp, ": K is 0");
  if (p.m == 0 || p.n == 0) return;
  const DeviceFacts& facts = device_facts(a.get_device_index());
  const Launch launch(a);
  p.device = a.get_device_index();
  p.sm_count = facts.sm_count;
  p.stream = launch.stream();
  run(p, facts.capability);
  check_launch(kOp);
}

Tensor new_scaled_fp4_mm(const Tensor& a, const Tensor& b, const Tensor& block_scale_a, const Tensor& block_scale_b,
                         const Tensor& alpha, ScalarType out_dtype) {
  check_cuda(kOp, "a", a);
  QCORE_CHECK(a.dim() == 2 && b.dim() == 2, kOp, ": a has shape ", shape_of(a), ", b ", shape_of(b),
              "; they must be [M, K / 2] and [N, K / 2]");
  const Tensor out = new_tensor(a, {a.size(0), b.size(0)}, out_dtype);
  cutlass_scaled_fp4_mm(out, a, b, block_scale_a, block_scale_b, alpha);
  return out;
}

}  // namespace
}  // namespace qcore_cuda

STABLE_TORCH_LIBRARY_FRAGMENT(qcore_cuda, m) {
  m.def("cutlass_scaled_fp4_mm(Tensor(a!) out, Tensor a, Tensor b, Tensor block_scale_a, Tensor block_scale_b, "
        "Tensor alpha) -> ()");
  m.def("cutlass_scaled_fp4_mm.new(Tensor a, Tensor b, Tensor block_scale_a, Tensor block_scale_b, Tensor alpha, "
        "ScalarType out_dtype) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(qcore_cuda, CUDA, m) {
  m.impl("cutlass_scaled_fp4_mm", TORCH_BOX(&qcore_cuda::cutlass_scaled_fp4_mm));
  m.impl("cutlass_scaled_fp4_mm.new", TORCH_BOX(&qcore_cuda::new_scaled_fp4_mm));
}
