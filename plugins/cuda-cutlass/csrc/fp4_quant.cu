// scaled_fp4_quant: activations to NVFP4, in software on every generation.
//
// gs = (448 * 6) / amax of the tensor. For each 16 elements of a row sf = e4m3(gs * amax16 / 6), and the
// codes are e2m1(x * gs / sf), ties to even. Two codes in a byte, the even element low. The scales are
// plain rows, or in the 128x4 order that the tensor cores of SM100 read: padded to 128 rows and 4
// groups, each such tile 512 bytes, row r and group g of it at (r % 32) * 16 + (r / 32) * 4 + g.

#include "quantize.cuh"

namespace qcore_cuda {
namespace {

// The code of |v|, rounded to the nearest value, of two as near to the even code. With e the exponent of
// |v|, at least 0, the values lie 2^(e-1) apart: added to 2^(e+22) a number is rounded to those, and how
// many there are stands in the low bits. Below 2 that is the code; each exponent more adds two.
__device__ __forceinline__ uint32_t e2m1_magnitude(float v) {
  const float a = fminf(fabsf(v), 6.0f);
  const uint32_t exponent = max(__float_as_uint(a) & 0x7f800000u, 0x3f800000u);
  const uint32_t large = exponent + (22u << 23);
  return __float_as_uint(a + __uint_as_float(large)) - large + (exponent >> 22) - 254;
}

__device__ __forceinline__ uint32_t e2m1_code(float v) { return e2m1_magnitude(v) | (__float_as_uint(v) >> 31 << 3); }

__device__ __forceinline__ int64_t swizzled(int64_t row, int64_t group, int64_t group_tiles) {
  return (row / 128 * group_tiles + group / 4) * 512 + row % 32 * 16 + row % 128 / 32 * 4 + group % 4;
}

// LANES threads a group, two where whole vectors can be read; with `group_tiles` the scales are
// swizzled, and padding is written as 0. Index: of 32 bits, with which division is cheap, or of 64.
template <typename T, int LANES, typename Index>
__global__ void __launch_bounds__(256) fp4_quant_kernel(const T* __restrict__ x, int64_t stride, int64_t m,
                                                        int groups, int64_t items, int padded_groups, FastDivisor by_groups,
                                                        const float* __restrict__ global_scale,
                                                        uint32_t* __restrict__ codes, uint8_t* __restrict__ scales,
                                                        int64_t group_tiles) {
  constexpr int COUNT = 16 / LANES;  // elements of a thread
  constexpr int UNROLL = LANES == 2 ? 4 : 1;
  const float gs = *global_scale;
  const Index step = static_cast<Index>(256 / LANES);
  const Index first = static_cast<Index>(blockIdx.x) * (step * UNROLL) + threadIdx.x / LANES;
  const int lane = threadIdx.x % LANES;
  T held[UNROLL][COUNT] = {};
  Index row[UNROLL], group[UNROLL];
#pragma unroll
  for (int u = 0; u < UNROLL; ++u) {
    const Index item = first + u * step;
    if constexpr (sizeof(Index) == 4) {
      row[u] = by_groups(item);
    } else {
      row[u] = item / padded_groups;
    }
    group[u] = item - row[u] * padded_groups;
    if (static_cast<int64_t>(item) < items && static_cast<int64_t>(row[u]) < m && static_cast<int>(group[u]) < groups) {
      const T* source = x + static_cast<int64_t>(row[u]) * stride + group[u] * 16 + lane * COUNT;
      if constexpr (LANES == 2) {
        constexpr int VEC = kVec<T>;
#pragma unroll
        for (int i = 0; i < COUNT / VEC; ++i) {
          const auto v = reinterpret_cast<const Vec<T, VEC>*>(source)[i];
#pragma unroll
          for (int j = 0; j < VEC; ++j) held[u][i * VEC + j] = v.at[j];
        }
      } else {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) held[u][i] = source[i];
      }
    }
  }
#pragma unroll
  for (int u = 0; u < UNROLL; ++u) {
    uint32_t bits = 0;
#pragma unroll
    for (int i = 0; i < COUNT; ++i) MaxBits::add(bits, to_float(held[u][i]));
    if constexpr (LANES == 2) bits = max(bits, __shfl_xor_sync(0xffffffffu, bits, 1));
    const Index item = first + u * step;
    if (static_cast<int64_t>(item) >= items) continue;
    const int64_t r = row[u], g = group[u];
    const int64_t place = group_tiles ? swizzled(r, g, group_tiles) : static_cast<int64_t>(item);
    if (r >= m || g >= groups) {
      if (lane == 0) scales[place] = 0;
      continue;
    }
    const __nv_fp8_storage_t sf = to_e4m3(gs * (__uint_as_float(bits) / 6.0f));
    const float decoded = __half2float(__half(__nv_cvt_fp8_to_halfraw(sf, __NV_E4M3)));
    const float factor = decoded == 0.0f ? 0.0f : gs / decoded;
#pragma unroll
    for (int w = 0; w < COUNT / 8; ++w) {
      uint32_t word = 0;
#pragma unroll
      for (int i = 0; i < 8; ++i) word |= e2m1_code(to_float(held[u][w * 8 + i]) * factor) << (i * 4);
      codes[(r * groups + g) * 2 + lane + w] = word;
    }
    if (lane == 0) scales[place] = sf;
  }
}

void quantize(const char* op, const Tensor& input, const Tensor& input_scale, bool swizzle, const Tensor& output,
              const Tensor& output_scale) {
  const Rows x = as_rows(op, "input", input);
  const int64_t groups = x.k / 16;
  const int64_t padded_m = swizzle ? ceil_div(x.m, 128) * 128 : x.m;
  const int64_t padded_groups = swizzle ? ceil_div(groups, 4) * 4 : groups;
  if (padded_m * padded_groups == 0) return;
  const Launch launch(input);
  const int64_t items = padded_m * padded_groups;
  with_float_type(op, "input", input.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const T* data = static_cast<const T*>(x.data());
    const auto run = [&](auto kernel, int lanes, int unroll) {
      const auto blocks = static_cast<unsigned>(ceil_div(items * lanes, 256 * unroll));
      kernel<<<blocks, 256, 0, launch.stream()>>>(
          data, x.stride, x.m, static_cast<int>(groups), items, static_cast<int>(padded_groups),
          FastDivisor(static_cast<uint32_t>(padded_groups)), static_cast<const float*>(input_scale.data_ptr()),
          static_cast<uint32_t*>(output.data_ptr()), static_cast<uint8_t*>(output_scale.data_ptr()),
          swizzle ? padded_groups / 4 : 0);
    };
    if (!is_aligned(data, 16) || x.stride % kVec<T> != 0) return run(fp4_quant_kernel<T, 1, uint64_t>, 1, 1);
    if (items < (int64_t{1} << 31) - 1024) return run(fp4_quant_kernel<T, 2, uint32_t>, 2, 4);
    run(fp4_quant_kernel<T, 2, uint64_t>, 2, 4);
  });
  check_launch(op);
}

