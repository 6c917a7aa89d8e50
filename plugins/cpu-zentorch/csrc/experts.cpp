// experts: the experts of a mixture, out[t] = sum over j of weights[t, j] * expert(ids[t, j])(x[t]), where
// expert(x) = w2 * gated(w13 * x). The weights are what wna16_pack makes of each expert, stacked. x is f32,
// f16 or bf16; everything after the first product is f32.
//
// Pairs of a token and an expert are sorted by expert and taken in waves of at most a few hundred rows. A wave's
// products run in two parallel loops, however many experts there are: with one token, each expert has one
// row, and a loop for each would cost more than its arithmetic. A token's sum goes through its experts in
// their order in the layer, so a row's result does not depend on the other rows.

#include <cmath>
#include <cstring>
#include <string_view>

#include "op_support.h"

namespace qcore_cpu {
namespace {

constexpr const char* kOp = "experts";
constexpr int64_t kWaveRows = 256;  // at most

// ---- what is between the products ------------------------------------------------------------

float silu(float g, float u) { return g / (1.0f + std::exp(-g)) * u; }
float gelu(float g, float u) { return 0.5f * g * (1.0f + std::erf(g * 0.70710678f)) * u; }
float gelu_tanh(float g, float u) {
  return 0.5f * g * (1.0f + std::tanh(0.79788456f * (g + 0.044715f * g * g * g))) * u;
}
float swigluoai(float g, float u) {  // NaN stays
  g = g > 7.0f ? 7.0f : g;
  u = u > 7.0f ? 7.0f : u < -7.0f ? -7.0f : u;
  return g / (1.0f + std::exp(-1.702f * g)) * (u + 1.0f);
}

template <float (*gated)(float, float)>
void gated_row(const float* gate, const float* up, float* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = gated(gate[i], up[i]);
}

using GatedRow = void (*)(const float* gate, const float* up, float* to, int64_t count);

GatedRow find_activation(std::string_view name) {
  if (name == "silu") return gated_row<silu>;
  if (name == "gelu") return gated_row<gelu>;
  if (name == "gelu_tanh") return gated_row<gelu_tanh>;
  if (name == "swigluoai") return gated_row<swigluoai>;
  QCORE_CHECK(false, kOp, ": activation is '", std::string(name),
                  "'; allowed: silu, gelu, gelu_tanh, swigluoai");
}

// ---- weights ---------------------------------------------------------------------------------

struct Codes {
  int bits;
  int index;  // of IsaKernels::wna16[...]; -1 for e2m1

