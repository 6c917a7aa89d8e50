// Codes of 2, 3, 4 and 8 bits to pairs of half or bfloat16 that hold `code - zero`, or what a small float
// is, exactly; and the tensor cores' product of such pairs.
//
// Integers: a number 1024 + c is the bits of 1024.0 (half) with c put into the mantissa: one LOP3 converts two
// codes, one subtraction takes off 1024 + zero. In bfloat16 the number is 128 and c below 128.
//
// Floats: sign, exponent and mantissa of e4m3 or e2m1 are put where half or bfloat16 has them. What comes out
// is less by a power of two, the difference of the exponents' biases, and is multiplied by that; subnormal
// numbers too, which become such and then what they are. A NaN of e4m3 becomes 480 here: whoever packs
// weights gives its column a scale that is NaN.
//
// Integers of 4 and 8 bits in bfloat16, the shorter way (Subnormal): in its lowest 8 bits an integer is a number by
// itself, 2^-133 of it, and so is 16 times a code, which lies four bits further up. One multiplication and addition makes
// code - zero of it or, if the zero point is 8 or 128, (code - zero) * scale, rounded once, as zero * scale is exact. All
// comes out as 2^-32 of what it is, so that what a code is multiplied with, 2^101 * scale, is finite for scales below 2^27.
//
// NVFP4: e2m1 with a scale of e4m3 for each 16 inputs. Their product has at most 6 bits (3 * 15 = 45), so that
// half and bfloat16 hold it exactly, and it can be made before it is multiplied. One multiplication does both: a
// code that is less by a power of two times a scale that is more by another.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace qcore_cuda {

// What codes are.
template <int BITS>
struct Integer {
  static constexpr int kBits = BITS;
  static constexpr bool kFloat = false, kScaled = false;
  static constexpr float kMore = 1.0f;
};
template <int BITS>
struct Subnormal {
  static constexpr int kBits = BITS;
  static constexpr bool kFloat = false, kScaled = false;
  static constexpr float kMore = 4294967296.0f;  // 2^32
};
// The same of 4 bits, in words of which a lane of mma or wgmma needs all eight codes (gptq_packing.py, in_lanes).
struct Lanes : Subnormal<4> {};
struct E4M3 {
  static constexpr int kBits = 8;
  static constexpr bool kFloat = true, kScaled = false;
  static constexpr float kMore = 1.0f;
};
struct E2M1 {
  static constexpr int kBits = 4;
  static constexpr bool kFloat = true, kScaled = false;
  static constexpr float kMore = 1.0f;
};
// kScaled: pairs are weights times their scales, of which there are two, in a byte each, where other kinds have
// one of 16 bits for 32 inputs. The sums are to be multiplied by kMore.
struct NvFp4 {
  static constexpr int kBits = 4;
  static constexpr bool kFloat = true, kScaled = true;
  static constexpr float kMore = 256.0f;
};

template <typename T>
struct PairOf;
template <>
struct PairOf<__half> {
  using Type = __half2;
};
template <>
struct PairOf<__nv_bfloat16> {
  using Type = __nv_bfloat162;
};

template <typename T>
__device__ __forceinline__ typename PairOf<T>::Type as_pair(uint32_t bits) {
  return *reinterpret_cast<const typename PairOf<T>::Type*>(&bits);
}

template <typename Pair>
__device__ __forceinline__ uint32_t as_bits(Pair pair) {
  return *reinterpret_cast<const uint32_t*>(&pair);
}

template <typename T>
__device__ __forceinline__ float from_16(T v) {
  if constexpr (std::is_same<T, __half>::value) return __half2float(v);
  else return __bfloat162float(v);
}

#ifndef QCORE_EMULATED
// (a & mask) | base, by one instruction: which has room for one constant, so that the other has to be in
// a register. The compiler, which sees two constants, would take two instructions.
__device__ __forceinline__ uint32_t and_or(uint32_t a, uint32_t mask, uint32_t base) {
  uint32_t v;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(v) : "r"(a), "r"(mask), "r"(base));
  return v;
}
#endif

__device__ __forceinline__ void assign_to(float& to, float v) { to = v; }
__device__ __forceinline__ void assign_to(__half& to, float v) { to = __float2half_rn(v); }
__device__ __forceinline__ void assign_to(__nv_bfloat16& to, float v) { to = __float2bfloat16_rn(v); }

