// wna16_pack: the canonical tensors of a layer with packed integer weights, to what wna16_linear reads.
//
//   packed  int32 [blocks, lines, 16]   words of the 16 outputs of a block side by side: codes.h
//   scale   float [blocks, G, 16]       in the dtype of the checkpoint
//   zero    uint8 [blocks, G, 16]       empty where every zero point is 2^(bits-1)
//   perm    int32 [words * slots]       the input at each slot, -1 for none; empty where slot == input
//   chunks  int32 [2, chunks + 1]       first word of each chunk; its group
//
// 3 bits are stored as 4, and 7 as 8, in the middle of the range. Inputs are sorted by group, each
// group filled up to whole words.

#include <cstring>

#include "op_support.h"

namespace qcore_cpu {

namespace {

constexpr const char* kOp = "wna16_pack";

// Which input stands where.
struct Plan {
  std::vector<int32_t> perm;
  std::vector<int32_t> begin{0}, group;  // of the chunks
  int64_t words = 0;
  bool identity = true;
};

Plan make_plan(const int32_t* g_idx, int64_t k, int64_t group_size, int64_t groups, int64_t slots) {
  std::vector<int64_t> start(groups + 1, 0);  // of each group in `order`
  std::vector<int32_t> order(k);
  auto group_of = [&](int64_t i) { return g_idx ? g_idx[i] : i / group_size; };
  for (int64_t i = 0; i < k; ++i) ++start[group_of(i) + 1];
  for (int64_t g = 0; g < groups; ++g) start[g + 1] += start[g];
  std::vector<int64_t> next(start.begin(), start.end() - 1);
  for (int64_t i = 0; i < k; ++i) order[next[group_of(i)]++] = static_cast<int32_t>(i);

  Plan plan;
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t end = plan.words + ceil_div(start[g + 1] - start[g], slots);
    for (int64_t i = start[g]; i < start[g + 1]; ++i) {
      plan.identity = plan.identity && order[i] == static_cast<int64_t>(plan.perm.size());
      plan.perm.push_back(order[i]);
    }
    plan.perm.resize(end * slots, -1);
    while (plan.words < end) {
      plan.words = std::min(end, plan.words + kChunkSlots / slots);
      plan.begin.push_back(static_cast<int32_t>(plan.words));
      plan.group.push_back(static_cast<int32_t>(g));
    }
  }
  return plan;
}

// The codes of the checkpoint, unsigned.
struct Codes {
  const int32_t* words = nullptr;  // packed, or
  const int8_t* bytes = nullptr;   // signed
  int bits;
  int lift;  // added to each
  int64_t k, per_word, stride;

