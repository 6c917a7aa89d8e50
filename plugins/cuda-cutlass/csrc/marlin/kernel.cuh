// The generated kernels: activations [m, k] times weights in Marlin's layout [k, n].
//
// Tiles of the output, and in each its inputs in steps of TILE_K, are one long list of which every block
// does an equal part (stream-K). A tile that several blocks share is summed by the last of them to arrive,
// always in the order of the inputs: results do not vary. Weights are the left operand of the tensor cores,
// so that the tile has rows in eights, and few rows waste little.
#pragma once

#include "dequantize.cuh"
#include "output.cuh"
#include "stages.cuh"

namespace qcore_marlin {

// A place in the list.
template <class C>
struct Place {
  int tile, step;  // step: of TILE_K inputs

  MARLIN_DEVICE void next(int steps) {
    if (++step == steps) {
      step = 0;
      ++tile;
    }
  }
};

template <class C>
struct Sums {
  using Number = typename Choose<C::INT8 && !C::GROUPED, int, float>::Type;
  Number d[4][C::M8][4];  // of 16 outputs, of 8 rows

  MARLIN_DEVICE void clear() {
#pragma unroll
    for (int tile = 0; tile < 4; ++tile) {
#pragma unroll
      for (int m = 0; m < C::M8; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) d[tile][m][i] = 0;
      }
    }
  }
};

// The activations of a step, for eight rows of the tile or sixteen.
template <class C>
struct Rows {
  static constexpr int AT_ONCE = C::M8 == 1 ? 1 : 2;
  u32 x[AT_ONCE][2];

  MARLIN_DEVICE void load(const char* a, int m, int k, int lane) {
    const int piece = k * C::ACT_BYTES / 16 + lane / 8 % 2;
    if constexpr (C::M8 == 1) load_matrices2(x[0], a + a_place<C>(lane % 8, piece));
    else load_matrices4(x[0], a + a_place<C>(m * 8 + lane / 16 * 8 + lane % 8, piece));
  }
};

// A thread's words of a piece.
template <class C>
MARLIN_DEVICE void load_words(const char* b, int k, int slice, int lane, u32 (&words)[C::WORDS]) {
  const char* from = b + (k / C::STEP * (C::TILE_N / C::PIECE_N) + slice) * C::PIECE_BYTES + lane * 16;
#pragma unroll
  for (int part = 0; part < C::WORDS / 4; ++part) {
    const Quad v = *reinterpret_cast<const Quad*>(from + part * 512);
    words[4 * part] = v.x, words[4 * part + 1] = v.y, words[4 * part + 2] = v.z, words[4 * part + 3] = v.w;
  }
}

// The same of a piece of 32 outputs: the words of sixteen, tile 0 to 3 of a warp's.
template <class C>
MARLIN_DEVICE void load_half_words(const char* b, int k, int slice, int tile, int lane, u32 (&words)[C::WORDS / 2]) {
  const char* from = b + (k / C::STEP * (C::TILE_N / C::PIECE_N) + slice * 2 + tile / 2) * C::PIECE_BYTES + lane * 16;
  if constexpr (C::BITS == 4) {
    const u64 v = *reinterpret_cast<const u64*>(from + tile % 2 * 8);
    words[0] = static_cast<u32>(v), words[1] = static_cast<u32>(v >> 32);
  } else {
    const Quad v = *reinterpret_cast<const Quad*>(from + tile % 2 * 512);
    words[0] = v.x, words[1] = v.y, words[2] = v.z, words[3] = v.w;
  }
}

// What a warp keeps beside its sums: scales and zero points of the group it is in.
template <class C>
struct Group {
  u32 scales[C::WIDE && C::GROUPED ? 8 : 1];
  u32 zeros[C::ZEROS ? 8 : 1];

  MARLIN_DEVICE void load(const Stage<C>& stage, int k, int slice, int lane) {
    const int position = slice * 64 + lane / 4 * 8;
    const int row = C::GROUP_ROWS > 1 ? k / (16 * (C::GROUPED ? C::GROUP : 1)) : 0;
    if constexpr (C::WIDE && C::GROUPED) wide_scales<C>(stage.scales + row * C::SCALE_ROW, position, scales);
    if constexpr (C::ZEROS) load_zeros<C>(stage.zeros + row * C::ZERO_ROW, position, zeros);
  }
};

