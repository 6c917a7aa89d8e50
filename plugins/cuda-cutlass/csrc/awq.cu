// awq_dequantize and awq_gemm.
//
//   weights     int32 [K, N / 8]   nibble i of word j is column 8j + [0, 2, 4, 6, 1, 3, 5, 7][i]
//   zero points int32 [G, N / 8]   packed alike
//   scales      [G, N]             w = (code - zero) * scale

#include "w4_small_m.cuh"
#include "w4_support.h"
#include "w4_ways.h"

namespace qcore_cuda {
namespace {

struct AwqWeight {
  Tensor words, zeros, scales;
  int64_t k, n, group_size;
  bool scales_in_place;  // no copy that begins where 16-byte loads can
};

constexpr int kInputs = 8;  // of a thread

template <typename T>
__global__ void __launch_bounds__(128)
    dequantize_kernel(const uint32_t* __restrict__ words, const uint32_t* __restrict__ zeros,
                      const uint16_t* __restrict__ scales, ScaleType scale_type, int64_t k, int64_t columns,
                      int64_t group_size, T* __restrict__ out) {
  const int64_t column = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;  // of words
  if (column >= columns) return;
  for (int64_t first = blockIdx.y * int64_t{kInputs}; first < k; first += gridDim.y * int64_t{kInputs}) {
    uint32_t codes[kInputs];
#pragma unroll
    for (int i = 0; i < kInputs; ++i) {
      if (first + i < k) codes[i] = __ldg(words + (first + i) * columns + column);
    }
    int64_t group = -1;
    float zero[8], scale[8];
#pragma unroll
    for (int i = 0; i < kInputs; ++i) {
      if (first + i >= k) break;
      const int64_t of_k = (first + i) / group_size;
      if (of_k != group) {
        group = of_k;
        const uint32_t z = __ldg(zeros + group * columns + column);
        const uint4 eight = __ldg(reinterpret_cast<const uint4*>(scales) + group * columns + column);
        const uint32_t pairs[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float2 two = scale_pair(pairs[j], scale_type);
          scale[2 * j] = two.x;
          scale[2 * j + 1] = two.y;
          // Columns 2j and 2j + 1 are nibbles j and j + 4.
          zero[2 * j] = 8388608.0f + static_cast<float>((z >> (4 * j)) & 15);
          zero[2 * j + 1] = 8388608.0f + static_cast<float>((z >> (4 * j + 16)) & 15);
        }
      }
      uint32_t pairs[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const uint32_t two = codes[i] >> (4 * j);
        const float a = (__uint_as_float(and_or(two, 15, 0x4b000000u)) - zero[2 * j]) * scale[2 * j];
        const float b = (__uint_as_float(and_or(two >> 16, 15, 0x4b000000u)) - zero[2 * j + 1]) * scale[2 * j + 1];
        if constexpr (std::is_same<T, __half>::value) pairs[j] = as_bits(__floats2half2_rn(a, b));
        else pairs[j] = as_bits(__floats2bfloat162_rn(a, b));
      }
      reinterpret_cast<uint4*>(out)[(first + i) * columns + column] = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
    }
  }
}

ScaleType scale_type(const Tensor& scales) {
  return dtype_of(scales) == ScalarType::Half ? ScaleType::kHalf : ScaleType::kBFloat16;
}

AwqWeight awq_weight(const char* op, const Tensor& kernel, const Tensor& scales, const Tensor& zeros) {
  check_cuda(op, "_kernel", kernel);
  QCORE_CHECK(kernel.dim() == 2 && scales.dim() == 2, op, ": _kernel has shape ", shape_of(kernel),
                  " and _scaling_factors ", shape_of(scales), "; both must have two dimensions");
  const int64_t k = kernel.size(0), words = kernel.size(1), groups = scales.size(0);
  QCORE_CHECK(k > 0 && words > 0 && groups > 0 && k % groups == 0, op, ": _kernel has ", k,
                  " inputs, _scaling_factors ", groups, " groups; groups must be equal");
  check_tensor(op, "_kernel", kernel, kernel, {ScalarType::Int}, {k, words});
  check_tensor(op, "_scaling_factors", scales, kernel, {ScalarType::Half, ScalarType::BFloat16}, {groups, words * 8});
  check_tensor(op, "_zeros", zeros, kernel, {ScalarType::Int}, {groups, words});
  const Tensor vectors = aligned(scales);
  return {kernel, zeros, vectors, k, words * 8, k / groups, in_place(vectors, scales)};
}

Tensor dequantize(const char* op, const AwqWeight& w, ScalarType type, cudaStream_t stream) {
  const Tensor out = new_tensor(w.words, {w.k, w.n}, type);
  const int64_t columns = w.n / 8;
  const dim3 grid(static_cast<unsigned>(ceil_div(columns, 128)),
                  static_cast<unsigned>(std::min<int64_t>(ceil_div(w.k, kInputs), 65535)));
  const auto run = [&](auto* data) {
    dequantize_kernel<<<grid, 128, 0, stream>>>(static_cast<const uint32_t*>(w.words.data_ptr()),
                                                static_cast<const uint32_t*>(w.zeros.data_ptr()),
                                                static_cast<const uint16_t*>(w.scales.data_ptr()),
                                                scale_type(w.scales), w.k, columns, w.group_size, data);
  };
  if (type == ScalarType::Half) run(static_cast<__half*>(out.data_ptr()));
  else run(static_cast<__nv_bfloat16*>(out.data_ptr()));
  check_launch(op);
  return out;
}

Tensor awq_dequantize(const Tensor& kernel, const Tensor& scales, const Tensor& zeros, int64_t, int64_t, int64_t) {
  const char* op = "awq_dequantize";
  const AwqWeight w = awq_weight(op, kernel, scales, zeros);
  const Launch launch(kernel);
  return dequantize(op, w, dtype_of(scales), launch.stream());
}

Tensor multiply(const char* op, const Tensor& a, const Tensor& kernel, const Tensor& scales, const Tensor& zeros,
                int64_t few_rows, Division wish) {
  check_cuda(op, "_in_feats", a);
  check_dtype(op, "_in_feats", a, {ScalarType::Half, ScalarType::BFloat16});
  check_same_device(op, "_kernel", kernel, a);
  const AwqWeight w = awq_weight(op, kernel, scales, zeros);
  QCORE_CHECK(a.dim() >= 1 && a.size(a.dim() - 1) == w.k, op, ": _in_feats has shape ", shape_of(a),
                  "; its last dimension must be ", w.k, ", the rows of _kernel");
  const int64_t m = a.numel() / w.k;
  const Launch launch(a);
  if (m == 0) return new_tensor(a, shape_with_last(a, w.n));
  const bool fits = (w.group_size == w.k || w.group_size % kBlockK == 0) && w.n % 32 == 0;
  if (m > few_rows || !fits) return product(a, dequantize(op, w, dtype_of(a), launch.stream()), false);

  const Rows rows = ready_rows(op, "_in_feats", a, nullptr, w.k, launch.stream());
  const Tensor out = new_tensor(a, shape_with_last(a, w.n));
  const Tensor words = aligned(w.words);
  SmallMParams p = {};
  p.a = rows.data();
  p.a_stride = rows.stride;
  p.m = static_cast<int>(m);
  p.k = static_cast<int>(rows.k);
  p.w = static_cast<const uint32_t*>(words.data_ptr());
  p.w_stride = w.n / 8;
  p.w_rows = static_cast<int>(w.k);
  p.scales = w.scales.data_ptr();
  p.scale_type = scale_type(w.scales);
  p.zeros = {static_cast<const uint32_t*>(w.zeros.data_ptr()), w.n / 8, 0, 0};
  p.blocks = static_cast<int>(ceil_div(w.k, kBlockK));
  p.group_blocks = w.group_size == w.k ? p.blocks : static_cast<int>(w.group_size / kBlockK);
  p.out = out.data_ptr();
  p.n = p.n_out = static_cast<int>(w.n);
  p.early = w.scales_in_place && in_place(words, w.words);
  small_m<Awq>(op, p, wish, dtype_of(a), a.get_device_index(), launch.stream());
  return out;
}

Tensor awq_gemm(const Tensor& a, const Tensor& kernel, const Tensor& scales, const Tensor& zeros, int64_t) {
  return multiply("awq_gemm", a, kernel, scales, zeros, kFewRows, {});
}

// With a number of rows up to which the kernel for few rows runs, and its division of the work, of the
// caller's choice (0: as it would be).
Tensor awq_gemm_divided(const Tensor& a, const Tensor& kernel, const Tensor& scales, const Tensor& zeros,
                        int64_t few_rows, int64_t column_warps, int64_t k_warps, int64_t split) {
  const char* op = "awq_gemm_divided";
  const auto is_power = [](int64_t v, int64_t most) { return v >= 0 && v <= most && (v & (v - 1)) == 0; };
  QCORE_CHECK(is_power(column_warps, 16) && is_power(k_warps, 16) && is_power(split, kMostSplit) &&
                      column_warps * k_warps * 32 <= kMostThreads,
                  op, ": column_warps=", column_warps, ", k_warps=", k_warps, ", split=", split,
                  "; powers of two, the first two at most 16 together, the last at most 8");
  return multiply(op, a, kernel, scales, zeros, few_rows,
                  {static_cast<int>(column_warps), static_cast<int>(k_warps), static_cast<int>(split)});
}

}  // namespace
}  // namespace qcore_cuda

STABLE_TORCH_LIBRARY_FRAGMENT(qcore_cuda, m) {
  m.def("awq_dequantize(Tensor _kernel, Tensor _scaling_factors, Tensor _zeros, SymInt split_k_iters, int thx, "
        "int thy) -> Tensor");
  m.def("awq_gemm(Tensor _in_feats, Tensor _kernel, Tensor _scaling_factors, Tensor _zeros, SymInt split_k_iters) "
        "-> Tensor");
  m.def("awq_gemm_divided(Tensor _in_feats, Tensor _kernel, Tensor _scaling_factors, Tensor _zeros, int few_rows, "
        "int column_warps=0, int k_warps=0, int split=0) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(qcore_cuda, CUDA, m) {
  m.impl("awq_dequantize", TORCH_BOX(&qcore_cuda::awq_dequantize));
  m.impl("awq_gemm", TORCH_BOX(&qcore_cuda::awq_gemm));
  m.impl("awq_gemm_divided", TORCH_BOX(&qcore_cuda::awq_gemm_divided));
}