void check_inputs(const char* op, const Tensor& input, const Tensor& input_scale) {
  check_cuda(op, "input", input);
  QCORE_CHECK(input.dim() == 2, op, ": input has shape ", shape_of(input), "; it must be [M, N]");
  QCORE_CHECK(input.size(1) % 16 == 0, op, ": input has shape ", shape_of(input),
                  "; N must be a multiple of 16");
  check_same_device(op, "input_scale", input_scale, input);
  check_dtype(op, "input_scale", input_scale, {ScalarType::Float});
  QCORE_CHECK(input_scale.numel() == 1, op, ": input_scale has shape ", shape_of(input_scale),
                  "; it must have one element");
}

std::tuple<Tensor, Tensor> scaled_fp4_quant(const Tensor& input, const Tensor& input_scale,
                                            bool is_sf_swizzled_layout) {
  const char* op = "scaled_fp4_quant";
  check_inputs(op, input, input_scale);
  const int64_t m = input.size(0), n = input.size(1);
  Tensor output = new_tensor(input, {m, n / 2}, ScalarType::Byte);
  Tensor output_scale =
      is_sf_swizzled_layout
          ? new_tensor(input, {ceil_div(m, 128) * 128, ceil_div(n / 16, 4)}, ScalarType::Int)
          : new_tensor(input, {m, n / 16}, ScalarType::Byte);
  quantize(op, input, input_scale, is_sf_swizzled_layout, output, output_scale);
  return {output, output_scale};
}

void scaled_fp4_quant_out(const Tensor& input, const Tensor& input_scale, bool is_sf_swizzled_layout,
                          const Tensor& output, const Tensor& output_scale) {
  const char* op = "scaled_fp4_quant.out";
  check_inputs(op, input, input_scale);
  const int64_t m = input.size(0), n = input.size(1);
  check_tensor(op, "output", output, input, {ScalarType::Byte}, {m, n / 2});
  if (is_sf_swizzled_layout) {
    check_tensor(op, "output_scale", output_scale, input, {ScalarType::Int},
                 {ceil_div(m, 128) * 128, ceil_div(n / 16, 4)});
  } else {
    check_tensor(op, "output_scale", output_scale, input, {ScalarType::Byte}, {m, n / 16});
  }
  QCORE_CHECK(is_aligned(output.data_ptr(), 8), op, ": output does not begin at a multiple of 8 bytes");
  quantize(op, input, input_scale, is_sf_swizzled_layout, output, output_scale);
}

}  // namespace
}  // namespace qcore_cuda

STABLE_TORCH_LIBRARY_FRAGMENT(qcore_cuda, m) {
  m.def("scaled_fp4_quant(Tensor input, Tensor input_scale, bool is_sf_swizzled_layout) -> (Tensor, Tensor)");
  m.def("scaled_fp4_quant.out(Tensor input, Tensor input_scale, bool is_sf_swizzled_layout, *, Tensor(a!) output, "
        "Tensor(b!) output_scale) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(qcore_cuda, CUDA, m) {
  m.impl("scaled_fp4_quant", TORCH_BOX(&qcore_cuda::scaled_fp4_quant));
  m.impl("scaled_fp4_quant.out", TORCH_BOX(&qcore_cuda::scaled_fp4_quant_out));
}