// Eight codes of one column, made into four pairs. `x` has codes of BITS <= 4 bits, i at bit
// BITS * i and i + 4 at bit 16 + BITS * i: pair i is (i, i + 4).
template <class KIND, typename T>
struct Codes {
  static constexpr int BITS = KIND::kBits;
  static constexpr bool kHalf = std::is_same<T, __half>::value;
  static constexpr uint32_t kMask = ((1u << BITS) - 1) * 0x00010001u;
  static constexpr uint32_t kBase = kHalf ? 0x64006400u : 0x43004300u;

  struct Zero {
    uint32_t low;   // 1024 + zero, or 128 + zero; twice
    uint32_t high;  // -(64 + zero): for codes that were left four bits further up
  };
  static __device__ __forceinline__ Zero zero(uint32_t z) {  // put into mantissas, as the codes are
    return {z * 0x00010001u | kBase, kHalf ? z * 0x00100010u | 0xd400d400u : 0};
  }

  template <int I>
  static __device__ __forceinline__ uint32_t pair(uint32_t x, const Zero& z) {
    if constexpr (kHalf && BITS == 4 && I % 2 == 1) {
      // 1024 + 16 c, of which (v / 16) - (64 + zero) is c - zero without a shift.
      const uint32_t v = and_or(x >> (4 * (I - 1)), 0x00f000f0u, kBase);
      return as_bits(__hfma2(as_pair<T>(v), as_pair<T>(0x2c002c00u), as_pair<T>(z.high)));
    } else {
      return as_bits(__hsub2(as_pair<T>(and_or(x >> (BITS * I), kMask, kBase)), as_pair<T>(z.low)));
    }
  }
};

template <class KIND>
constexpr bool kIsSubnormal = false;
template <int BITS>
constexpr bool kIsSubnormal<Subnormal<BITS>> = true;
template <>
constexpr bool kIsSubnormal<Lanes> = true;
template <class KIND>
constexpr bool kInLanes = std::is_same<KIND, Lanes>::value;

template <int BITS>
struct Codes<Subnormal<BITS>, __nv_bfloat16> {
  using Pair = __nv_bfloat162;
  struct Zero {
    Pair offset;  // -2^-32 * zero, twice
  };
  struct Scale {
    Pair factor, high, offset;  // 2^101 and 2^97 times it, for codes that were left four bits further up; -zero 2^-32
  };
  static __device__ __forceinline__ Zero zero(uint32_t z) {
    const float offset = static_cast<float>(z) * -2.3283064365386963e-10f;
    return {__floats2bfloat162_rn(offset, offset)};
  }
  static __device__ __forceinline__ Scale scale(Pair twice) {
    const auto times = [&](uint32_t power) { return __hmul2(twice, as_pair<__nv_bfloat16>(power)); };
    return {times(0x72007200u), times(0x70007000u), times(BITS == 4 ? 0xb100b100u : 0xb300b300u)};
  }
  template <int I>
  static constexpr bool kHigh = BITS == 4 && I % 2 == 1;
  template <int I>
  static __device__ __forceinline__ Pair codes(uint32_t x) {
    if constexpr (BITS == 8) return as_pair<__nv_bfloat16>(__byte_perm(x, 0, I % 2 ? 0x4342 : 0x4140));
    return as_pair<__nv_bfloat16>(x >> (8 * (I / 2)) & (I % 2 ? 0x00f000f0u : 0x000f000fu));
  }
  template <int I>
  static __device__ __forceinline__ uint32_t pair(uint32_t x, const Zero& z) {
    return as_bits(__hfma2(codes<I>(x), as_pair<__nv_bfloat16>(kHigh<I> ? 0x70007000u : 0x72007200u), z.offset));
  }
  template <int I>
  static __device__ __forceinline__ uint32_t weights(uint32_t x, const Scale& s) {
    return as_bits(__hfma2(codes<I>(x), kHigh<I> ? s.high : s.factor, s.offset));
  }
};

template <>
struct Codes<Lanes, __nv_bfloat16> : Codes<Subnormal<4>, __nv_bfloat16> {};

// Bytes: pair 0 of a word is bytes (0, 1), pair 1 is (2, 3).
template <>
struct Codes<Integer<8>, __half> {
  struct Zero {
    uint32_t low;
  };
  static __device__ __forceinline__ Zero zero(uint32_t z) { return {z * 0x00010001u | 0x64006400u}; }
  template <int I>
  static __device__ __forceinline__ uint32_t pair(uint32_t x, const Zero& z) {
    const uint32_t v = __byte_perm(x, 0x64646464u, I % 2 ? 0x4342 : 0x4140);
    return as_bits(__hsub2(as_pair<__half>(v), as_pair<__half>(z.low)));
  }
};

