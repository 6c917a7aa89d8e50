// The order in which the tiles of a product are worked on.
#pragma once

namespace qcore_cuda {

constexpr int kBand = 8;  // tiles along M that are worked on together, so that L2 keeps what they read of activations

struct TileAt {
  int m, pair;  // pair: as many tiles along N as a cluster has blocks
};

// A band of kBand tiles along M, pair by pair; then the next.
__device__ __forceinline__ TileAt tile_at(int index, int along_m, int pairs) {
  const int band = index / (kBand * pairs), first = band * kBand;
  const int width = min(kBand, along_m - first), in_band = index - first * pairs;
  return {first + in_band % width, in_band / width};
}

}  // namespace qcore_cuda
