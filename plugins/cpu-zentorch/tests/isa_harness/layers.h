// Random layers and activations for the harness, and what the ops do around the kernels of a table.
#pragma once

#include <stdint.h>
#include <string.h>

#include <cmath>
#include <vector>

#include "isa.h"

namespace harness {

using namespace qcore_cpu;

struct Random {
  uint64_t state;
  uint64_t next() {  // splitmix64
    uint64_t z = (state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(next() % static_cast<uint64_t>(n)); }
  float unit() { return static_cast<float>(next() >> 40) * 0x1p-24f; }
};

// Memory on a line of the cache, of exactly this size.
class Buffer {
 public:
  explicit Buffer(int64_t bytes) : bytes_(bytes), memory_(bytes + 64) {}
  char* data() {
    const auto at = reinterpret_cast<uintptr_t>(memory_.data());
    return memory_.data() + (64 - at % 64) % 64;
  }
  int64_t size() const { return bytes_; }

 private:
  int64_t bytes_;
  std::vector<char> memory_;
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t size_of(Dtype dtype) { return dtype == Dtype::f32 ? 4 : 2; }

// To f16 by truncation, to bf16 by truncation: the values of a test need not be rounded well.
inline void store(void* p, Dtype dtype, int64_t i, float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  if (dtype == Dtype::f32) {
    static_cast<float*>(p)[i] = value;
  } else if (dtype == Dtype::bf16) {
    static_cast<uint16_t*>(p)[i] = static_cast<uint16_t>(bits >> 16);
  } else {
    const uint32_t exponent = bits >> 23 & 0xff;
    uint32_t half = bits >> 16 & 0x8000;
    if (exponent > 112) half |= (exponent == 255 ? 31 : exponent - 112) << 10 | (bits >> 13 & 0x3ff);
    static_cast<uint16_t*>(p)[i] = static_cast<uint16_t>(half);
  }
}

inline double load(const void* p, Dtype dtype, int64_t i) {
  if (dtype == Dtype::f32) return static_cast<const float*>(p)[i];
  const uint32_t raw = static_cast<const uint16_t*>(p)[i];
  if (dtype == Dtype::bf16) {
    const uint32_t bits = raw << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
  }
  const int exponent = raw >> 10 & 31;
  const double fraction = raw & 0x3ff, sign = raw & 0x8000 ? -1 : 1;
  if (exponent == 31) return fraction != 0 ? NAN : sign * INFINITY;
  return sign * (exponent ? std::ldexp(fraction + 1024, exponent - 25) : std::ldexp(fraction, -24));
}

// One shape of a layer of packed codes.
struct Shape {
  int64_t n, k, group;
  bool perm;                     // inputs in any order (g_idx), or in their own
  bool zeros, offsets, supers;   // zero points; offsets; integer scales with a half that groups share
  Dtype scale_dtype;
};

struct Layer {
  Shape shape;
  int bits;
  std::vector<uint8_t> packed, zero;
  std::vector<char> scale, offset, super, super_offset, bias;
  std::vector<int32_t> perm, begin{0}, group;
  std::vector<double> weight_size;  // of the largest weight of each input, for bounds
  Wna16Weights w{};

  Layer(const Layer&) = delete;

  // Where `exact`, scales are powers of two and offsets small integers.
  Layer(const Shape& s, int stored_bits, bool e2m1, bool exact, Random& random)
      : shape(s), bits(stored_bits) {
    const int64_t slots = code_word(bits).slots, blocks = ceil_div(s.n, kBlock), groups = ceil_div(s.k, s.group);
    std::vector<int32_t> order(s.k);
    for (int64_t i = 0; i < s.k; ++i) order[i] = static_cast<int32_t>(i);
    if (s.perm) {
      for (int64_t i = s.k - 1; i > 0; --i) std::swap(order[i], order[random.below(i + 1)]);
    }
    int64_t words = 0;
    bool identity = !s.perm;
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t first = g * s.group, count = std::min(s.group, s.k - first);
      const int64_t end = words + ceil_div(count, slots);
      identity = identity && first == static_cast<int64_t>(perm.size());
      for (int64_t i = 0; i < count; ++i) perm.push_back(order[first + i]);
      perm.resize(end * slots, -1);
      while (words < end) {
        words = std::min(end, words + kChunkSlots / slots);
        begin.push_back(static_cast<int32_t>(words));
        group.push_back(static_cast<int32_t>(g));
      }
    }
    packed.resize(blocks * words * code_word(bits).lines * 64);  // any bits are codes
    for (uint8_t& byte : packed) byte = static_cast<uint8_t>(random.next());

