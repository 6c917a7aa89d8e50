// Where packed weights lie, and how a warp of the kernel for few rows takes them: straight from global
// memory into registers, as fragments of the left operand of m16n8k16.
//
// K is taken in blocks of 32 in which thread (g, q) = (lane / 4, lane % 4) has the inputs 8q ... 8q + 7
// of kOwn neighbouring columns. Tile t of a fragment has as row g column 2t of those, as row g + 8
// column 2t + 1. The tensor core multiplies equal positions with each other, so that any order of K
// will do as long as both operands have it; nothing is ever rearranged between threads.
#pragma once

#include <algorithm>

#include "w4_codes.cuh"

namespace qcore_cuda {

constexpr int kBlockK = 32;  // inputs that a warp takes at a time

struct SmallMParams {
  const void* a;  // [m, k], rows `a_stride` elements apart; k and a_stride multiples of 8, a of 16 bytes
  int64_t a_stride;
  int m, k;
  const uint32_t* w;
  int64_t w_stride;  // words in a row of w
  int w_rows;
  const void* scales;  // [groups, n]
  ScaleType scale_type;
  const float* column_scales;  // [n]; or null; of floats
  GptqZeros zeros;
  int group_blocks;  // blocks of kBlockK in a group
  int blocks;        // of kBlockK in all
  const void* bias;  // [n_out]; or null
  bool bias_float;   // float32; else the dtype of a
  void* out;         // [m, n_out], dense
  bool out_float;    // float32; else the dtype of a
  int n, n_out;      // columns that there are, and that are wanted
  // How the work is divided: warps of a block by columns and by K, blocks of a cluster by K.
  int column_warps, k_warps, split;
  bool early;  // the launch need not wait: no kernel ahead writes words, scales or zero points
};

// Weights are read once: they pass by the first cache, and whole lines come to the second.
__device__ __forceinline__ uint4 read_once(const uint4* from) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from));
  return v;
}
__device__ __forceinline__ uint32_t read_once(const uint32_t* from) {
  uint32_t v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.u32 %0, [%1];" : "=r"(v) : "l"(from));
  return v;
}

// Into registers, or not, without a branch: where branches meet, what was loaded would be copied, and so
// waited for.
__device__ __forceinline__ void read_if(bool wanted, uint32_t& v, const void* from) {
  asm volatile("{.reg .pred p; setp.ne.b32 p, %1, 0; @p ld.global.nc.u32 %0, [%2];}" : "+r"(v) : "r"(int(wanted)), "l"(from));
}
__device__ __forceinline__ void read_if(bool wanted, uint2& v, const void* from) {
  asm volatile("{.reg .pred p; setp.ne.b32 p, %2, 0; @p ld.global.nc.v2.u32 {%0,%1}, [%3];}"
               : "+r"(v.x), "+r"(v.y)
               : "r"(int(wanted)), "l"(from));
}
__device__ __forceinline__ void read_if(bool wanted, uint4& v, const void* from) {
  asm volatile("{.reg .pred p; setp.ne.b32 p, %4, 0; @p ld.global.nc.v4.u32 {%0,%1,%2,%3}, [%5];}"
               : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w)
               : "r"(int(wanted)), "l"(from));
}

// Four or eight scales, as a group has them, to float32.
template <int COUNT>
__device__ __forceinline__ void to_floats(const uint4& packed, ScaleType type, float (&s)[COUNT]) {
  const uint32_t words[4] = {packed.x, packed.y, packed.z, packed.w};
  if (COUNT == 4 && type == ScaleType::kFloat) {
#pragma unroll
    for (int i = 0; i < 4; ++i) s[i] = __uint_as_float(words[i]);
    return;
  }
#pragma unroll
  for (int i = 0; i < COUNT / 2; ++i) {
    const float2 two = scale_pair(words[i], type);
    s[2 * i] = two.x;
    s[2 * i + 1] = two.y;
  }
}

