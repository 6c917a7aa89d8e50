// What w4_emulated.py hands over: a product with packed weights, and how its kernel is to divide it.
#pragma once

#include <cstdint>

struct Arguments {
  const void *x, *words, *scales, *zeros, *column_scales, *bias;
  void* out;
  int64_t x_stride;
  int m, x_k, k, n, n_out, groups, group_size;
  int bits, floats, zero, add, bfloat, bias_float, out_float;
  int row_tiles, column_warps, split, k_warps, seed, lanes;
};
