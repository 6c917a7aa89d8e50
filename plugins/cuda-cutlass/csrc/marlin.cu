// gptq_marlin_repack and awq_marlin_repack make Marlin's layout; marlin_gemm multiplies with it; marlin_dequantize
// makes the weight whole.
//
// A generated kernel does it where one was compiled (marlin_linear.cu). What is here is right for every
// type of weights with 16-bit activations: the weight is made whole, then multiplied by torch's matrix
// product. Scales are numbers as they are, in Marlin's order of columns: e4m3 for NVFP4 (with a global
// scale), e8m0 for MXFP4 and MXFP8, else the dtype of a. Sums are always in float32 and in a fixed order:
// `use_atomic_add` and `use_fp32_reduce` have nothing to do.

#include "marlin_call.h"
#include "marlin_layout.cuh"
#include "quantize.cuh"
#include "w4_codes.cuh"
#include "w4_support.h"

namespace qcore_cuda {
namespace {

// ---- packing -----------------------------------------------------------------------------------

// Code (k, n) of GPTQ's words (along K) or AWQ's (along N, interleaved).
__device__ __forceinline__ uint32_t code_at(const uint32_t* __restrict__ words, bool awq, int bits, int64_t n_all, int k, int n) {
  const int pack = 32 / bits;
  if (!awq) return (words[k / pack * n_all + n] >> (k % pack * bits)) & ((1u << bits) - 1);
  const int in = n % pack;  // of 4 bits the order is 0 2 4 6 1 3 5 7, of 8 bits 0 2 1 3
  const int place = bits == 4 ? in / 2 + in % 2 * 4 : in == 1 ? 2 : in == 2 ? 1 : in;
  return (words[k * (n_all / pack) + n / pack] >> (place * bits)) & ((1u << bits) - 1);
}

__global__ void repack_kernel(const uint32_t* __restrict__ in, uint32_t* __restrict__ out, bool awq, int bits,
                              bool a_8bit, int64_t words, int n) {
  const int pack = 32 / bits;
  const int64_t of_row = int64_t{16} * n / pack;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < words;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    uint32_t word = 0;
    for (int c = 0; c < pack; ++c) {
      const MarlinPlace at = marlin_place(bits, a_8bit, n, i / of_row, i % of_row, c);
      word |= code_at(in, awq, bits, n, at.k, at.n) << (c * bits);
    }
    out[i] = word;
  }
}

void check_marlin_shape(const char* op, int64_t size_k, int64_t size_n, bool a_8bit) {
  const int64_t k_of = a_8bit ? 32 : 16;
  QCORE_CHECK(size_k > 0 && size_k % k_of == 0, op, ": size_k is ", size_k, "; it must be a multiple of ", k_of);
  QCORE_CHECK(size_n > 0 && size_n % 64 == 0, op, ": size_n is ", size_n, "; it must be a multiple of 64");
}

Tensor repack(const char* op, const Tensor& q_weight, int64_t size_k, int64_t size_n, int64_t bits, bool a_8bit, bool awq) {
  QCORE_CHECK(bits == 4 || bits == 8, op, ": num_bits is ", bits, "; allowed: 4, 8");
  check_marlin_shape(op, size_k, size_n, a_8bit);
  const int64_t pack = 32 / bits;
  check_cuda(op, "b_q_weight", q_weight);
  if (awq) check_tensor(op, "b_q_weight", q_weight, q_weight, {ScalarType::Int}, {size_k, size_n / pack});
  else check_tensor(op, "b_q_weight", q_weight, q_weight, {ScalarType::Int}, {size_k / pack, size_n});
  const Launch launch(q_weight);
  const Tensor out = new_tensor(q_weight, {size_k / 16, size_n * 16 / pack});
  const int64_t words = out.numel();
  repack_kernel<<<static_cast<unsigned>(std::min<int64_t>(ceil_div(words, 256), 65535)), 256, 0, launch.stream()>>>(
      static_cast<const uint32_t*>(q_weight.data_ptr()), static_cast<uint32_t*>(out.data_ptr()), awq,
      static_cast<int>(bits), a_8bit, words, static_cast<int>(size_n));
  check_launch(op);
  return out;
}

Tensor gptq_marlin_repack(const Tensor& q_weight, int64_t size_k, int64_t size_n, int64_t bits, bool a_8bit) {
  return repack("gptq_marlin_repack", q_weight, size_k, size_n, bits, a_8bit, false);
}
Tensor awq_marlin_repack(const Tensor& q_weight, int64_t size_k, int64_t size_n, int64_t bits, bool a_8bit) {
  return repack("awq_marlin_repack", q_weight, size_k, size_n, bits, a_8bit, true);
}

// ---- the weight --------------------------------------------------------------------------------

// A scalar type's id: exponent 8 bits, mantissa 8, signed 1, bias 32, finite values only 1, kind of NaN 8.
constexpr int64_t type_id(int64_t exponent, int64_t mantissa, int64_t is_signed, int64_t bias, int64_t finite, int64_t nan) {
  return exponent | mantissa << 8 | is_signed << 16 | bias << 17 | finite << 49 | nan << 50;
}

}  // namespace

