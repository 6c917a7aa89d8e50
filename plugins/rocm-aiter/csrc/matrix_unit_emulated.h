// The matrix instructions for machines without them (CUDA, the CPU): every lane reads the operands of
// the others and sums up. On the CPU QCORE_LIKE_... says whose; on CUDA it is gfx1201's, whose wave has
// 32 lanes too.
#pragma once

#include "eight_bit_floats.h"
#include "gpu_runtime.h"

#define QCORE_HAS_FP8

template <typename Element>
struct OperandSize {
#if defined(QCORE_LIKE_GFX90A)
  static constexpr int value = 4;
#else
  static constexpr int value = 8;
#endif
};
template <>
struct OperandSize<F16> {
  static constexpr int value = kWave == 32 ? 16 : 8;
};
template <>
struct OperandSize<Bf16> : OperandSize<F16> {};

QCORE_DEVICE int dot_word(Int8, uint32_t a, uint32_t b, int sum) {
  for (int i = 0; i < 32; i += 8) {
    sum += static_cast<int8_t>(a >> i) * static_cast<int8_t>(b >> i);
  }
  return sum;
}

#if defined(QCORE_CPU)
struct Decoded {
  float values[256];
  Decoded() {
    for (int code = 0; code < 256; ++code) values[code] = decode_e4m3(code);
  }
};
static const Decoded decoded;
inline float value_of(uint32_t code) { return decoded.values[code]; }
#else
QCORE_DEVICE float value_of(uint32_t code) { return decode_e4m3(code); }
#endif

QCORE_DEVICE float dot_word(Fp8, uint32_t a, uint32_t b, float sum) {
  for (int i = 0; i < 32; i += 8) sum += value_of((a >> i) & 255) * value_of((b >> i) & 255);
  return sum;
}

template <typename Float>
QCORE_DEVICE float dot_word(Float, uint32_t a, uint32_t b, float sum) {
  sum += Float::read(a & 0xffff) * Float::read(b & 0xffff);
  return sum + Float::read(a >> 16) * Float::read(b >> 16);
}

template <typename Element>
struct MatrixUnit {
  static constexpr int kBytes = OperandSize<Element>::value, kSums = 256 / kWave;
  struct Sums {
    typename Element::Sum values[kSums];
    QCORE_DEVICE typename Element::Sum& operator[](int i) { return values[i]; }
    QCORE_DEVICE const typename Element::Sum& operator[](int i) const { return values[i]; }
  };

  static QCORE_DEVICE Sums multiply(const Bytes<kBytes>& a, const Bytes<kBytes>& b, Sums sums) {
    const int column = lane_index() % 16, first = lane_index() / 16 * kSums;
#if defined(QCORE_CPU)
    const Bytes<kBytes>* left = publish(a);
    const Bytes<kBytes>* right = publish(b);
    for (int place = 0; place < kWave; place += 16) {
      for (int i = 0; i < kBytes / 4; ++i) {
        const uint32_t theirs = right[place + column].words[i];
        for (int r = 0; r < kSums; ++r) {
          sums[r] = dot_word(Element(), left[place + first + r].words[i], theirs, sums[r]);
        }
      }
    }
#else
    for (int place = 0; place < kWave; place += 16) {
      for (int i = 0; i < kBytes / 4; ++i) {
        const uint32_t theirs = of_lane(b.words[i], place + column);
        for (int r = 0; r < kSums; ++r) {
          sums[r] = dot_word(Element(), of_lane(a.words[i], place + first + r), theirs, sums[r]);
        }
      }
    }
#endif
    return sums;
  }
};
