// gptq_shuffle, gptq_gemm, gptq_dequantize; and wna16_linear, which a layer's kernel calls.
//
//   weights     int32 [K * bits / 32, N]   codes along K, without gaps, lowest bits first
//   zero points int32 [G, N * bits / 32]   packed along N; version 1 has them less one
//   scales      [G, N]
//
// gptq_shuffle puts the codes of a word into the order in which pairs of neighbours are made with one
// instruction: 4 bits have elements [0, 2, 4, 6, 1, 3, 5, 7] from the lowest nibble on, 2 bits the even
// elements in the lower half and the odd ones in the upper, 3 and 8 bits stay as they are. With a
// permutation (activation order) row k of the shuffled weight is row perm[k] of the given one, so that
// groups lie together.

#include "gptq.cuh"

namespace qcore_cuda {
namespace {

// ---- codes -------------------------------------------------------------------------------------

// Where code k of a column of words is: the word's row, and the bit in it.
__device__ __forceinline__ int code_of(const uint32_t* __restrict__ words, int64_t n, int bits, int64_t k, int64_t column) {
  const int64_t bit = k * bits;
  const uint32_t* at = words + (bit >> 5) * n + column;
  const int shift = static_cast<int>(bit & 31);
  uint32_t v = *at >> shift;
  if (shift + bits > 32) v |= at[n] << (32 - shift);
  return static_cast<int>(v & ((1u << bits) - 1));
}

// Element i of a shuffled word, as a bit.
__device__ __forceinline__ int shuffled_bit(int bits, int i) {
  return bits == 4 || bits == 2 ? (i >> 1) * bits + (i & 1) * 16 : i * bits;
}

// A thread makes the words of 32 inputs (K may end within) of one column.
__global__ void shuffle_kernel(const uint32_t* __restrict__ in, uint32_t* __restrict__ out,
                               const int32_t* __restrict__ perm, int bits, int64_t k, int64_t n) {
  const int64_t column = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
  const int64_t first = blockIdx.y * int64_t{32};
  if (column >= n) return;
  uint32_t words[8] = {};
  for (int i = 0; i < 32 && first + i < k; ++i) {
    const int64_t from = perm ? perm[first + i] : first + i;
    if (from < 0 || from >= k) continue;
    const uint32_t code = code_of(in, n, bits, from, column);
    if (bits == 3) {
      const int bit = 3 * i, shift = bit & 31;
      words[bit >> 5] |= code << shift;
      if (shift + 3 > 32) words[(bit >> 5) + 1] |= code >> (32 - shift);
    } else {
      const int pack = 32 / bits;
      words[i / pack] |= code << shuffled_bit(bits, i % pack);
    }
  }
  const int64_t row = first * bits / 32, rows = k * bits / 32;
  for (int i = 0; i < bits && row + i < rows; ++i) out[(row + i) * n + column] = words[i];
}

}  // namespace

Ways ways_of(const GptqWeight& w, ScalarType type, bool out_float, int32_t device) {
  Ways can{!w.lanes && fits_small_m(w), false, false, w.group_size >= w.k || w.group_size % mid_m::kPieceK == 0};
#ifdef QCORE_CUDA_SM90A
  can.sm90 = !out_float && fits_w4_sm90(w, type, device);
  can.mid = fits_w4_mid_m(w, type, device);
#endif
  return can;
}

Tensor multiply_by(Way way, const char* op, const Tensor& a, const GptqWeight& w, const Tensor* bias, int64_t columns,
                   bool out_float, const Launch& launch) {
  const int64_t k = a.size(a.dim() - 1);
  if (a.numel() == 0 || columns == 0) {
    return new_tensor(a, shape_with_last(a, columns), out_float ? ScalarType::Float : dtype_of(a));
  }
  QCORE_CHECK(!w.lanes || way == Way::kMidRows || way == Way::kManyRows, op,
              ": q_weight has three dimensions, which only SM90's kernels take, with results in a's dtype");
  switch (way) {
    case Way::kFewRows: return small_m_gptq(op, a, w, bias, columns, out_float, {}, launch);
#ifdef QCORE_CUDA_SM90A
    case Way::kMidRows: return w4_mid_m(op, a, w, bias, columns, out_float, launch);
    case Way::kManyRows: return w4_sm90(op, a, w, bias, columns, launch);
#endif
    default: break;
  }
  const Tensor whole = new_tensor(a, {k, w.n});
  dequantize_gptq(op, w, whole, launch.stream());
  const Tensor used = columns == w.n ? whole : torch::stable::narrow(const_cast<Tensor&>(whole), 1, 0, columns);
  const Tensor out = product(a, used, out_float);
  if (bias) add_bias(out, *bias, false, launch.stream());
  return out;
}

void check_activations(const char* op, const Tensor& a) {
  check_cuda(op, "a", a);
  check_dtype(op, "a", a, {ScalarType::Half, ScalarType::BFloat16});
  QCORE_CHECK(a.dim() >= 1 && a.size(a.dim() - 1) > 0, op, ": a has shape ", shape_of(a), "; it must be [..., K]");
}

namespace {

// ---- arguments ---------------------------------------------------------------------------------

void check_bits(const char* op, int64_t bits) {
  QCORE_CHECK(bits == 2 || bits == 3 || bits == 4 || bits == 8, op, ": bit is ", bits, "; allowed: 2, 3, 4, 8");
}

const int32_t* index_data(const char* op, const char* name, const Tensor* t, const Tensor& first, int64_t count) {
  if (!t) return nullptr;
  check_tensor(op, name, *t, first, {ScalarType::Int}, {count});
  return static_cast<const int32_t*>(t->data_ptr());
}

GptqZeros zeros_of(const char* op, const Tensor& qzeros, const Tensor& first, int64_t groups, int64_t n, int64_t bits,
                   bool v2) {
  QCORE_CHECK(n * bits % 32 == 0, op, ": N is ", n, "; zero points of ", bits, " bits fill words only where N is a multiple of ",
                  bits == 3 ? 32 : 32 / bits);
  check_tensor(op, "b_gptq_qzeros", qzeros, first, {ScalarType::Int}, {groups, n * bits / 32});
  return {static_cast<const uint32_t*>(qzeros.data_ptr()), n * bits / 32, 0, v2 ? 0 : 1};
}

// Weights, zero points and scales as GPTQ's files have them. `k`: 0 for as many as there are codes of.
GptqWeight gptq_weight(const char* op, const Tensor& q_weight, const Tensor& qzeros, const Tensor& scales,
                       const std::optional<Tensor>& g_idx, bool shuffled, bool v2, int64_t bits, int64_t k) {
  check_bits(op, bits);
  check_cuda(op, "b_q_weight", q_weight);
  QCORE_CHECK(q_weight.dim() == 2 && scales.dim() == 2, op, ": b_q_weight has shape ", shape_of(q_weight),
                  " and b_gptq_scales ", shape_of(scales), "; both must have two dimensions");
  const int64_t n = q_weight.size(1), groups = scales.size(0);
  if (k == 0) k = q_weight.size(0) * 32 / bits;
  QCORE_CHECK(k > 0 && k * bits % 32 == 0, op, ": K is ", k, "; codes of ", bits,
                  " bits fill words only where K is a multiple of ", bits == 3 ? 32 : 32 / bits);
  check_tensor(op, "b_q_weight", q_weight, q_weight, {ScalarType::Int}, {k * bits / 32, n});
  QCORE_CHECK(n > 0 && n % 8 == 0, op, ": N is ", n, "; it must be a multiple of 8");
  QCORE_CHECK(groups > 0, op, ": b_gptq_scales has no rows");
  check_tensor(op, "b_gptq_scales", scales, q_weight, {ScalarType::Half, ScalarType::BFloat16, ScalarType::Float},
               {groups, n});
  const int32_t* indices = index_data(op, "b_g_idx", present(g_idx), q_weight, k);
  QCORE_CHECK((indices && !shuffled) || k % groups == 0, op, ": K=", k, " inputs in ", groups,
                  " groups; without b_g_idx groups must be equal");
  return {q_weight,
          static_cast<int>(bits),
          shuffled,
          k,
          n,
          scales,
          zeros_of(op, qzeros, q_weight, groups, n, bits, v2),
          ceil_div(k, groups),
          shuffled ? nullptr : indices,
          shuffled ? indices : nullptr};
}

// ---- ops ---------------------------------------------------------------------------------------

void gptq_shuffle(const Tensor& q_weight, const Tensor& q_perm, int64_t bit) {
  const char* op = "gptq_shuffle";
  check_bits(op, bit);
  check_cuda(op, "q_weight", q_weight);
  QCORE_CHECK(q_weight.dim() == 2, op, ": q_weight has shape ", shape_of(q_weight), "; it must be [K * bit / 32, N]");
  const int64_t rows = q_weight.size(0), n = q_weight.size(1), k = rows * 32 / bit;
  check_tensor(op, "q_weight", q_weight, q_weight, {ScalarType::Int}, {rows, n});
  QCORE_CHECK(rows * 32 % bit == 0, op, ": q_weight has ", rows, " rows; 3 bits come in threes of words");
  const int32_t* perm = index_data(op, "q_perm", q_perm.numel() ? &q_perm : nullptr, q_weight, k);
  if (rows * n == 0 || (!perm && (bit == 3 || bit == 8))) return;
  const Launch launch(q_weight);
  const Tensor old = torch::stable::clone(q_weight);
  constexpr int64_t kMost = 65535;
  QCORE_CHECK(ceil_div(k, 32) <= kMost, op, ": K is ", k, "; at most ", 32 * kMost);
  const dim3 grid(static_cast<unsigned>(ceil_div(n, 128)), static_cast<unsigned>(ceil_div(k, 32)));
  shuffle_kernel<<<grid, 128, 0, launch.stream()>>>(static_cast<const uint32_t*>(old.data_ptr()),
                                                    static_cast<uint32_t*>(q_weight.data_ptr()), perm,
                                                    static_cast<int>(bit), k, n);
  check_launch(op);
}

Tensor gptq_dequantize(const Tensor& q_weight, const Tensor& qzeros, const Tensor& scales,
                       const std::optional<Tensor>& g_idx, bool use_exllama, bool use_v2_format, int64_t bit,
                       std::optional<ScalarType> dtype) {
  const char* op = "gptq_dequantize";
  const GptqWeight w = gptq_weight(op, q_weight, qzeros, scales, g_idx, use_exllama, use_v2_format, bit, 0);
  const ScalarType type = dtype.value_or(dtype_of(scales));
  QCORE_CHECK(type == ScalarType::Half || type == ScalarType::BFloat16, op, ": dtype is ", dtype_name(type),
                  "; allowed: Half, BFloat16");
  const Launch launch(q_weight);
  const Tensor out = new_tensor(q_weight, {w.k, w.n}, type);
  dequantize_gptq(op, w, out, launch.stream());
  return out;
}

// `few_rows`: up to how many the kernel for few is to take; -1: as `way_for` has it.
Tensor multiply(const char* op, const Tensor& a, const GptqWeight& w, const Tensor* bias, int64_t columns,
                bool out_float, int64_t few_rows, const Launch& launch) {
  const int64_t k = a.size(a.dim() - 1), m = k ? a.numel() / k : 0;
  const int32_t device = a.get_device_index();
  const Ways can = ways_of(w, dtype_of(a), out_float, device);
  const Way way = way_for(can, m, columns, k, device_facts(device).sm_count, few_rows);
  return multiply_by(way, op, a, w, bias, columns, out_float, launch);
}

Tensor gptq_gemm(const Tensor& a, const Tensor& b_q_weight, const Tensor& b_gptq_qzeros, const Tensor& b_gptq_scales,
                 const std::optional<Tensor>& b_g_idx, bool use_exllama, bool use_v2_format, int64_t bit) {
  const char* op = "gptq_gemm";
  check_activations(op, a);
  check_same_device(op, "b_q_weight", b_q_weight, a);
  const GptqWeight w = gptq_weight(op, b_q_weight, b_gptq_qzeros, b_gptq_scales, b_g_idx, use_exllama, use_v2_format,
                                   bit, a.size(a.dim() - 1));
  const Launch launch(a);
  return multiply(op, a, w, nullptr, w.n, false, -1, launch);
}

// ---- a layer -----------------------------------------------------------------------------------

// [K / 64, N / 32, 256]: see gptq_packing.py, in_lanes.
GptqWeight weight_in_lanes(const char* op, const Tensor& a, const Tensor& q_weight, const Tensor& scales,
                           const std::optional<Tensor>& zeros, const std::optional<Tensor>& perm,
                           const std::optional<Tensor>& g_idx, int64_t bits, int64_t zero, int64_t group_size) {
  const int64_t k = q_weight.size(0) * 64, n = q_weight.size(1) * 32;
  check_tensor(op, "q_weight", q_weight, a, {ScalarType::Int}, {k / 64, n / 32, 256});
  QCORE_CHECK(dtype_of(a) == ScalarType::BFloat16 && bits == 4 && zero == 8 && !present(zeros) && !present(g_idx) && n > 0 &&
                  group_size > 0 && (group_size >= k || group_size % 64 == 0) && a.size(a.dim() - 1) == k,
              op, ": q_weight of three dimensions is for a in bfloat16 with ", k, " columns, 4 bits, zero 8, no zeros, no ",
              "g_idx, groups of a multiple of 64; bits=", bits, ", zero=", zero, ", group_size=", group_size,
              ", a has shape ", shape_of(a));
  check_tensor(op, "scales", scales, a, {ScalarType::BFloat16}, {ceil_div(k, group_size), n});
  GptqWeight w{q_weight, 4, true, k, n, scales, GptqZeros{nullptr, 0, 8, 0}, group_size, nullptr,
               index_data(op, "perm", present(perm), a, k)};
  w.lanes = true;
  return w;
}

GptqWeight layer_weight(const char* op, const Tensor& a, const Tensor& q_weight, const Tensor& scales,
                        const std::optional<Tensor>& zeros, const std::optional<Tensor>& perm,
                        const std::optional<Tensor>& g_idx, int64_t bits, int64_t zero, int64_t group_size) {
  check_activations(op, a);
  check_bits(op, bits);
  if (q_weight.dim() == 3) return weight_in_lanes(op, a, q_weight, scales, zeros, perm, g_idx, bits, zero, group_size);
  QCORE_CHECK(q_weight.dim() == 2 && scales.dim() == 2, op, ": q_weight has shape ", shape_of(q_weight),
                  " and scales ", shape_of(scales), "; both must have two dimensions");
  const int64_t n = q_weight.size(1), k = q_weight.size(0) * 32 / bits, groups = scales.size(0);
  QCORE_CHECK(k % 32 == 0 && k >= a.size(a.dim() - 1) && n % 32 == 0 && n > 0, op, ": q_weight has codes of [", k, ", ", n,
                  "]; both must be multiples of 32, and the first at least a's ", a.size(a.dim() - 1), " columns");
  QCORE_CHECK(zero >= 0 && zero < (1 << bits), op, ": zero is ", zero, "; it must be a code of ", bits, " bits");
  QCORE_CHECK(group_size > 0 && groups > 0, op, ": group_size is ", group_size, ", and scales have ", groups, " rows");
  check_tensor(op, "q_weight", q_weight, a, {ScalarType::Int}, {q_weight.size(0), n});
  check_tensor(op, "scales", scales, a, {ScalarType::Half, ScalarType::BFloat16, ScalarType::Float}, {groups, n});
  const int32_t* of_input = index_data(op, "g_idx", present(g_idx), a, k);
  QCORE_CHECK(of_input || groups * group_size >= k || groups == ceil_div(a.size(a.dim() - 1), group_size), op,
                  ": scales have ", groups, " rows, too few for ", k, " inputs in groups of ", group_size);
  const Tensor* packed = present(zeros);
  return {q_weight,
          static_cast<int>(bits),
          true,
          k,
          n,
          scales,
          packed ? zeros_of(op, *packed, a, groups, n, bits, true) : GptqZeros{nullptr, 0, static_cast<int>(zero), 0},
          group_size,
          of_input,
          index_data(op, "perm", present(perm), a, k)};
}

// Without `zeros`, and with a `zero` in the middle, scales are to be below 2^27 (Subnormal in w4_codes.cuh).
Tensor wna16_linear(const Tensor& a, const Tensor& q_weight, const Tensor& scales, const std::optional<Tensor>& zeros,
                    const std::optional<Tensor>& perm, const std::optional<Tensor>& g_idx,
                    const std::optional<Tensor>& bias, int64_t bits, int64_t zero, int64_t group_size, int64_t in_features,
                    int64_t out_features, bool out_float, int64_t few_rows) {
  const char* op = "wna16_linear";
  const GptqWeight w = layer_weight(op, a, q_weight, scales, zeros, perm, g_idx, bits, zero, group_size);
  QCORE_CHECK(a.size(a.dim() - 1) == in_features, op, ": a has shape ", shape_of(a), "; its last dimension must be ",
                  in_features);
  QCORE_CHECK(out_features >= 0 && out_features <= w.n, op, ": out_features is ", out_features, "; q_weight has ", w.n,
                  " columns");
  const Tensor* added = present(bias);
  if (added) check_tensor(op, "bias", *added, a, {dtype_of(a), ScalarType::Float}, {out_features});
  const Launch launch(a);
  return multiply(op, a, w, added, out_features, out_float, few_rows, launch);
}

// The kernel for few rows with a division of the work that the caller chooses (0: as it would be).
Tensor wna16_small_m(const Tensor& a, const Tensor& q_weight, const Tensor& scales, const std::optional<Tensor>& zeros,
                     int64_t bits, int64_t zero, int64_t group_size, int64_t column_warps, int64_t k_warps, int64_t split) {
  const char* op = "wna16_small_m";
  const GptqWeight w = layer_weight(op, a, q_weight, scales, zeros, std::nullopt, std::nullopt, bits, zero, group_size);
  QCORE_CHECK(fits_small_m(w), op, ": group_size is ", group_size, "; it must be a multiple of 32, or all of K");
  const auto is_power = [](int64_t v, int64_t most) { return v >= 0 && v <= most && (v & (v - 1)) == 0; };
  QCORE_CHECK(is_power(column_warps, 16) && is_power(k_warps, 16) && is_power(split, kMostSplit) &&
                      column_warps * k_warps * 32 <= kMostThreads,
                  op, ": column_warps=", column_warps, ", k_warps=", k_warps, ", split=", split,
                  "; powers of two, the first two at most 16 together, the last at most 8");
  const Launch launch(a);
  return small_m_gptq(op, a, w, nullptr, w.n, false,
                      {static_cast<int>(column_warps), static_cast<int>(k_warps), static_cast<int>(split)}, launch);
}

// SM90's kernel for many rows, likewise: a tile's rows (0: all as it would be) and columns, and parts of K (0: tiles in
// pairs; less: of which others do the last times 64 inputs, so many as it is below 0).
Tensor wna16_sm90(const Tensor& a, const Tensor& q_weight, const Tensor& scales, const std::optional<Tensor>& zeros,
                  int64_t bits, int64_t zero, int64_t group_size, int64_t rows, int64_t columns, int64_t parts) {
  const char* op = "wna16_sm90";
  const GptqWeight w = layer_weight(op, a, q_weight, scales, zeros, std::nullopt, std::nullopt, bits, zero, group_size);
#ifdef QCORE_CUDA_SM90A
  QCORE_CHECK(fits_w4_sm90(w, dtype_of(a), a.get_device_index()), op, ": bits=", bits, ", group_size=", group_size,
                  ", scales of ", dtype_name(dtype_of(scales)), "; it runs 4 and 8 bits in groups of a multiple of 32, "
                  "with scales of a's dtype, on sm_90");
  const many::Plan wish{many::tile_of(rows, columns), static_cast<int>(std::max<int64_t>(parts, 0)),
                        static_cast<int>(std::max<int64_t>(-parts, 0))};
  QCORE_CHECK((rows == 0 || wish.tile >= 0) && parts >= -w.k && parts <= many::kMostParts, op, ": rows=", rows, ", columns=",
              columns, ", parts=", parts, "; allowed: tiles of 64 x 128, 128 x 128, 128 x 256, 256 x 128, parts -K ... 8");
  return w4_sm90(op, a, w, nullptr, w.n, Launch(a), rows ? &wish : nullptr);
#else
  fail(op, ": qcore-cuda was compiled without sm_90a");
#endif
}

// SM90's kernel for a medium number of rows, likewise: rows of a block / 8 (1, 2, 4, 8), warps by columns, parts of K
// (0, with column_warps of 0: all as it would be) and warps that take turns (0: as where two blocks share a processor).
Tensor wna16_mid_m(const Tensor& a, const Tensor& q_weight, const Tensor& scales, const std::optional<Tensor>& zeros,
                   int64_t bits, int64_t zero, int64_t group_size, int64_t row_tiles, int64_t column_warps, int64_t split,
                   int64_t k_warps) {
  const char* op = "wna16_mid_m";
  const GptqWeight w = layer_weight(op, a, q_weight, scales, zeros, std::nullopt, std::nullopt, bits, zero, group_size);
#ifdef QCORE_CUDA_SM90A
  QCORE_CHECK(fits_w4_mid_m(w, dtype_of(a), a.get_device_index()), op, ": bits=", bits, ", group_size=", group_size,
                  ", scales of ", dtype_name(dtype_of(scales)), "; it runs 4 and 8 bits in groups of a multiple of 32, "
                  "with scales of a's dtype and zero points aligned to 16 bytes, on sm_90");
  const bool halves = group_size < w.k && group_size % 64 != 0;
  QCORE_CHECK(row_tiles == 0 || row_tiles == 4 || row_tiles == 8 || (!halves && (row_tiles == 1 || row_tiles == 2)), op,
              ": row_tiles=", row_tiles, "; allowed: 0, 4, 8, and 1 and 2 where a group is a multiple of 64");
  QCORE_CHECK(column_warps >= 0 && column_warps <= mid_m::kMostColumnWarps &&
                  (column_warps ? split == 1 || split == 2 || split == 4 || split == 8 : row_tiles == 0 && split == 0),
              op, ": row_tiles=", row_tiles, ", column_warps=", column_warps, ", split=", split,
              "; allowed: all 0, or column_warps 1 ... 8 and split 1, 2, 4, 8");
  const int tiles = row_tiles ? static_cast<int>(row_tiles) : mid_m::row_tiles_for(a.numel() / a.size(a.dim() - 1), !halves);
  QCORE_CHECK(k_warps >= 0 && k_warps <= 8 && column_warps * k_warps <= mid_m::most_warps(tiles), op,
              ": k_warps=", k_warps, " beside column_warps=", column_warps,
              "; allowed: 0 ... 8, and ", mid_m::most_warps(tiles), " warps in all");
  return w4_mid_m(op, a, w, nullptr, w.n, false, Launch(a),
                  {static_cast<int>(row_tiles), static_cast<int>(column_warps), static_cast<int>(k_warps), static_cast<int>(split)});
#else
  fail(op, ": qcore-cuda was compiled without sm_90a");
#endif
}

}  // namespace
}  // namespace qcore_cuda

