// What tests ask of csrc/w4_mid_m_*: the whole kernel on the processor, and how it divides the work.
#include "w4_emulation.h"

#include "w4_mid_m_kernel.cuh"
#include "w4_sm90_plan.h"
#include "w4_ways.h"

#include "w4_arguments.h"

using namespace qcore_cuda;

template <typename T, class KIND>
void run(const mid_m::Problem& p, const CUtensorMap (&maps)[4], int seed) {
  const unsigned high = 8 * p.plan.row_tiles, rows = (p.m + high - 1) / high, width = 32 * p.plan.column_warps;
  mid_m::with_variant<KIND>(p, [&](auto tiles, auto after) {
    const auto kernel = mid_m::mid_m_kernel<T, KIND, decltype(tiles)::value, decltype(after)::value>;
    for (unsigned z = 0; z < (p.n_out + width - 1) / width; ++z) {
      for (unsigned r = 0; r < rows; ++r) {
        emulation::run_cluster(32 * (p.plan.column_warps * p.plan.k_warps + 1), p.layout.shared_bytes, p.plan.split, r,
                               z, seed + r + 100 * z, [&] { kernel(maps[0], maps[1], maps[2], maps[3], p); });
      }
    }
  });
}

extern "C" void multiply(const Arguments* a) {
  const auto* const zeros = static_cast<const uint32_t*>(a->zeros);
  mid_m::Problem p = mid_m::problem_of(a->m, a->k, a->n, a->n_out, a->bits, a->group_size, a->groups,
                                       {zeros, zeros ? a->n * a->bits / 32 : 0, a->zero, a->add},
                                       {a->row_tiles, a->column_warps, a->k_warps, a->split}, 132, a->floats != 0, a->floats == 2);
  p.scales = a->scales;
  p.column_scales = static_cast<const float*>(a->column_scales);
  p.bias = a->bias;
  p.bias_float = a->bias_float;
  p.out = a->out;
  p.out_float = a->out_float;
  const int pieces = p.plan.k_warps * mid_m::stage_pieces(a->bits, p.plan.row_tiles);
  p.x_boxes = p.has_x_boxes(a->x_k);
  const auto bytes = [](const void* data) { return static_cast<const uint8_t*>(data); };
  const int slots = p.slots.count, zero_row = a->n * a->bits / 8, columns = p.plan.column_warps * mid_m::kWarpColumns;
  const CUtensorMap lanes{bytes(a->words), a->k / 64, a->n * 32, a->n * 32, pieces, p.plan.column_warps, 4, 1024};
  const CUtensorMap rows{bytes(a->words), a->k * a->bits / 32, a->n * 4, a->n * 4, p.word_box_rows(a->bits),
                         p.plan.column_warps};
  const CUtensorMap maps[] = {
      {bytes(a->x), a->m, a->x_k * 2, a->x_stride * 2, p.x_rows, pieces},
      a->lanes ? lanes : rows,
      {bytes(a->scales), a->groups, a->n * 2, a->n * 2, slots, 1, 2, columns * 2},
      {bytes(a->zeros), a->groups, zero_row, zero_row, slots, 1, 4, columns * a->bits / 8},
  };
  const auto run = [&](auto kind) {
    using Kind = decltype(kind);
    a->bfloat ? ::run<__nv_bfloat16, Kind>(p, maps, a->seed) : ::run<__half, Kind>(p, maps, a->seed);
  };
  if (a->lanes) ::run<__nv_bfloat16, Lanes>(p, maps, a->seed);
  else if (a->floats == 2) run(NvFp4{});
  else if (a->floats) a->bits == 4 ? run(E2M1{}) : run(E4M3{});
  else if (a->bfloat && (p.after || is_centred(p.zeros, a->bits))) {
    a->bits == 4 ? ::run<__nv_bfloat16, Subnormal<4>>(p, maps, a->seed) : ::run<__nv_bfloat16, Subnormal<8>>(p, maps, a->seed);
  }
  else a->bits == 4 ? run(Integer<4>{}) : run(Integer<8>{});
}

// A word's pairs, then the same by `pair_at`, then its codes as float32.
template <class KIND, typename T>
void pairs_of(uint32_t word, uint32_t* pairs, float* floats) {
  using C = Codes<KIND, T>;
  const auto z = C::zero(0);
  pairs[0] = C::template pair<0>(word, z);
  pairs[1] = C::template pair<1>(word, z);
  if constexpr (KIND::kBits == 4) {
    pairs[2] = C::template pair<2>(word, z);
    pairs[3] = C::template pair<3>(word, z);
  }
  constexpr int count = 16 / KIND::kBits;
  for (int q = 0; q < count; ++q) pairs[count + q] = pair_at<KIND, T>(word, q, z);
  for (int i = 0; i < 2 * count; ++i) floats[i] = float_of<KIND>(word >> (KIND::kBits * i) & ((1u << KIND::kBits) - 1));
}

extern "C" void small_floats(int bits, int bfloat, uint32_t word, uint32_t* pairs, float* floats) {
  if (bits == 4) (bfloat ? pairs_of<E2M1, __nv_bfloat16> : pairs_of<E2M1, __half>)(word, pairs, floats);
  else (bfloat ? pairs_of<E4M3, __nv_bfloat16> : pairs_of<E4M3, __half>)(word, pairs, floats);
}

// A word's pairs times a scale's byte, then the same by `pair_at`; and the scale.
template <typename T>
float scaled_pairs(uint32_t word, uint32_t byte, uint32_t* pairs) {
  using C = Codes<NvFp4, T>;
  const auto z = C::zero_of(byte << 16 | 0x5a000033u, 2);
  pairs[0] = C::template pair<0>(word, z);
  pairs[1] = C::template pair<1>(word, z);
  pairs[2] = C::template pair<2>(word, z);
  pairs[3] = C::template pair<3>(word, z);
  for (int q = 0; q < 4; ++q) pairs[4 + q] = pair_at<NvFp4, T>(word, q, z);
  return nvfp4_scale(byte);
}

extern "C" float nvfp4(int bfloat, uint32_t word, uint32_t byte, uint32_t* pairs) {
  return (bfloat ? scaled_pairs<__nv_bfloat16> : scaled_pairs<__half>)(word, byte, pairs);
}

extern "C" void plan(int m, int n, int k, int bits, int whole, int sm_count, int* out) {
  const mid_m::Plan p = mid_m::plan_for(m, n, k, bits, whole, sm_count);
  const mid_m::Layout l = mid_m::layout_for(p, bits, true, mid_m::slots_for(p, bits, 1).count);
  const int found[] = {p.row_tiles, p.column_warps, p.k_warps, p.split, l.stages, l.stage_bytes, l.shared_bytes};
  std::copy(std::begin(found), std::end(found), out);
}

// `clusters`: how many of them there are at a time, [tiles][blocks of a cluster].
extern "C" void many_plan(int m, int n, int k, int few_help, const int* clusters, int* out) {
  const auto found = [&](int tile, int blocks) { return clusters[tile * (many::kMostParts + 1) + blocks]; };
  const many::Plan plan = many::plan_for(m, n, k, few_help != 0, found);
  const many::Tile& tile = many::kTiles[plan.tile];
  out[0] = tile.rows, out[1] = tile.columns, out[2] = plan.given ? -plan.given : plan.parts;
}

extern "C" int way(int few, int sm90, int mid, int whole_pieces, int m, int n, int k, int sm_count,
                   int few_rows) {
  return static_cast<int>(way_for({few != 0, sm90 != 0, mid != 0, whole_pieces != 0}, m, n, k, sm_count, few_rows));
}
