// From a block's sums to the output: over the warps, over the blocks that share a tile, and through scales
// and bias.
#pragma once

#include "dequantize.cuh"

namespace qcore_marlin {

template <bool FIRST, class A, class B>
struct Choose {
  using Type = A;
};
template <class A, class B>
struct Choose<false, A, B> {
  using Type = B;
};

// A block's part of the list of all tiles' steps.
struct Work {
  int steps;       // of a tile
  int of_block;    // of each block, but for the last
  int begin, end;  // of this block

  MARLIN_DEVICE Work(int steps_of_tile, int tiles) : steps(steps_of_tile) {
    const int all = steps * tiles;
    of_block = (all + block_count() - 1) / block_count();
    begin = block_index() * of_block;
    end = begin + of_block < all ? begin + of_block : all;
  }
};

template <class C>
class Output {
 public:
  MARLIN_DEVICE Output(const Params& p, const Work& work, int tile, int tiles_m, char* memory)
      : p_(p), first_(tile * work.steps / work.of_block), last_(((tile + 1) * work.steps - 1) / work.of_block),
        m0_(tile % tiles_m * C::TILE_M), n0_(tile / tiles_m * C::TILE_N), memory_(memory) {}

  // Sums of a thread: of outputs 16 i + lane / 4 + {0, 8} of its warp, of rows 8 j + 2 (lane % 4) + {0, 1}.
  template <class Number>
  MARLIN_DEVICE void write(const Number (&d)[4][C::M8][4], int warp, int lane) {
    const bool whole = first_ == last_;
    float* const partial = p_.partials + static_cast<long long>(slot(block_index())) * (C::TILE_M * C::TILE_N);
    float* const sums = reinterpret_cast<float*>(memory_);
    float* const mine = sums + (warp / C::WARPS_N * 8 + lane % 4 * 2) * C::SUM_ROW + warp % C::WARPS_N * 64 + lane / 4;
#pragma unroll
    for (int m = 0; m < C::M8; ++m) {
      block_sync();  // what was there is read
#pragma unroll
      for (int tile = 0; tile < 4; ++tile) {
#pragma unroll
        for (int i = 0; i < 4; ++i) mine[i % 2 * C::SUM_ROW + tile * 16 + i / 2 * 8] = static_cast<float>(d[tile][m][i]);
      }
      block_sync();
      for (int at = thread_index(); at < 8 * QUADS; at += C::THREADS) {
        const int row = at / QUADS, n = at % QUADS * 4;
        if (m0_ + m * 8 + row >= p_.m) break;
        FloatQuad sum = *reinterpret_cast<const FloatQuad*>(sums + row * C::SUM_ROW + n);
#pragma unroll
        for (int k = 1; k < C::WARPS_K; ++k) add(sum, *reinterpret_cast<const FloatQuad*>(sums + (k * 8 + row) * C::SUM_ROW + n));
        if (whole) finish(m * 8 + row, n, sum);
        else *reinterpret_cast<FloatQuad*>(partial + (m * 8 + row) * C::TILE_N + n) = sum;
      }
    }
    if (!whole) add_up();
  }

 private:
  static constexpr int QUADS = C::TILE_N / 4;

  static MARLIN_DEVICE void add(FloatQuad& to, const FloatQuad& v) { to.x += v.x, to.y += v.y, to.z += v.z, to.w += v.w; }

  // Where a block leaves its part: one that began the tile may have left the end of another before.
  MARLIN_DEVICE int slot(int block) const { return 2 * block + (block == first_ ? 1 : 0); }

  // The last block of a tile adds up what all have left.
  MARLIN_DEVICE void add_up() {
    int* const last = reinterpret_cast<int*>(memory_ + C::SUM_BYTES);
    fence();
    block_sync();
    if (thread_index() == 0) *last = add_one(p_.counters + first_) == last_ - first_;
    block_sync();
    if (!*last) return;
    fence();
    for (int at = thread_index(); at < C::TILE_M * QUADS; at += C::THREADS) {
      const int row = at / QUADS, n = at % QUADS * 4;
      if (m0_ + row >= p_.m) break;
      FloatQuad sum{0, 0, 0, 0};
      for (int block = first_; block <= last_; ++block) {
        add(sum, load_shared_by_blocks(p_.partials + static_cast<long long>(slot(block)) * (C::TILE_M * C::TILE_N) +
                                       row * C::TILE_N + n));
      }
      finish(row, n, sum);
    }
    if (thread_index() == 0) p_.counters[first_] = 0;
  }

  // The place of an output in scales that are one for each, and in bias.
  static MARLIN_DEVICE int single_position(int n) { return n / 32 * 32 + n % 8 / 2 * 8 + n % 32 / 8 * 2 + n % 2; }

  static MARLIN_DEVICE float number_at(const void* numbers, int i) {
    return widen<C::BF16_OUT>(static_cast<const unsigned short*>(numbers)[i]);
  }

  MARLIN_DEVICE void finish(int row, int n, const FloatQuad& sum) const {
    float of_row = factor<C>();
    if (p_.a_scales) of_row *= p_.a_scales[(m0_ + row) * p_.a_scale_stride];
    if (C::SCALE == kE4m3Scale) of_row *= *p_.global_scale;
    float v[4] = {sum.x, sum.y, sum.z, sum.w};
    n += n0_;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (n + i >= p_.n_out) break;
      v[i] *= of_row;
      if (!C::GROUPED && !C::ANY_ORDER) {
        const int at = single_position(n + i);
        v[i] *= p_.float_scales ? static_cast<const float*>(p_.scales)[at] : number_at(p_.scales, at);
      }
      if (p_.bias) v[i] += number_at(p_.bias, p_.plain_bias ? n + i : single_position(n + i));
    }
    const u32 low = narrow2<C::BF16_OUT>(v[0], v[1]), high = narrow2<C::BF16_OUT>(v[2], v[3]);
    unsigned short* to = static_cast<unsigned short*>(p_.c) + (m0_ + row) * p_.ldc + n;
    if (p_.ldc % 4 == 0 && n + 4 <= p_.n_out) {
      *reinterpret_cast<u64*>(to) = low | static_cast<u64>(high) << 32;
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (n + i < p_.n_out) to[i] = static_cast<unsigned short>((i < 2 ? low : high) >> (i % 2 * 16));
      }
    }
  }

  const Params& p_;
  const int first_, last_, m0_, n0_;
  char* const memory_;
};

}  // namespace qcore_marlin
