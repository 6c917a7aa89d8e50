// int8: activations quantized to int8, and int8 weights times quantized activations.

#include <cstring>

#include "op_support.h"

namespace qcore_cpu {
namespace {

// |q - azp| <= 255 and |w| <= 128: up to here a sum fits in 32 bits, whatever the values.
constexpr int64_t kMaxK = 65536;

float scalar_float(const char* op, const char* name, const Tensor& t) {
  check_dtype(op, name, t, ScalarType::Float);
  QCORE_CHECK(t.numel() == 1, op, ": ", name, " has shape ", shape_of(t),
                  "; it must have one element");
  return *static_cast<const float*>(t.data_ptr());
}

RowQuant static_quant(const char* op, const Tensor& scale, const std::optional<Tensor>& azp) {
  RowQuant mode{false, !azp, scalar_float(op, "input_scale", scale), 0};
  if (azp) {
    check_dtype(op, "azp", *azp, ScalarType::Int);
    QCORE_CHECK(azp->numel() == 1, op, ": azp has shape ", shape_of(*azp),
                    "; it must have one element");
    mode.azp = *static_cast<const int32_t*>(azp->data_ptr());
    QCORE_CHECK(mode.azp >= -128 && mode.azp <= 127, op, ": azp is ", mode.azp,
                    "; allowed: -128 to 127");
  }
  return mode;
}

// ---- quantization by itself ------------------------------------------------------------------

void quantize_rows(const Rows& x, const RowQuant& mode, int8_t* q, float* scale, int32_t* azp) {
  const IsaKernels& isa = active_isa();
  torch::stable::parallel_for(0, x.rows, grain(kBytesPerThread, x.k * 4), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      isa.quantize_row(x.row(r), x.dtype, x.k, mode, q + r * x.k, scale + r, azp + r);
    }
  });
}

std::tuple<Tensor, Tensor, Tensor> dynamic_scaled_int8_quant(const Tensor& x, bool symmetric) {
  const Rows rows = as_rows("dynamic_scaled_int8_quant", x, -1);
  Tensor q = new_output(x, rows.k, ScalarType::Char);
  Tensor scale = new_output(x, 1, ScalarType::Float);
  Tensor azp = new_output(x, 1, ScalarType::Int);
  if (rows.rows > 0) {
    quantize_rows(rows, {true, symmetric, 0.0f, 0}, static_cast<int8_t*>(q.data_ptr()),
                  static_cast<float*>(scale.data_ptr()), static_cast<int32_t*>(azp.data_ptr()));
  }
  return {q, scale, azp};
}

Tensor static_scaled_int8_quant(const Tensor& x, const Tensor& scale,
                                const std::optional<Tensor>& azp) {
  constexpr const char* op = "static_scaled_int8_quant";
  const Rows rows = as_rows(op, x, -1);
  const RowQuant mode = static_quant(op, scale, azp);
  Tensor q = new_output(x, rows.k, ScalarType::Char);
  std::vector<float> scales(rows.rows);
  std::vector<int32_t> azps(rows.rows);
  if (rows.rows > 0) {
    quantize_rows(rows, mode, static_cast<int8_t*>(q.data_ptr()), scales.data(), azps.data());
  }
  return q;
}

// ---- packing ---------------------------------------------------------------------------------

// packed uint8 [blocks, quads, 16, 4]: four inputs of the 16 outputs of a block side by side, each weight + 128.
std::tuple<Tensor, Tensor> int8_pack(const Tensor& weight) {
  constexpr const char* op = "int8_pack";
  check_dtype(op, "weight", weight, ScalarType::Char);
  QCORE_CHECK(weight.dim() == 2 && weight.size(0) >= 1 && weight.size(1) >= 1, op,
                  ": weight has shape ", shape_of(weight), "; it must be [N, K], neither of them 0");
  const int64_t n = weight.size(0), k = weight.size(1);
  QCORE_CHECK(k <= kMaxK, op, ": weight has K = ", k, "; at most ", kMaxK,
                  ", beyond which a 32-bit sum may overflow");
  const int64_t blocks = ceil_div(n, kBlock), quads = ceil_div(k, 4);
  const int64_t row_stride = weight.stride(0), k_stride = weight.stride(1);
  Tensor packed = new_weight(weight, {blocks, quads, kBlock, 4}, ScalarType::Byte);
  Tensor col_sums = torch::stable::new_empty(weight, {n}, ScalarType::Int);
  const auto* from = static_cast<const int8_t*>(weight.data_ptr());
  auto* to = static_cast<uint8_t*>(packed.data_ptr());
  auto* sums = static_cast<int32_t*>(col_sums.data_ptr());
  torch::stable::parallel_for(0, blocks, grain(kBytesPerThread, quads * 64), [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      uint8_t* line = to + block * quads * 64;
      std::memset(line, 128, quads * 64);
      for (int64_t lane = 0; lane < std::min(kBlock, n - block * kBlock); ++lane) {
        const int64_t row = block * kBlock + lane;
        int32_t sum = 0;
        for (int64_t i = 0; i < k; ++i) {
          const int8_t value = from[row * row_stride + i * k_stride];
          line[i / 4 * 64 + lane * 4 + i % 4] = static_cast<uint8_t>(value + 128);
          sum += value;
        }
        sums[row] = sum;
      }
    }
  });
  return {packed, col_sums};
}