// GPTQ: words along K. SHUFFLED: the order that `gptq_shuffle` gives, in which a pair is two
// neighbours; else a pair is (i, i + 4).
template <class KIND, bool SHUFFLED>
struct Gptq {
  using Kind = KIND;
  static constexpr int BITS = KIND::kBits;
  static constexpr int kOwn = 4;  // columns of a thread: 4g ... 4g + 3
  static constexpr int kVectors = BITS == 8 || BITS == 3 ? 2 : 1;  // of 16 bytes, a thread and block
  static constexpr bool kNeighbours = SHUFFLED || BITS == 8;
  static constexpr int kMostRowTiles = KIND::kScaled || (KIND::kFloat && BITS == 8) ? 2 : 4;  // by registers
  // Blocks that are under way to a thread: 4 or 2.
  static constexpr int depth(int row_tiles) { return row_tiles == 4 ? 2 : 4; }
  static constexpr int most_threads(int) { return 512; }

  struct Words {
    uint4 at[kVectors];
  };

  // The words of one block after another, from block `first` on.
  struct Stream {
    const char* at[kVectors];
    int end[kVectors];  // first block of which this thread has no words
    int64_t step;       // bytes

    __device__ __forceinline__ Stream(const SmallMParams& p, int first, int last, int column0, int lane)
        : step(p.w_stride * BITS * 4) {
      const int column = column0 + kOwn * (lane / 4), q = lane % 4;
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        const int row = BITS == 8 ? 2 * q + v : BITS == 4 ? q : BITS == 3 ? (24 * q + 23 * v) / 32 : q / 2;
        at[v] = reinterpret_cast<const char*>(p.w + (first * BITS + row) * p.w_stride + column);
        end[v] = column < p.n ? min(last, (p.w_rows - row + BITS - 1) / BITS) : 0;
      }
    }
    // To be called for each block, in order. What there is not stays as it is: its inputs are zeros.
    __device__ __forceinline__ void next(Words& words, int block) {
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        if (block < end[v]) words.at[v] = read_once(reinterpret_cast<const uint4*>(at[v]));
        at[v] += step;
      }
    }
  };

  // Zero points and scales of this thread's columns, as they lie. Nothing is done with them before the
  // group begins: that would be to wait for memory.
  struct Group {
    uint32_t low, high;  // of zero points
    uint2 scales, more_scales;
  };
  // Those of one group after another, from group `first` on.
  struct Groups {
    const uint32_t* zeros;
    const char* scales;
    int64_t zeros_step, scales_step;  // words; bytes
    int shift;
    bool valid, packed, wide;

    __device__ __forceinline__ Groups(const SmallMParams& p, int first, int column0, int lane, Group& next)
        : zeros(p.zeros.words), zeros_step(p.zeros.stride), shift(0), packed(!KIND::kFloat && p.zeros.words), wide(p.scale_type == ScaleType::kFloat) {
      const int column = column0 + kOwn * (lane / 4), bytes = wide ? 4 : 2;
      valid = column < p.n;
      scales_step = static_cast<int64_t>(p.n) * bytes;
      scales = static_cast<const char*>(p.scales) + first * scales_step + column * bytes;
      next = {};
      if constexpr (KIND::kScaled) shift = lane % 4 / 2;  // which byte of two is this thread's inputs'
      if (packed) {
        zeros += first * zeros_step + (column * BITS >> 5);
        shift = column * BITS & 31;
      } else {
        next.low = p.zeros.constant * (BITS == 2 ? 0x55u : BITS == 3 ? 0x249u : BITS == 4 ? 0x1111u : 0x01010101u);
      }
    }
    __device__ __forceinline__ void fetch(Group& next, bool wanted) {
      wanted = wanted && valid;
      if constexpr (!KIND::kFloat) read_if(wanted && packed, next.low, zeros);
      if constexpr (BITS == 3) read_if(wanted && packed && shift + 12 > 32, next.high, zeros + 1);
      read_if(wanted, next.scales, scales);
      read_if(wanted && wide, next.more_scales, scales + 8);
      zeros += zeros_step;
      scales += scales_step;
    }
    template <typename T>
    __device__ __forceinline__ void begin(const SmallMParams& p, const Group& group, typename Codes<KIND, T>::Zero (&z)[kOwn]) const {
      if constexpr (KIND::kScaled) {
#pragma unroll
        for (int j = 0; j < kOwn; ++j) {
          z[j] = Codes<KIND, T>::zero_of(j < 2 ? group.scales.x : group.scales.y, j % 2 * 2 + shift);
        }
      } else {
        const uint32_t four = p.zeros.four_of<BITS>(group.low, group.high, shift);
#pragma unroll
        for (int j = 0; j < kOwn; ++j) z[j] = Codes<KIND, T>::zero(p.zeros.code<BITS>(four, j));
      }
    }
  };
  template <typename T>
  using Zeros = typename Codes<KIND, T>::Zero[kOwn];
  static __device__ __forceinline__ void scales(const SmallMParams& p, const Group& group, float (&s)[kOwn]) {
    to_floats(make_uint4(group.scales.x, group.scales.y, group.more_scales.x, group.more_scales.y), p.scale_type, s);
  }

  // Eight codes of column j: pairs 0 and 1 are made of x, 2 and 3 of y.
  static __device__ __forceinline__ void codes(const Words& words, int q, int j, uint32_t& x, uint32_t& y) {
    const auto of_column = [j](const uint4& v) { return j == 0 ? v.x : j == 1 ? v.y : j == 2 ? v.z : v.w; };
    const uint32_t w = of_column(words.at[0]);
    x = y = w;
    if constexpr (BITS == 8) y = of_column(words.at[1]);
    if constexpr (BITS == 3) {
      const uint32_t v = __funnelshift_r(w, of_column(words.at[1]), (24 * q) & 31);
      x = y = (v & 0xfffu) | ((v << 4) & 0x0fff0000u);
    }
    if constexpr (BITS == 2 && SHUFFLED) x = y = w >> (8 * (q & 1));
    if constexpr (BITS == 2 && !SHUFFLED) x = y = __byte_perm(w, 0, q & 1 ? 0x4342 : 0x4140);
  }
  template <typename T, typename Multiply>
  static __device__ __forceinline__ void multiply(const Words& words, int q, const Zeros<T>& z, Multiply f) {
    using C = Codes<KIND, T>;
#pragma unroll
    for (int t = 0; t < kOwn / 2; ++t) {
      const int j = 2 * t;
      uint32_t x0, y0, x1, y1;
      codes(words, q, j, x0, y0);
      codes(words, q, j + 1, x1, y1);
      f(t, 0, C::template pair<0>(x0, z[j]), C::template pair<0>(x1, z[j + 1]), C::template pair<1>(x0, z[j]),
        C::template pair<1>(x1, z[j + 1]));
      f(t, 1, C::template pair<2>(y0, z[j]), C::template pair<2>(y1, z[j + 1]), C::template pair<3>(y0, z[j]),
        C::template pair<3>(y1, z[j + 1]));
    }
  }
};

