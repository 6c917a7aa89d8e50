// Which kernel a product with packed weights takes. Nothing here needs a GPU, so that tests can ask it.
#pragma once

#include <cstdint>

namespace qcore_cuda {

enum class Way {
  kFewRows,   // w4_small_m.cuh: any GPU; words straight into registers
  kMidRows,   // w4_mid_m_kernel.cuh: sm_90; words through shared memory, mma.sync
  kManyRows,  // w4_sm90_kernel.cuh: sm_90; words through shared memory, wgmma
  kWhole,     // the weight is made whole in 16 bits
};

// What a weight and a device allow.
struct Ways {
  bool few, sm90, mid;
  bool whole_pieces;  // a group is a multiple of 64 inputs, or all of K
};

// Up to so many rows the kernel for few rows is used, beyond it weights are dequantized. Measured on an
// H200 with `benchmarks/cuda_w4.py --crossing` (benchmarks/results/cuda_w4_crossing.json): at 32 rows
// GPTQ's took 0.36 of the time at 28672x4096, 0.63 at 4096x14336 and 0.87 at 4096x4096; at 48 the last
// is slower, by 1.18.
constexpr int64_t kFewRows = 32;

// The same where SM90's kernel for many rows can run the weight and the one for a medium number cannot.
// At 32 rows it took 0.78 to 0.9 of the time of the one for few.
constexpr int64_t kFewRowsBesideSm90 = 16;

// Where the kernel for a medium number of rows can run, too (benchmarks/results/cuda_mixed_plans.json and, for many rows,
// cuda_many_plans.json):
//
//   rows         kernel
//   1 ... 32     medium; few up to 16, where the medium one would have to round weights: groups of 32, 96, ... inputs
//   33 ... 64    medium, if tiles of 64 rows by 128 columns are for a third of all processors or fewer and K is at most
//                4096 (then wgmma's kernel waits more than it multiplies); else many
//   65 ...       many
// So up to 16 rows no weight is rounded.
constexpr int64_t kMidRows = 32, kMidRowsOfFewTiles = 64, kMidMostK = 4096;

// `few_rows`: up to how many rows the caller wants the kernel for few; -1: as above.
inline Way way_for(const Ways& can, int64_t m, int64_t n, int64_t k, int sm_count, int64_t few_rows = -1) {
  if (few_rows < 0) {
    if (can.mid && can.whole_pieces) few_rows = 0;
    else few_rows = can.sm90 || can.mid ? kFewRowsBesideSm90 : kFewRows;
  }
  if (can.few && m <= few_rows) return Way::kFewRows;
  const int64_t tiles = (m + 63) / 64 * ((n + 127) / 128);
  if (can.mid && (m <= kMidRows || (m <= kMidRowsOfFewTiles && k <= kMidMostK && 3 * tiles <= sm_count))) return Way::kMidRows;
  return can.sm90 ? Way::kManyRows : Way::kWhole;
}

}  // namespace qcore_cuda
