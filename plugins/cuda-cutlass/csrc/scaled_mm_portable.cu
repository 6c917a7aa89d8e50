// A scaled product by mma.sync, for every generation: tiles of 128 x 128, K in steps of 64 bytes
// through four stages of cp.async. FP8 needs SM89.

#include "scaled_mm.cuh"
#include "scaled_mm.h"

namespace qcore_cuda {
namespace {

constexpr int kTileM = 128, kTileN = 128, kTileK = 64, kStages = 4;
constexpr int kThreads = 256;  // eight warps, 2 x 4, each 64 x 32
constexpr int kStageBytes = (kTileM + kTileN) * kTileK;

// Rows of 64 bytes, in which the 16-byte chunks are moved about so that the eight rows that ldmatrix
// reads at a time lie in different banks.
__device__ __forceinline__ int chunk_at(int row, int chunk) { return row * kTileK + ((chunk ^ (row / 2 % 4)) * 16); }

__device__ __forceinline__ void copy16(uint32_t target, const uint8_t* source, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(source), "r"(inside ? 16 : 0));
}

__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address));
}

template <typename Element, typename Out, bool BY_BLOCK>
__global__ void __launch_bounds__(kThreads) portable_kernel(ScaledMM p, ScaledEnd<Out> end) {
  extern __shared__ __align__(128) uint8_t shared[];
  const auto base = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int warp_m = warp / 4 * 64, warp_n = warp % 4 * 32;
  const int first_m = blockIdx.x * kTileM, first_n = blockIdx.y * kTileN;
  const auto* a = static_cast<const uint8_t*>(p.a);
  const auto* b = static_cast<const uint8_t*>(p.b);
  const int steps = (p.k + kTileK - 1) / kTileK;

  const auto fetch = [&](int step) {
    if (step < steps) {
      const uint32_t stage = base + step % kStages * kStageBytes;
#pragma unroll
      for (int i = 0; i < kTileM * 4 / kThreads; ++i) {
        const int item = threadIdx.x + i * kThreads;
        const int row = item / 4, chunk = item % 4;
        const int at = step * kTileK + chunk * 16;
        const bool inside = at < p.k;
        const int m = first_m + row, n = first_n + row;
        copy16(stage + chunk_at(row, chunk), a + (m < p.m && inside ? m * p.a_stride + at : 0), m < p.m && inside);
        copy16(stage + kTileM * kTileK + chunk_at(row, chunk), b + (n < p.n && inside ? n * p.b_stride + at : 0),
               n < p.n && inside);
      }
    }
    asm volatile("cp.async.commit_group;");
  };

  using Acc = typename Element::Acc;
  using Sum = std::conditional_t<BY_BLOCK, float, Acc>;
  Sum sums[4][4][4] = {};
  const int g = lane / 4, q = lane % 4;

#pragma unroll
  for (int step = 0; step < kStages - 1; ++step) fetch(step);
  for (int step = 0; step < steps; ++step) {
    asm volatile("cp.async.wait_group %0;" ::"n"(kStages - 2));
    __syncthreads();
    fetch(step + kStages - 1);
    const uint32_t stage_a = base + step % kStages * kStageBytes, stage_b = stage_a + kTileM * kTileK;

    Acc parts[BY_BLOCK ? 4 : 1][BY_BLOCK ? 4 : 1][4] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t of_a[4][4], of_b[2][4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        // Matrices: rows 0-7, rows 8-15, then both again 16 bytes on.
        load_matrices(of_a[i], stage_a + chunk_at(warp_m + i * 16 + lane % 16, half * 2 + lane / 16));
      }
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        // Columns 0-7 with both their halves, then columns 8-15.
        load_matrices(of_b[j],
                      stage_b + chunk_at(warp_n + j * 16 + lane / 16 * 8 + lane % 8, half * 2 + lane / 8 % 2));
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          if constexpr (BY_BLOCK) {
            mma(Element{}, parts[i][j], of_a[i], of_b[j / 2][j % 2 * 2], of_b[j / 2][j % 2 * 2 + 1]);
          } else {
            mma(Element{}, sums[i][j], of_a[i], of_b[j / 2][j % 2 * 2], of_b[j / 2][j % 2 * 2 + 1]);
          }
        }
      }
    }
    if constexpr (BY_BLOCK) {
      const int block = step * kTileK / 128;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int row = min(first_m + warp_m + i * 16 + h * 8 + g, p.m - 1);
          const float sa = p.a_scale[row * p.a_scale_m + block * p.a_scale_k];
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            const int column = min(first_n + warp_n + j * 8 + 2 * q, p.n - 1);
            const float s = sa * p.b_scale[block * p.b_scale_k + column / 128 * p.b_scale_n];
            sums[i][j][2 * h] += s * parts[i][j][2 * h];
            sums[i][j][2 * h + 1] += s * parts[i][j][2 * h + 1];
          }
        }
      }
    }
  }
  asm volatile("cp.async.wait_all;");

#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int m = first_m + warp_m + i * 16 + e / 2 * 8 + g;
        const int n = first_n + warp_n + j * 8 + 2 * q + e % 2;
        if (m < p.m && n < p.n) end.store(m, n, sums[i][j][e]);
      }
    }
  }
}

template <typename Element, typename Out, bool BY_BLOCK>
void launch(const ScaledMM& p) {
  constexpr int kBytes = kStages * kStageBytes;
  const auto kernel = portable_kernel<Element, Out, BY_BLOCK>;
  static std::atomic<uint64_t> allowed{0};
  allow_shared("cutlass_scaled_mm", reinterpret_cast<const void*>(kernel), kBytes, p.device, allowed);
  // Rows first, so that blocks beside each other read the same columns of b.
  const dim3 grid(static_cast<unsigned>(ceil_div(p.m, kTileM)), static_cast<unsigned>(ceil_div(p.n, kTileN)));
  kernel<<<grid, kThreads, kBytes, p.stream>>>(p, ScaledEnd<Out>(p));
}

}  // namespace

void scaled_mm_portable(const ScaledMM& p) {
  QCORE_CHECK(ceil_div(p.n, kTileN) <= 65535, "cutlass_scaled_mm: N is ", p.n, "; at most ", 65535 * kTileN);
  with_out_type(p.out_bf16, [&](auto zero) {
    using Out = decltype(zero);
    if (!p.is_fp8) return launch<Int8, Out, false>(p);
    p.by_block ? launch<E4m3, Out, true>(p) : launch<E4m3, Out, false>(p);
  });
}

}  // namespace qcore_cuda
