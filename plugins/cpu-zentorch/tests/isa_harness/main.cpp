// Runs every function of one instruction set's table, and the same one of the scalar table, on random data;
// attention against double precision.
//
//   isa_harness                 the names of the sets that are compiled, and of those that this machine runs
//   isa_harness NAME [SEED]     the checks of one of them; exit status 1 if one fails, 2 if it cannot run here
//
// Integers must agree bit for bit. So must floats where the data leave nothing to round: integral inputs,
// powers of two as scales. Elsewhere they agree within a bound on the rounding of both sums. A row must
// have the same bits alone and in a batch, a head with whatever others share its keys.

#include <stdio.h>
#include <stdlib.h>

#include <algorithm>
#include <string>

#include "attention.h"
#include "isa_select.h"
#include "layers.h"

namespace harness {
namespace {

constexpr int kNames = 3;
const char* const kComputes[kNames] = {"f32", "bf16", "int8"};
const char* const kDtypes[kNames] = {"f32", "f16", "bf16"};

int failures = 0, failures_before = 0;

void fail(const char* what) {
  if (++failures <= 10) printf("FAILED %s\n", what);
}

// Of the checks since it was asked last.
const char* verdict() {
  const bool good = failures == failures_before;
  failures_before = failures;
  return good ? "ok" : "FAILED";
}

struct Count {
  int64_t runs = 0, outputs = 0, same = 0;
};

struct Result {
  Output out;
  std::vector<char> data;
  Result(int64_t rows, int64_t n, Dtype dtype, const void* bias)
      : out{nullptr, dtype, n, bias, Dtype::f32}, data(rows * n * size_of(dtype) + 64, char(0x5a)) {
    out.data = data.data();
  }
  bool overrun() const {
    return !std::all_of(data.end() - 64, data.end(), [](char c) { return c == 0x5a; });
  }
};

// ---- wna16 -----------------------------------------------------------------------------------

struct Table {
  const char* name;
  const Wna16Kernels& kernel;
  const Wna16Kernels& reference;
  int bits;
  bool e2m1, quantizes, only_bf16;
};

// What both sums may be off by, each: a rounding for every product and every addition on the longest way.
double bound(const Layer& layer, const Inputs& x, int64_t row, double expected, Dtype out) {
  double magnitude = 5, largest = 0;  // 5: the bias
  for (int64_t i = 0; i < x.k; ++i) largest = std::max(largest, std::fabs(load(x.row(row), x.dtype, i)));
  for (int64_t i = 0; i < x.k; ++i) {
    // Rounded to int8, an input moves by at most half a step of its row's largest.
    magnitude += layer.weight_size[i] * (std::fabs(load(x.row(row), x.dtype, i)) + largest / 254);
  }
  const double roundings = 2.0 * kChunkSlots + 6.0 * static_cast<double>(layer.w.chunks) + 8;
  const double unit = out == Dtype::f32 ? 0 : out == Dtype::f16 ? 0x1p-10 : 0x1p-7;
  return 2 * roundings * 0x1p-24 * magnitude + unit * std::fabs(expected) + (out == Dtype::f16 ? 0x1p-24 : 0);
}

void check_batch(const Table& t, const Layer& layer, const Inputs& x, bool exact, bool per_row, Dtype out,
                 Count& count) {
  const int64_t n = layer.shape.n;
  char what[200];
  snprintf(what, sizeof(what), "%s, %d bits: N=%d K=%d group=%d rows=%d x=%s out=%s%s%s%s%s%s%s", t.name,
           t.bits, int(n), int(x.k), int(layer.shape.group), int(x.rows), kDtypes[int(x.dtype)],
           kDtypes[int(out)], layer.w.perm ? " perm" : "", layer.w.zero ? " zeros" : "",
           layer.w.offset.data ? " offsets" : "", layer.w.scale.super ? " supers" : "",
           per_row ? " per_row" : "", exact ? " exact" : "");
  Result ours(x.rows, n, out, layer.bias.data()), theirs(x.rows, n, out, layer.bias.data());
  run_wna16(t.kernel, layer, x, 0, x.rows, per_row, ours.out);
  run_wna16(t.reference, layer, x, 0, x.rows, per_row, theirs.out);
  if (ours.overrun()) fail(what);
  const int64_t row_bytes = n * size_of(out);
  bool good = true;
  for (int64_t r = 0; r < x.rows; ++r) {
    const double slack = exact ? 0 : bound(layer, x, r, 0, out);
    for (int64_t i = 0; i < n; ++i) {
      const int64_t at = r * n + i;
      const bool same = !memcmp(ours.data.data() + at * size_of(out), theirs.data.data() + at * size_of(out),
                                size_of(out));
      count.same += same;
      if (same) continue;
      const double a = load(ours.data.data(), out, at), b = load(theirs.data.data(), out, at);
      const double unit = out == Dtype::f32 ? 0 : out == Dtype::f16 ? 0x1p-10 : 0x1p-7;
      if (exact ? a != b : !(std::fabs(a - b) <= slack + unit * std::fabs(b))) good = false;
    }
  }
  if (!good) fail(what);
  // The first row, one of the middle and the last, each alone.
  for (const int64_t r : {int64_t{0}, x.rows / 2, x.rows - 1}) {
    Result alone(1, n, out, layer.bias.data());
    run_wna16(t.kernel, layer, x, r, 1, per_row, alone.out);
    if (memcmp(alone.data.data(), ours.data.data() + r * row_bytes, row_bytes)) {
      fail((std::string(what) + ": row " + std::to_string(r) + " differs when alone").c_str());
    }
  }
  ++count.runs;
  count.outputs += x.rows * n;
}

void check_wna16(const Table& t, Random& random) {
  const Shape shapes[] = {
      {80, 256, 128, false, false, false, false, Dtype::f16},
      {33, 320, 64, false, true, false, false, Dtype::f32},
      {16, 100, 32, true, true, false, false, Dtype::bf16},
      {70, 192, 32, false, false, true, true, Dtype::f16},
      {7, 45, 20, true, false, true, false, Dtype::f32},
      {48, 300, 300, false, false, false, false, Dtype::f32},
  };
  const int64_t rows[] = {1, 2, 3, 4, 5, 7, 8, 9, 12, 16, 17, 31, 50};
  Count count;
  int turn = 0;
  for (const Shape& shape : shapes) {
    for (const bool exact : {true, false}) {
      if (t.e2m1 && (shape.zeros || shape.offsets || shape.supers)) continue;
      const Layer layer(shape, t.bits, t.e2m1, exact, random);
      for (const int64_t m : rows) {
        ++turn;  // dtypes and modes in turn, so that all pairs come up
        const Dtype in = t.only_bf16 ? Dtype::bf16 : Dtype(turn % 3);
        const Inputs x(layer, m, in, exact, random);
        check_batch(t, layer, x, exact, t.quantizes && turn % 2, Dtype(turn / 3 % 3), count);
      }
    }
  }
  const Layer layer({20, 64, 32, false, false, false, false, Dtype::f32}, t.bits, t.e2m1, true, random);
  check_batch(t, layer, Inputs(layer, kPanelRows + 19, Dtype::bf16, true, random), true, false, Dtype::f32,
              count);
  printf("%-18s %d bits: %5ld runs, %7ld outputs, %7ld of them the same bits: %s\n", t.name,
         t.bits, long(count.runs), long(count.outputs), long(count.same), verdict());
}

// ---- int8 ------------------------------------------------------------------------------------

void check_quantize(const IsaKernels& isa, const IsaKernels& reference, Random& random) {
  int64_t rows = 0;
  for (const Dtype dtype : {Dtype::f32, Dtype::f16, Dtype::bf16}) {
    for (const int64_t k : {1, 5, 16, 37, 64, 200}) {
      for (int mode = 0; mode < 4; ++mode) {
        for (int kind = 0; kind < 5; ++kind, ++rows) {
          std::vector<char> x((k + 16) * 4);
          for (int64_t i = 0; i < k; ++i) {
            const float value = kind == 1 ? 0.0f : kind == 2 ? random.unit() : 8 * (random.unit() - 0.5f);
            store(x.data(), dtype, i, value);
          }
          if (kind == 3) store(x.data(), dtype, k - 1, INFINITY);
          if (kind == 4) store(x.data(), dtype, k / 2, NAN);
          const RowQuant how{mode < 2, mode % 2 == 0, 0.03f, mode == 3 ? -17 : 0};
          std::vector<int8_t> q(k + 16, 99), expected(k + 16, 99);
          float scale = 1, expected_scale = 1;
          int32_t azp = 1, expected_azp = 1;
          isa.quantize_row(x.data(), dtype, k, how, q.data(), &scale, &azp);
          reference.quantize_row(x.data(), dtype, k, how, expected.data(), &expected_scale, &expected_azp);
          const bool same_scale = !memcmp(&scale, &expected_scale, 4) ||
                                  (std::isnan(scale) && std::isnan(expected_scale));
          if (q != expected || !same_scale || azp != expected_azp) fail("quantize_row");
        }
      }
    }
  }
  printf("%-18s        : %5ld rows, bit for bit: %s\n", "quantize_row", long(rows), verdict());
}

// What the op keeps between its calls of a table (int8.cpp).
struct Int8Run {
  Int8Panel panel;
  std::vector<char> codes, extra, scratch;
  std::vector<int32_t> extras;
  std::vector<Int8Side> sides;
  std::vector<int8_t> space;

