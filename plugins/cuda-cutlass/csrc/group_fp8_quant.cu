// per_token_group_fp8_quant and per_token_group_fp8_quant_packed: e4m3 with a scale for each group of
// a row's elements. A row's last group may be shorter.
//
// s = max(eps, amax) / fp8_max, with ue8m0 the power of two not below it; q = clamp(x / s).

#include "early_launch.cuh"
#include "quantize.cuh"
#include "quantize_rows.h"

namespace qcore_cuda {
namespace {

struct GroupParams {
  int64_t stride;  // of the input's rows
  int k, group_size, groups;
  int64_t items;  // rows * groups
  float eps, fp8_min, fp8_max;
  bool ue8m0;
  bool dense;   // the input's rows follow each other
  bool clamps;  // fp8_min and fp8_max are not those to which the conversion saturates anyway
  Divisor by_max;
  FastDivisor by_groups;  // for fewer than 2^31 items
};

// Where a group's scale goes.
struct FloatScales {
  float* data;
  int64_t row_stride, group_stride;
  __device__ void store(int64_t row, int group, float s) const {
    data[row * row_stride + group * group_stride] = s;
  }
};

// A byte, the biased exponent, in word [row, group / 4] of a column-major matrix of words.
struct PackedScales {
  uint8_t* data;
  int64_t padded_rows;
  __device__ void store(int64_t row, int group, float s) const {
    data[((group / 4) * padded_rows + row) * 4 + group % 4] = static_cast<uint8_t>(__float_as_uint(s) >> 23);
  }
};

__device__ __forceinline__ float power_of_two_from(float s) {
  s = fmaxf(s, 1e-10f);
  const uint32_t bits = __float_as_uint(s);
  return __uint_as_float(((bits & 0x7fffffu) ? bits + 0x800000u : bits) & 0xff800000u);
}

__device__ __forceinline__ float group_scale(uint32_t amax_bits, const GroupParams& p) {
  const float amax = __uint_as_float(amax_bits);
  const float s = p.by_max(amax_bits > 0x7f800000u ? amax : fmaxf(p.eps, amax));
  return p.ue8m0 && isfinite(s) ? power_of_two_from(s) : s;
}

__device__ __forceinline__ float clamp(float v, const GroupParams& p) {
  return min_nan(max_nan(v, p.fp8_min), p.fp8_max);
}

// LANES neighbouring threads hold a group, VECS vectors each, and each thread works on UNROLL groups at
// a time, so that two loads are under way; with four, blocks are so few that the last of them are waited for.
template <typename T, int LANES, int VECS, int UNROLL, typename Scales>
__global__ void __launch_bounds__(256) group_quant_kernel(const T* __restrict__ x, __nv_fp8_storage_t* __restrict__ q,
                                                          Scales scales, GroupParams p) {
  constexpr int VEC = kVec<T>;
  constexpr uint32_t kGroup = VEC * VECS * LANES;
  const int lane = threadIdx.x % LANES;
  const auto items = static_cast<uint32_t>(p.items);
  const uint32_t first = blockIdx.x * (256 / LANES * UNROLL) + threadIdx.x / LANES;
  constexpr uint32_t step = 256 / LANES;
  begin_turn();
  Vec<T, VEC> held[UNROLL][VECS] = {};
#pragma unroll
  for (int u = 0; u < UNROLL; ++u) {
    const uint32_t item = first + u * step;
    if (item < items) {
      int64_t at = static_cast<int64_t>(item) * kGroup;
      if (!p.dense) {
        const uint32_t row = p.by_groups(item);
        at = row * p.stride + (item - row * p.groups) * kGroup;
      }
#pragma unroll
      for (int v = 0; v < VECS; ++v) held[u][v] = reinterpret_cast<const Vec<T, VEC>*>(x + at)[lane + v * LANES];
    }
  }
#pragma unroll
  for (int u = 0; u < UNROLL; ++u) {
    const uint32_t item = first + u * step;
    uint32_t bits = reduce_vecs<MaxBits>(held[u]);
#pragma unroll
    for (int other = LANES / 2; other > 0; other /= 2) {
      bits = max(bits, __shfl_xor_sync(0xffffffffu, bits, other));
    }
    if (item >= items) continue;
    const float s = group_scale(bits, p);
    float parts[VECS * VEC];
#pragma unroll
    for (int i = 0; i < VECS * VEC; ++i) parts[i] = to_float(held[u][i / VEC].at[i % VEC]);
    Divisor(s).all(parts);
    if (p.clamps) {
#pragma unroll
      for (int i = 0; i < VECS * VEC; ++i) parts[i] = clamp(parts[i], p);
    }
    auto* target = reinterpret_cast<Vec<__nv_fp8_storage_t, VEC>*>(q + static_cast<int64_t>(item) * kGroup);
#pragma unroll
    for (int v = 0; v < VECS; ++v) {
      Vec<__nv_fp8_storage_t, VEC> out;
      uint32_t words[VEC / 4];
#pragma unroll
      for (int w = 0; w < VEC / 4; ++w) {
        const int i = v * VEC + 4 * w;
        const float four[4] = {parts[i], parts[i + 1], parts[i + 2], parts[i + 3]};
        words[w] = to_e4m3x4(four);
      }
      __builtin_memcpy(&out, words, sizeof(out));
      target[lane + v * LANES] = out;
    }
    if (lane == 0) {
      const uint32_t row = p.by_groups(item);
      scales.store(row, static_cast<int>(item - row * p.groups), s);
    }
  }
}

// Any group size and alignment: a warp a group.
template <typename T, typename Scales>
__global__ void __launch_bounds__(256) any_group_quant_kernel(const T* __restrict__ x,
                                                              __nv_fp8_storage_t* __restrict__ q, Scales scales,
                                                              GroupParams p) {
  const int lane = threadIdx.x % 32;
  const int64_t item = (blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x) / 32;
  begin_turn();
  if (item >= p.items) return;
  const int64_t row = item / p.groups;
  const int group = static_cast<int>(item - row * p.groups);
  const int begin = group * p.group_size;
  const int end = min(p.k, begin + p.group_size);
  const T* source = x + row * p.stride;
  uint32_t bits = 0;
  for (int i = begin + lane; i < end; i += 32) MaxBits::add(bits, to_float(source[i]));
  const float s = group_scale(__reduce_max_sync(0xffffffffu, bits), p);
  const Divisor divide(s);
  for (int i = begin + lane; i < end; i += 32) {
    q[row * p.k + i] = to_e4m3(clamp(divide(to_float(source[i])), p));
  }
  if (lane == 0) scales.store(row, group, s);
}

template <typename T, typename Scales>
void launch_group_quant(const Where& where, const Rows& x, __nv_fp8_storage_t* q, const Scales& scales,
                        const GroupParams& p) {
  constexpr int VEC = kVec<T>;
  const T* data = static_cast<const T*>(x.data());
  const bool whole = p.k % p.group_size == 0 && p.group_size % VEC == 0 && x.stride % VEC == 0 &&
                     is_aligned(data, 16) && is_aligned(q, VEC);
  const auto start = [&](auto kernel, int64_t blocks) {
    const LaunchShape shape{dim3(static_cast<unsigned>(blocks)), 256, 0, where.stream, where.device.sm90_code};
    launch_kernel(where.op, shape, kernel, data, q, scales, p);
  };
  const auto launch = [&](auto lanes, auto vecs) {
    constexpr int LANES = decltype(lanes)::value, VECS = decltype(vecs)::value;
    constexpr int UNROLL = 2 / VECS;
    start(group_quant_kernel<T, LANES, VECS, UNROLL, Scales>, ceil_div(p.items * LANES, 256 * UNROLL));
  };
  constexpr std::integral_constant<int, 1> one;
  constexpr std::integral_constant<int, 2> two;
  switch (whole && p.items < (int64_t{1} << 31) ? p.group_size / VEC : 0) {
    case 4: return launch(std::integral_constant<int, 4>{}, one);
    case 8: return launch(std::integral_constant<int, 4>{}, two);
    case 16: return launch(std::integral_constant<int, 8>{}, two);
    case 32: return launch(std::integral_constant<int, 16>{}, two);
    default: start(any_group_quant_kernel<T, Scales>, ceil_div(p.items * 32, 256));
  }
}

GroupParams fill_params(const Rows& x, int64_t group_size, double eps, double fp8_min, double fp8_max, bool ue8m0) {
  const int64_t groups = ceil_div(x.k, group_size);
  return {x.stride, static_cast<int>(x.k), static_cast<int>(std::min<int64_t>(group_size, 1 << 30)),
          static_cast<int>(groups), x.m * groups, static_cast<float>(eps), static_cast<float>(fp8_min),
          static_cast<float>(fp8_max), ue8m0, x.stride == x.k, fp8_max != 448 || fp8_min != -448,
          Divisor::on_host(static_cast<float>(fp8_max)), FastDivisor(static_cast<uint32_t>(std::max<int64_t>(groups, 1)))};
}

GroupParams make_params(const char* op, const Rows& x, const Tensor& input, const Tensor& q, int64_t group_size,
                        double eps, double fp8_min, double fp8_max, bool ue8m0) {
  QCORE_CHECK(group_size >= 1, op, ": group_size is ", group_size, "; it must be positive");
  check_same_device(op, "output_q", q, input);
  check_dtype(op, "output_q", q, {ScalarType::Float8_e4m3fn});
  check_contiguous(op, "output_q", q);
  QCORE_CHECK(q.numel() == input.numel(), op, ": output_q has shape ", shape_of(q), "; input has ",
                  shape_of(input));
  QCORE_CHECK(fp8_max > 0 && fp8_max <= 448 && fp8_min < 0, op, ": fp8_min, fp8_max are ", fp8_min, ", ",
                  fp8_max, "; for e4m3 they are -448, 448");
  return fill_params(x, group_size, eps, fp8_min, fp8_max, ue8m0);
}

void per_token_group_fp8_quant(const Tensor& input, const Tensor& output_q, const Tensor& output_s,
                               int64_t group_size, double eps, double fp8_min, double fp8_max, bool scale_ue8m0,
                               bool, bool) {
  const char* op = "per_token_group_fp8_quant";
  const Rows x = as_rows(op, "input", input);
  const GroupParams p = make_params(op, x, input, output_q, group_size, eps, fp8_min, fp8_max, scale_ue8m0);
  check_same_device(op, "output_s", output_s, input);
  check_dtype(op, "output_s", output_s, {ScalarType::Float});
  const int64_t dim = output_s.dim();
  QCORE_CHECK(dim >= 2 && output_s.numel() == p.items && output_s.size(dim - 1) == p.groups, op,
                  ": output_s has shape ", shape_of(output_s), "; it must be [", x.m, ", ", p.groups, "]");
  // Row-major, column-major, or column-major with padded columns: the strides tell.
  QCORE_CHECK(dim == 2 || output_s.is_contiguous(), op, ": output_s of ", dim,
                  " dimensions is not contiguous; it must be");
  if (p.items == 0) return;
  const Launch launch(input);
  const FloatScales scales{static_cast<float*>(output_s.data_ptr()), dim == 2 ? output_s.stride(0) : p.groups,
                           output_s.stride(dim - 1)};
  with_float_type(op, "input", input.scalar_type(), [&](auto zero) {
    launch_group_quant<decltype(zero)>(where(op, input, launch), x,
                                       static_cast<__nv_fp8_storage_t*>(output_q.data_ptr()), scales, p);
  });
  check_launch(op);
}

void per_token_group_fp8_quant_packed(const Tensor& input, const Tensor& output_q, const Tensor& output_s_packed,
                                      int64_t group_size, double eps, double fp8_min, double fp8_max) {
  const char* op = "per_token_group_fp8_quant_packed";
  const Rows x = as_rows(op, "input", input);
  const GroupParams p = make_params(op, x, input, output_q, group_size, eps, fp8_min, fp8_max, true);
  const Tensor& s = output_s_packed;
  check_same_device(op, "output_s_packed", s, input);
  check_dtype(op, "output_s_packed", s, {ScalarType::Int});
  check_shape(op, "output_s_packed", s, {x.m, ceil_div(p.groups, 4)});
  const int64_t padded = ceil_div(x.m, 4) * 4;
  QCORE_CHECK(s.stride(0) == 1 && (s.size(1) <= 1 || s.stride(1) == padded), op,
                  ": output_s_packed has strides ", s.stride(0), ", ", s.stride(1), "; they must be 1, ", padded,
                  " (words of a column side by side, columns padded to four)");
  if (p.items == 0) return;
  const Launch launch(input);
  // The padding belongs to the tensor's storage and is read by the copy engine: it must be zero.
  auto* data = static_cast<uint8_t*>(s.data_ptr());
  if (padded != x.m || p.groups % 4 != 0) {
    const size_t bytes = static_cast<size_t>(((s.size(1) - 1) * padded + x.m) * 4);
    QCORE_CHECK(cudaMemsetAsync(data, 0, bytes, launch.stream()) == cudaSuccess, op, ": cudaMemsetAsync failed");
  }
  with_float_type(op, "input", input.scalar_type(), [&](auto zero) {
    launch_group_quant<decltype(zero)>(where(op, input, launch), x,
                                       static_cast<__nv_fp8_storage_t*>(output_q.data_ptr()),
                                       PackedScales{data, padded}, p);
  });
  check_launch(op);
}

constexpr double kMost = 448;

std::tuple<Tensor, Tensor> new_groups(const Tensor& input, int64_t group_size, double eps, bool column_major,
                                      bool tma_aligned, bool use_ue8m0) {
  const char* op = "per_token_group_fp8_quant";
  check_cuda(op, "input", input);
  const int64_t dim = input.dim();
  QCORE_CHECK(dim >= 1 && group_size >= 1, op, ": group_size is ", group_size, ", input has shape ", shape_of(input),
              "; group_size must be positive, and input [..., K]");
  QCORE_CHECK(dim == 2 || !column_major, op, ": column-major scales need an input [M, K]; this one has shape ",
              shape_of(input));
  const Tensor q = new_like(input, dim, ScalarType::Float8_e4m3fn);
  const int64_t groups = ceil_div(input.size(dim - 1), group_size);
  if (!column_major) {
    const Tensor s = new_tensor(input, shape_with_last(input, groups), ScalarType::Float);
    per_token_group_fp8_quant(input, q, dim == 1 ? torch::stable::view(s, {1, groups}) : s, group_size, eps, -kMost,
                              kMost, use_ue8m0, false, false);
    return {q, s};
  }
  const int64_t m = input.size(0), rows = tma_aligned ? ceil_div(m, 4) * 4 : m;
  const Tensor storage = new_tensor(input, {groups, rows}, ScalarType::Float);
  Tensor all = torch::stable::transpose(storage, 0, 1);
  const Tensor s = torch::stable::narrow(all, 0, 0, m);
  per_token_group_fp8_quant(input, q, s, group_size, eps, -kMost, kMost, use_ue8m0, true, tma_aligned);
  return {q, s};
}

std::tuple<Tensor, Tensor> new_packed(const Tensor& input, int64_t group_size, double eps) {
  const char* op = "per_token_group_fp8_quant_packed";
  check_cuda(op, "input", input);
  QCORE_CHECK(input.dim() == 2 && group_size >= 1, op, ": group_size is ", group_size, ", input has shape ",
              shape_of(input), "; group_size must be positive, and input [M, K]");
  const int64_t m = input.size(0), words = ceil_div(ceil_div(input.size(1), group_size), 4);
  const Tensor q = new_like(input, 2, ScalarType::Float8_e4m3fn);
  const Tensor storage = new_tensor(input, {words, ceil_div(m, 4) * 4}, ScalarType::Int);
  Tensor all = torch::stable::transpose(storage, 0, 1);
  const Tensor s = torch::stable::narrow(all, 0, 0, m);
  per_token_group_fp8_quant_packed(input, q, s, group_size, eps, -kMost, kMost);
  return {q, s};
}

}  // namespace

void fp8_by_group_of_128(const Where& at, const Rows& x, void* codes, float* scale, int64_t group_stride, float eps) {
  const GroupParams p = fill_params(x, 128, eps, -kMost, kMost, false);
  if (p.items == 0) return;
  const FloatScales scales{scale, 1, group_stride};
  with_float_type(at.op, "the input", x.tensor.scalar_type(), [&](auto zero) {
    launch_group_quant<decltype(zero)>(at, x, static_cast<__nv_fp8_storage_t*>(codes), scales, p);
  });
  check_launch(at.op);
}

}  // namespace qcore_cuda