CodeType marlin_code_type(const char* op, int64_t id) {
  switch (id) {
    case type_id(0, 4, 0, 0, 0, 1): return CodeType::kUint4;
    case type_id(0, 4, 0, 8, 0, 1): return CodeType::kUint4b8;
    case type_id(0, 8, 0, 0, 0, 1): return CodeType::kUint8;
    case type_id(0, 8, 0, 128, 0, 1): return CodeType::kUint8b128;
    case type_id(4, 3, 1, 0, 1, 2): return CodeType::kE4m3;
    case type_id(2, 1, 1, 0, 1, 0): return CodeType::kE2m1;
    default:
      fail(op, ": b_type_id is ", id,
                      "; it must be that of uint4, uint4b8, uint8, uint8b128, float8_e4m3fn or float4_e2m1f");
  }
}

namespace {

struct MarlinParams {
  const uint32_t* words;
  int64_t count;  // of words
  int n, bits;
  CodeType type;
  const void* scales;
  MarlinScale scale_type;
  int group_size;  // 0: one group
  const float* global_scale;
  const uint32_t* zeros;
  void* out;
};

__device__ __forceinline__ float marlin_scale(const MarlinParams& p, int64_t i) {
  switch (p.scale_type) {
    case MarlinScale::kHalf: return __half2float(static_cast<const __half*>(p.scales)[i]);
    case MarlinScale::kBFloat16: return __bfloat162float(static_cast<const __nv_bfloat16*>(p.scales)[i]);
    case MarlinScale::kFloat: return static_cast<const float*>(p.scales)[i];
    case MarlinScale::kE4m3: return static_cast<float>(static_cast<const __nv_fp8_e4m3*>(p.scales)[i]);
    default: {
      const uint32_t e = static_cast<const uint8_t*>(p.scales)[i];
      return __uint_as_float(e == 255 ? 0x7fffffffu : e == 0 ? 0x00400000u : e << 23);
    }
  }
}

__device__ __forceinline__ float small_float_value(CodeType type, uint32_t code) {
  if (type == CodeType::kE4m3) {
    __nv_fp8_e4m3 v;
    v.__x = static_cast<__nv_fp8_storage_t>(code);
    return static_cast<float>(v);
  }
  const uint32_t twice = code & 7;  // 0 1 2 3 4 6 8 12 of halves
  const float v = twice < 4 ? 0.5f * twice : twice == 4 ? 2.0f : twice == 5 ? 3.0f : twice == 6 ? 4.0f : 6.0f;
  return code & 8 ? -v : v;
}

// What a column's codes of a group are multiplied by, and what is taken off first.
struct MarlinColumn {
  float scale;
  int zero;
};

__device__ __forceinline__ MarlinColumn marlin_column(const MarlinParams& p, int k, int n, float global) {
  const int64_t group = p.group_size ? k / p.group_size : 0;
  const int position = p.group_size ? marlin_grouped_position(n) : marlin_single_position(n);
  // A scale of a scale: their product is one number, as in the layer's definition.
  MarlinColumn found{marlin_scale(p, group * p.n + position) * global,
                     p.type == CodeType::kUint4b8 ? 8 : p.type == CodeType::kUint8b128 ? 128 : 0};
  if (p.zeros) {
    const int64_t bit = marlin_zero_bit(p.bits, n);
    const uint32_t word = p.zeros[group * (p.n * p.bits / 32) + bit / 32];
    found.zero = static_cast<int>((word >> (bit % 32)) & ((1u << p.bits) - 1));
  }
  return found;
}

// A block of threads makes a piece of 16 inputs by 64 outputs, by way of shared memory: codes that follow each other in
// a word are far from each other in the weight.
template <typename T, int BITS, bool INTEGERS>
__global__ void __launch_bounds__(128) marlin_dequantize_kernel(const __grid_constant__ MarlinParams p) {
  constexpr int kPack = 32 / BITS, kWords = 1024 / kPack / 128, kStride = 64 + 8;
  __shared__ __align__(16) T made[16 * kStride];
  __shared__ MarlinColumn columns[64];
  const int across = p.n / 64, thread = threadIdx.x;
  const float global = p.global_scale ? *p.global_scale : 1.0f;
  const bool one_group = p.group_size % 16 == 0;  // in a piece
  for (int64_t piece = blockIdx.x; piece * 1024 < p.count * kPack; piece += gridDim.x) {
    const int first_k = static_cast<int>(piece / across) * 16, first_n = static_cast<int>(piece % across) * 64;
    uint32_t words[kWords];
#pragma unroll
    for (int i = 0; i < kWords; ++i) words[i] = p.words[(piece * kWords + i) * 128 + thread];
    if (thread < 64) columns[thread] = marlin_column(p, first_k, first_n + thread, global);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
#pragma unroll
      for (int c = 0; c < kPack; ++c) {
        const MarlinPlace at = marlin_place(BITS, false, 64, 0, i * 128 + thread, c);  // as if there was one piece
        const MarlinColumn column = one_group ? columns[at.n] : marlin_column(p, first_k + at.k, first_n + at.n, global);
        const uint32_t code = (words[i] >> (c * BITS)) & ((1u << BITS) - 1);
        const float value = INTEGERS ? static_cast<float>(static_cast<int>(code) - column.zero) : small_float_value(p.type, code);
        assign_to(made[at.k * kStride + at.n], value * column.scale);
      }
    }
    __syncthreads();
    const int k = thread / 8, n = thread % 8 * 8;
    *reinterpret_cast<uint4*>(static_cast<T*>(p.out) + static_cast<int64_t>(first_k + k) * p.n + first_n + n) =
        *reinterpret_cast<const uint4*>(made + k * kStride + n);
  }
}

}  // namespace