// ---- the layer -------------------------------------------------------------------------------

constexpr const char* kOp = "int8_scaled_linear";

// Space for a panel, which is kept; what only some instruction sets need is not touched by the others.
Int8Panel new_panel(const Int8Kernels& kernel, int64_t rows, int64_t quads) {
  thread_local Workspace space;
  const int64_t codes = align_line(rows * quads * 4), sides = align_line(rows * sizeof(Int8Side));
  const int64_t counts = ceil_div(quads, kernel.chunk_quads) * rows * 4;
  char* memory = space.reserve(sides + codes + (kernel.saturates ? 2 * codes + counts : 0));
  Int8Panel panel{memory + sides, nullptr, nullptr, reinterpret_cast<Int8Side*>(memory), rows};
  if (kernel.saturates) {
    panel.extra = panel.codes + codes;
    panel.extras = reinterpret_cast<int32_t*>(panel.extra + 2 * codes);
  }
  return panel;
}

void linear(const Int8Weights& w, const Rows& x, const RowQuant& mode, const Output& out) {
  const Int8Kernels& kernel = active_isa().int8;
  const int64_t blocks = ceil_div(out.n, kBlock);
  const bool few = x.rows <= kernel.rows;
  const int64_t most = std::min(x.rows, kPanelRows);  // of a panel, less what fills up the last tile
  const Int8Panel panel = new_panel(kernel,
                                    few ? kernel.padded(static_cast<int>(most))
                                        : ceil_div(most, kernel.rows) * kernel.rows,
                                    w.quads);
  auto pack = [&](int64_t first, int64_t rows, int64_t begin_tile, int64_t end_tile) {
    thread_local Workspace row_space;
    auto* space = reinterpret_cast<int8_t*>(row_space.reserve(int8_space(x.k)));
    for (int64_t row = begin_tile * kernel.rows; row < end_tile * kernel.rows; row += kernel.rows) {
      const int count = static_cast<int>(std::min<int64_t>(kernel.rows, rows - row));
      kernel.pack_rows(x.row(first + row), x.dtype, count, x.stride, mode, x.k, space, panel, row);
    }
  };

  if (few) {
    const int rows = static_cast<int>(x.rows);
    pack(0, rows, 0, 1);
    torch::stable::parallel_for(0, blocks, grain(kBytesPerThread, w.quads * 64), [&](int64_t begin, int64_t end) {
      kernel.narrow(w, rows, panel, begin, end, out);
    });
    return;
  }

  for (int64_t first = 0; first < x.rows; first += kPanelRows) {
    const int64_t rows = std::min(kPanelRows, x.rows - first);
    const int64_t row_tiles = ceil_div(rows, kernel.rows), strips = ceil_div(blocks, kPanelBlocks);
    const int64_t tile_grain = grain(kBytesPerThread, kernel.rows * x.k * 4);
    torch::stable::parallel_for(0, row_tiles, tile_grain, [&](int64_t begin, int64_t end) {
      pack(first, rows, begin, end);
    });
    // With few columns for the threads, rows are divided too.
    const int64_t wanted = ceil_div(2 * torch::stable::get_num_threads(), strips);
    const int64_t parts = std::max<int64_t>(1, std::min(wanted, row_tiles / 4));
    const int64_t part_rows = ceil_div(row_tiles, parts) * kernel.rows;
    const int64_t part_grain = grain(kProductsPerThread, part_rows * w.quads * 4 * kPanelBlocks * kBlock);
    torch::stable::parallel_for(0, strips * parts, part_grain, [&](int64_t begin, int64_t end) {
      thread_local Workspace scratch_space;
      char* scratch = scratch_space.reserve(kInt8Scratch);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t block = i % strips * kPanelBlocks, row = i / strips * part_rows;
        const int64_t count = std::min(part_rows, rows - row);
        if (count <= 0) continue;
        kernel.wide(w, static_cast<int>(count), panel, row, block, std::min(block + kPanelBlocks, blocks),
                    scratch, out, first + row);
      }
    });
  }
}

