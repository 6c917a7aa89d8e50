// One pass over a row: find its scale, round it. A row's elements stay in registers between the two.
#pragma once

#include "early_launch.cuh"
#include "quantize_rows.h"
#include "row_codecs.cuh"

namespace qcore_cuda {

// `Codec`: see row_codecs.cuh.
template <typename T, typename Codec, int VEC, int VECS>
__global__ void __launch_bounds__(1024) row_quant_kernel(const T* __restrict__ x, int64_t stride, int k,
                                                         typename Codec::Code* __restrict__ codes,
                                                         typename Codec::Params params) {
  using Reduction = typename Codec::Reduction;
  const int64_t row = blockIdx.x;
  const Vec<T, VEC>* source = reinterpret_cast<const Vec<T, VEC>*>(x + row * stride);
  auto* target = reinterpret_cast<Vec<typename Codec::Code, VEC>*>(codes + row * k);
  const int vecs = k / VEC;
  begin_turn();

  if constexpr (VECS > 0) {
    Vec<T, VEC> held[VECS] = {};
#pragma unroll
    for (int i = 0; i < VECS; ++i) {
      const int at = threadIdx.x + i * blockDim.x;
      if (at < vecs) held[i] = source[at];
    }
    const auto reduced = block_reduce<Reduction>(reduce_vecs<Reduction>(held));
    const auto scale = Codec::scale(params, reduced, row, threadIdx.x == 0);
    const auto encode = [&](const Vec<T, VEC>& v) {
      return encode_vec<typename Codec::Code>(
          v, [&](float f) { return Codec::encode(f, scale); },
          [&](const float(&f)[4]) { return Codec::encode4(f, scale); });
    };
#pragma unroll
    for (int i = 0; i < VECS; ++i) {
      const int at = threadIdx.x + i * blockDim.x;
      if (at < vecs) {
        target[at] = encode(held[i]);
      }
    }
  } else {
    // Longer than the registers, or not in whole vectors: the row is read twice.
    auto reduced = Reduction::identity();
    for (int at = threadIdx.x; at < vecs; at += blockDim.x) {
      const Vec<T, VEC> one[1] = {source[at]};
      reduced = Reduction::join(reduced, reduce_vecs<Reduction>(one));
    }
    reduced = block_reduce<Reduction>(reduced);
    const auto scale = Codec::scale(params, reduced, row, threadIdx.x == 0);
    const auto encode = [&](const Vec<T, VEC>& v) {
      return encode_vec<typename Codec::Code>(
          v, [&](float f) { return Codec::encode(f, scale); },
          [&](const float(&f)[4]) { return Codec::encode4(f, scale); });
    };
    for (int at = threadIdx.x; at < vecs; at += blockDim.x) {
      const Vec<T, VEC> v = source[at];
      target[at] = encode(v);
    }
  }
}

template <typename T, typename Codec>
void row_quant(const Where& at, const Rows& x, typename Codec::Code* codes, const typename Codec::Params& params) {
  constexpr int VEC = kVec<T>;
  const T* data = static_cast<const T*>(x.data());
  const int k = static_cast<int>(x.k);
  const bool whole = k % VEC == 0 && x.stride % VEC == 0 && is_aligned(data, 16) &&
                     is_aligned(codes, VEC * static_cast<int64_t>(sizeof(*codes)));
  const int64_t vecs = k / VEC;
  const auto threads = [](int64_t vecs, int each) {
    return static_cast<unsigned>(std::min<int64_t>(1024, ceil_div(std::max<int64_t>(1, ceil_div(vecs, each)), 32) * 32));
  };
  const auto launch = [&](auto kernel, unsigned threads) {
    const LaunchShape shape{dim3(static_cast<unsigned>(x.m)), threads, 0, at.stream, at.device.sm90_code};
    launch_kernel(at.op, shape, kernel, data, x.stride, k, codes, params);
  };
  // Too few rows to fill the device: the shortest way through one. Else the fewer threads a row has, the more rows a
  // processor has at a time, of which some are read while others are rounded.
  const bool few = x.m <= 264;
  if (!whole) {
    launch(row_quant_kernel<T, Codec, 1, 0>, threads(k, 8));
  } else if (few && vecs <= 1024) {
    launch(row_quant_kernel<T, Codec, VEC, 1>, threads(vecs, 1));
  } else if (vecs <= (few ? 4096 : 1024)) {
    launch(row_quant_kernel<T, Codec, VEC, 4>, threads(vecs, 4));
  } else if (vecs <= 8192) {
    launch(row_quant_kernel<T, Codec, VEC, 8>, threads(vecs, 8));
  } else {
    launch(row_quant_kernel<T, Codec, VEC, 0>, 1024);
  }
}

// Every element by itself, with a scale that is known: `Known::prepare` reads it on the device and gives
// what turns a float into a code.
template <typename T, typename Code, int VEC, typename Known>
__global__ void elementwise_quant_kernel(const T* __restrict__ x, int64_t stride, int k, int64_t vecs,
                                         Code* __restrict__ codes, Known known) {
  begin_turn();
  const auto encode = known.prepare();
  const int per_row = k / VEC;
  const bool dense = stride == k;  // then a vector's place needs no division
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < vecs;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const int64_t row = dense ? 0 : i / per_row;
    const int64_t at = i - row * per_row;
    const auto v = reinterpret_cast<const Vec<T, VEC>*>(x + row * stride)[at];
    reinterpret_cast<Vec<Code, VEC>*>(codes + row * k)[at] = encode_vec<Code>(
        v, [&](float f) { return encode(f); }, [&](const float(&f)[4]) { return encode.four(f); });
  }
}

template <typename T, typename Code, typename Known>
void elementwise_quant(const Where& at, const Rows& x, Code* codes, const Known& known) {
  constexpr int VEC = kVec<T>;
  const T* data = static_cast<const T*>(x.data());
  const int k = static_cast<int>(x.k);
  const bool whole = k % VEC == 0 && x.stride % VEC == 0 && is_aligned(data, 16) &&
                     is_aligned(codes, VEC * static_cast<int64_t>(sizeof(Code)));
  const int64_t vecs = x.m * (whole ? k / VEC : k);
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(ceil_div(vecs, 256), at.device.sm_count * 32LL));
  const auto kernel = whole ? elementwise_quant_kernel<T, Code, VEC, Known> : elementwise_quant_kernel<T, Code, 1, Known>;
  const LaunchShape shape{dim3(blocks), 256, 0, at.stream, at.device.sm90_code};
  launch_kernel(at.op, shape, kernel, data, x.stride, k, vecs, codes, known);
}

}  // namespace qcore_cuda