MarlinScales check_marlin_scales(const char* op, const Tensor& scales, const Tensor& a, CodeType type, int64_t k, int64_t n) {
  check_same_device(op, "b_scales", scales, a);
  check_contiguous(op, "b_scales", scales);
  QCORE_CHECK(scales.dim() == 2 && scales.size(1) == n && scales.size(0) > 0 && k % scales.size(0) == 0, op,
                  ": b_scales has shape ", shape_of(scales), "; it must be [groups, ", n, "] with groups that divide ", k);
  const int64_t group_size = k / scales.size(0);
  // Bytes are of the format whose groups have that size: much of torch knows nothing of 8-bit floats.
  const ScalarType dtype = dtype_of(scales) != ScalarType::Byte ? dtype_of(scales)
                           : group_size == 16 ? ScalarType::Float8_e4m3fn : ScalarType::Float8_e8m0fnu;
  const bool small_float = type == CodeType::kE2m1 || type == CodeType::kE4m3;
  if (small_float && dtype == ScalarType::Float8_e8m0fnu) {
    QCORE_CHECK(group_size == 32, op, ": b_scales are e8m0 for groups of ", group_size, "; MXFP4 and MXFP8 have 32");
    return {MarlinScale::kE8m0, group_size};
  }
  if (type == CodeType::kE2m1) {
    QCORE_CHECK(dtype == ScalarType::Float8_e4m3fn && group_size == 16, op, ": b_scales are ", dtype_name(dtype),
                    " for groups of ", group_size, "; float4_e2m1f has Float8_e4m3fn for 16 or Float8_e8m0fnu for 32");
    return {MarlinScale::kE4m3, group_size};
  }
  check_dtype(op, "b_scales", scales, {ScalarType::Half, ScalarType::BFloat16, ScalarType::Float});
  return {dtype == ScalarType::Half ? MarlinScale::kHalf : dtype == ScalarType::BFloat16 ? MarlinScale::kBFloat16 : MarlinScale::kFloat,
          scales.size(0) == 1 ? 0 : group_size};
}