// AWQ: words along N, of which nibble i is column [0, 2, 4, 6, 1, 3, 5, 7][i]: nibbles t and t + 4 are
// the two columns of tile t. A pair is the words of two neighbouring inputs.
struct Awq {
  using Kind = Integer<4>;
  static constexpr int kOwn = 8;  // word g
  static constexpr bool kNeighbours = true;
  static constexpr int kMostRowTiles = 2;  // four would not fit the registers
  static constexpr int depth(int) { return 4; }
  static constexpr int most_threads(int row_tiles) { return row_tiles == 1 ? 512 : 256; }  // by registers

  struct Words {
    uint32_t at[8];  // of inputs 8q ... 8q + 7
  };

  struct Stream {
    const uint32_t* at;
    int left;  // rows of words that there are from `at` on
    int end;
    int64_t stride;

    __device__ __forceinline__ Stream(const SmallMParams& p, int first, int last, int column0, int lane)
        : stride(p.w_stride) {
      const int word = column0 / 8 + lane / 4, row = first * kBlockK + 8 * (lane % 4);
      at = p.w + row * p.w_stride + word;
      left = p.w_rows - row;
      end = word < p.w_stride ? last : 0;
    }
    __device__ __forceinline__ void next(Words& words, int block) {
      if (block < end) {
        if (left >= 8) {
#pragma unroll
          for (int i = 0; i < 8; ++i) words.at[i] = read_once(at + i * stride);
        } else {
#pragma unroll
          for (int i = 0; i < 8; ++i) {
            if (i < left) words.at[i] = read_once(at + i * stride);
          }
        }
      }
      at += kBlockK * stride;
      left -= kBlockK;
    }
  };

