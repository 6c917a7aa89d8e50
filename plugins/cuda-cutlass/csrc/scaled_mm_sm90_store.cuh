// How the 8-bit kernels of large tiles on SM90 store: through shared memory, by the copy engine.
#pragma once

#include <type_traits>

#include "scaled_mm.cuh"
#include "sm90_ptx.cuh"

namespace qcore_cuda::sm90 {

constexpr int kStoreColumns = 64, kBoxBytes = 16 * kStoreColumns * 2;  // of a warp's 16 rows: what leaves at a time

template <typename Out>
__device__ __forceinline__ uint32_t packed(float low, float high) {
  const Out pair[2] = {from_float<Out>(low), from_float<Out>(high)};
  uint32_t word;
  __builtin_memcpy(&word, pair, sizeof(word));
  return word;
}

// What becomes of the sums of columns, in shared memory.
struct ColumnEnds {
  float2* scale_and_bias;
  int32_t* azp_adj;

  __device__ __forceinline__ ColumnEnds operator+(int columns) const {
    return {scale_and_bias + columns, azp_adj + columns};
  }
};

// A warp's 16 rows and COLUMNS columns, by way of `room` for BOXES times 64 columns. Of these, 128 bytes of a row, piece
// c of 16 bytes stands at c ^ row % 8, as the copy engine wants it. SCALED: the sums are scaled already.
template <int COLUMNS, int BOXES, typename Out, bool SCALED, typename Sum, int REGISTERS>
__device__ __forceinline__ void store(const ScaledMM& p, const CUtensorMap* out_map, const Sum (&sums)[REGISTERS],
                                      const typename ScaledEnd<Out>::Row (&rows)[2], const ColumnEnds& columns,
                                      uint8_t* room, int row, int column) {
  const int lane = threadIdx.x % 32, q = lane % 4;
#pragma unroll
  for (int box = 0; box < COLUMNS / kStoreColumns; ++box) {
    uint8_t* const at = room + box % BOXES * kBoxBytes;
    if (lane == 0) wait_for_stores<BOXES - 1>();  // what left from here before has been read
    __syncwarp();
    const uint32_t to = shared_address(at) + lane % 16 * 128;
#pragma unroll
    for (int j = 0; j < kStoreColumns / 8; j += 2) {
      uint32_t words[4];
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const Sum* const d = sums + (box * (kStoreColumns / 8) + j + c) * 4;
        const int first = box * kStoreColumns + (j + c) * 8 + 2 * q;
        float v[4];
        if constexpr (std::is_same<Sum, float>::value) {
#pragma unroll
          for (int i = 0; i < 4; ++i) v[i] = d[i];
        } else {
          const int2 adj = p.azp_adj ? *reinterpret_cast<const int2*>(columns.azp_adj + first) : int2{0, 0};
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            v[i] = static_cast<float>(static_cast<int32_t>(d[i]) - rows[i / 2].azp * (i % 2 ? adj.y : adj.x));
          }
        }
        if (!SCALED || p.bias) {
          const float4 two = *reinterpret_cast<const float4*>(columns.scale_and_bias + first);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            if (!SCALED) v[i] = (i % 2 ? two.z : two.x) * (rows[i / 2].scale * v[i]);
            if (p.bias) v[i] += i % 2 ? two.w : two.y;
          }
        }
        words[2 * c] = packed<Out>(v[0], v[1]);
        words[2 * c + 1] = packed<Out>(v[2], v[3]);
      }
      store_matrices(to + ((j + lane / 16) ^ lane % 8) * 16, words);
    }
    store_before_copies();
    __syncwarp();
    const int left = column + box * kStoreColumns;
    if (lane == 0 && row < p.m && left < p.n) store_box(out_map, at, left * 2, row);
    if (lane == 0) commit_stores();
  }
}

}  // namespace qcore_cuda::sm90
