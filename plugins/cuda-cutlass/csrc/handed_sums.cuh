// Sums of a warpgroup that another block adds to its own: they are handed over through memory. Who takes them waits
// for the one who gives, who must wait for nobody and have begun before: blocks begin in the order of their numbers.
#pragma once

#include "sm90_ptx.cuh"

namespace qcore_cuda::sm90 {

// Where sums are left, and a flag for each warpgroup, 1 when they are there (meeting_flags.h).
struct Meeting {
  float4* sums;
  uint8_t* flags;
};

// The number of a warpgroup among all that give: of cluster (or pair of tiles) `number`, of a block in it.
template <int BLOCKS, int GROUPS>
__device__ __forceinline__ int meeting_place(int number, int rank, int group) {
  return (number * BLOCKS + rank) * GROUPS + group;
}

// Integers are left as the same bits.
__device__ __forceinline__ float as_left(float sum) { return sum; }
__device__ __forceinline__ float as_left(uint32_t sum) { return __uint_as_float(sum); }
__device__ __forceinline__ void add_left(float& sum, float left) { sum += left; }
__device__ __forceinline__ void add_left(uint32_t& sum, float left) { sum += __float_as_uint(left); }

// By all threads of a warpgroup: the first FOURS times four of its sums, in the order in which they lie, left at `place`.
template <int FOURS, int COUNT, typename Sum, int REGISTERS>
__device__ __forceinline__ void give(const Meeting& meeting, const Sum (&sums)[COUNT][REGISTERS], int place, int group) {
  const int thread = threadIdx.x % 128;
  float4* const to = meeting.sums + int64_t{place} * FOURS * 128 + thread;
#pragma unroll
  for (int i = 0; i < FOURS; ++i) {
    const Sum* const four = sums[4 * i / REGISTERS] + 4 * i % REGISTERS;
    __stcg(to + i * 128, make_float4(as_left(four[0]), as_left(four[1]), as_left(four[2]), as_left(four[3])));
  }
  sync_group(group);
  if (thread == 0) store_release(meeting.flags + place, 1);
}

// Adds them, and leaves the flag as it was before; likewise.
template <int FOURS, int COUNT, typename Sum, int REGISTERS>
__device__ __forceinline__ void take(const Meeting& meeting, Sum (&sums)[COUNT][REGISTERS], int place, int group) {
  const int thread = threadIdx.x % 128;
  const float4* const from = meeting.sums + int64_t{place} * FOURS * 128 + thread;
  if (thread == 0) {
    while (load_acquire(meeting.flags + place) == 0) {
    }
    meeting.flags[place] = 0;
  }
  sync_group(group);
#pragma unroll
  for (int i = 0; i < FOURS; ++i) {
    const float4 four = __ldcg(from + i * 128);
    Sum* const to = sums[4 * i / REGISTERS] + 4 * i % REGISTERS;
    add_left(to[0], four.x), add_left(to[1], four.y), add_left(to[2], four.z), add_left(to[3], four.w);
  }
}

}  // namespace qcore_cuda::sm90
