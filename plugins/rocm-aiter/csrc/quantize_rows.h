// Rows of floats to int8 or e4m3, a block for each row. The definitions are those of
// qcore.numerics.activation_quant, to the bit.
#pragma once

#include "eight_bit_floats.h"
#include "matrix_unit.h"
#include "gpu_runtime.h"

struct QuantizeRows {
  const void* x;         // float [M, K], rows x_stride apart
  uint8_t* codes;        // [M, K_padded]; zeros behind K
  float* scale;          // [M], written; [1], read if is_static. Of e4m3 the scale of e4m3fn's codes
  int32_t* zero;         // like scale; null if symmetric
  const float* bound;    // [1], the largest magnitude that a computed scale covers; or null
  int64_t x_stride;
  int32_t K, K_padded, is_static;
};

struct Range {
  float low, high, size;  // of what was seen, zero included; NaN where one was
};

QCORE_DEVICE float larger(float a, float b) { return a != a || a > b ? a : b; }
QCORE_DEVICE float smaller(float a, float b) { return a != a || a < b ? a : b; }

// The range of all that the block's threads have seen, for each of them.
QCORE_DEVICE Range of_block(Range range) {
  QCORE_SHARED static Range of_wave[kWaves];
  for (int step = kWave / 2; step > 0; step /= 2) {
    const int other = lane_index() ^ step;
    range.low = smaller(range.low, bits_of<float>(of_lane(bits_of<uint32_t>(range.low), other)));
    range.high = larger(range.high, bits_of<float>(of_lane(bits_of<uint32_t>(range.high), other)));
    range.size = larger(range.size, bits_of<float>(of_lane(bits_of<uint32_t>(range.size), other)));
  }
  if (lane_index() == 0) of_wave[wave_index()] = range;
  sync_block();
  for (int wave = 0; wave < kWaves; ++wave) {
    range.low = smaller(range.low, of_wave[wave].low);
    range.high = larger(range.high, of_wave[wave].high);
    range.size = larger(range.size, of_wave[wave].size);
  }
  return range;
}

template <typename Element>
struct Quantizer;

template <>
struct Quantizer<Int8> {
  float scale, zero, least;

  QCORE_DEVICE Quantizer(const QuantizeRows& p, const Range& range, size_t row) {
    least = p.zero ? -128.0f : -127.0f;
    zero = 0.0f;
    if (p.is_static) {
      scale = p.scale[0];
      if (p.zero) zero = p.zero[0];
      return;
    }
    float shown = p.zero ? (range.high - range.low) / 255.0f : range.size / 127.0f;
    if (shown == 0.0f) shown = 1.0f;
    const bool finite = shown - shown == 0.0f;
    scale = finite ? shown : 1.0f;
    if (p.zero) {
      zero = finite ? -128.0f - __builtin_rintf(range.low / scale) : -128.0f;
      zero = zero > 127.0f ? 127.0f : zero < -128.0f ? -128.0f : zero;
    }
    if (thread_index() == 0) {
      p.scale[row] = finite ? shown : __builtin_nanf("");
      if (p.zero) p.zero[row] = static_cast<int32_t>(zero);
    }
  }

  QCORE_DEVICE uint8_t code(float value) const {
    const float code = __builtin_rintf(value / scale) + zero;
    if (code != code) return 0;
    return static_cast<uint8_t>(
        static_cast<int8_t>(code > 127.0f ? 127.0f : code < least ? least : code));
  }
};

template <>
struct Quantizer<Fp8> {
  float scale;

  QCORE_DEVICE Quantizer(const QuantizeRows& p, const Range& range, size_t row) {
    if (p.is_static) {
      scale = p.scale[0];
      return;
    }
    scale = (p.bound ? smaller(range.size, p.bound[0]) : range.size) / 448.0f;
    if (scale == 0.0f) scale = 1.0f;
    if (thread_index() == 0) p.scale[row] = scale;
  }

  QCORE_DEVICE uint8_t code(float value) const {
    const float code = value / scale;
    return static_cast<uint8_t>(encode_e4m3(code > 448.0f ? 448.0f : code < -448.0f ? -448.0f : code));
  }
};

template <typename Element, int32_t TYPE>
QCORE_DEVICE void quantize_rows(const QuantizeRows& p) {
  const size_t row = block_x();
  const size_t from = row * p.x_stride, to = row * p.K_padded;
  Range range = {0.0f, 0.0f, 0.0f};
  if (!p.is_static) {
    for (int k = thread_index(); k < p.K; k += kThreads) {
      const float value = load_float(p.x, from + k, TYPE);
      range.low = smaller(range.low, value);
      range.high = larger(range.high, value);
      range.size = larger(range.size, __builtin_fabsf(value));
    }
    range = of_block(range);
  }
  const Quantizer<Element> quantizer(p, range, row);
  for (int k = thread_index(); k < p.K_padded; k += kThreads) {
    p.codes[to + k] = k < p.K ? quantizer.code(load_float(p.x, from + k, TYPE)) : 0;
  }
}

constexpr int kMostRows = 32768;  // blocks along y; ops.py has the same number
constexpr int kGroup = 128;       // elements of a row that share a scale

struct QuantizeGroups {
  const void* x;     // float [M, K], rows x_stride apart
  uint8_t* codes;    // [M, groups * kGroup]; zeros behind K
  float* scale;      // [M, groups], of e4m3fn's codes
  int64_t x_stride;
  int32_t M, K, groups;
};

// Groups of rows to e4m3, a wave for each group: block_x of kWaves groups, block_y of rows.
template <int32_t TYPE>
QCORE_DEVICE void quantize_groups(const QuantizeGroups& p) {
  const int group = block_x() * kWaves + wave_index();
  if (group >= p.groups) return;
  constexpr int kEach = kGroup / kWave;
  for (size_t row = block_y(); row < static_cast<size_t>(p.M); row += kMostRows) {
    float values[kEach], size = 0.0f;
    QCORE_UNROLL
    for (int i = 0; i < kEach; ++i) {
      const int k = group * kGroup + i * kWave + lane_index();
      values[i] = k < p.K ? load_float(p.x, row * p.x_stride + k, TYPE) : 0.0f;
      size = larger(size, __builtin_fabsf(values[i]));
    }
    for (int step = kWave / 2; step > 0; step /= 2) {
      const uint32_t other = of_lane(bits_of<uint32_t>(size), lane_index() ^ step);
      size = larger(size, bits_of<float>(other));
    }
    float scale = size / 448.0f;
    if (scale == 0.0f) scale = 1.0f;
    const size_t at = row * p.groups + group;
    if (lane_index() == 0) p.scale[at] = scale;
    QCORE_UNROLL
    for (int i = 0; i < kEach; ++i) {
      const float code = values[i] / scale;
      p.codes[at * kGroup + i * kWave + lane_index()] = static_cast<uint8_t>(
          encode_e4m3(code > 448.0f ? 448.0f : code < -448.0f ? -448.0f : code));
    }
  }
}