  const Wna16Kernels& kernel(const IsaKernels& isa, Dtype x) const {
    const bool bf16 = x == Dtype::bf16;
    if (index < 0) return isa.e2m1[bf16];
    return isa.wna16[static_cast<int>(bf16 ? Compute::bf16 : Compute::f32)][index];
  }
};

Codes find_codes(std::string_view name) {
  if (name == "uint2") return {2, width_index(2)};
  if (name == "uint4") return {4, width_index(4)};
  if (name == "uint5") return {5, width_index(5)};
  if (name == "uint6") return {6, width_index(6)};
  if (name == "uint8") return {8, width_index(8)};
  if (name == "e2m1") return {4, -1};
  QCORE_CHECK(false, kOp, ": codes is '", std::string(name), "'; allowed: uint2, uint4, uint5, uint6, uint8, e2m1");
}

// One projection of all experts.
struct Stacks {
  const char* name;
  const Tensor &packed, &scale, &zero, &perm, &chunks;
  const std::optional<Tensor>& bias;
};

class Projection {
 public:
  Projection(const Stacks& s, const Codes& codes, int64_t experts, int64_t k, int64_t n)
      : name_(s.name), k(k), n(n), blocks(ceil_div(n, kBlock)), word_(code_word(codes.bits)) {
    QCORE_CHECK(s.packed.dim() == 4, kOp, ": ", name_, "_packed has shape ", shape_of(s.packed),
                    "; it must be [experts, blocks, lines, ", kBlock, "]");
    QCORE_CHECK(s.scale.dim() == 4, kOp, ": ", name_, "_scale has shape ", shape_of(s.scale),
                    "; it must be [experts, blocks, groups, ", kBlock, "]");
    QCORE_CHECK(s.chunks.dim() == 3 && s.chunks.size(2) >= 2, kOp, ": ", name_, "_chunks has shape ",
                    shape_of(s.chunks), "; it must be [experts, 2, chunks + 1]");
    first_.k = k;
    first_.words = s.packed.size(2) / word_.lines;
    first_.groups = first_.supers = s.scale.size(2);
    first_.chunks = s.chunks.size(2) - 1;
    check("_packed", s.packed, ScalarType::Int, {experts, blocks, first_.words * word_.lines, kBlock});
    float_dtype(kOp, "scale", s.scale);
    check("_scale", s.scale, s.scale.scalar_type(), {experts, blocks, first_.groups, kBlock});
    check("_chunks", s.chunks, ScalarType::Int, {experts, 2, first_.chunks + 1});
    first_.packed = static_cast<const uint8_t*>(s.packed.data_ptr());
    first_.scale = {s.scale.data_ptr(), float_dtype(kOp, "scale", s.scale), nullptr};
    first_.chunk_begin = static_cast<const int32_t*>(s.chunks.data_ptr());
    if (s.zero.numel() > 0) {
      QCORE_CHECK(codes.index >= 0, kOp, ": ", name_, "_zero is given; codes of e2m1 have none");
      check("_zero", s.zero, ScalarType::Byte, {experts, blocks, first_.groups, kBlock});
      first_.zero = static_cast<const uint8_t*>(s.zero.data_ptr());
    }
    if (s.perm.numel() > 0) {
      check("_perm", s.perm, ScalarType::Int, {experts, slots()});
      first_.perm = static_cast<const int32_t*>(s.perm.data_ptr());
    } else {
      QCORE_CHECK(first_.words == ceil_div(k, word_.slots), kOp, ": ", name_, "_packed has ",
                      first_.words, " words of ", word_.slots, " codes; without perm, ", k, " inputs take ",
                      ceil_div(k, word_.slots));
    }
    if (s.bias) {
      bias_dtype_ = float_dtype(kOp, "bias", *s.bias);
      check("_bias", *s.bias, s.bias->scalar_type(), {experts, n});
      bias_ = static_cast<const char*>(s.bias->data_ptr());
    }
  }

  // Of one expert. Its tables are checked, as a wrong one would be read out of bounds.
  Wna16Weights of(int64_t e) const {
    Wna16Weights w = first_;
    w.packed += e * blocks * bytes();
    const int64_t factors = e * blocks * w.groups * kBlock;
    w.scale.data = static_cast<const char*>(w.scale.data) + factors * element_size(w.scale.dtype);
    if (w.zero) w.zero += factors;
    w.chunk_begin += e * 2 * (w.chunks + 1);
    w.chunk_group = w.chunk_begin + w.chunks + 1;
    bool valid = w.chunk_begin[0] == 0 && w.chunk_begin[w.chunks] == w.words;
    for (int64_t c = 0; c < w.chunks; ++c) {
      const int64_t words = w.chunk_begin[c + 1] - w.chunk_begin[c];
      valid = valid && words > 0 && words * word_.slots <= kChunkSlots && w.chunk_group[c] >= 0 &&
              w.chunk_group[c] < w.groups;
    }
    QCORE_CHECK(valid, kOp, ": ", name_, "_chunks of expert ", e, " does not divide the ", w.words,
                    " words among the ", w.groups, " groups; it must come from wna16_pack");
    if (w.perm) {
      w.perm += e * slots();
      int32_t largest = -1;
      for (int64_t s = 0; s < slots(); ++s) largest = std::max(largest, w.perm[s]);
      QCORE_CHECK(largest < k, kOp, ": ", name_, "_perm of expert ", e, " has the input ", largest,
                      "; there are ", k);
    }
    return w;
  }

