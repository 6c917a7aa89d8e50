// wna16_linear: x [..., K] in f32, f16 or bf16 times packed integer weights, accumulated in f32.
// An empty zero or perm, as wna16_pack returns it for a layer without, is the same as none; so are an
// empty offset, super_scale and super_offset, which make a layer of the blocks of a GGUF file:
//
//   offset                     float [blocks, G, 16]   added to each weight of the group. The codes of up to
//                                                      6 bits have then no zero point, and those of 8 bits
//                                                      are the signed bytes of packed (unless zero is given)
//   super_scale, super_offset  f16 [blocks, S, 16]     scale, or offset, is then int8: an integer for each
//                                                      group, times the half of G / S groups (a power of 2)
//
// wna16_int8_linear rounds x to int8 first, with a scale for each chunk (or each row), and multiplies and
// adds integers within a chunk.

#include "wna16.h"

namespace qcore_cpu {
namespace {

constexpr const char* kOp = "wna16_linear";

bool given(const std::optional<Tensor>& t) { return t && t->numel() > 0; }

// Scales or offsets, and the halves that several groups share.
struct Factor {
  const char* name;
  const Tensor& values;
  const char* super_name;
  const std::optional<Tensor>& super;
};

Wna16Factor check_factor(const char* op, const Factor& f, int64_t blocks, const Wna16Weights& w,
                         bool small) {
  Wna16Factor result{f.values.data_ptr(), Dtype::f32, nullptr};
  if (given(f.super)) {
    check_tensor(op, f.name, f.values, ScalarType::Char, {blocks, w.groups, kBlock});
    check_tensor(op, f.super_name, *f.super, ScalarType::Half, {blocks, w.supers, kBlock});
    result.super = f.super->data_ptr();
  } else {
    const ScalarType type = f.values.scalar_type();
    result.dtype = small && type == ScalarType::Byte   ? Dtype::e8m0
                   : small && type == ScalarType::Char ? Dtype::e4m3
                                                       : float_dtype(op, f.name, f.values);
    check_tensor(op, f.name, f.values, f.values.scalar_type(), {blocks, w.groups, kBlock});
  }
  return result;
}

}  // namespace

Wna16Weights check_weights(const char* op, const Tensor& packed, const Tensor& scale,
                           const std::optional<Tensor>& zero, const std::optional<Tensor>& perm,
                           const Tensor& chunks, int64_t bits, int64_t k, int64_t n,
                           const std::optional<Tensor>& offset,
                           const std::optional<Tensor>& super_scale,
                           const std::optional<Tensor>& super_offset, bool small_scales) {
  QCORE_CHECK(width_index(bits) >= 0, op, ": bits is ", bits,
                  "; allowed: 2, 4, 5, 6, 8 (wna16_pack stores 3 as 4, and 7 as 8)");
  QCORE_CHECK(n >= 1, op, ": out_features is ", n, "; it must be at least 1");
  QCORE_CHECK(k >= 1, op, ": in_features is ", k, "; it must be at least 1");
  const int64_t blocks = ceil_div(n, kBlock), slots = code_word(bits).slots, lines = code_word(bits).lines;
  QCORE_CHECK(packed.dim() == 3, op, ": packed has shape ", shape_of(packed), "; it must be [",
                  blocks, ", words, ", kBlock, "]");
  QCORE_CHECK(scale.dim() == 3, op, ": scale has shape ", shape_of(scale), "; it must be [",
                  blocks, ", groups, ", kBlock, "]");
  Wna16Weights w{};
  w.k = k;
  w.words = packed.size(1) / lines;
  w.groups = scale.size(1);
  check_tensor(op, "packed", packed, ScalarType::Int, {blocks, w.words * lines, kBlock});
  w.packed = static_cast<const uint8_t*>(packed.data_ptr());
  w.supers = w.groups;
  if (given(super_scale)) {
    if (super_scale->dim() == 3) w.supers = super_scale->size(1);
    while (w.supers << w.span_bits < w.groups) ++w.span_bits;
    QCORE_CHECK(w.supers << w.span_bits == w.groups, op, ": super_scale has shape ",
                    shape_of(*super_scale), "; it must be [", blocks, ", ", w.groups,
                    " or its half, quarter, ..., ", kBlock, "]");
  }
  w.scale = check_factor(op, {"scale", scale, "super_scale", super_scale}, blocks, w, small_scales);
  if (given(offset)) {
    w.offset = check_factor(op, {"offset", *offset, "super_offset", super_offset}, blocks, w, false);
  }
  if (given(zero)) {
    check_tensor(op, "zero", *zero, ScalarType::Byte, {blocks, w.groups, kBlock});
    w.zero = static_cast<const uint8_t*>(zero->data_ptr());
  }
  if (given(perm)) {
    check_tensor(op, "perm", *perm, ScalarType::Int, {w.words * slots});
    w.perm = static_cast<const int32_t*>(perm->data_ptr());
    int32_t largest = -1;
    for (int64_t s = 0; s < w.words * slots; ++s) largest = std::max(largest, w.perm[s]);
    QCORE_CHECK(largest < k, op, ": perm has the input ", largest, "; in_features is ", k);
  } else {
    QCORE_CHECK(w.words == ceil_div(k, slots), op, ": packed has ", w.words, " words of ", slots,
                    " codes; without perm, in_features = ", k, " takes ", ceil_div(k, slots));
  }
  QCORE_CHECK(chunks.dim() == 2 && chunks.size(1) >= 2, op, ": chunks has shape ",
                  shape_of(chunks), "; it must be [2, chunks + 1]");
  w.chunks = chunks.size(1) - 1;
  check_tensor(op, "chunks", chunks, ScalarType::Int, {2, w.chunks + 1});
  w.chunk_begin = static_cast<const int32_t*>(chunks.data_ptr());
  w.chunk_group = w.chunk_begin + w.chunks + 1;
  bool valid = w.chunk_begin[0] == 0 && w.chunk_begin[w.chunks] == w.words;
  for (int64_t c = 0; c < w.chunks; ++c) {
    const int64_t words = w.chunk_begin[c + 1] - w.chunk_begin[c];
    valid = valid && words > 0 && words * slots <= kChunkSlots && w.chunk_group[c] >= 0 &&
            w.chunk_group[c] < w.groups;
  }
  QCORE_CHECK(valid, op, ": chunks does not divide the ", w.words, " words of packed among the ",
                  w.groups, " groups; it must come from wna16_pack");
  return w;
}

void wna16_run(const Wna16Kernels& kernel, const Wna16Weights& w, int64_t bits, bool per_row,
               const Rows& x, const Output& out, const RoundedRows* rounded) {
  thread_local Workspace panel_space;
  const int64_t slots = w.words * code_word(bits).slots, blocks = ceil_div(out.n, kBlock);
  const bool few = x.rows <= kernel.rows;
  const int64_t most = std::min(x.rows, kPanelRows);  // of a panel, less what fills up the last tile
  const int64_t panel_rows = few ? kernel.padded(static_cast<int>(most))
                                 : ceil_div(most, kernel.rows) * kernel.rows;
  const int64_t panel_bytes = align_line(panel_rows * slots / kernel.step_slots * 4);
  char* panel = panel_space.reserve(panel_bytes + panel_rows * w.chunks * kernel.side_bytes);
  char* sides = panel + panel_bytes;

  auto pack = [&](int64_t first, int64_t rows, int64_t begin_tile, int64_t end_tile) {
    thread_local Workspace line_space;
    float* line = reinterpret_cast<float*>(line_space.reserve(slots * 4));
    for (int64_t row = begin_tile * kernel.rows; row < end_tile * kernel.rows; row += kernel.rows) {
      const int count = static_cast<int>(std::min<int64_t>(kernel.rows, rows - row));
      if (rounded) {
        const RoundedRows::Tile tile = rounded->round(first + row, count);
        kernel.pack_rows(w, tile.values, Dtype::bf16, count, w.k, per_row, line, panel, sides, panel_rows,
                         row);
        rounded->scale_sides(tile, count, sides, panel_rows, row);
      } else {
        kernel.pack_rows(w, x.row(first + row), x.dtype, count, x.stride, per_row, line, panel, sides,
                         panel_rows, row);
      }
    }
  };

  if (few) {
    const int rows = static_cast<int>(x.rows);
    pack(0, rows, 0, 1);
    const int64_t block_grain = grain(kBytesPerThread, w.words * code_word(bits).lines * 64);
    torch::stable::parallel_for(0, blocks, block_grain, [&](int64_t begin, int64_t end) {
      kernel.narrow(w, rows, panel, sides, begin, end, out, 0);
    });
    return;
  }

  for (int64_t first = 0; first < x.rows; first += kPanelRows) {
    const int64_t rows = std::min(kPanelRows, x.rows - first);
    const int64_t row_tiles = ceil_div(rows, kernel.rows), column_tiles = ceil_div(blocks, kPanelBlocks);
    const int64_t tile_grain = grain(kBytesPerThread, kernel.rows * slots * 4);
    torch::stable::parallel_for(0, row_tiles, tile_grain, [&](int64_t begin, int64_t end) {
      pack(first, rows, begin, end);
    });
    // With few columns for the threads, rows are divided too; each part decodes the weights itself.
    const int64_t wanted = ceil_div(2 * torch::stable::get_num_threads(), column_tiles);
    const int64_t parts = std::max<int64_t>(1, std::min(wanted, row_tiles / 4));
    const int64_t part_tiles = ceil_div(row_tiles, parts);
    const int64_t cost = part_tiles * kernel.rows * slots * kPanelBlocks * kBlock;
    const int64_t part_grain = grain(kProductsPerThread, cost);
    torch::stable::parallel_for(0, column_tiles * parts, part_grain, [&](int64_t begin, int64_t end) {
      thread_local Workspace scratch_space;
      char* scratch = scratch_space.reserve(kPanelScratch);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t block = i % column_tiles * kPanelBlocks;
        const int64_t row = i / column_tiles * part_tiles * kernel.rows;
        const int64_t count = std::min(part_tiles * kernel.rows, rows - row);
        if (count <= 0) continue;
        kernel.wide(w, static_cast<int>(count), panel, sides, panel_rows, row, block,
                    std::min(block + kPanelBlocks, blocks), scratch, out, first + row);
      }
    });
  }
}