STABLE_TORCH_LIBRARY_FRAGMENT(qcore_cuda, m) {
  m.def("per_token_group_fp8_quant(Tensor input, Tensor(a!) output_q, Tensor(b!) output_s, int group_size, "
        "float eps, float fp8_min, float fp8_max, bool scale_ue8m0, bool dummy_is_scale_transposed=False, "
        "bool dummy_is_tma_aligned=False) -> ()");
  m.def("per_token_group_fp8_quant_packed(Tensor input, Tensor(a!) output_q, Tensor(b!) output_s_packed, "
        "int group_size, float eps, float fp8_min, float fp8_max) -> ()");
  // The same, making what they return.
  m.def("per_token_group_fp8_quant.new(Tensor input, int group_size, float eps, bool column_major, "
        "bool tma_aligned, bool use_ue8m0) -> (Tensor, Tensor)");
  m.def("per_token_group_fp8_quant_packed.new(Tensor input, int group_size, float eps) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(qcore_cuda, CUDA, m) {
  m.impl("per_token_group_fp8_quant", TORCH_BOX(&qcore_cuda::per_token_group_fp8_quant));
  m.impl("per_token_group_fp8_quant_packed", TORCH_BOX(&qcore_cuda::per_token_group_fp8_quant_packed));
  m.impl("per_token_group_fp8_quant.new", TORCH_BOX(&qcore_cuda::new_groups));
  m.impl("per_token_group_fp8_quant_packed.new", TORCH_BOX(&qcore_cuda::new_packed));
}