  Output output(int64_t e, float* data) const {
    const char* bias = bias_ ? bias_ + e * n * element_size(bias_dtype_) : nullptr;
    return {data, Dtype::f32, n, bias, bias_dtype_};
  }

  int64_t slots() const { return first_.words * word_.slots; }
  int64_t bytes() const { return first_.words * word_.lines * 64; }  // of a block
  int64_t chunks() const { return first_.chunks; }

 private:
  void check(const char* part, const Tensor& t, ScalarType type,
             std::initializer_list<int64_t> shape) const {
    check_tensor(kOp, (name_ + part).c_str(), t, type, shape);
  }

  std::string name_;
  Wna16Weights first_{};
  const char* bias_ = nullptr;
  Dtype bias_dtype_ = Dtype::f32;

 public:
  const int64_t k, n, blocks;

 private:
  CodeWord word_;
};

// ---- routing ---------------------------------------------------------------------------------

// Rows of one expert, at most kPanelRows, next to each other in a wave.
struct Segment {
  int64_t expert, rows;
  int64_t first;  // row of the wave
};

struct Routing {
  std::vector<int64_t> pairs;  // token * J + place, by expert and then by token
  std::vector<int64_t> ends;   // of each expert in `pairs`
};

Routing sort_by_expert(const int64_t* ids, int64_t count, int64_t experts) {
  auto chosen = [&](int64_t p) { return ids[p] >= 0 && ids[p] < experts; };
  Routing r;
  r.ends.assign(experts + 1, 0);
  for (int64_t p = 0; p < count; ++p) {
    if (chosen(p)) ++r.ends[ids[p] + 1];
  }
  for (int64_t e = 0; e < experts; ++e) r.ends[e + 1] += r.ends[e];
  r.pairs.resize(r.ends[experts]);
  std::vector<int64_t> next(r.ends.begin(), r.ends.end() - 1);
  for (int64_t p = 0; p < count; ++p) {
    if (chosen(p)) r.pairs[next[ids[p]]++] = p;
  }
  r.ends.erase(r.ends.begin());
  return r;
}

// ---- products --------------------------------------------------------------------------------

// What a segment is multiplied with, and where its panel lies among those of the wave.
struct Panel {
  Wna16Weights weights;
  int64_t rows;   // that there is room for
  int64_t first;  // rows of the panels before it
};

// out[row] = weights of the row's expert times row_of(row), for all rows of a wave.
template <class RowOf>
void multiply(const Projection& p, const Wna16Kernels& kernel, const std::vector<Segment>& segments,
              Dtype dtype, const RowOf& row_of, float* out) {
  std::vector<Panel> panels;
  std::vector<std::pair<size_t, int64_t>> jobs;  // a segment, and the first row of a tile in it
  int64_t all_rows = 0;
  for (const Segment& s : segments) {
    for (int64_t row = 0; row < s.rows; row += kernel.rows) jobs.emplace_back(panels.size(), row);
    const int64_t room = s.rows <= kernel.rows ? kernel.padded(static_cast<int>(s.rows))
                                               : ceil_div(s.rows, kernel.rows) * kernel.rows;
    panels.push_back({p.of(s.expert), room, all_rows});
    all_rows += room;
  }
  thread_local Workspace space;
  const int64_t slots = p.slots(), row_bytes = slots / kernel.step_slots * 4;
  const int64_t side_bytes = p.chunks() * kernel.side_bytes;
  char* tiles = space.reserve(align_line(all_rows * row_bytes) + all_rows * side_bytes);
  char* sides = tiles + align_line(all_rows * row_bytes);
  const int64_t size = element_size(dtype), count = static_cast<int64_t>(jobs.size());
  const int64_t tile_grain = grain(kBytesPerThread, kernel.rows * slots * 4);
  torch::stable::parallel_for(0, count, tile_grain, [&](int64_t begin, int64_t end) {
    thread_local Workspace line_space, gather_space;
    float* line = reinterpret_cast<float*>(line_space.reserve(slots * 4));
    for (int64_t j = begin; j < end; ++j) {
      const Segment& s = segments[jobs[j].first];
      const int rows = static_cast<int>(std::min<int64_t>(kernel.rows, s.rows - jobs[j].second));
      const int64_t row = s.first + jobs[j].second;
      const char* x = row_of(row);
      if (rows > 1) {
        char* gathered = gather_space.reserve(rows * p.k * size);
        for (int r = 0; r < rows; ++r) {
          std::memcpy(gathered + r * p.k * size, row_of(row + r), p.k * size);
        }
        x = gathered;
      }
      const Panel& panel = panels[jobs[j].first];
      kernel.pack_rows(panel.weights, x, dtype, rows, p.k, false, line, tiles + panel.first * row_bytes,
                       sides + panel.first * side_bytes, panel.rows, jobs[j].second);
    }
  });

  // Column by column, so that each thread gets the same share of every expert.
  const int64_t all = static_cast<int64_t>(segments.size()), columns = ceil_div(p.blocks, kPanelBlocks);
  const int64_t unit_grain = grain(kBytesPerThread, kPanelBlocks * p.bytes());
  torch::stable::parallel_for(0, columns * all, unit_grain, [&](int64_t begin, int64_t end) {
    thread_local Workspace scratch_space;
    char* scratch = scratch_space.reserve(kPanelScratch);
    for (int64_t i = 0; i < all; ++i) {
      const int64_t first = ceil_div(std::max<int64_t>(0, begin - i), all) * kPanelBlocks;
      const int64_t last = std::min(ceil_div(std::max<int64_t>(0, end - i), all) * kPanelBlocks, p.blocks);
      if (first >= last) continue;
      const Segment& s = segments[i];
      const Panel& panel = panels[i];
      const Output to = p.output(s.expert, out);
      const int rows = static_cast<int>(s.rows);
      const char* tile = tiles + panel.first * row_bytes;
      const char* side = sides + panel.first * side_bytes;
      if (rows <= kernel.rows) {
        kernel.narrow(panel.weights, rows, tile, side, first, last, to, s.first);
        continue;
      }
      for (int64_t b = first; b < last; b += kPanelBlocks) {
        kernel.wide(panel.weights, rows, tile, side, panel.rows, 0, b, std::min(b + kPanelBlocks, last),
                    scratch, to, s.first);
      }
    }
  });
}

Tensor experts(const Tensor& x, const Tensor& topk_weights, const Tensor& topk_ids,
               const Tensor& w13_packed, const Tensor& w13_scale, const Tensor& w13_zero,
               const Tensor& w13_perm, const Tensor& w13_chunks, const std::optional<Tensor>& w13_bias,
               const Tensor& w2_packed, const Tensor& w2_scale, const Tensor& w2_zero,
               const Tensor& w2_perm, const Tensor& w2_chunks, const std::optional<Tensor>& w2_bias,
               int64_t intermediate_size, std::string_view codes_name, std::string_view activation) {
  QCORE_CHECK(x.dim() == 2, kOp, ": x has shape ", shape_of(x), "; it must be [tokens, hidden_size]");
  QCORE_CHECK(intermediate_size >= 1, kOp, ": intermediate_size is ", intermediate_size,
                  "; it must be at least 1");
  QCORE_CHECK(topk_ids.dim() == 2, kOp, ": topk_ids has shape ", shape_of(topk_ids),
                  "; it must be [tokens, experts of a token]");
  const int64_t T = x.size(0), H = x.size(1), I = intermediate_size, J = topk_ids.size(1);
  QCORE_CHECK(H >= 1, kOp, ": x has shape ", shape_of(x), "; it must have at least one column");
  check_tensor(kOp, "topk_ids", topk_ids, ScalarType::Long, {T, J});
  check_tensor(kOp, "topk_weights", topk_weights, ScalarType::Float, {T, J});
  const int64_t E = w13_packed.dim() > 0 ? w13_packed.size(0) : 0;
  const GatedRow gated = find_activation(activation);
  const Codes codes = find_codes(codes_name);
  const Projection w13({"w13", w13_packed, w13_scale, w13_zero, w13_perm, w13_chunks, w13_bias}, codes, E, H,
                       2 * I);
  const Projection w2({"w2", w2_packed, w2_scale, w2_zero, w2_perm, w2_chunks, w2_bias}, codes, E, I, H);
  const Rows rows = as_rows(kOp, x, H);
  const IsaKernels& isa = active_isa();

  Tensor result = torch::stable::new_empty(x, {T, H}, ScalarType::Float);
  auto* out = static_cast<float*>(result.data_ptr());
  std::memset(out, 0, T * H * 4);
  const Routing routing = sort_by_expert(static_cast<const int64_t*>(topk_ids.data_ptr()), T * J, E);
  const auto* factors = static_cast<const float*>(topk_weights.data_ptr());

  std::vector<Segment> wave;
  thread_local Workspace space;
  for (int64_t e = 0, done = 0; done < static_cast<int64_t>(routing.pairs.size());) {
    wave.clear();
    int64_t count = 0;
    while (e < E && count < kWaveRows) {
      const int64_t take = std::min({routing.ends[e] - done - count, kPanelRows, kWaveRows - count});
      if (take > 0) wave.push_back({e, take, count});
      count += take;
      if (done + count == routing.ends[e]) ++e;
    }
    const int64_t* pairs = routing.pairs.data() + done;
    done += count;
    auto* both = reinterpret_cast<float*>(space.reserve(count * (3 * I + H) * 4));
    float *inner = both + count * 2 * I, *product = inner + count * I;

    multiply(w13, codes.kernel(isa, rows.dtype), wave, rows.dtype,
             [&](int64_t row) { return static_cast<const char*>(rows.row(pairs[row] / J)); }, both);
    constexpr int64_t part = 512;
    const int64_t parts = ceil_div(I, part);
    torch::stable::parallel_for(0, count * parts, 4, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t row = i / parts, first = i % parts * part;
        const float* gate = both + row * 2 * I + first;
        gated(gate, gate + I, inner + row * I + first, std::min(part, I - first));
      }
    });
    multiply(w2, codes.kernel(isa, Dtype::f32), wave, Dtype::f32,
             [&](int64_t row) { return reinterpret_cast<const char*>(inner + row * I); }, product);
    torch::stable::parallel_for(0, H, grain(kBytesPerThread, count * 8), [&](int64_t begin, int64_t end) {
      for (int64_t row = 0; row < count; ++row) {
        const float factor = factors[pairs[row]];
        const float* from = product + row * H;
        float* to = out + pairs[row] / J * H;
        for (int64_t i = begin; i < end; ++i) to[i] += factor * from[i];
      }
    });
  }
  return result;
}

}  // namespace
}  // namespace qcore_cpu

STABLE_TORCH_LIBRARY_FRAGMENT(qcore_cpu, m) {
  m.def(
      "experts(Tensor x, Tensor topk_weights, Tensor topk_ids, Tensor w13_packed, Tensor w13_scale, "
      "Tensor w13_zero, Tensor w13_perm, Tensor w13_chunks, Tensor? w13_bias, Tensor w2_packed, "
      "Tensor w2_scale, Tensor w2_zero, Tensor w2_perm, Tensor w2_chunks, Tensor? w2_bias, "
      "int intermediate_size, str codes, str activation) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(qcore_cpu, CPU, m) { m.impl("experts", TORCH_BOX(&qcore_cpu::experts)); }
