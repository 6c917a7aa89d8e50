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

// By all threads of a warpgroup: the first FOURS times four of its sums, in the order in which they lie, left at `place`.
template <int FOURS, int COUNT, int REGISTERS>
__device__ __forceinline__ void give(const Meeting& meeting, const float (&sums)[COUNT][REGISTERS], int place,
                                     int group) {
  const int thread = threadIdx.x % 128;
  float4* const to = meeting.sums + int64_t{place} * FOURS * 128 + thread;
#pragma unroll
  for (int i = 0; i < FOURS; ++i) {
    const float* const four = sums[4 * i / REGISTERS] + 4 * i % REGISTERS;
    __stcg(to + i * 128, make_float4(four[0], four[1], four[2], four[3]));
  }
  sync_group(group);
  if (thread == 0) store_release(meeting.flags + place, 1);
}

// Adds them, and leaves the flag as it was before; likewise.
template <int FOURS, int COUNT, int REGISTERS>
__device__ __forceinline__ void take(const Meeting& meeting, float (&sums)[COUNT][REGISTERS], int place, int group) {
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
    float* const to = sums[4 * i / REGISTERS] + 4 * i % REGISTERS;
    to[0] += four.x, to[1] += four.y, to[2] += four.z, to[3] += four.w;
  }
}

}  // namespace qcore_cuda::sm90