  struct Group {
    uint32_t zeros;
    uint4 scales;
  };
  struct Groups {
    const uint32_t* zeros;
    const uint4* scales;
    int64_t step;
    bool valid;

    __device__ __forceinline__ Groups(const SmallMParams& p, int first, int column0, int lane, Group& next)
        : step(p.zeros.stride) {
      const int word = column0 / 8 + lane / 4;
      valid = word < step;
      zeros = p.zeros.words + first * step + word;
      scales = static_cast<const uint4*>(p.scales) + first * step + word;
      next = {};
    }
    __device__ __forceinline__ void fetch(Group& next, bool wanted) {
      read_if(wanted && valid, next.zeros, zeros);
      read_if(wanted && valid, next.scales, scales);
      zeros += step;
      scales += step;
    }
    template <typename T>
    __device__ __forceinline__ void begin(const SmallMParams& p, const Group& group, typename Codes<Integer<4>, T>::Zero (&z)[kOwn]) const {
      // The constant is 0 here. With this the next group's word can be loaded where this one was; else
      // the compiler loads it elsewhere and moves it: that waits for memory.
      const uint32_t nibbles = group.zeros ^ static_cast<uint32_t>(p.zeros.constant);
#pragma unroll
      for (int i = 0; i < 8; ++i) z[i] = Codes<Integer<4>, T>::zero((nibbles >> (4 * i)) & 15);
    }
  };
  template <typename T>
  using Zeros = typename Codes<Integer<4>, T>::Zero[kOwn];  // by nibble
  static __device__ __forceinline__ void scales(const SmallMParams& p, const Group& group, float (&s)[kOwn]) {
    to_floats(group.scales, p.scale_type, s);
  }

  template <typename T, typename Multiply>
  static __device__ __forceinline__ void multiply(const Words& words, int, const Zeros<T>& z, Multiply f) {
    using C = Codes<Integer<4>, T>;
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      const uint32_t* w = words.at + 4 * s;
      // Nibbles 0 ... 3 of two inputs each, and 4 ... 7.
      const uint32_t x0 = __byte_perm(w[0], w[1], 0x5410), y0 = __byte_perm(w[0], w[1], 0x7632);
      const uint32_t x1 = __byte_perm(w[2], w[3], 0x5410), y1 = __byte_perm(w[2], w[3], 0x7632);
      f(0, s, C::template pair<0>(x0, z[0]), C::template pair<0>(y0, z[4]), C::template pair<0>(x1, z[0]), C::template pair<0>(y1, z[4]));
      f(1, s, C::template pair<1>(x0, z[1]), C::template pair<1>(y0, z[5]), C::template pair<1>(x1, z[1]), C::template pair<1>(y1, z[5]));
      f(2, s, C::template pair<2>(x0, z[2]), C::template pair<2>(y0, z[6]), C::template pair<2>(x1, z[2]), C::template pair<2>(y1, z[6]));
      f(3, s, C::template pair<3>(x0, z[3]), C::template pair<3>(y0, z[7]), C::template pair<3>(x1, z[3]), C::template pair<3>(y1, z[7]));
    }
  }
};

}  // namespace qcore_cuda
