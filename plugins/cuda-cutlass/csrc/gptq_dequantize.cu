// Dequantization of weights in GPTQ's layout (gptq.cu), into a whole matrix of float16 or bfloat16.

#include "gptq.cuh"

namespace qcore_cuda {
namespace {

// Eight codes of a column, BITS apart: as two words of which the second is 8 bits' only.
template <int BITS, bool SHUFFLED>
struct Octet {
  uint32_t low[8], high[8];  // of eight columns

  __device__ __forceinline__ void load(const uint32_t* __restrict__ words, int64_t n, int64_t rows, int64_t octet,
                                       int64_t column) {
    const int64_t bit = octet * 8 * BITS, row = bit >> 5;
    read(low, words, n, rows, row, column);
    if constexpr (BITS == 8) read(high, words, n, rows, row + 1, column);
    if constexpr (BITS == 3) {
      const int shift = static_cast<int>(bit & 31);
      if (shift > 8) read(high, words, n, rows, row + 1, column);
#pragma unroll
      for (int j = 0; j < 8; ++j) low[j] = shift > 8 ? __funnelshift_r(low[j], high[j], shift) : low[j] >> shift;
    }
    if constexpr (BITS == 2) {
      const int half = static_cast<int>(octet & 1);
#pragma unroll
      for (int j = 0; j < 8; ++j) low[j] >>= SHUFFLED ? 8 * half : 16 * half;
    }
  }
  static __device__ __forceinline__ void read(uint32_t (&to)[8], const uint32_t* __restrict__ words, int64_t n,
                                              int64_t rows, int64_t row, int64_t column) {
    if (row < rows) {
      const auto* from = reinterpret_cast<const uint4*>(words + row * n + column);
      *reinterpret_cast<uint4*>(to) = __ldg(from);
      *reinterpret_cast<uint4*>(to + 4) = __ldg(from + 1);
    }
  }
  __device__ __forceinline__ uint32_t code(int i, int j) const {
    if constexpr (BITS == 8) return ((i < 4 ? low[j] : high[j]) >> (8 * (i % 4))) & 255u;
    const int bit = SHUFFLED ? (i >> 1) * BITS + (i & 1) * 16 : BITS * i;
    return (low[j] >> bit) & ((1u << BITS) - 1);
  }
};

struct DequantizeParams {
  const uint32_t* words;
  int64_t rows, k, n, k_out;
  const void* scales;
  ScaleType scale_type;
  int64_t groups, group_size;
  GptqZeros zeros;
  const int32_t* g_idx;
  const int32_t* perm;
  void* out;
};

// A thread: eight inputs by eight columns.
template <class KIND, bool SHUFFLED, typename T>
__global__ void __launch_bounds__(128) dequantize_kernel(const __grid_constant__ DequantizeParams p) {
  constexpr int BITS = KIND::kBits;
  const int64_t column = (blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x) * 8;
  if (column >= p.n) return;
  for (int64_t octet = blockIdx.y; octet * 8 < p.k; octet += gridDim.y) {
    Octet<BITS, SHUFFLED> codes;
    codes.load(p.words, p.n, p.rows, octet, column);
    int64_t group = -1;
    float zeros[8], scales[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int64_t k = octet * 8 + i;
      if (k >= p.k) break;
      const int64_t of_k = p.g_idx ? p.g_idx[k] : k / p.group_size;
      const bool known = of_k >= 0 && of_k < p.groups;  // else the weight is NaN
      if (known && of_k != group) {
        group = of_k;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const uint32_t four = p.zeros.words ? p.zeros.four<BITS>(group, static_cast<int>(column) + 4 * half) : 0;
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            zeros[4 * half + j] =
                8388608.0f + static_cast<float>(p.zeros.words ? p.zeros.code<BITS>(four, j) : p.zeros.constant);
          }
        }
        if (p.scale_type == ScaleType::kFloat) {
#pragma unroll
          for (int j = 0; j < 8; ++j) scales[j] = static_cast<const float*>(p.scales)[group * p.n + column + j];
        } else {
          const uint4 eight =
              __ldg(reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(p.scales) + group * p.n + column));
          const uint32_t words[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            const float2 two = scale_pair(words[j], p.scale_type);
            scales[2 * j] = two.x;
            scales[2 * j + 1] = two.y;
          }
        }
      }
      const int64_t to = p.perm ? p.perm[k] : k;
      if (to < 0 || to >= p.k_out) continue;
      uint32_t pairs[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float v[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int c = 2 * j + e;
          float code;
          if constexpr (KIND::kFloat) code = float_of<KIND>(codes.code(i, c));
          else code = __uint_as_float(0x4b000000u | codes.code(i, c)) - zeros[c];  // 2^23 + c: exact
          v[e] = known ? code * scales[c] : __int_as_float(0x7fffffff);
        }
        if constexpr (std::is_same<T, __half>::value) pairs[j] = as_bits(__floats2half2_rn(v[0], v[1]));
        else pairs[j] = as_bits(__floats2bfloat162_rn(v[0], v[1]));
      }
      *reinterpret_cast<uint4*>(static_cast<T*>(p.out) + to * p.n + column) =
          make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
    }
  }
}

template <class KIND, bool SHUFFLED>
void launch_dequantize(const DequantizeParams& p, ScalarType type, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(ceil_div(p.n / 8, 128)),
                  static_cast<unsigned>(std::min<int64_t>(ceil_div(p.k, 8), 65535)));
  if (type == ScalarType::Half) dequantize_kernel<KIND, SHUFFLED, __half><<<grid, 128, 0, stream>>>(p);
  else dequantize_kernel<KIND, SHUFFLED, __nv_bfloat16><<<grid, 128, 0, stream>>>(p);
}

}  // namespace

ScaleType scale_type_of(const Tensor& scales) {
  switch (dtype_of(scales)) {
    case ScalarType::Float: return ScaleType::kFloat;
    case ScalarType::Half: return ScaleType::kHalf;
    default: return ScaleType::kBFloat16;
  }
}

void dequantize_gptq(const char* op, const GptqWeight& w, const Tensor& out, cudaStream_t stream) {
  if (out.numel() == 0) return;
  const Tensor words = aligned(w.words), scales = aligned(w.scales);
  const DequantizeParams p{static_cast<const uint32_t*>(words.data_ptr()),
                           words.size(0),
                           w.k,
                           w.n,
                           out.size(0),
                           w.column_scales ? w.column_scales : scales.data_ptr(),
                           w.column_scales ? ScaleType::kFloat : scale_type_of(scales),
                           scales.size(0),
                           w.group_size,
                           w.zeros,
                           w.g_idx,
                           w.perm,
                           out.data_ptr()};
  const ScalarType type = dtype_of(out);
  if (w.floats) {
    if (w.bits == 4) launch_dequantize<E2M1, true>(p, type, stream);
    else launch_dequantize<E4M3, false>(p, type, stream);
    return check_launch(op);
  }
  switch (w.bits) {
    case 2: w.shuffled ? launch_dequantize<Integer<2>, true>(p, type, stream) : launch_dequantize<Integer<2>, false>(p, type, stream); break;
    case 3: launch_dequantize<Integer<3>, false>(p, type, stream); break;
    case 4: w.shuffled ? launch_dequantize<Integer<4>, true>(p, type, stream) : launch_dequantize<Integer<4>, false>(p, type, stream); break;
    default: launch_dequantize<Integer<8>, false>(p, type, stream);
  }
  check_launch(op);
}

}  // namespace qcore_cuda
