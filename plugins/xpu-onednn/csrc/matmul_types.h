// The product as numbers, the same for the host and for kernels that are compiled at run time.
#pragma once

enum Element : int {
  kNone = 0,
  kF32,
  kF16,
  kBF16,
  kE4M3,
  kE5M2,
  kE8M0,  // a power of two, of scales
  kE2M1,  // two in a byte, the first in the low half; so is u4
  kU4,
  kS8,
  kU8,
  kS32,
};

// Numbers that elements share: one for outer_size rows (of b: columns) and k_size elements of each.
struct Grouped {
  int type;
  int reserved;
  long outer_size, k_size;
  long outer_stride, k_stride;
};

// A matrix by rows of k elements; b is [N, K] here. Strides are in elements.
struct Matrix {
  int type;
  int reserved;
  long outer_stride, k_stride;
  Grouped scale, zero;
};

struct Product {
  long m, n, k;
  Matrix a, b;
  int bias_type, out_type;
  long out_stride;
};