namespace {

// How activations are multiplied: as they are; as int8 with a scale for each chunk; or for each row.
enum class Activations { floats, int8_chunks, int8_rows };

void run(const Tensor& x, const Wna16Weights& w, const std::optional<Tensor>& bias, int64_t bits,
         int64_t n, Activations mode, const Tensor& out) {
  const Rows rows = as_rows(kOp, x, w.k);
  check_out(kOp, out, x, n);
  const Output output = make_output(kOp, out, bias, n);
  if (rows.rows == 0) return;
  const Compute compute = mode != Activations::floats ? Compute::int8
                          : rows.dtype == Dtype::bf16 ? Compute::bf16
                                                      : Compute::f32;
  const Wna16Kernels& kernel = active_isa().wna16[static_cast<int>(compute)][width_index(bits)];
  wna16_run(kernel, w, bits, mode == Activations::int8_rows, rows, output);
}

Tensor checked_output(const Tensor& x, int64_t n, std::optional<ScalarType> out_dtype) {
  const ScalarType type = out_dtype.value_or(x.scalar_type());
  float_dtype(kOp, out_dtype ? "out_dtype" : "x", type);
  QCORE_CHECK(x.dim() >= 1, kOp, ": x has no dimension; it must be [..., K]");
  QCORE_CHECK(n >= 1, kOp, ": out_features is ", n, "; it must be at least 1");
  return new_output(x, n, type);
}

using Maybe = const std::optional<Tensor>&;

void wna16_linear_out(const Tensor& x, const Tensor& packed, const Tensor& scale, Maybe zero, Maybe perm,
                      const Tensor& chunks, Maybe bias, int64_t bits, int64_t k, int64_t n,
                      const Tensor& out, Maybe offset, Maybe super_scale, Maybe super_offset) {
  const Wna16Weights w = check_weights(kOp, packed, scale, zero, perm, chunks, bits, k, n, offset, super_scale,
                                       super_offset);
  run(x, w, bias, bits, n, Activations::floats, out);
}

Tensor wna16_linear(const Tensor& x, const Tensor& packed, const Tensor& scale, Maybe zero, Maybe perm,
                    const Tensor& chunks, Maybe bias, int64_t bits, int64_t k, int64_t n,
                    std::optional<ScalarType> out_dtype, Maybe offset, Maybe super_scale,
                    Maybe super_offset) {
  Tensor out = checked_output(x, n, out_dtype);
  wna16_linear_out(x, packed, scale, zero, perm, chunks, bias, bits, k, n, out, offset, super_scale,
                   super_offset);
  return out;
}

void wna16_int8_linear_out(const Tensor& x, const Tensor& packed, const Tensor& scale, Maybe zero,
                           Maybe perm, const Tensor& chunks, Maybe bias, int64_t bits, int64_t k,
                           int64_t n, bool per_row, const Tensor& out, Maybe offset, Maybe super_scale,
                           Maybe super_offset) {
  const Wna16Weights w = check_weights(kOp, packed, scale, zero, perm, chunks, bits, k, n, offset, super_scale,
                                       super_offset);
  run(x, w, bias, bits, n, per_row ? Activations::int8_rows : Activations::int8_chunks, out);
}

Tensor wna16_int8_linear(const Tensor& x, const Tensor& packed, const Tensor& scale, Maybe zero,
                         Maybe perm, const Tensor& chunks, Maybe bias, int64_t bits, int64_t k,
                         int64_t n, bool per_row, std::optional<ScalarType> out_dtype, Maybe offset,
                         Maybe super_scale, Maybe super_offset) {
  Tensor out = checked_output(x, n, out_dtype);
  wna16_int8_linear_out(x, packed, scale, zero, perm, chunks, bias, bits, k, n, per_row, out, offset,
                        super_scale, super_offset);
  return out;
}

}  // namespace
}  // namespace qcore_cpu