STABLE_TORCH_LIBRARY_FRAGMENT(qcore_cuda, m) {
  m.def("gptq_shuffle(Tensor(a!) q_weight, Tensor q_perm, int bit) -> ()");
  m.def("gptq_gemm(Tensor a, Tensor b_q_weight, Tensor b_gptq_qzeros, Tensor b_gptq_scales, Tensor? b_g_idx, "
        "bool use_exllama, bool use_v2_format, int bit) -> Tensor");
  m.def("gptq_dequantize(Tensor b_q_weight, Tensor b_gptq_qzeros, Tensor b_gptq_scales, Tensor? b_g_idx, "
        "bool use_exllama, bool use_v2_format, int bit, ScalarType? dtype=None) -> Tensor");
  m.def("wna16_linear(Tensor a, Tensor q_weight, Tensor scales, Tensor? zeros, Tensor? perm, Tensor? g_idx, "
        "Tensor? bias, int bits, int zero, int group_size, SymInt in_features, SymInt out_features, bool out_float=False, int few_rows=-1) -> Tensor");
  m.def("wna16_small_m(Tensor a, Tensor q_weight, Tensor scales, Tensor? zeros, int bits, int zero, int group_size, "
        "int column_warps=0, int k_warps=0, int split=0) -> Tensor");
  m.def("wna16_sm90(Tensor a, Tensor q_weight, Tensor scales, Tensor? zeros, int bits, int zero, int group_size, "
        "int rows=0, int columns=128, int parts=0) -> Tensor");
  m.def("wna16_mid_m(Tensor a, Tensor q_weight, Tensor scales, Tensor? zeros, int bits, int zero, int group_size, "
        "int row_tiles=0, int column_warps=0, int split=0, int k_warps=0) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(qcore_cuda, CUDA, m) {
  m.impl("gptq_shuffle", TORCH_BOX(&qcore_cuda::gptq_shuffle));
  m.impl("gptq_gemm", TORCH_BOX(&qcore_cuda::gptq_gemm));
  m.impl("gptq_dequantize", TORCH_BOX(&qcore_cuda::gptq_dequantize));
  m.impl("wna16_linear", TORCH_BOX(&qcore_cuda::wna16_linear));
  m.impl("wna16_small_m", TORCH_BOX(&qcore_cuda::wna16_small_m));
  m.impl("wna16_sm90", TORCH_BOX(&qcore_cuda::wna16_sm90));
  m.impl("wna16_mid_m", TORCH_BOX(&qcore_cuda::wna16_mid_m));
}