namespace {

// A weight in Marlin's layout, checked.
struct MarlinWeight {
  CodeType type;
  int64_t k, n;
  MarlinScales kind;
  const Tensor *words, *scales, *zeros, *global;  // the last two may be null
};

MarlinWeight checked_weight(const char* op, const Tensor& words, const Tensor& scales, const std::optional<Tensor>& b_zeros,
                            const std::optional<Tensor>& global_scale, int64_t b_type_id, int64_t size_n, int64_t size_k,
                            bool a_8bit, bool is_zp_float) {
  check_cuda(op, "b_q_weight", words);
  check_marlin_shape(op, size_k, size_n, a_8bit);
  const CodeType type = marlin_code_type(op, b_type_id);
  const int64_t pack = 32 / marlin_bits(type);
  check_tensor(op, "b_q_weight", words, words, {ScalarType::Int}, {size_k / 16, size_n * 16 / pack});
  const MarlinScales kind = check_marlin_scales(op, scales, words, type, size_k, size_n);
  const Tensor* zeros = present(b_zeros);
  const bool needs_zeros = type == CodeType::kUint4 || type == CodeType::kUint8;
  QCORE_CHECK((zeros != nullptr) == needs_zeros, op, ": b_zeros_or_none is ", zeros ? "given" : "not given",
                  "; uint4 and uint8 need it, other types have none");
  if (zeros && is_zp_float) check_tensor(op, "b_zeros_or_none", *zeros, words, {ScalarType::Half}, {scales.size(0), size_n});
  else if (zeros) check_tensor(op, "b_zeros_or_none", *zeros, words, {ScalarType::Int}, {scales.size(0), size_n / pack});
  const Tensor* global = present(global_scale);
  const bool needs_global = kind.type == MarlinScale::kE4m3;
  QCORE_CHECK((global != nullptr) == needs_global, op, ": global_scale is ", global ? "given" : "not given",
                  "; it goes with scales of Float8_e4m3fn, and only with them");
  if (global) {
    check_same_device(op, "global_scale", *global, words);
    check_dtype(op, "global_scale", *global, {ScalarType::Float});
    QCORE_CHECK(global->numel() == 1, op, ": global_scale has shape ", shape_of(*global), "; it must have one element");
  }
  return {type, size_k, size_n, kind, &words, &scales, zeros, global};
}

// [K, N] in `dtype`, rounded once.
Tensor whole_weight(const char* op, const MarlinWeight& w, ScalarType dtype, const Launch& launch) {
  const Tensor whole = new_tensor(*w.words, {w.k, w.n}, dtype);
  const MarlinParams p{static_cast<const uint32_t*>(w.words->data_ptr()),
                       w.words->numel(),
                       static_cast<int>(w.n),
                       marlin_bits(w.type),
                       w.type,
                       w.scales->data_ptr(),
                       w.kind.type,
                       static_cast<int>(w.kind.group_size),
                       w.global ? static_cast<const float*>(w.global->data_ptr()) : nullptr,
                       w.zeros ? static_cast<const uint32_t*>(w.zeros->data_ptr()) : nullptr,
                       whole.data_ptr()};
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(w.k / 16 * (w.n / 64), 65535));
  const bool integers = w.type != CodeType::kE4m3 && w.type != CodeType::kE2m1;
  const auto run = [&](auto kernel) { kernel<<<blocks, 128, 0, launch.stream()>>>(p); };
  const auto with = [&](auto zero) {
    using T = decltype(zero);
    if (p.bits == 4) run(integers ? marlin_dequantize_kernel<T, 4, true> : marlin_dequantize_kernel<T, 4, false>);
    else run(integers ? marlin_dequantize_kernel<T, 8, true> : marlin_dequantize_kernel<T, 8, false>);
  };
  if (dtype == ScalarType::Half) with(__half{});
  else with(__nv_bfloat16{});
  check_launch(op);
  return whole;
}

Tensor marlin_dequantize(const Tensor& b_q_weight, const Tensor& b_scales, const std::optional<Tensor>& b_zeros_or_none,
                         const std::optional<Tensor>& global_scale, int64_t b_type_id, int64_t size_k, int64_t size_n,
                         ScalarType dtype) {
  const char* op = "marlin_dequantize";
  QCORE_CHECK(dtype == ScalarType::Half || dtype == ScalarType::BFloat16, op, ": dtype is ", dtype_name(dtype),
              "; allowed: Half, BFloat16");
  const MarlinWeight w =
      checked_weight(op, b_q_weight, b_scales, b_zeros_or_none, global_scale, b_type_id, size_n, size_k, false, false);
  return whole_weight(op, w, dtype, Launch(b_q_weight));
}