// The scales of four inputs that each name their group: of a thread's inputs 2 (lane % 4) + {0, 1, 8, 9}.
template <class C>
MARLIN_DEVICE void scales_by_input(const Params& p, int column, int k, int lane, u32 (&scales)[4][4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int input = k + lane % 4 * 2 + i % 2 + i / 2 * 8;
    Quad v{0, 0, 0, 0};
    if (input < p.k && column < p.n) {
      const char* row = static_cast<const char*>(p.scales) + 2 * (static_cast<long long>(p.g_idx[input]) * p.n + column);
      v = *reinterpret_cast<const Quad*>(row + lane / 4 * 16);
    }
    scales[i][0] = v.x, scales[i][1] = v.y, scales[i][2] = v.z, scales[i][3] = v.w;
  }
}

// A step with activations of 16 bits. `k` is in the stage, `k_all` and `n_all` (of the warp's outputs) in the
// matrix.
template <class C>
MARLIN_DEVICE void wide_step(const Params& p, const Stage<C>& stage, int k, int k_all, int n_all, int slice, int lane,
                             const Group<C>& group, Sums<C>& sums) {
  u32 words[C::WORDS];
  load_words<C>(stage.b, k, slice, lane, words);
  constexpr int AT_ONCE = Rows<C>::AT_ONCE;
  Rows<C> rows[C::M8 / AT_ONCE];
#pragma unroll
  for (int i = 0; i < C::M8 / AT_ONCE; ++i) rows[i].load(stage.a, i * AT_ONCE, k, lane);
  u32 by_input[4][4];
  if constexpr (C::ANY_ORDER) scales_by_input<C>(p, n_all, k_all, lane, by_input);
#pragma unroll
  for (int tile = 0; tile < 4; ++tile) {
    u32 w[4];
    wide_weights<C>(words, tile, group.zeros, w);
    if constexpr (C::GROUPED) {
#pragma unroll
      for (int i = 0; i < 4; ++i) w[i] = mul2<C::BF16>(w[i], group.scales[2 * tile + i % 2]);
    } else if constexpr (C::ANY_ORDER) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int low = i / 2 * 2;
        w[i] = mul2<C::BF16>(w[i], permute(by_input[low][tile], by_input[low + 1][tile], i % 2 ? 0x7632 : 0x5410));
      }
    }
#pragma unroll
    for (int m = 0; m < C::M8; ++m) multiply<C::FAMILY, C::ACT>(sums.d[tile][m], w, rows[m / AT_ONCE].x[m % AT_ONCE]);
  }
}

// d += scale * (w x), of 8-bit activations in groups.
template <class C>
MARLIN_DEVICE void multiply_scaled(float* d, const u32* w, const u32* x, float low, float high) {
  float product[4];
  if constexpr (C::INT8) {
    // 1.5 * 2^23 and an integer below 2^22 are its float's bits: no conversion is needed.
    int exact[4] = {0x4b400000, 0x4b400000, 0x4b400000, 0x4b400000};
    multiply<C::FAMILY>(exact, w, x);
#pragma unroll
    for (int i = 0; i < 4; ++i) product[i] = bits_to_float(static_cast<u32>(exact[i])) - 12582912.0f;
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) product[i] = 0.0f;
    multiply<C::FAMILY, C::ACT>(product, w, x);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) d[i] += product[i] * (i < 2 ? low : high);
}