  Int8Run(const Int8Kernels& kernel, int64_t rows, int64_t quads, int64_t k) {
    const bool few = rows <= kernel.rows;
    panel.rows = few ? kernel.padded(static_cast<int>(rows)) : ceil_div(rows, kernel.rows) * kernel.rows;
    codes.resize(panel.rows * quads * 4 + 64);
    extra.resize(2 * panel.rows * quads * 4 + 64);
    extras.resize(ceil_div(quads, kernel.chunk_quads) * panel.rows + 16);
    sides.resize(panel.rows);
    space.resize(int8_space(k) + 64);
    scratch.resize(kInt8Scratch + 64);
    panel.codes = codes.data();
    panel.extra = extra.data();
    panel.extras = extras.data();
    panel.sides = sides.data();
  }
};

void run_int8(const Int8Kernels& kernel, const Int8Weights& w, const float* x, int64_t rows, int64_t k,
              const RowQuant& mode, const Output& out) {
  Int8Run run(kernel, rows, w.quads, k);
  for (int64_t row = 0; row < rows; row += kernel.rows) {
    const int count = static_cast<int>(std::min<int64_t>(kernel.rows, rows - row));
    kernel.pack_rows(x + row * k, Dtype::f32, count, k, mode, k, run.space.data(), run.panel, row);
  }
  const int64_t blocks = ceil_div(out.n, kBlock), half = blocks / 2;
  if (rows <= kernel.rows) {
    kernel.narrow(w, static_cast<int>(rows), run.panel, 0, half, out);
    kernel.narrow(w, static_cast<int>(rows), run.panel, half, blocks, out);
    return;
  }
  for (int64_t block = 0; block < blocks; block += kPanelBlocks) {
    kernel.wide(w, static_cast<int>(rows), run.panel, 0, block, std::min(block + kPanelBlocks, blocks),
                run.scratch.data(), out, 0);
  }
}

void check_int8(const IsaKernels& isa, const IsaKernels& reference, Random& random) {
  Count count;
  for (const int64_t n : {5, 16, 48, 90}) {
    for (const int64_t k : {1, 12, 60, 61, 64, 128, 200, 4200}) {
      for (const int extreme : {0, 1, 2}) {
        const int64_t blocks = ceil_div(n, kBlock), quads = ceil_div(k, 4);
        auto value = [&] {
          return static_cast<int8_t>(extreme == 1 ? -128 : extreme == 2 && random.below(2) ? 127
                                     : extreme == 2                                       ? -128
                                                                                          : random.next());
        };
        std::vector<uint8_t> packed(blocks * quads * 64 + 64, 128);
        std::vector<int32_t> sums(n);
        for (int64_t i = 0; i < n; ++i) {
          for (int64_t j = 0; j < k; ++j) {
            const int8_t weight = value();
            packed[((i / 16 * quads + j / 4) * 16 + i % 16) * 4 + j % 4] = static_cast<uint8_t>(weight + 128);
            sums[i] += weight;
          }
        }
        std::vector<char> scale(n * 4), bias(n * 4);
        const Dtype dtype = Dtype(random.below(3));
        for (int64_t i = 0; i < n; ++i) {
          store(scale.data(), dtype, i, 0.02f * random.unit());
          store(bias.data(), Dtype::f32, i, random.unit());
        }
        const bool per_channel = random.below(2);
        const Int8Weights w{packed.data(), quads, scale.data(), dtype, per_channel, sums.data()};
        const int32_t azp = static_cast<int32_t>(random.below(256)) - 128;
        const RowQuant mode{false, false, 0.5f, azp};  // so that every code comes up
        for (const int64_t rows : {1, 2, 3, 4, 5, 6, 8, 9, 16, 30}) {
          std::vector<float> x(rows * k);
          for (float& v : x) v = 0.5f * static_cast<float>(value() - azp);
          const Dtype out = Dtype(random.below(3));
          Result ours(rows, n, out, bias.data()), theirs(rows, n, out, bias.data());
          run_int8(isa.int8, w, x.data(), rows, k, mode, ours.out);
          run_int8(reference.int8, w, x.data(), rows, k, mode, theirs.out);
          if (ours.data != theirs.data) {
            char what[100];
            snprintf(what, sizeof(what), "int8: N=%d K=%d rows=%d extreme=%d", int(n), int(k), int(rows), extreme);
            fail(what);
          }
          ++count.runs;
          count.outputs += rows * n;
        }
      }
    }
  }
  printf("%-18s        : %5ld runs, %7ld outputs, bit for bit: %s\n", "int8", long(count.runs),
         long(count.outputs), verdict());
}

// ---- attention -------------------------------------------------------------------------------

void check_attention(const IsaKernels& isa, Dtype dtype, Random& random) {
  const struct {
    int64_t heads, shared, length, size;
  } shapes[] = {
      {1, 1, 17, 16}, {4, 1, 1, 256}, {2, 2, 2, 64},    {3, 1, 33, 48},  {6, 2, 129, 80}, {7, 1, 95, 112},
      {5, 1, 48, 144}, {8, 8, 31, 64}, {40, 8, 37, 128}, {4, 1, 300, 256}, {2, 1, 501, 32},
  };
  enum { plain, steep, nan_key, nan_value, kKinds };
  int64_t runs = 0, outputs = 0;
  double nearest = 0;  // to the bound
  for (const auto& s : shapes) {
    for (int kind = plain; kind < kKinds; ++kind, ++runs) {
      const auto layout = Vectors::Layout(runs % Vectors::kLayouts);  // in turn, so that all pairs come up
      const Vectors query(s.heads, 1, s.size, dtype, layout, random);
      Vectors keys(s.shared, s.length, s.size, dtype, layout, random), values = keys;
      for (int64_t i = 0; i < s.shared * s.length * s.size; ++i) values.set(i, 4 * (random.unit() - 0.5f));
      const int64_t middle = ((s.shared - 1) * s.length + s.length / 2) * s.size + 5;  // of the last head
      if (kind == nan_key) keys.set(middle, NAN);
      if (kind == nan_value) values.set(middle, NAN);
      const float scale = kind == steep ? 100.0f : 1 / sqrtf(static_cast<float>(s.size));
      char what[100];
      snprintf(what, sizeof(what), "attention: heads=%d shared=%d length=%d size=%d %s layout=%d kind=%d",
               int(s.heads), int(s.shared), int(s.length), int(s.size), kDtypes[int(dtype)], int(layout), kind);
      Result ours(s.heads, s.size, dtype, nullptr);
      if (!run_attention(isa, query, keys, values, scale, kAttentionHeads, ours.data.data())) fail(what);
      if (ours.overrun()) fail(what);
      bool good = true;
      for (int64_t h = 0; h < s.heads; ++h) {
        const Attended expected = attend_in_double(query, keys, values, scale, h);
        for (int64_t d = 0; d < s.size; ++d) {
          const double found = load(ours.data.data(), dtype, h * s.size + d), wanted = expected.result[d];
          const double off = std::fabs(found - wanted);
          const bool within = std::isnan(wanted) ? std::isnan(found) : off <= expected.slack[d];
          if (!within) good = false;
          if (off <= expected.slack[d]) nearest = std::max(nearest, off / expected.slack[d]);
        }
      }
      if (!good) fail(what);
      for (int64_t together = 1; together < kAttentionHeads; ++together) {
        Result fewer(s.heads, s.size, dtype, nullptr);
        if (!run_attention(isa, query, keys, values, scale, together, fewer.data.data())) fail(what);
        if (fewer.data != ours.data) fail((std::string(what) + ": differs with fewer heads together").c_str());
      }
      outputs += s.heads * s.size;
    }
  }
  printf("attention %-8s        : %5ld runs, %7ld outputs, at most %.2f of the bound off: %s\n",
         kDtypes[int(dtype)], long(runs), long(outputs), nearest, verdict());
}

int check(const IsaKernels& isa, uint64_t seed) {
  Random random{seed};
  for (int compute = 0; compute < kNames; ++compute) {
    for (const int bits : {2, 4, 5, 6, 8}) {
      const int b = width_index(bits);
      const std::string name = std::string("wna16 ") + kComputes[compute];
      check_wna16({name.c_str(), isa.wna16[compute][b], scalar_kernels.wna16[compute][b], bits, false,
                   compute == 2, compute == 1},
                  random);
    }
  }
  for (int bf16 = 0; bf16 < 2; ++bf16) {
    check_wna16({bf16 ? "e2m1 bf16" : "e2m1 f32", isa.e2m1[bf16], scalar_kernels.e2m1[bf16], 4, true, false,
                 bf16 == 1},
                random);
  }
  check_quantize(isa, scalar_kernels, random);
  check_int8(isa, scalar_kernels, random);
  for (const Dtype dtype : {Dtype::f32, Dtype::f16, Dtype::bf16}) check_attention(isa, dtype, random);
  printf("%s: %s\n", isa.name, failures ? "FAILED" : "all agree");
  return failures ? 1 : 0;
}

}  // namespace
}  // namespace harness

int main(int count, char** arguments) {
  if (count < 2) {
    printf("compiled: %s\nsupported: %s\n", qcore_cpu::isa_names(false).c_str(),
           qcore_cpu::isa_names(true).c_str());
    return 0;
  }
  const qcore_cpu::IsaKernels* isa = qcore_cpu::supported_isa(arguments[1]);
  if (!isa) {
    printf("%s: this machine supports %s\n", arguments[1], qcore_cpu::isa_names(true).c_str());
    return 2;
  }
  return harness::check(*isa, count > 2 ? strtoull(arguments[2], nullptr, 10) : 1);
}