// bfloat16 has no room for 256 codes beside a base: by way of float, as 2^23 + code.
template <>
struct Codes<Integer<8>, __nv_bfloat16> {
  struct Zero {
    float low;
  };
  static __device__ __forceinline__ Zero zero(uint32_t z) { return {__uint_as_float(0x4b000000u | z)}; }
  template <int I>
  static __device__ __forceinline__ uint32_t pair(uint32_t x, const Zero& z) {
    constexpr int first = 2 * (I % 2);
    const float a = __uint_as_float(__byte_perm(x, 0x4b000000u, 0x7650 | first)) - z.low;
    const float b = __uint_as_float(__byte_perm(x, 0x4b000000u, 0x7650 | (first + 1))) - z.low;
    return as_bits(__floats2bfloat162_rn(a, b));
  }
};

// Pairs as those of bytes.
template <typename T>
struct Codes<E4M3, T> {
  static constexpr bool kHalf = std::is_same<T, __half>::value;
  struct Zero {};
  static __device__ __forceinline__ Zero zero(uint32_t) { return {}; }

  template <int I>
  static __device__ __forceinline__ uint32_t pair(uint32_t x, const Zero&) {
    const uint32_t v = __byte_perm(x, 0, I % 2 ? 0x3424 : 0x1404);
    const uint32_t magnitude = (v & 0x7f007f00u) >> (kHalf ? 1 : 4);
    const uint32_t small = and_or(v, 0x80008000u, magnitude);
    return as_bits(__hmul2(as_pair<T>(small), as_pair<T>(kHalf ? 0x5c005c00u : 0x7b807b80u)));  // 2^8, 2^120
  }
};

// Pairs as those of integers of 4 bits.
template <typename T>
struct Codes<E2M1, T> {
  static constexpr bool kHalf = std::is_same<T, __half>::value;
  struct Zero {};
  static __device__ __forceinline__ Zero zero(uint32_t) { return {}; }

  template <int I>
  static __device__ __forceinline__ uint32_t small(uint32_t x) {  // 2^-14, 2^-126 of what they are
    constexpr int place = kHalf ? 9 : 6, left = place - 4 * I;  // of magnitudes; and how far away they are
    const uint32_t magnitude = left >= 0 ? x << (left & 31) : x >> (-left & 31);
    return and_or(x << (12 - 4 * I), 0x80008000u, magnitude & (7u << place) * 0x00010001u);
  }
  template <int I>
  static __device__ __forceinline__ uint32_t pair(uint32_t x, const Zero&) {
    return as_bits(__hmul2(as_pair<T>(small<I>(x)), as_pair<T>(kHalf ? 0x74007400u : 0x7e807e80u)));  // 2^14, 2^126
  }
};

// A scale's byte has 5 bits of exponent and 3 of mantissa, 2^(e - 10) * (1 + m / 8): every positive number of e4m3,
// its subnormal ones too. (Whoever packs weights gives the sign to the codes, and makes codes 0 of a scale of 0.) An
// addition makes it scale * 2^6 in half, scale * 2^118 in bfloat16: pairs are 2^-8 of what they are.
template <typename T>
struct Codes<NvFp4, T> {
  static constexpr bool kHalf = std::is_same<T, __half>::value;
  struct Zero {
    uint32_t scale;  // twice
  };
  static __device__ __forceinline__ Zero zero(uint32_t byte) {
    return {byte * (kHalf ? 0x00800080u : 0x00100010u) + (kHalf ? 0x2c002c00u : 0x75807580u)};
  }
  static __device__ __forceinline__ Zero zero_of(uint32_t word, int byte) {  // that byte of a word
    return zero(__byte_perm(word, 0, 0x4440 | byte));
  }

  template <int I>
  static __device__ __forceinline__ uint32_t pair(uint32_t x, const Zero& z) {
    return as_bits(__hmul2(as_pair<T>(Codes<E2M1, T>::template small<I>(x)), as_pair<T>(z.scale)));
  }
};

// Pair q (0 ... 3) of a word of 4 bits, q % 2 of bytes, where q is not known before.
template <class KIND, typename T>
__device__ __forceinline__ uint32_t pair_at(uint32_t x, int q, const typename Codes<KIND, T>::Zero& z) {
  using C = Codes<KIND, T>;
  if constexpr (KIND::kBits == 8) return C::template pair<0>(x >> (16 * (q % 2)), z);
  else if constexpr (KIND::kFloat) return C::template pair<3>(x << (12 - 4 * q), z);  // has its sign in place
  else return C::template pair<0>(x >> (4 * q), z);
}