// A step with activations of 8 bits. Activations are read anew for every sixteen outputs: registers are few.
template <class C>
MARLIN_DEVICE void narrow_step(const Stage<C>& stage, int k, int slice, int lane, const Group<C>& group, Sums<C>& sums) {
  const int row = C::GROUP_ROWS > 1 ? k / (16 * (C::GROUPED ? C::GROUP : 1)) : 0;
  constexpr int AT_ONCE = Rows<C>::AT_ONCE;
#pragma unroll
  for (int tile = 0; tile < 4; ++tile) {
    u32 words[C::WORDS / 2], w[4];
    load_half_words<C>(stage.b, k, slice, tile, lane, words);
    float scales[2];
    if constexpr (C::GROUPED) narrow_scales<C>(stage.scales + row * C::SCALE_ROW, slice * 64, tile, lane, scales);
    narrow_weights<C>(words, C::ZEROS ? group.zeros + 2 * tile : group.zeros, w);
#pragma unroll
    for (int m = 0; m < C::M8; m += AT_ONCE) {
      Rows<C> rows;
      rows.load(stage.a, m, k, lane);
#pragma unroll
      for (int i = 0; i < AT_ONCE; ++i) {
        auto* d = sums.d[tile][m + i];
        if constexpr (C::GROUPED) multiply_scaled<C>(d, w, rows.x[i], scales[0], scales[1]);
        else if constexpr (C::INT8) multiply<C::FAMILY>(d, w, rows.x[i]);
        else multiply<C::FAMILY, C::ACT>(d, w, rows.x[i]);
      }
    }
  }
}

template <class C>
MARLIN_DEVICE void run(const Params& p) {
  char* memory = shared_memory();
  const int warp = thread_index() / 32, lane = thread_index() % 32;
  const int slice = warp % C::WARPS_N, first_k = warp / C::WARPS_N * C::WARP_K;

  const int tiles_m = (p.m + C::TILE_M - 1) / C::TILE_M, tiles_n = (p.n + C::TILE_N - 1) / C::TILE_N;
  const Work work((p.k + C::TILE_K - 1) / C::TILE_K, tiles_m * tiles_n);
  if (work.begin >= work.end) return;

  Place<C> ahead{work.begin / work.steps, work.begin % work.steps}, place = ahead;
  int loaded = work.begin;
  const auto load_next = [&](int slot) {
    if (loaded < work.end) {
      Stage<C>(memory, slot).load(p, ahead.tile % tiles_m * C::TILE_M, ahead.tile / tiles_m * C::TILE_N, ahead.step * C::TILE_K);
      ahead.next(work.steps);
      ++loaded;
    }
    copies_issued<C::FAMILY>();
  };
#pragma unroll
  for (int i = 0; i < C::STAGES - 1; ++i) load_next(i);

  Sums<C> sums;
  sums.clear();
  int slot = 0;
  for (int at = work.begin; at < work.end; ++at) {
    wait_for_copies<C::FAMILY, C::STAGES - 2>();
    block_sync();  // the stage is there, and the one before it is no longer read
    load_next(slot == 0 ? C::STAGES - 1 : slot - 1);

    const Stage<C> stage(memory, slot);
    Group<C> group;
    const int n_all = place.tile / tiles_m * C::TILE_N + slice * 64;
#pragma unroll
    for (int step = 0; step < C::STEPS; ++step) {
      const int k = first_k + step * C::STEP;
      if (step == 0 || (C::GROUPED && step * C::STEP % (16 * (C::GROUPED ? C::GROUP : 1)) == 0)) {
        group.load(stage, k, slice, lane);
      }
      if constexpr (C::WIDE) {
        wide_step<C>(p, stage, k, place.step * C::TILE_K + k, n_all, slice, lane, group, sums);
      } else {
        narrow_step<C>(stage, k, slice, lane, group, sums);
      }
    }
    slot = slot + 1 == C::STAGES ? 0 : slot + 1;
    if (at + 1 == work.end || place.step + 1 == work.steps) {
      Output<C>(p, work, place.tile, tiles_m, memory + C::STAGES * C::STAGE_BYTES).write(sums.d, warp, lane);
      sums.clear();
    }
    place.next(work.steps);
  }
  wait_for_copies<C::FAMILY, 0>();
}

}  // namespace qcore_marlin

#ifndef QCORE_MARLIN_KERNEL
#define QCORE_MARLIN_KERNEL(NAME, ...)                                                                     \
  extern "C" __global__ void __launch_bounds__(qcore_marlin::Config<__VA_ARGS__>::THREADS,                 \
                                                    qcore_marlin::Config<__VA_ARGS__>::BLOCKS)                 \
      NAME(const __grid_constant__ qcore_marlin::Params params) {                                          \
    qcore_marlin::run<qcore_marlin::Config<__VA_ARGS__>>(params);                                          \
  }
#endif
