// Which kernel multiplies: a lookup in the generated table, and in what was loaded at run time.
#pragma once

#include <cstdint>

namespace qcore_cuda {

struct MarlinKernel {
  const void* function;
  int tile_m, tile_n, tile_k, threads, shared;
  int blocks;  // that fit on one processor
};

// What a scheme is, as the generator numbers it (qcore_cuda/marlin/instances.py).
struct MarlinScheme {
  int act, weight, scale;  // of csrc/marlin/params.h
  bool bf16_out;
  int group_blocks;
  bool float_zeros;

  // -1 where no kernel can be: a group size that there is not, or a processor older than SM75.
  int64_t key(int capability) const;
};

// The kernel for m rows, or null. The result lives as long as the thread.
const MarlinKernel* find_marlin_kernel(const MarlinScheme& scheme, int32_t device, int64_t m, int64_t n);

}  // namespace qcore_cuda