    const int64_t cells = blocks * groups * kBlock, supers = ceil_div(groups, 2);
    w.span_bits = s.supers && groups % 2 == 0 ? 1 : 0;
    w.supers = w.span_bits ? supers : groups;
    const Dtype dtype = s.scale_dtype;
    auto factor = [&](std::vector<char>& values, std::vector<char>& halves, float largest) {
      if (s.supers) {
        values.resize(cells);
        halves.resize(blocks * w.supers * kBlock * 2);
        for (char& v : values) v = static_cast<char>(exact ? 1 + random.below(3) : random.below(256) - 128);
        for (int64_t i = 0; i < blocks * w.supers * kBlock; ++i) {
          store(halves.data(), Dtype::f16, i, exact ? 0.5f : largest / 128 * (0.5f + random.unit() / 2));
        }
      } else {
        values.resize(cells * size_of(dtype));
        for (int64_t i = 0; i < cells; ++i) {
          const float value = exact ? std::ldexp(1.0f, static_cast<int>(random.below(3)) - 1)
                                    : largest * (0.05f + 0.95f * random.unit());
          store(values.data(), dtype, i, value);
        }
      }
      return Wna16Factor{values.data(), dtype, s.supers ? halves.data() : nullptr};
    };
    w.scale = factor(scale, super, 0.02f);
    if (s.offsets) w.offset = factor(offset, super_offset, 0.3f);
    if (s.zeros) {
      zero.resize(cells);
      for (uint8_t& z : zero) z = static_cast<uint8_t>(random.below(int64_t{1} << bits));
      w.zero = zero.data();
    }
    w.packed = packed.data();
    w.words = words;
    w.groups = groups;
    w.chunk_begin = begin.data();
    w.chunk_group = group.data();
    w.chunks = static_cast<int64_t>(group.size());
    w.perm = identity ? nullptr : perm.data();
    w.k = s.k;
    bias.resize(s.n * 4);
    for (int64_t i = 0; i < s.n; ++i) {
      store(bias.data(), Dtype::f32, i, exact ? static_cast<float>(random.below(9) - 4) : random.unit());
    }
    // |code - center| and |zero - center| are at most 2^bits each (e2m1: 6), whatever the center.
    const double largest_scale = exact ? 2.0 : 0.0201, largest_offset = s.offsets ? (exact ? 2.0 : 0.301) : 0;
    weight_size.assign(s.k, largest_scale * (e2m1 ? 6 : std::ldexp(2.0, bits)) + largest_offset);
  }
};

// Rows of activations, `stride` elements apart.
struct Inputs {
  Dtype dtype;
  int64_t rows, k, stride;
  std::vector<char> data;

  // Where `exact`, integers of at most 127 in magnitude, one of which 127 in each chunk: their int8 is themselves.
  Inputs(const Layer& layer, int64_t row_count, Dtype type, bool exact, Random& random)
      : dtype(type), rows(row_count), k(layer.shape.k), stride(k + 3), data((row_count * stride + 3) * 4) {
    for (int64_t i = 0; i < rows * stride; ++i) {
      store(data.data(), dtype, i,
            exact ? static_cast<float>(random.below(255) - 127) : 4 * (random.unit() - 0.5f));
    }
    if (!exact) return;
    const int64_t slots = code_word(layer.bits).slots;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < layer.w.chunks; ++c) {
        const int64_t input = layer.perm[layer.begin[c] * slots];
        store(data.data(), dtype, r * stride + input, r % 2 ? 127.0f : -127.0f);
      }
    }
  }
  const void* row(int64_t r) const { return data.data() + r * stride * size_of(dtype); }
};

// What wna16.cpp does with a table, on one thread.
inline void run_wna16(const Wna16Kernels& kernel, const Layer& layer, const Inputs& x, int64_t first_row,
                      int64_t row_count, bool per_row, const Output& out) {
  const Wna16Weights& w = layer.w;
  const int64_t slots = w.words * code_word(layer.bits).slots, blocks = ceil_div(out.n, kBlock);
  const bool few = row_count <= kernel.rows;
  const int64_t most = std::min(row_count, kPanelRows);
  const int64_t panel_rows = few ? kernel.padded(static_cast<int>(most))
                                 : ceil_div(most, kernel.rows) * kernel.rows;
  Buffer panel(panel_rows * slots / kernel.step_slots * 4), sides(panel_rows * w.chunks * kernel.side_bytes);
  Buffer line(slots * 4), scratch(kPanelScratch);
  memset(panel.data(), 0xff, panel.size());  // NaN, in whatever dtype, where nothing is packed
  memset(sides.data(), 0xff, sides.size());
  memset(scratch.data(), 0xff, scratch.size());
  for (int64_t first = 0; first < row_count; first += kPanelRows) {
    const int64_t rows = std::min(kPanelRows, row_count - first);
    for (int64_t row = 0; row < rows; row += kernel.rows) {
      const int count = static_cast<int>(std::min<int64_t>(kernel.rows, rows - row));
      kernel.pack_rows(w, x.row(first_row + first + row), x.dtype, count, x.stride, per_row,
                       reinterpret_cast<float*>(line.data()), panel.data(), sides.data(), panel_rows, row);
    }
    if (few) {
      const int64_t half = blocks / 2;  // as two threads would
      const int all = static_cast<int>(rows);
      kernel.narrow(w, all, panel.data(), sides.data(), 0, half, out, 0);
      kernel.narrow(w, all, panel.data(), sides.data(), half, blocks, out, 0);
      return;
    }
    const int64_t tiles = ceil_div(rows, kernel.rows), part = ceil_div(tiles, 2) * kernel.rows;
    for (int64_t row = 0; row < rows; row += part) {
      for (int64_t b = 0; b < blocks; b += kPanelBlocks) {
        kernel.wide(w, static_cast<int>(std::min(part, rows - row)), panel.data(), sides.data(), panel_rows,
                    row, b, std::min(b + kPanelBlocks, blocks), scratch.data(), out, first + row);
      }
    }
  }
}

}  // namespace harness
