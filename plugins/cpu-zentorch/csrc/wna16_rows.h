// Activations of wna16 for one instruction set: rows of x brought into tiles.

namespace {

inline float largest_lane(const VecF& v) {
  alignas(64) float lanes[16];
  store_f(lanes, v);
  float best = lanes[0];
  for (int lane = 1; lane < 16; ++lane) best = lanes[lane] > best ? lanes[lane] : best;
  return best;
}

// The largest magnitude; NaN if a float is not finite.
inline float largest_of(const float* line, int64_t count) {
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
  return largest_lane(max(high, sub(zero, low))) + taint;
}

// The scale that brings floats into -127 ... 127; NaN if one of them is not finite.
inline float int8_scale(const float* line, int64_t count) { return largest_of(line, count) / 127.0f; }

// In an order of its own.
inline float sum_of(const float* line, int64_t count) {
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

template <class Dot, int bits>
struct DigitRows;  // wna16_digits.h

template <class Dot, int bits>
struct Wna16Rows {
  static constexpr int kSlots = CodeLayout<bits>::slots;  // of a word
  static constexpr int kSteps = kSlots / Dot::slots;      // of a word
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

  static void pack(const Wna16Weights& w, const void* x, Dtype dtype, int rows, int64_t stride,
                   bool per_row, float* line, void* panel, void* sides, int64_t panel_rows,
                   int64_t first) {
    const int count = Dot::padded(rows);
    for (int r = 0; r < count; ++r) {
      if (r < rows) {
        fill_line(w, x, dtype, r * stride, line);
      } else {
        __builtin_memset(line, 0, w.words * kSlots * sizeof(float));
      }
      const float row_scale = Dot::quantizes && per_row ? int8_scale(line, w.words * kSlots) : 0.0f;
      for (int64_t c = 0; c < w.chunks; ++c) {
        const int64_t begin = w.chunk_begin[c], words = w.chunk_begin[c + 1] - begin;
        char* dst = static_cast<char*>(panel) + ((begin * panel_rows + first * words) * kSteps + r) * step_bytes<Dot>;
        Side* side = static_cast<Side*>(sides) + c * panel_rows + first + r;
        float* values = line + begin * kSlots;
        if constexpr (takes_digits<Dot>) {
          *side = DigitRows<Dot, bits>::pack(w, count, words, values, dst);
        } else if constexpr (Dot::quantizes) {
          const float scale = per_row ? row_scale : int8_scale(values, words * kSlots);
          *side = pack_int8(w, count, words, values, scale, dst);
        } else {
          *side = pack_floats(count, words, values, dst);
        }
      }
    }
  }

  // A chunk of one of `rows` rows; so is the other.
  static Side pack_floats(int rows, int64_t words, float* values, char* dst) {
    const Side side{sum_of(values, words * kSlots)};
    float scales[kSlots];
    for (int s = 0; s < kSlots; ++s) scales[s] = Dot::template slot_scale<bits>(s);
    for (int64_t s = 0; s < words * kSlots; s += kSlots) {
      for (int i = 0; i < kSlots; ++i) values[s + i] *= scales[i];
      for (int i = 0; i < kSlots; i += Dot::slots, dst += rows * 4) Dot::store_x(dst, values + s + i);
    }
    return side;
  }

  // Codes in the order in which `decode` gives weights, four slots a step: the first and the second half of a
  // word by turns, so that step t has pair t in the lower bytes of the two half words, and in the upper ones the
  // pair half a word on.
  static void store_codes(const int8_t* codes, int rows, int64_t words, char* dst) {
    constexpr int half = kSlots / 2;
    for (int64_t word = 0; word < words; ++word, codes += kSlots) {
      int8_t quads[kSlots];
      for (int i = 0; i < half; ++i) {
        quads[bits == 8 ? i : 2 * i] = codes[i];
        quads[bits == 8 ? half + i : 2 * i + 1] = codes[half + i];
      }
      for (int t = 0; t < kSteps; ++t, dst += rows * 4) __builtin_memcpy(dst, quads + 4 * t, 4);
    }
  }

  static Side pack_int8(const Wna16Weights& w, int rows, int64_t words, const float* values, float scale,
                        char* dst) {
    const int64_t count = words * kSlots;
    const bool usable = scale > 0.0f && scale <= __FLT_MAX__;
    const VecF divisor = set1(usable ? scale : 1.0f);
    const VecF low = set1(-127.0f), high = set1(127.0f);
    alignas(64) int8_t codes[kChunkSlots];
    VecF total = set1(0.0f);
    for (int64_t i = 0; i < count; i += 16) {
      const VecF v = load_some(values, Dtype::f32, i, count - i);
      const VecF code = min(max(zero_nan(round(div(v, divisor))), low), high);
      total = add(total, code);
      store_i8(codes + i, code);
    }
    store_codes(codes, rows, words, dst);
    alignas(64) float lanes[16];
    store_f(lanes, total);
    float code_sum = 0.0f;  // of integers: exact
    for (int lane = 0; lane < 16; ++lane) code_sum += lanes[lane];
    const int zero = w.zero ? 0 : common_zero_of<Dot, bits>(w.offset.data);
    const float kept = usable || scale != scale ? scale : 1.0f;
    return {kept * code_sum, kept, -zero * static_cast<int32_t>(code_sum)};
  }
};

}  // namespace
