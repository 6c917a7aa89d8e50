// SM90: many rows times packed integer weights: how the work is divided, and the launch of its kernel.

#include <optional>

#include "gptq.cuh"
#include "meeting_flags.h"
#include "remembered.h"
#include "tensor_map.h"
#include "w4_sm90_kernel.cuh"
#include "w4_sm90_plan.h"

namespace qcore_cuda {
namespace {

// A launch of so many clusters.
template <typename T, class KIND, class S, bool PARTS>
LaunchShape shape_of(const char* op, int blocks_of_cluster, int64_t clusters, bool early, int32_t device,
                     cudaStream_t stream) {
  static std::atomic<uint64_t> allowed{0};
  const auto* kernel = reinterpret_cast<const void*>(&w4_sm90_kernel<T, KIND, S, PARTS>);
  allow_shared(op, kernel, S::kSharedBytes, device, allowed);
  const auto blocks = static_cast<unsigned>(blocks_of_cluster);
  return {dim3(static_cast<unsigned>(clusters) * blocks), S::kThreads, S::kSharedBytes, stream, early, {blocks, 1, 1}};
}

// How many clusters of so many blocks a device has at a time; asked for once.
template <typename T, class KIND, class S>
int clusters_at_a_time(int blocks, int32_t device) {
  static std::atomic<int> known[64][many::kMostParts + 1];
  std::atomic<int>& count = known[device % 64][blocks];
  if (count.load(std::memory_order_relaxed) == 0) {
    const LaunchConfig launch(shape_of<T, KIND, S, true>("w4_sm90", blocks, 1, false, device, nullptr));
    int found = 0;
    cudaOccupancyMaxActiveClusters(&found, &w4_sm90_kernel<T, KIND, S, true>, &launch.config);
    count.store(std::max(found, 1), std::memory_order_relaxed);
  }
  return count.load(std::memory_order_relaxed);
}

// Lets clusters that have no tile help the others with the last `given` times 64 inputs. Returns the memory in which they
// leave their sums, or nothing where that can't be done.
template <class S>
std::optional<Tensor> let_help(Problem& p, const many::Help& help, int given, const Tensor& like, int32_t device,
                               cudaStream_t stream) {
  const int stages = given / S::kPieces;
  if (!S::kHelps || help.helpers == 0 || stages == 0 || stages >= p.k_stages) return {};
  if (help.helped * 2 * kGroups > kMeetingFlags) return {};
  uint8_t* const flags = meeting_flags(device, stream);
  if (!flags) return {};
  Tensor sums = new_tensor(like, {help.helped * 2 * S::kRows * S::kColumns}, ScalarType::Float);
  p.helped = {static_cast<int>(help.helpers), static_cast<int>(help.helped), stages,
              {static_cast<float4*>(sums.data_ptr()), flags}};
  return sums;
}

template <typename T, class KIND, class S, bool PARTS>
void launch(const char* op, const Rows& x, const GptqWeight& w, const Tensor& words, const Tensor& scales, Problem p,
            int given, bool early, int32_t device, cudaStream_t stream) {
  const RowMaps x_maps = row_maps(op, x.data(), x.m, x.k * 2, x.stride * 2, S::kRows / (PARTS ? 1 : 2));
  const CUtensorMap w_map =
      w.lanes ? lanes_map(op, words.data_ptr(), words.size(0), w.n / 32, S::kPieces, S::kColumns / 32)
              : plain_matrix_map(op, words.data_ptr(), words.size(0), w.n, 4, S::kPieces * S::kWordRows, S::kColumns);
  const CUtensorMap scale_map = plain_matrix_map(op, scales.data_ptr(), scales.size(0), w.n, 2, 1, S::kColumns);
  const CUtensorMap zero_map =
      p.has_zeros ? plain_matrix_map(op, w.zeros.words, scales.size(0), w.zeros.stride, 4, 1, S::kZeroWords) : scale_map;
  int64_t clusters = int64_t{p.tiles_m} * p.tiles_n;
  std::optional<Tensor> left;  // by helpers
  if constexpr (!PARTS) {
    const int64_t pairs = p.tiles_m * ceil_div(p.tiles_n, 2), places = clusters_at_a_time<T, KIND, S>(2, device);
    const many::Help help(pairs, places);
    left = let_help<S>(p, help, given, words, device, stream);
    clusters = left ? help.owners + help.helpers : std::min(pairs, places);
  }
  launch_kernel(op, shape_of<T, KIND, S, PARTS>(op, PARTS ? p.parts : 2, clusters, early, device, stream),
                w4_sm90_kernel<T, KIND, S, PARTS>, x_maps.whole, x_maps.rest, w_map, scale_map, zero_map, p);
}

}  // namespace

bool fits_w4_sm90(const GptqWeight& w, ScalarType type, int32_t device) {
  return device_facts(device).capability == 90 && (w.bits == 8 || (w.bits == 4 && w.shuffled)) && !w.g_idx &&
         (w.group_size >= w.k || w.group_size % 32 == 0) && w.n % 32 == 0 && (w.scaled || dtype_of(w.scales) == type);
}

Tensor w4_sm90(const char* op, const Tensor& a, const GptqWeight& w, const Tensor* bias, int64_t columns,
               const Launch& at, const many::Plan* wish) {
  const Tensor out = new_tensor(a, shape_with_last(a, columns));
  const Rows rows = ready_rows(op, "a", a, w.perm, w.k, at.stream());
  if (rows.m * columns == 0) return out;
  const int32_t device = a.get_device_index();
  const Tensor words = aligned(w.words), scales = aligned(w.scales);
  const bool early = in_place(words, w.words) && in_place(scales, w.scales);
  Problem p = problem_of(rows.m, w.k, columns, w.bits, w.group_size, w.zeros, w.scaled);
  p.column_scales = w.column_scales;
  p.bias = bias ? bias->data_ptr() : nullptr;
  p.bias_float = bias && dtype_of(*bias) == ScalarType::Float;
  p.out = out.data_ptr();
  const auto run = [&](auto zero, auto kind) {
    using T = decltype(zero);
    using Kind = decltype(kind);
    const auto clusters = [&](int tile, int blocks) {
      return with_tile(tile, [&](auto at) {
        return clusters_at_a_time<T, Kind, ShapeAt<Kind, decltype(at)::value>>(blocks, device);
      });
    };
    const many::Plan plan =
        wish ? *wish : remembered(std::array<int64_t, 4>{rows.m, columns, w.k, device},
                                  [&] { return many::plan_for(rows.m, columns, w.k, ShapeAt<Kind, 0>::kHelps, clusters); });
    p.parts = plan.parts;
    with_tile(plan.tile, [&](auto tile) {
      using S = ShapeAt<Kind, decltype(tile)::value>;
      take_tiles<S>(p, w.k);
      if (p.parts) launch<T, Kind, S, true>(op, rows, w, words, scales, p, 0, early, device, at.stream());
      else launch<T, Kind, S, false>(op, rows, w, words, scales, p, plan.given, early, device, at.stream());
    });
  };
  const auto with_kind = [&](auto zero) {
    if (w.scaled) return run(zero, NvFp4{});
    if (w.floats && w.bits == 8) return run(zero, E4M3{});
    if constexpr (takes_e2m1<decltype(zero)>) {
      if (w.floats) return run(zero, E2M1{});
    }
    if constexpr (std::is_same<decltype(zero), __nv_bfloat16>::value) {
      if (w.lanes) return run(zero, Lanes{});
      if (is_centred(w.zeros, w.bits)) return w.bits == 4 ? run(zero, Subnormal<4>{}) : run(zero, Subnormal<8>{});
    }
    w.bits == 4 ? run(zero, Integer<4>{}) : run(zero, Integer<8>{});
  };
  if (dtype_of(a) == ScalarType::Half) with_kind(__half{});
  else with_kind(__nv_bfloat16{});
  return out;
}

}  // namespace qcore_cuda