void int8_scaled_linear_out(const Tensor& x, const Tensor& packed, const Tensor& weight_scale,
                            const Tensor& col_sums, const std::optional<Tensor>& bias,
                            const std::optional<Tensor>& input_scale,
                            const std::optional<Tensor>& azp, bool symmetric, const Tensor& out) {
  QCORE_CHECK(col_sums.dim() == 1 && col_sums.size(0) >= 1, kOp, ": col_sums has shape ",
                  shape_of(col_sums), "; it must be [N]");
  const int64_t n = col_sums.size(0), blocks = ceil_div(n, kBlock);
  const Rows rows = as_rows(kOp, x, -1);
  Int8Weights w{};
  w.quads = ceil_div(rows.k, 4);
  QCORE_CHECK(rows.k >= 1 && rows.k <= kMaxK, kOp, ": x has K = ", rows.k, "; allowed: 1 to ", kMaxK);
  check_tensor(kOp, "col_sums", col_sums, ScalarType::Int, {n});
  check_tensor(kOp, "packed", packed, ScalarType::Byte, {blocks, w.quads, kBlock, 4});
  w.packed = static_cast<const uint8_t*>(packed.data_ptr());
  w.col_sums = static_cast<const int32_t*>(col_sums.data_ptr());
  w.scale_dtype = float_dtype(kOp, "weight_scale", weight_scale);
  const int64_t scales = weight_scale.numel();
  QCORE_CHECK((scales == 1 || scales == n) && weight_scale.is_contiguous(), kOp,
                  ": weight_scale has shape ", shape_of(weight_scale),
                  "; it must be contiguous and have 1 or N = ", n, " elements");
  w.scale = weight_scale.data_ptr();
  w.scale_per_channel = scales == n;
  QCORE_CHECK(input_scale || !azp, kOp, ": azp is given without input_scale; dynamic quantization "
                  "makes its own, with symmetric=False");
  QCORE_CHECK(!azp || !symmetric, kOp, ": azp is given with symmetric=True; it must be False");
  QCORE_CHECK(!input_scale || symmetric || azp, kOp, ": symmetric is False with input_scale; then "
                  "azp must be given");
  const RowQuant mode = input_scale ? static_quant(kOp, *input_scale, azp)
                                    : RowQuant{true, symmetric, 0.0f, 0};
  check_out(kOp, out, x, n);
  const Output output = make_output(kOp, out, bias, n);
  if (rows.rows > 0) linear(w, rows, mode, output);
}

Tensor int8_scaled_linear(const Tensor& x, const Tensor& packed, const Tensor& weight_scale,
                          const Tensor& col_sums, const std::optional<Tensor>& bias,
                          const std::optional<Tensor>& input_scale, const std::optional<Tensor>& azp,
                          bool symmetric, std::optional<ScalarType> out_dtype) {
  const ScalarType type = out_dtype.value_or(x.scalar_type());
  float_dtype(kOp, out_dtype ? "out_dtype" : "x", type);
  QCORE_CHECK(x.dim() >= 1, kOp, ": x has no dimension; it must be [..., K]");
  QCORE_CHECK(col_sums.dim() == 1, kOp, ": col_sums has shape ", shape_of(col_sums),
                  "; it must be [N]");
  Tensor out = new_output(x, col_sums.size(0), type);
  int8_scaled_linear_out(x, packed, weight_scale, col_sums, bias, input_scale, azp, symmetric, out);
  return out;
}

}  // namespace
}  // namespace qcore_cpu

STABLE_TORCH_LIBRARY_FRAGMENT(qcore_cpu, m) {
  m.def("dynamic_scaled_int8_quant(Tensor x, bool symmetric=True) -> (Tensor, Tensor, Tensor)");
  m.def("static_scaled_int8_quant(Tensor x, Tensor input_scale, Tensor? azp=None) -> Tensor");
  m.def("int8_pack(Tensor weight) -> (Tensor, Tensor)");
  m.def(
      "int8_scaled_linear(Tensor x, Tensor packed, Tensor weight_scale, Tensor col_sums, "
      "Tensor? bias=None, Tensor? input_scale=None, Tensor? azp=None, bool symmetric=True, "
      "ScalarType? out_dtype=None) -> Tensor");
  m.def(
      "int8_scaled_linear_out(Tensor x, Tensor packed, Tensor weight_scale, Tensor col_sums, "
      "Tensor? bias, Tensor? input_scale, Tensor? azp, bool symmetric, Tensor(a!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(qcore_cpu, CPU, m) {
  m.impl("dynamic_scaled_int8_quant", TORCH_BOX(&qcore_cpu::dynamic_scaled_int8_quant));
  m.impl("static_scaled_int8_quant", TORCH_BOX(&qcore_cpu::static_scaled_int8_quant));
  m.impl("int8_pack", TORCH_BOX(&qcore_cpu::int8_pack));
  m.impl("int8_scaled_linear", TORCH_BOX(&qcore_cpu::int8_scaled_linear));
  m.impl("int8_scaled_linear_out", TORCH_BOX(&qcore_cpu::int8_scaled_linear_out));
}