  uint32_t at(int64_t n, int64_t i) const {
    if (bytes) return static_cast<uint32_t>(bytes[n * k + i] + (1 << (bits - 1)) + lift);
    const uint32_t word = static_cast<uint32_t>(words[n * stride + i / per_word]);
    return ((word >> (bits * (i % per_word))) & ((1u << bits) - 1)) + lift;
  }
};

// One word of one output, into its place among the lines at dst.
template <int bits>
void store_word(const Codes& codes, int64_t n, const int32_t* perm, int lane, uint8_t* dst) {
  using Layout = CodeLayout<bits>;
  if constexpr (bits == 8) {
    for (int s = 0; s < Layout::slots; ++s) {
      const uint32_t code = perm[s] < 0 ? 128 : codes.at(n, perm[s]);
      dst[s * kBlock + lane] = static_cast<uint8_t>(code - 128);
    }
    return;
  }
  uint32_t lines[Layout::lines] = {};
  for (int s = 0; s < Layout::slots; ++s) {
    if (perm[s] < 0) continue;
    const uint32_t code = codes.at(n, perm[s]);
    const int pair = s / 2, half = 16 * (s % 2);
    lines[Layout::line(pair)] |= (code & ((1u << Layout::lower_bits) - 1)) << (half + Layout::shift(pair));
    if constexpr (Layout::upper_bits > 0) {
      lines[Layout::upper_line] |= code >> Layout::lower_bits << (half + Layout::upper_shift(pair));
    }
  }
  for (int i = 0; i < Layout::lines; ++i) std::memcpy(dst + i * 64 + lane * 4, &lines[i], 4);
}
using StoreWord = void (*)(const Codes&, int64_t, const int32_t*, int, uint8_t*);
constexpr StoreWord kStoreWord[kWidths] = {store_word<2>, store_word<4>, store_word<5>, store_word<6>,
                                           store_word<8>};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> wna16_pack(
    const Tensor& weight_packed, const Tensor& weight_scale, const std::optional<Tensor>& zero_point,
    const std::optional<Tensor>& g_idx, int64_t bits, int64_t zero_bias, int64_t group_size, int64_t k) {
  QCORE_CHECK(bits >= 2 && bits <= 8, kOp, ": bits is ", bits, "; allowed: 2 to 8");
  QCORE_CHECK(k >= 1, kOp, ": in_features is ", k, "; it must be at least 1");
  QCORE_CHECK(group_size == -1 || group_size >= 1, kOp, ": group_size is ", group_size,
                  "; it must be -1 (one group) or at least 1");
  QCORE_CHECK(zero_bias >= 0 && zero_bias < (1 << bits), kOp, ": zero_bias is ", zero_bias,
                  "; allowed: 0 to 2^bits - 1");
  QCORE_CHECK(weight_packed.dim() == 2 && weight_packed.size(0) >= 1, kOp,
                  ": weight_packed has shape ", shape_of(weight_packed), "; it must be [N, words]");
  const int64_t n = weight_packed.size(0), pack = 32 / bits;
  const bool is_signed = weight_packed.scalar_type() == ScalarType::Char;
  if (is_signed) {
    check_tensor(kOp, "weight_packed", weight_packed, ScalarType::Char, {n, k});
    QCORE_CHECK(!zero_point, kOp, ": weight_zero_point is given, but the codes are signed (int8)");
    zero_bias = int64_t{1} << (bits - 1);
  } else {
    check_tensor(kOp, "weight_packed", weight_packed, ScalarType::Int, {n, ceil_div(k, pack)});
  }
  if (group_size == -1 || group_size > k) group_size = k;

  float_dtype(kOp, "weight_scale", weight_scale);
  QCORE_CHECK(weight_scale.dim() == 2, kOp, ": weight_scale has shape ", shape_of(weight_scale),
                  "; it must be [N, groups]");
  // With g_idx, the groups may be those of a layer of which this one is a part.
  const int64_t groups = g_idx ? weight_scale.size(1) : ceil_div(k, group_size);
  check_tensor(kOp, "weight_scale", weight_scale, weight_scale.scalar_type(), {n, groups});
  if (zero_point) {
    check_tensor(kOp, "weight_zero_point", *zero_point, ScalarType::Int, {ceil_div(n, pack), groups});
  }
  const int32_t* group_of = nullptr;
  if (g_idx) {
    check_tensor(kOp, "weight_g_idx", *g_idx, ScalarType::Int, {k});
    group_of = static_cast<const int32_t*>(g_idx->data_ptr());
    for (int64_t i = 0; i < k; ++i) {
      QCORE_CHECK(group_of[i] >= 0 && group_of[i] < groups, kOp, ": weight_g_idx[", i, "] is ",
                      group_of[i], "; weight_scale has the groups 0 to ", groups - 1);
    }
  }

  const int stored = bits == 3 ? 4 : bits == 7 ? 8 : static_cast<int>(bits);
  const int64_t slots = code_word(stored).slots, lines = code_word(stored).lines;
  const int64_t blocks = ceil_div(n, kBlock), word_bytes = lines * 64;
  const StoreWord store_word = kStoreWord[width_index(stored)];
  const Plan plan = make_plan(group_of, k, group_size, groups, slots);
  // Narrower codes are stored in the middle of the wider range: their zero point is then its center,
  // and the sum over x that a zero point costs stays small beside the result.
  const int lift = (1 << (stored - 1)) - (1 << (bits - 1));
  const bool with_zero = zero_point || zero_bias + lift != (1 << (stored - 1));
  const int64_t chunks = static_cast<int64_t>(plan.group.size());

  auto make = [&](std::initializer_list<int64_t> shape, ScalarType type) {
    return torch::stable::new_empty(weight_packed, shape, type);
  };
  Tensor packed = new_weight(weight_packed, {blocks, plan.words * lines, kBlock}, ScalarType::Int);
  Tensor scale = make({blocks, groups, kBlock}, weight_scale.scalar_type());
  Tensor zero = make({with_zero ? blocks : 0, groups, kBlock}, ScalarType::Byte);
  Tensor perm = make({plan.identity ? 0 : plan.words * slots}, ScalarType::Int);
  Tensor table = make({2, chunks + 1}, ScalarType::Int);

  auto* chunk_table = static_cast<int32_t*>(table.data_ptr());
  std::copy(plan.begin.begin(), plan.begin.end(), chunk_table);
  std::copy(plan.group.begin(), plan.group.end(), chunk_table + chunks + 1);
  chunk_table[2 * chunks + 1] = 0;
  if (!plan.identity) {
    std::copy(plan.perm.begin(), plan.perm.end(), static_cast<int32_t*>(perm.data_ptr()));
  }

  Codes codes;
  codes.bits = static_cast<int>(bits);
  codes.lift = lift;
  codes.k = k;
  codes.per_word = pack;
  codes.stride = ceil_div(k, pack);
  if (is_signed) {
    codes.bytes = static_cast<const int8_t*>(weight_packed.data_ptr());
  } else {
    codes.words = static_cast<const int32_t*>(weight_packed.data_ptr());
  }
  auto* words = static_cast<uint8_t*>(packed.data_ptr());
  auto* scales = static_cast<char*>(scale.data_ptr());
  auto* zeros = static_cast<uint8_t*>(zero.data_ptr());
  const auto* from_scales = static_cast<const char*>(weight_scale.data_ptr());
  const auto* from_zeros = zero_point ? static_cast<const int32_t*>(zero_point->data_ptr()) : nullptr;
  const int64_t size = static_cast<int64_t>(weight_scale.element_size());
  std::memset(scales, 0, blocks * groups * kBlock * size);

  const int64_t block_grain = grain(kBytesPerThread, plan.words * word_bytes);
  torch::stable::parallel_for(0, blocks, block_grain, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      uint8_t* line = words + block * plan.words * word_bytes;
      std::memset(line, 0, plan.words * word_bytes);
      for (int lane = 0; lane < kBlock; ++lane) {
        const int64_t row = block * kBlock + lane;
        for (int64_t g = 0; g < groups; ++g) {
          const int64_t to = (block * groups + g) * kBlock + lane;
          int64_t point = zero_bias;
          if (from_zeros && row < n) {
            const auto word = static_cast<uint32_t>(from_zeros[row / pack * groups + g]);
            point = (word >> (bits * (row % pack))) & ((1u << bits) - 1);
          }
          if (with_zero) zeros[to] = static_cast<uint8_t>(point + lift);
          if (row < n) std::memcpy(scales + to * size, from_scales + (row * groups + g) * size, size);
        }
        if (row >= n) continue;
        for (int64_t w = 0; w < plan.words; ++w) {
          store_word(codes, row, plan.perm.data() + w * slots, lane, line + w * word_bytes);
        }
      }
    }
  });
  return {packed, scale, zero, perm, table};
}

}  // namespace
}  // namespace qcore_cpu

STABLE_TORCH_LIBRARY_FRAGMENT(qcore_cpu, m) {
  m.def(
      "wna16_pack(Tensor weight_packed, Tensor weight_scale, Tensor? weight_zero_point, "
      "Tensor? weight_g_idx, int bits, int zero_bias, int group_size, int in_features) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(qcore_cpu, CPU, m) { m.impl("wna16_pack", TORCH_BOX(&qcore_cpu::wna16_pack)); }
