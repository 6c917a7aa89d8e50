// gpu_runtime.h's machine on a CPU: every thread of a block is a fiber, blocks run one after the other.
// QCORE_LIKE_GFX90A, _GFX942, _GFX950 or _GFX1201 says whose wave and whose 8-bit floats.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define QCORE_CPU
#define QCORE_DEVICE inline
#define QCORE_SHARED
#define QCORE_UNROLL
#define QCORE_KERNEL(NAME, ARGS, VARIABLE)                                                 \
  static void NAME(ARGS VARIABLE);                                                         \
  static const cpu::Kernel NAME##_kernel(#NAME, [](const void* args) {                     \
    NAME(*static_cast<const ARGS*>(args));                                                 \
  });                                                                                      \
  static void NAME(ARGS VARIABLE)

#if defined(QCORE_LIKE_GFX1201)
constexpr int kWave = 32;
#else
constexpr int kWave = 64;
#endif
#if defined(QCORE_LIKE_GFX942)
constexpr bool kFnuz = true;
#else
constexpr bool kFnuz = false;
#endif

namespace cpu {
constexpr int kLargest = 16;  // bytes that a lane shows the others

struct Kernel {
  Kernel(const char* name, void (*run)(const void*));
};

// Which thread of which block runs now.
extern int thread, block[2];

void wait_for_block();
void wait_for_wave();

// Room for what this wave's lanes show next, one slot each. Four rounds are kept, as an operation may
// read what was shown two rounds ago while others begin the next.
void* next_round();
}  // namespace cpu

inline int thread_index() { return cpu::thread; }
inline int block_x() { return cpu::block[0]; }
inline int block_y() { return cpu::block[1]; }
inline void sync_block() { cpu::wait_for_block(); }

// What all lanes of the wave give here, by lane.
template <typename T>
const T* publish(const T& mine) {
  static_assert(sizeof(T) <= cpu::kLargest, "a slot is as large");
  T* all = static_cast<T*>(cpu::next_round());
  all[cpu::thread % kWave] = mine;
  cpu::wait_for_wave();
  return all;
}

inline uint32_t of_lane(uint32_t value, int lane) { return publish(value)[lane]; }

inline float from_f16(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
  const uint32_t exponent = bits >> 10 & 31, mantissa = bits & 1023;
  if (exponent == 0) {
    const float size = mantissa * 0x1p-24f;
    return sign ? -size : size;
  }
  uint32_t wide = sign | mantissa << 13;
  wide |= exponent == 31 ? 0x7f800000u : (exponent + 112) << 23;
  float value;
  memcpy(&value, &wide, 4);
  return value;
}

inline uint16_t to_f16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  const uint16_t sign = bits >> 16 & 0x8000;
  const uint32_t size = bits & 0x7fffffff;
  if (size > 0x7f800000) return sign | 0x7e00;
  if (size >= 0x477ff000) return sign | 0x7c00;  // 65520 and more
  if (size < 0x38800000) {                       // below 2**-14: steps of 2**-24
    const float steps = (value < 0 ? -value : value) * 0x1p24f;
    return sign | static_cast<uint16_t>(__builtin_rintf(steps));
  }
  const uint32_t rounded = size + 0xfff + (size >> 13 & 1);
  return sign | static_cast<uint16_t>((rounded >> 13) - (112 << 10));
}
