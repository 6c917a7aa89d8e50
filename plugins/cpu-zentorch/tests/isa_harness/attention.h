// Random queries, keys and values for the harness, what attention.cpp does around the kernel of a table, and what
// must come of it: softmax(query . keys * scale) . values in double precision, with a bound on float32's roundings.
#pragma once

#include <math.h>

#include <algorithm>

#include "layers.h"

namespace harness {

// Vectors [head][row] of `size` elements, NaN wherever the layout leaves room.
struct Vectors {
  // One row after another; with room after each row and each head; the heads of a row next to each other.
  enum Layout : int { dense, roomy, by_row };
  static constexpr int kLayouts = 3;
  static constexpr int64_t kBefore = 3;  // elements, so that no vector stands on a line

  Dtype dtype;
  int64_t heads, rows, size, head_stride, row_stride;
  std::vector<char> data;
  std::vector<double> exact;  // what was stored: [head][row][size]

  Vectors(int64_t head_count, int64_t row_count, int64_t head_size, Dtype type, Layout layout, Random& random)
      : dtype(type), heads(head_count), rows(row_count), size(head_size), exact(heads * rows * size) {
    const int64_t room = layout == roomy ? 5 : 0;
    row_stride = layout == by_row ? heads * size : size + room;
    head_stride = layout == by_row ? size : (rows + room) * row_stride;
    data.resize((kBefore + heads * rows * (size + room) + heads * room * row_stride) * 4, char(0xff));
    for (int64_t i = 0; i < heads * rows * size; ++i) set(i, 4 * (random.unit() - 0.5f));
  }

  // Element i of [head][row][size].
  void set(int64_t i, float value) {
    const int64_t row = i / size, at = kBefore + row / rows * head_stride + row % rows * row_stride + i % size;
    store(data.data(), dtype, at, value);
    exact[i] = load(data.data(), dtype, at);
  }
  const void* of(int64_t head) const { return data.data() + (kBefore + head * head_stride) * size_of(dtype); }
  const double* exact_row(int64_t head, int64_t row) const { return &exact[(head * rows + row) * size]; }
};

// On one thread; `together` heads that share keys at a time. False if the kernel left its working space.
inline bool run_attention(const IsaKernels& isa, const Vectors& query, const Vectors& keys, const Vectors& values,
                          float scale, int64_t together, char* out) {
  const int64_t group = query.heads / keys.heads, size = query.size, length = keys.rows;
  bool good = true;
  for (int64_t first = 0; first < query.heads; first += std::min(together, group - first % group)) {
    const int64_t count = std::min(together, group - first % group), bytes = count * (size + length) * 4;
    Attention a{};
    a.dtype = query.dtype;
    a.heads = static_cast<int>(count);
    a.size = size;
    a.length = length;
    a.scale = scale;
    a.query = query.of(first);
    a.query_stride = query.head_stride;
    a.keys = keys.of(first / group);
    a.key_stride = keys.row_stride;
    a.values = values.of(first / group);
    a.value_stride = values.row_stride;
    a.out = out + first * size * size_of(query.dtype);
    Buffer space(bytes + 64);
    memset(space.data(), 0xff, space.size());  // NaN
    isa.attend(a, reinterpret_cast<float*>(space.data()));
    const char* end = space.data() + bytes;
    good = good && std::all_of(end, end + 64, [](char c) { return c == char(0xff); });
  }
  return good;
}

// One head's result, and how far from it a float32 one may be.
struct Attended {
  std::vector<double> result, slack;  // [size]
};

inline Attended attend_in_double(const Vectors& query, const Vectors& keys, const Vectors& values, double scale,
                                 int64_t head) {
  constexpr double unit = 0x1p-24;
  const auto roundings = [](int64_t n) { return n * unit / (1 - n * unit); };
  const int64_t size = query.size, length = keys.rows, shared = head / (query.heads / keys.heads);
  const double* q = query.exact_row(head, 0);
  std::vector<double> weight(length), off(length);
  double largest = -INFINITY, most_off = 0, total = 0, all_off = 0;
  for (int64_t l = 0; l < length; ++l) {
    const double* k = keys.exact_row(shared, l);
    double magnitude = 0;
    for (int64_t d = 0; d < size; ++d) {
      weight[l] += q[d] * k[d] * scale;
      magnitude += std::fabs(q[d] * k[d] * scale);
    }
    // The query's rounding, the product's, those of size / 16 sums in a lane and of 4 between lanes.
    off[l] = roundings(size / 16 + 6) * magnitude;
    largest = std::fmax(largest, weight[l]);
    most_off = std::fmax(most_off, off[l]);
  }
  // An error of the largest score moves all weights alike, which their sum makes good; that of the difference does
  // not. Then a unit in the last place for expf.
  for (int64_t l = 0; l < length; ++l) {
    const double below = largest - weight[l];
    weight[l] = std::exp(-below);
    off[l] = std::expm1(off[l] + unit * (below + 2 * most_off) + 2 * unit);
    total += weight[l];
    all_off += weight[l] * off[l];
  }
  all_off /= total;
  const double half = query.dtype == Dtype::f32 ? 0 : query.dtype == Dtype::f16 ? 0x1p-11 : 0x1p-8;
  const double least = query.dtype == Dtype::f16 ? 0x1p-25 : 0x1p-100;  // where numbers lie evenly
  Attended a{std::vector<double>(size), std::vector<double>(size)};
  for (int64_t d = 0; d < size; ++d) {
    double result = 0, magnitude = 0, moved = 0;
    for (int64_t l = 0; l < length; ++l) {
      const double share = weight[l] / total, value = values.exact_row(shared, l)[d];
      result += share * value;
      magnitude += share * std::fabs(value);
      moved += share * off[l] * std::fabs(value);
    }
    // The sums of weights and of products, the quotient and its product.
    const double rounded = roundings(2 * length + 4) * (magnitude + moved);
    const double slack = (moved + std::fabs(result) * all_off + rounded) / (1 - all_off);
    a.result[d] = result;
    a.slack[d] = slack + half * (std::fabs(result) + slack) + least;
  }
  return a;
}

}  // namespace harness
