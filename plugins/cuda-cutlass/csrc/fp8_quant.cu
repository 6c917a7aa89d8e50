// static_scaled_fp8_quant, dynamic_scaled_fp8_quant and dynamic_per_token_scaled_fp8_quant:
// activations to e4m3. Scales multiply: x = q * scale. Dynamic: amax / 448 of the tensor or the row,
// and 1 where all is zero.

#include "quantize_rows.h"
#include "row_codecs.cuh"
#include "row_quant.cuh"

namespace qcore_cuda {
namespace {

struct Encode {
  DivisorOfAny divide;
  __device__ __nv_fp8_storage_t operator()(float v) const { return to_e4m3(divide(v)); }
  __device__ uint32_t four(const float (&v)[4]) const {
    const float q[4] = {divide(v[0]), divide(v[1]), divide(v[2]), divide(v[3])};
    return to_e4m3x4(q);
  }
};

struct KnownScale {
  const float* scale;
  __device__ Encode prepare() const { return {DivisorOfAny(*scale)}; }
};

struct ScaleFromAmax {
  const uint32_t* amax;
  float* scale;
  __device__ Encode prepare() const {
    const float s = fp8_scale_of(*amax);
    if (blockIdx.x == 0 && threadIdx.x == 0) *scale = s;
    return {DivisorOfAny(s)};
  }
};

template <typename T, int VEC>
__global__ void amax_kernel(const T* __restrict__ x, int64_t stride, int k, int64_t vecs, uint32_t* amax) {
  constexpr int UNROLL = 4;  // loads under way at a time
  const int per_row = k / VEC;
  const bool dense = stride == k;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  uint32_t bits = 0;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < vecs; i += step * UNROLL) {
    Vec<T, VEC> held[UNROLL] = {};
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
      const int64_t at = i + u * step;
      if (at < vecs) {
        const int64_t row = dense ? 0 : at / per_row;
        held[u] = reinterpret_cast<const Vec<T, VEC>*>(x + row * stride)[at - row * per_row];
      }
    }
    bits = max(bits, reduce_vecs<MaxBits>(held));
  }
  bits = block_reduce<MaxBits>(bits);
  if (threadIdx.x == 0) atomicMax(amax, bits);
}

template <typename T>
void launch_amax(const Rows& x, uint32_t* amax, int sm_count, cudaStream_t stream) {
  const T* data = static_cast<const T*>(x.data());
  const int k = static_cast<int>(x.k);
  constexpr int VEC = kVec<T>;
  const bool whole = k % VEC == 0 && x.stride % VEC == 0 && is_aligned(data, 16);
  const int64_t vecs = x.m * (whole ? k / VEC : k);
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(ceil_div(vecs, 256), sm_count * 8LL));
  if (whole) {
    amax_kernel<T, VEC><<<blocks, 256, 0, stream>>>(data, x.stride, k, vecs, amax);
  } else {
    amax_kernel<T, 1><<<blocks, 256, 0, stream>>>(data, x.stride, k, vecs, amax);
  }
}

void check_out(const char* op, const Tensor& out, const Tensor& input) {
  check_same_device(op, "out", out, input);
  check_dtype(op, "out", out, {ScalarType::Float8_e4m3fn});
  check_contiguous(op, "out", out);
  QCORE_CHECK(out.numel() == input.numel(), op, ": out has shape ", shape_of(out), "; input has ",
                  shape_of(input));
}

void check_scale(const char* op, const char* name, const Tensor& scale, const Tensor& input, int64_t count) {
  check_same_device(op, name, scale, input);
  check_dtype(op, name, scale, {ScalarType::Float});
  check_contiguous(op, name, scale);
  QCORE_CHECK(scale.numel() == count, op, ": ", name, " has shape ", shape_of(scale), "; it must have ",
                  count, count == 1 ? " element" : " elements, one a row");
}

void static_scaled_fp8_quant(const Tensor& out, const Tensor& input, const Tensor& scale) {
  const char* op = "static_scaled_fp8_quant";
  const Rows x = as_rows(op, "input", input);
  check_out(op, out, input);
  check_scale(op, "scale", scale, input, 1);
  if (x.m * x.k == 0) return;
  const Launch launch(input);
  fp8_by_scale(where(op, input, launch), x, out.data_ptr(), static_cast<const float*>(scale.data_ptr()));
}

void dynamic_scaled_fp8_quant(const Tensor& out, const Tensor& input, const Tensor& scale) {
  const char* op = "dynamic_scaled_fp8_quant";
  const Rows x = as_rows(op, "input", input);
  check_out(op, out, input);
  check_scale(op, "scale", scale, input, 1);
  const Launch launch(input);
  if (x.m * x.k == 0) {
    torch::stable::fill_(scale, 1.0);
    return;
  }
  const Tensor amax = new_tensor(input, {1}, ScalarType::Int);
  fp8_by_tensor(where(op, input, launch), x, out.data_ptr(), static_cast<float*>(scale.data_ptr()),
                static_cast<uint32_t*>(amax.data_ptr()));
}