Tensor multiply(const Tensor& a, const std::optional<Tensor>& c_or_none, const Tensor& b_q_weight,
                   const std::optional<Tensor>& b_bias_or_none, const Tensor& b_scales,
                   const std::optional<Tensor>& a_scales, const std::optional<Tensor>& global_scale,
                   const std::optional<Tensor>& b_zeros_or_none, const Tensor& workspace, int64_t b_type_id,
                   int64_t size_m, int64_t size_n, int64_t size_k, bool is_zp_float) {
  const char* op = "marlin_gemm";
  check_cuda(op, "a", a);
  check_dtype(op, "a", a, {ScalarType::Half, ScalarType::BFloat16, ScalarType::Char, ScalarType::Float8_e4m3fn});
  const bool a_8bit = dtype_of(a) == ScalarType::Char || dtype_of(a) == ScalarType::Float8_e4m3fn;
  check_same_device(op, "b_q_weight", b_q_weight, a);
  const MarlinWeight w = checked_weight(op, b_q_weight, b_scales, b_zeros_or_none, global_scale, b_type_id, size_n, size_k,
                                        a_8bit, is_zp_float);
  check_shape(op, "a", a, {size_m, size_k});
  const Tensor* of_rows = present(a_scales);
  QCORE_CHECK((of_rows != nullptr) == a_8bit || size_m == 0, op, ": a_scales are ", of_rows ? "given" : "not given",
                  "; they go with 8-bit activations, and only with them; a is ", dtype_name(dtype_of(a)));
  if (of_rows) {
    check_same_device(op, "a_scales", *of_rows, a);
    check_dtype(op, "a_scales", *of_rows, {ScalarType::Float});
    QCORE_CHECK(of_rows->numel() == 1 || of_rows->numel() == size_m, op, ": a_scales has shape ", shape_of(*of_rows),
                    "; it must have one element, or ", size_m);
  }
  QCORE_CHECK(!is_zp_float || (w.type == CodeType::kUint4 && dtype_of(a) == ScalarType::Half), op,
                  ": is_zp_float is true; that goes with uint4 and a of Half");
  // The output's type: that of 16-bit activations, else of c, of the scales, or BFloat16.
  const ScalarType out_type = !a_8bit ? dtype_of(a)
                              : c_or_none ? dtype_of(*c_or_none)
                              : w.kind.type == MarlinScale::kHalf ? ScalarType::Half : ScalarType::BFloat16;
  const Tensor* bias = present(b_bias_or_none);
  if (bias) check_tensor(op, "b_bias_or_none", *bias, a, {out_type}, {size_n});
  if (c_or_none) check_tensor(op, "c_or_none", *c_or_none, a, {out_type}, {size_m, size_n});
  check_same_device(op, "workspace", workspace, a);
  check_dtype(op, "workspace", workspace, {ScalarType::Int});

  const Launch launch(a);
  Tensor out = c_or_none ? *c_or_none : new_tensor(a, {size_m, size_n}, out_type);
  if (size_m == 0) return out;
  if (workspace.numel() > 0) {
    const Rows rows = a_8bit ? as_rows(op, "a", a) : ready_rows(op, "a", a, nullptr, size_k, launch.stream());
    QCORE_CHECK(rows.stride * (a_8bit ? 1 : 2) % 16 == 0 && is_aligned(rows.data(), 16), op,
                    ": a must begin at a multiple of 16 bytes, its rows too");
    const MarlinCall call{op, &rows, out_type, w.type, w.kind.type, w.kind.group_size, is_zp_float, size_n, size_k, size_n,
                          &b_q_weight, &b_scales, w.zeros, nullptr, of_rows, w.global, bias, false, &workspace};
    if (run_marlin(call, out, launch)) return out;
  }
  QCORE_CHECK(!a_8bit && !is_zp_float, op, ": no kernel for a of ", dtype_name(dtype_of(a)), is_zp_float ? " with float zero points" : "",
                  " and groups of ", w.kind.group_size ? w.kind.group_size : size_k, " was compiled, or the workspace is empty");
  const Tensor whole = whole_weight(op, w, dtype_of(a), launch);
  const Tensor result = product(a, whole, false);
  if (bias) add_bias(result, *bias, true, launch.stream());
  if (!c_or_none) return result;
  torch::stable::copy_(out, result);
  return out;
}

