// Where Marlin's layout has what. Weights [K, N] are cut into pieces of 1024 codes (16 inputs by 64
// outputs; for 8-bit activations 32 by 32) in the order in which a warp's threads want them.
#pragma once

#include <cstdint>

#if !defined(__CUDACC__)
#define __host__
#define __device__
#endif

namespace qcore_cuda {

struct MarlinPlace {
  int k, n;
};

// The input and output of code `i` of word `word` in row `row` of the packed tensor
// [K / 16, N * 16 / (32 / bits)].
__host__ __device__ inline MarlinPlace marlin_place(int bits, bool a_8bit, int n, int64_t row, int64_t word, int i) {
  const int pack = 32 / bits;
  // The order of a word's codes, as the place of each among its thread's.
  int code;
  if (bits == 4) {
    code = a_8bit ? (i % 2) * 4 + i / 2 : i < 4 ? 2 * i : 2 * i - 7;
  } else {
    code = a_8bit ? i : i == 1 ? 2 : i == 2 ? 1 : i;
  }
  const int64_t flat = row * n * 16 + word * pack;  // of the word's first code
  const int64_t piece = flat / 1024;
  const int of_piece = static_cast<int>(flat % 1024) + code;  // words do not cross pieces, nor threads' eights
  if (!a_8bit) {
    const int thread = of_piece / 32, tile = of_piece / 8 % 4, block = of_piece / 4 % 2, r = of_piece % 4;
    const int64_t pieces = n / 64;
    return {static_cast<int>(piece / pieces) * 16 + 2 * (thread % 4) + r % 2 + 8 * (r / 2),
            static_cast<int>(piece % pieces) * 64 + tile * 16 + thread / 4 + 8 * block};
  }
  const int thread = of_piece / 32, tile = of_piece / 16 % 2, block = of_piece / 8 % 2, r = of_piece % 8;
  const int64_t pieces = n / 32;
  return {static_cast<int>(piece / pieces) * 32 + 4 * (thread % 4) + r % 4 + 16 * (r / 4),
          static_cast<int>(piece % pieces) * 32 + tile * 16 + thread / 4 + 8 * block};
}

// Where the scale of a column lies in its row: with groups, and with one group for all of K.
__host__ __device__ inline int marlin_grouped_position(int n) {
  return n / 64 * 64 + n % 8 * 8 + n % 64 / 8;
}
__host__ __device__ inline int marlin_single_position(int n) {
  // Runs of eight are 2i + {0, 1, 8, 9, 16, 17, 24, 25}.
  const int in = n % 32;
  return n / 32 * 32 + in % 8 / 2 * 8 + in / 8 * 2 + in % 2;
}
// The bit of a column's zero point in its row of words.
__host__ __device__ inline int64_t marlin_zero_bit(int bits, int n) {
  const int at = marlin_grouped_position(n), pack = 32 / bits, in = at % pack;
  const int place = bits == 4 ? in / 2 + in % 2 * 4 : in == 1 ? 2 : in == 2 ? 1 : in;
  return (static_cast<int64_t>(at / pack) * pack + place) * bits;
}

}  // namespace qcore_cuda