void dynamic_per_token_scaled_fp8_quant(const Tensor& out, const Tensor& input, const Tensor& scale,
                                        const std::optional<Tensor>& scale_ub) {
  const char* op = "dynamic_per_token_scaled_fp8_quant";
  const Rows x = as_rows(op, "input", input);
  check_out(op, out, input);
  check_scale(op, "scale", scale, input, x.m);
  if (scale_ub) check_scale(op, "scale_ub", *scale_ub, input, 1);
  if (x.m == 0) return;
  const Launch launch(input);
  fp8_by_row(where(op, input, launch), x, out.data_ptr(), static_cast<float*>(scale.data_ptr()),
             scale_ub ? static_cast<const float*>(scale_ub->data_ptr()) : nullptr);
}

Tensor new_static(const Tensor& input, const Tensor& scale) {
  const Tensor out = new_like(input, input.dim(), ScalarType::Float8_e4m3fn);
  static_scaled_fp8_quant(out, input, scale);
  return out;
}

std::tuple<Tensor, Tensor> new_dynamic(const Tensor& input) {
  const Tensor out = new_like(input, input.dim(), ScalarType::Float8_e4m3fn);
  const Tensor scale = new_tensor(input, {1}, ScalarType::Float);
  dynamic_scaled_fp8_quant(out, input, scale);
  return {out, scale};
}

std::tuple<Tensor, Tensor> new_per_token(const Tensor& input, const std::optional<Tensor>& scale_ub) {
  const Tensor out = new_like(input, input.dim(), ScalarType::Float8_e4m3fn);
  const Tensor scale = new_column(input, ScalarType::Float);
  dynamic_per_token_scaled_fp8_quant(out, input, scale, scale_ub);
  return {out, scale};
}

}  // namespace

void fp8_by_scale(const Where& at, const Rows& x, void* codes, const float* scale) {
  if (x.m * x.k == 0) return;
  with_float_type(at.op, "the input", x.tensor.scalar_type(), [&](auto zero) {
    elementwise_quant<decltype(zero)>(at, x, static_cast<__nv_fp8_storage_t*>(codes), KnownScale{scale});
  });
  check_launch(at.op);
}

void fp8_by_tensor(const Where& at, const Rows& x, void* codes, float* scale, uint32_t* amax) {
  if (x.m * x.k == 0) return;
  QCORE_CHECK(cudaMemsetAsync(amax, 0, 4, at.stream) == cudaSuccess, at.op, ": cudaMemsetAsync failed");
  with_float_type(at.op, "the input", x.tensor.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    launch_amax<T>(x, amax, at.device.sm_count, at.stream);
    elementwise_quant<T>(at, x, static_cast<__nv_fp8_storage_t*>(codes), ScaleFromAmax{amax, scale});
  });
  check_launch(at.op);
}

void fp8_by_row(const Where& at, const Rows& x, void* codes, float* scale, const float* upper_bound) {
  if (x.m == 0) return;
  with_float_type(at.op, "the input", x.tensor.scalar_type(), [&](auto zero) {
    row_quant<decltype(zero), Fp8Row>(at, x, static_cast<__nv_fp8_storage_t*>(codes), {scale, upper_bound});
  });
  check_launch(at.op);
}

}  // namespace qcore_cuda

STABLE_TORCH_LIBRARY_FRAGMENT(qcore_cuda, m) {
  m.def("static_scaled_fp8_quant(Tensor(a!) out, Tensor input, Tensor scale) -> ()");
  m.def("dynamic_scaled_fp8_quant(Tensor(a!) out, Tensor input, Tensor(b!) scale) -> ()");
  m.def("dynamic_per_token_scaled_fp8_quant(Tensor(a!) out, Tensor input, Tensor(b!) scale, "
        "Tensor? scale_ub=None) -> ()");
  // The same, making what they return.
  m.def("static_scaled_fp8_quant.new(Tensor input, Tensor scale) -> Tensor");
  m.def("dynamic_scaled_fp8_quant.new(Tensor input) -> (Tensor, Tensor)");
  m.def("dynamic_per_token_scaled_fp8_quant.new(Tensor input, Tensor? scale_ub=None) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(qcore_cuda, CUDA, m) {
  m.impl("static_scaled_fp8_quant", TORCH_BOX(&qcore_cuda::static_scaled_fp8_quant));
  m.impl("dynamic_scaled_fp8_quant", TORCH_BOX(&qcore_cuda::dynamic_scaled_fp8_quant));
  m.impl("dynamic_per_token_scaled_fp8_quant", TORCH_BOX(&qcore_cuda::dynamic_per_token_scaled_fp8_quant));
  m.impl("static_scaled_fp8_quant.new", TORCH_BOX(&qcore_cuda::new_static));
  m.impl("dynamic_scaled_fp8_quant.new", TORCH_BOX(&qcore_cuda::new_dynamic));
  m.impl("dynamic_per_token_scaled_fp8_quant.new", TORCH_BOX(&qcore_cuda::new_per_token));
}
