// Activations of wna16 for one instruction set: rows of x brought into tiles.

namespace {

inline float largest_lane(const VecF& v) {
  alignas(64) float lanes[16];
  store_f(lanes, v);
  float best = lanes[0];
  for (int lane = 1; lane < 16; ++lane) best = lanes[lane] > best ? lanes[lane] : best;
  return best;
}

// The scale that brings floats into -127 ... 127; NaN if one of them is not finite.
inline float int8_scale(const float* line, int64_t count) {
  const VecF zero = set1(0.0f);
  VecF low = zero, high = zero, nan = zero;
  for (int64_t i = 0; i < count; i += 16) {
    const VecF v = load_some(line, Dtype::f32, i, count - i);
    low = min(v, low);
    high = max(v, high);
    nan = fma(v, zero, nan);  // infinity and NaN make NaN
  }
  alignas(64) float lanes[16];
  store_f(lanes, nan);
  float taint = 0.0f;
  for (int lane = 0; lane < 16; ++lane) taint += lanes[lane];
  return largest_lane(max(high, sub(zero, low))) / 127.0f + taint;
}

template <class Dot, int bits>
struct Wna16Rows {
  static constexpr int kSlots = 32 / bits;            // of a word
  static constexpr int kSteps = kSlots / Dot::slots;  // of a word
  using Side = typename Dot::Side;

  // A row in the order of the slots, as floats.
  static void fill_line(const Wna16Weights& w, const void* x, Dtype dtype, int64_t offset,
                        float* line) {
    const int64_t slots = w.words * kSlots;
    if (w.perm) {
      for (int64_t s = 0; s < slots; ++s) {
        line[s] = w.perm[s] < 0 ? 0.0f : load_one(x, dtype, offset + w.perm[s]);
      }
      return;
    }
    int64_t s = 0;
    for (; s + 16 <= w.k; s += 16) store_f(line + s, load_lanes(x, dtype, offset + s));
    for (; s < w.k; ++s) line[s] = load_one(x, dtype, offset + s);
    for (; s < slots; ++s) line[s] = 0.0f;
  }

  static float sum(const float* line, int64_t count) {
    alignas(64) float lanes[16];
    VecF total = set1(0.0f);
    int64_t s = 0;
    for (; s + 16 <= count; s += 16) total = add(total, load_f(line + s));
    store_f(lanes, total);
    for (int lane = 0; s < count; ++s, ++lane) lanes[lane] += line[s];
    for (int half = 8; half > 0; half /= 2) {
      for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
    }
    return lanes[0];
  }

  static void pack(const Wna16Weights& w, const void* x, Dtype dtype, int rows, int64_t stride,
                   bool per_row, float* line, void* tile, void* sides) {
    const int count = Dot::padded(rows);
    if (count != rows) {
      __builtin_memset(tile, 0, w.words * kSteps * count * 4);
      __builtin_memset(sides, 0, w.chunks * count * sizeof(Side));
    }
    for (int r = 0; r < rows; ++r) {
      fill_line(w, x, dtype, r * stride, line);
      char* dst = static_cast<char*>(tile) + r * 4;
      Side* side = static_cast<Side*>(sides) + r;
      if constexpr (Dot::quantizes) {
        pack_int8(w, count, per_row, line, dst, side);
      } else {
        pack_floats(w, count, line, dst, side);
      }
    }
  }

  static void pack_floats(const Wna16Weights& w, int rows, float* line, char* dst, Side* sides) {
    float scales[kSlots];
    for (int s = 0; s < kSlots; ++s) scales[s] = Dot::template slot_scale<bits>(s);
    for (int64_t c = 0; c < w.chunks; ++c) {
      const int64_t begin = w.chunk_begin[c] * kSlots, end = w.chunk_begin[c + 1] * kSlots;
      sides[c * rows].sum = sum(line + begin, end - begin);
    }
    for (int64_t s = 0; s < w.words * kSlots; s += kSlots) {
      for (int i = 0; i < kSlots; ++i) line[s + i] *= scales[i];
      for (int i = 0; i < kSlots; i += Dot::slots, dst += rows * 4) Dot::store_x(dst, line + s + i);
    }
  }

  // Codes in the order in which `decode` gives weights: four slots a step. Slots 2j and 2j + 1 of a word of
  // 2 or 4 bits stand in its two halves, and step t takes them from both bytes of each half.
  static void store_codes(const int8_t* codes, int rows, int words, char* dst) {
    for (int word = 0; word < words; ++word, codes += kSlots) {
      for (int t = 0; t < kSteps; ++t, dst += rows * 4) {
        constexpr int half = kSlots / 2;
        const int8_t quad[4] = {codes[bits == 8 ? 0 : 2 * t], codes[bits == 8 ? 1 : 2 * t + half],
                                codes[bits == 8 ? 2 : 2 * t + 1], codes[bits == 8 ? 3 : 2 * t + half + 1]};
        __builtin_memcpy(dst, quad, 4);
      }
    }
  }

  static void pack_int8(const Wna16Weights& w, int rows, bool per_row, const float* line, char* dst,
                        Side* sides) {
    const int zero = w.zero ? 0 : common_zero_of<Dot, bits>(w.offset.data);
    const float row_scale = per_row ? int8_scale(line, w.words * kSlots) : 0.0f;
    for (int64_t c = 0; c < w.chunks; ++c) {
      const int64_t begin = w.chunk_begin[c] * kSlots, count = w.chunk_begin[c + 1] * kSlots - begin;
      const float scale = per_row ? row_scale : int8_scale(line + begin, count);
      const bool usable = scale > 0.0f && scale <= __FLT_MAX__;
      const VecF divisor = set1(usable ? scale : 1.0f);
      const VecF low = set1(-127.0f), high = set1(127.0f);
      alignas(64) int8_t codes[kChunkSlots];
      VecF total = set1(0.0f);
      for (int64_t i = 0; i < count; i += 16) {
        const VecF v = load_some(line + begin, Dtype::f32, i, count - i);
        const VecF code = min(max(zero_nan(round(div(v, divisor))), low), high);
        total = add(total, code);
        store_i8(codes + i, code);
      }
      alignas(64) float lanes[16];
      store_f(lanes, total);
      float code_sum = 0.0f;  // of integers: exact
      for (int lane = 0; lane < 16; ++lane) code_sum += lanes[lane];
      const float kept = usable || scale != scale ? scale : 1.0f;
      sides[c * rows] = {kept * code_sum, kept, -zero * static_cast<int32_t>(code_sum)};
      store_codes(codes, rows, static_cast<int>(count / kSlots), dst);
      dst += count / 4 * rows * 4;
    }
  }
};

}  // namespace