STABLE_TORCH_LIBRARY_FRAGMENT(qcore_cpu, m) {
  m.def(
      "wna16_linear(Tensor x, Tensor packed, Tensor scale, Tensor? zero, Tensor? perm, Tensor chunks, "
      "Tensor? bias, int bits, int in_features, int out_features, ScalarType? out_dtype=None, "
      "Tensor? offset=None, Tensor? super_scale=None, Tensor? super_offset=None) -> Tensor");
  m.def(
      "wna16_linear_out(Tensor x, Tensor packed, Tensor scale, Tensor? zero, Tensor? perm, "
      "Tensor chunks, Tensor? bias, int bits, int in_features, int out_features, Tensor(a!) out, "
      "Tensor? offset=None, Tensor? super_scale=None, Tensor? super_offset=None) -> ()");
  m.def(
      "wna16_int8_linear(Tensor x, Tensor packed, Tensor scale, Tensor? zero, Tensor? perm, "
      "Tensor chunks, Tensor? bias, int bits, int in_features, int out_features, bool per_row=False, "
      "ScalarType? out_dtype=None, Tensor? offset=None, Tensor? super_scale=None, "
      "Tensor? super_offset=None) -> Tensor");
  m.def(
      "wna16_int8_linear_out(Tensor x, Tensor packed, Tensor scale, Tensor? zero, Tensor? perm, "
      "Tensor chunks, Tensor? bias, int bits, int in_features, int out_features, bool per_row, "
      "Tensor(a!) out, Tensor? offset=None, Tensor? super_scale=None, Tensor? super_offset=None) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(qcore_cpu, CPU, m) {
  m.impl("wna16_linear", TORCH_BOX(&qcore_cpu::wna16_linear));
  m.impl("wna16_linear_out", TORCH_BOX(&qcore_cpu::wna16_linear_out));
  m.impl("wna16_int8_linear", TORCH_BOX(&qcore_cpu::wna16_int8_linear));
  m.impl("wna16_int8_linear_out", TORCH_BOX(&qcore_cpu::wna16_int8_linear_out));
}