// With `c_or_none` it is written to and returned, which only callers outside of graphs may ask for;
// others have the overload `out`.
Tensor marlin_gemm(const Tensor& a, const std::optional<Tensor>& c_or_none, const Tensor& b_q_weight,
                   const std::optional<Tensor>& b_bias_or_none, const Tensor& b_scales,
                   const std::optional<Tensor>& a_scales, const std::optional<Tensor>& global_scale,
                   const std::optional<Tensor>& b_zeros_or_none, const Tensor& workspace, int64_t b_type_id, int64_t size_m,
                   int64_t size_n, int64_t size_k, bool, bool, bool is_zp_float) {
  return multiply(a, c_or_none, b_q_weight, b_bias_or_none, b_scales, a_scales, global_scale, b_zeros_or_none,
                  workspace, b_type_id, size_m, size_n, size_k, is_zp_float);
}

void marlin_gemm_out(const Tensor& a, const Tensor& b_q_weight, const std::optional<Tensor>& b_bias_or_none,
                     const Tensor& b_scales, const std::optional<Tensor>& a_scales,
                     const std::optional<Tensor>& global_scale, const std::optional<Tensor>& b_zeros_or_none,
                     const Tensor& workspace, int64_t b_type_id, int64_t size_m, int64_t size_n, int64_t size_k, bool, bool,
                     bool is_zp_float, const Tensor& out) {
  multiply(a, out, b_q_weight, b_bias_or_none, b_scales, a_scales, global_scale, b_zeros_or_none, workspace, b_type_id, size_m,
           size_n, size_k, is_zp_float);
}

}  // namespace
}  // namespace qcore_cuda

STABLE_TORCH_LIBRARY_FRAGMENT(qcore_cuda, m) {
  m.def("gptq_marlin_repack(Tensor b_q_weight, SymInt size_k, SymInt size_n, int num_bits, bool is_a_8bit=False) -> Tensor");
  m.def("awq_marlin_repack(Tensor b_q_weight, SymInt size_k, SymInt size_n, int num_bits, bool is_a_8bit=False) -> Tensor");
  m.def("marlin_dequantize(Tensor b_q_weight, Tensor b_scales, Tensor? b_zeros_or_none, Tensor? global_scale, "
        "int b_type_id, SymInt size_k, SymInt size_n, ScalarType dtype) -> Tensor");
  m.def("marlin_gemm(Tensor a, Tensor? c_or_none, Tensor b_q_weight, Tensor? b_bias_or_none, Tensor b_scales, "
        "Tensor? a_scales, Tensor? global_scale, Tensor? b_zeros_or_none, Tensor workspace, int b_type_id, "
        "SymInt size_m, SymInt size_n, SymInt size_k, bool use_atomic_add=False, bool use_fp32_reduce=True, "
        "bool is_zp_float=False) -> Tensor");
  m.def("marlin_gemm.out(Tensor a, Tensor b_q_weight, Tensor? b_bias_or_none, Tensor b_scales, Tensor? a_scales, "
        "Tensor? global_scale, Tensor? b_zeros_or_none, Tensor workspace, int b_type_id, SymInt size_m, SymInt size_n, "
        "SymInt size_k, bool use_atomic_add=False, bool use_fp32_reduce=True, bool is_zp_float=False, *, "
        "Tensor(a!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(qcore_cuda, CUDA, m) {
  m.impl("gptq_marlin_repack", TORCH_BOX(&qcore_cuda::gptq_marlin_repack));
  m.impl("awq_marlin_repack", TORCH_BOX(&qcore_cuda::awq_marlin_repack));
  m.impl("marlin_dequantize", TORCH_BOX(&qcore_cuda::marlin_dequantize));
  m.impl("marlin_gemm", TORCH_BOX(&qcore_cuda::marlin_gemm));
  m.impl("marlin_gemm.out", TORCH_BOX(&qcore_cuda::marlin_gemm_out));
}
