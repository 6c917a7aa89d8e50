#include "w4_support.h"

#include <array>

#include "marlin_layout.cuh"
#include "quantize.cuh"
#include "w4_codes.cuh"

namespace qcore_cuda {
namespace {

__global__ void gather_kernel(const uint16_t* __restrict__ x, int64_t stride, int64_t m, int k,
                              const int32_t* __restrict__ perm, int columns, uint16_t* __restrict__ out, int width) {
  const int column = blockIdx.x * blockDim.x + threadIdx.x;
  if (column >= width) return;
  const int from = column >= columns ? -1 : perm ? perm[column] : column;
  const bool valid = from >= 0 && from < k;
  for (int64_t row = blockIdx.y; row < m; row += gridDim.y) {
    out[row * width + column] = valid ? x[row * stride + from] : uint16_t{0};
  }
}

template <typename Out, typename Bias>
__global__ void bias_kernel(Out* out, const Bias* __restrict__ bias, int64_t count, int n, bool marlin_order) {
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const int column = static_cast<int>(i % n);
    assign_to(out[i], to_float(out[i]) + to_float(bias[marlin_order ? marlin_single_position(column) : column]));
  }
}

}  // namespace

Rows ready_rows(const char* op, const char* name, const Tensor& x, const int32_t* perm, int64_t columns,
                cudaStream_t stream) {
  const Rows rows = as_rows(op, name, x);
  const bool loads = rows.k % 8 == 0 && rows.stride % 8 == 0 && is_aligned(rows.data(), 16);
  if (!perm && loads) return rows;
  const int64_t width = ceil_div(columns, 8) * 8;
  const Tensor copy = new_tensor(x, {rows.m, width});
  const dim3 grid(static_cast<unsigned>(ceil_div(width, 256)), static_cast<unsigned>(std::min<int64_t>(rows.m, 4096)));
  gather_kernel<<<grid, 256, 0, stream>>>(static_cast<const uint16_t*>(rows.data()), rows.stride, rows.m,
                                          static_cast<int>(rows.k), perm, static_cast<int>(columns),
                                          static_cast<uint16_t*>(copy.data_ptr()), static_cast<int>(width));
  check_launch(op);
  return {copy, rows.m, width, width};
}

Tensor product(const Tensor& x, const Tensor& w, bool out_float) {
  if (!out_float) return torch::stable::matmul(x, w);
  std::vector<int64_t> shape = shape_with_last(x, w.size(1));
  const Tensor rows = torch::stable::reshape(x, {x.numel() / w.size(0), w.size(0)});
  std::array<StableIValue, 3> stack{torch::stable::detail::from(rows), torch::stable::detail::from(w),
                                    torch::stable::detail::from(ScalarType::Float)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "dtype", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::view(torch::stable::detail::to<Tensor>(stack[0]), shape);
}

void add_bias(const Tensor& out, const Tensor& bias, bool marlin_order, cudaStream_t stream) {
  const char* op = "add_bias";
  const int64_t count = out.numel();
  if (count == 0) return;
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(ceil_div(count, 256), 4096));
  const int n = static_cast<int>(bias.numel());
  with_float_type(op, "out", dtype_of(out), [&](auto zero) {
    with_float_type(op, "bias", dtype_of(bias), [&](auto bias_zero) {
      using Out = decltype(zero);
      using Bias = decltype(bias_zero);
      bias_kernel<<<blocks, 256, 0, stream>>>(static_cast<Out*>(out.data_ptr()),
                                              static_cast<const Bias*>(bias.data_ptr()), count, n, marlin_order);
    });
  });
  check_launch(op);
}

}  // namespace qcore_cuda
