// SM90: many rows times packed integer weights: how the work is divided, and the launch of its kernel.

#include "tensor_map.h"
#include "w4_sm90_kernel.cuh"

namespace qcore_cuda {
namespace {

// A launch of so many clusters.
template <typename T, class KIND, int ROWS, bool PARTS>
LaunchShape shape_of(const char* op, int blocks_of_cluster, int64_t clusters, bool early, int32_t device,
                     cudaStream_t stream) {
  using S = Shape<KIND::kBits, ROWS>;
  static std::atomic<uint64_t> allowed{0};
  const auto* kernel = reinterpret_cast<const void*>(&w4_sm90_kernel<T, KIND, ROWS, PARTS>);
  allow_shared(op, kernel, S::kSharedBytes, device, allowed);
  const auto blocks = static_cast<unsigned>(blocks_of_cluster);
  return {dim3(static_cast<unsigned>(clusters) * blocks), S::kThreads, S::kSharedBytes, stream, early, {blocks, 1, 1}};
}

// How many clusters of two blocks a device has at a time; asked for once.
template <typename T, class KIND, int ROWS>
int pairs_at_a_time(const char* op, int32_t device) {
  static std::atomic<int> known[64];
  std::atomic<int>& count = known[device % 64];
  if (count.load(std::memory_order_relaxed) == 0) {
    const LaunchConfig launch(shape_of<T, KIND, ROWS, true>(op, 2, 1, false, device, nullptr));
    int found = 0;
    cudaOccupancyMaxActiveClusters(&found, &w4_sm90_kernel<T, KIND, ROWS, true>, &launch.config);
    count.store(std::max(found, 1), std::memory_order_relaxed);
  }
  return count.load(std::memory_order_relaxed);
}

// Parts of K: two, where tiles alone leave half of the processors idle or more; 0: tiles in pairs. Clusters of more
// blocks do not fit all processors, or share some.
template <typename T, class KIND, int ROWS>
int parts_for(const char* op, const Problem& p, int64_t k_pieces, int32_t device) {
  const int64_t tiles = int64_t{p.tiles_m} * p.tiles_n;
  return k_pieces >= 8 && tiles <= pairs_at_a_time<T, KIND, ROWS>(op, device) ? 2 : 0;
}

// Rows of a tile. The smaller, the more blocks share the work where one round of blocks with half of K each
// does it all; else the larger, the less often weights are made. benchmarks/results/cuda_mixed_plans.json.
int rows_for(int64_t m, int64_t n, int sm_count) {
  const auto one_round = [&](int rows) { return 2 * ceil_div(m, rows) * ceil_div(n, kTileN) <= sm_count; };
  if (m <= 64 || one_round(64)) return 64;
  return m <= 128 || one_round(128) ? 128 : 256;
}

template <typename T, class KIND, int ROWS, bool PARTS>
void launch(const char* op, const Rows& x, const GptqWeight& w, const Tensor& words, const Tensor& scales,
            const Problem& p, bool early, int32_t device, cudaStream_t stream) {
  using S = Shape<KIND::kBits, ROWS>;
  const CUtensorMap x_map = byte_matrix_map(op, x.data(), x.m, x.k * 2, x.stride * 2, PARTS ? ROWS : ROWS / 2);
  const CUtensorMap w_map = plain_matrix_map(op, words.data_ptr(), words.size(0), w.n, 4,
                                             S::kPieces * S::kWordRows, kTileN);
  const CUtensorMap scale_map = plain_matrix_map(op, scales.data_ptr(), scales.size(0), w.n, 2, 1, kTileN);
  const CUtensorMap zero_map =
      p.has_zeros ? plain_matrix_map(op, w.zeros.words, scales.size(0), w.zeros.stride, 4, 1, S::kZeroWords) : scale_map;
  int64_t clusters = int64_t{p.tiles_m} * p.tiles_n;
  if constexpr (!PARTS) {
    const int64_t places = device_facts(device).sm_count * S::kBlocks / 2;
    clusters = std::min(int64_t{p.tiles_m} * ceil_div(p.tiles_n, 2), places);
  }
  launch_kernel(op, shape_of<T, KIND, ROWS, PARTS>(op, PARTS ? p.parts : 2, clusters, early, device, stream),
                w4_sm90_kernel<T, KIND, ROWS, PARTS>, x_map, w_map, scale_map, zero_map, p);
}

}  // namespace

bool fits_w4_sm90(const GptqWeight& w, ScalarType type, int32_t device) {
  return device_facts(device).capability == 90 && (w.bits == 8 || (w.bits == 4 && w.shuffled)) && !w.g_idx &&
         (w.group_size >= w.k || w.group_size % 32 == 0) && w.n % 32 == 0 && (w.scaled || dtype_of(w.scales) == type);
}

Tensor w4_sm90(const char* op, const Tensor& a, const GptqWeight& w, const Tensor* bias, int64_t columns,
               const Launch& at, int rows_wished, int parts_wished) {
  const Tensor out = new_tensor(a, shape_with_last(a, columns));
  const Rows rows = ready_rows(op, "a", a, w.perm, w.k, at.stream());
  if (rows.m * columns == 0) return out;
  const int32_t device = a.get_device_index();
  const Tensor words = aligned(w.words), scales = aligned(w.scales);
  const bool early = in_place(words, w.words) && in_place(scales, w.scales);
  Problem p = {};
  p.column_scales = w.column_scales;
  p.bias = bias ? bias->data_ptr() : nullptr;
  p.bias_float = bias && dtype_of(*bias) == ScalarType::Float;
  p.out = out.data_ptr();
  p.m = static_cast<int>(rows.m);
  p.n = static_cast<int>(columns);
  const int64_t k_pieces = ceil_div(w.k, kPieceK);
  p.group_halves = w.scaled ? 1 : static_cast<int>(w.group_size >= w.k ? 4 * k_pieces : w.group_size / 32);
  p.zero = w.zeros.constant;
  p.has_zeros = w.zeros.words != nullptr;
  p.zero_ones = !w.zeros.add ? 0 : w.bits == 4 ? 0x11111111u : 0x01010101u;
  const int tile_rows = rows_wished ? rows_wished : rows_for(rows.m, columns, device_facts(device).sm_count);
  p.tiles_m = static_cast<int>(ceil_div(rows.m, tile_rows));
  p.tiles_n = static_cast<int>(ceil_div(columns, kTileN));
  const auto run = [&](auto zero, auto kind, auto rows_of_tile) {
    using T = decltype(zero);
    using Kind = decltype(kind);
    constexpr int kRows = decltype(rows_of_tile)::value;
    p.k_stages = static_cast<int>(ceil_div(w.k, Shape<Kind::kBits, kRows>::kStageK));
    p.parts = rows_wished ? parts_wished : parts_for<T, Kind, kRows>(op, p, k_pieces, device);
    if (p.parts) launch<T, Kind, kRows, true>(op, rows, w, words, scales, p, early, device, at.stream());
    else launch<T, Kind, kRows, false>(op, rows, w, words, scales, p, early, device, at.stream());
  };
  const auto with_rows = [&](auto zero, auto kind) {
    if (tile_rows == 64) return run(zero, kind, std::integral_constant<int, 64>{});
    if (tile_rows == 128) return run(zero, kind, std::integral_constant<int, 128>{});
    run(zero, kind, std::integral_constant<int, 256>{});
  };
  const auto with_kind = [&](auto zero) {
    if (w.scaled) return with_rows(zero, NvFp4{});
    if (w.floats && w.bits == 8) return with_rows(zero, E4M3{});
    if constexpr (takes_e2m1<decltype(zero)>) {
      if (w.floats) return with_rows(zero, E2M1{});
    }
    w.bits == 4 ? with_rows(zero, Integer<4>{}) : with_rows(zero, Integer<8>{});
  };
  if (dtype_of(a) == ScalarType::Half) with_kind(__half{});
  else with_kind(__nv_bfloat16{});
  return out;
}

}  // namespace qcore_cuda