// A float's code as float32.
template <class KIND>
__device__ __forceinline__ float float_of(uint32_t code) {
  constexpr bool bytes = KIND::kBits == 8;
  const uint32_t sign = code >> (KIND::kBits - 1), magnitude = code & (bytes ? 0x7fu : 7u);
  return __uint_as_float(sign << 31 | magnitude << (bytes ? 20 : 22)) * __uint_as_float(bytes ? 0x7b800000u : 0x7e800000u);
}

// A scale's byte as float32.
__device__ __forceinline__ float nvfp4_scale(uint32_t byte) { return __uint_as_float((byte << 20) + (117u << 23)); }

#ifndef QCORE_EMULATED
// d += a * b on tensor cores: 16 x 16 by 16 x 8, sums in float32.
template <typename T>
__device__ __forceinline__ void mma_16816(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                          uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same<T, __half>::value) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  } else {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  }
}
#endif

// ---- zero points and scales ----------------------------------------------------------------------

enum class ScaleType : int { kHalf, kBFloat16, kFloat };

__device__ __forceinline__ float scale_at(const void* scales, ScaleType type, int64_t i) {
  if (type == ScaleType::kFloat) return static_cast<const float*>(scales)[i];
  if (type == ScaleType::kHalf) return __half2float(static_cast<const __half*>(scales)[i]);
  return __bfloat162float(static_cast<const __nv_bfloat16*>(scales)[i]);
}

// Two 16-bit scales of a word.
__device__ __forceinline__ float2 scale_pair(uint32_t bits, ScaleType type) {
  return type == ScaleType::kHalf ? __half22float2(as_pair<__half>(bits))
                                  : __bfloat1622float2(as_pair<__nv_bfloat16>(bits));
}

// The group that a half of a piece (32 inputs) belongs to, counted rather than divided: one thread asks, for all.
struct GroupCounter {
  int halves, group = 0, left = 0;  // of a group; which one; of it

  __device__ __forceinline__ explicit GroupCounter(int group_halves) : halves(group_halves) {}
  __device__ __forceinline__ void begin(int half) {
    group = half / halves;
    left = halves - half % halves;
  }
  // So many further on, of which none passes the end of more than one group.
  __device__ __forceinline__ void next(int count) {
    left -= count;
    if (left > 0) return;
    left += halves;
    ++group;
  }
};

// GPTQ's zero points: packed along N without gaps, version 1 less one. That one was taken off all
// codes of a word at once (a zero point of 0 borrows from its neighbour), and so it is given back;
// 3 bits cross words, there it is given back to each code.
struct GptqZeros {
  const uint32_t* words;  // null: all are `constant`
  int64_t stride;         // words in a row
  int constant;
  int add;  // 1 for version 1

  template <int BITS>
  __device__ __forceinline__ uint32_t four(int64_t group, int column) const {  // of columns that 4 divides
    const int bit = column * BITS;
    const uint32_t* row = words + group * stride + (bit >> 5);
    return four_of<BITS>(row[0], BITS == 3 && crosses(bit) ? row[1] : 0, bit & 31);
  }
  // The same of words that were read before; so that nothing need wait for them sooner.
  template <int BITS>
  __device__ __forceinline__ uint32_t four_of(uint32_t low, uint32_t high, int shift) const {
    if constexpr (BITS == 3) return __funnelshift_r(low, high, shift);
    constexpr uint32_t ones = BITS == 2 ? 0x55555555u : BITS == 4 ? 0x11111111u : 0x01010101u;
    return (low + (add ? ones : 0u)) >> shift;
  }
  static __device__ __forceinline__ bool crosses(int bit) { return (bit & 31) + 12 > 32; }  // of 3 bits
  template <int BITS>
  __device__ __forceinline__ int code(uint32_t four, int i) const {
    const int z = static_cast<int>(four >> (BITS * i));
    return (BITS == 3 ? z + add : z) & ((1 << BITS) - 1);
  }
};

// Whether Subnormal codes can be scaled at once.
inline bool is_centred(const GptqZeros& zeros, int bits) { return !zeros.words && zeros.constant == 1 << (bits - 1); }

}  // namespace qcore_cuda
