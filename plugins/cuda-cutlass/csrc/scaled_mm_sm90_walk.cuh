// Which tiles SM90's kernels of 8-bit tiles (scaled_mm_sm90_tiles.cu, scaled_mm_sm90_blocks.cu) take, cluster by cluster, and what of K. Tests
// run this on the processor.
#pragma once

#include "tile_bands.cuh"

namespace qcore_cuda {

// The tiles, and how the last ones are shared. A "pair" is as many along N as a cluster has blocks.
struct Tiles {
  int along_m, pairs, steps;  // steps: pieces of K
  int whole;                  // so many are each one cluster's; of the others the first `sharers` clusters
  int sharers;                // have the same number of steps; this number times theirs fits into 31 bits

  __host__ __device__ int count() const { return along_m * pairs; }
  // Of the shared tiles' steps, one tile's behind the other's: the first that a cluster has.
  __host__ __device__ int begin_of(int cluster) const {
    return static_cast<unsigned>((count() - whole) * steps) * cluster / sharers;
  }
};

// A tile and the steps of it that a cluster has.
struct Place {
  int m, pair, first, last;
};

// A cluster's places, one after another: the whole tiles; then, of its steps of the shared ones, the last tile first.
// So who takes sums of others has given its own, and who gives need not wait. Few numbers are kept: registers are for
// sums.
template <int BLOCKS>  // of a cluster
class Walk {
 public:
  __device__ __forceinline__ explicit Walk(const Tiles& tiles) : tiles_(tiles), index_(cluster()) {
    end_ = index_ < tiles.sharers ? tiles.begin_of(index_ + 1) : 0;
  }
  static __device__ __forceinline__ int cluster() { return blockIdx.x / BLOCKS; }
  __device__ __forceinline__ bool more() const { return is_whole() || end_ > begin(); }
  __device__ __forceinline__ void next() {
    if (is_whole()) index_ += gridDim.x / BLOCKS;
    else end_ = tile() * tiles_.steps;
  }
  __device__ __forceinline__ Place at() const {
    if (is_whole()) return place(index_, 0, tiles_.steps);
    const int zero = tile() * tiles_.steps;
    return place(tiles_.whole + tile(), max(begin() - zero, 0), end_ - zero);
  }
  // Of a shared tile: the first of the clusters that have steps of it; all from there on to this one give to it.
  __device__ __forceinline__ int first_giver() const {
    int first = cluster();
    if (!is_whole()) {
      while (tiles_.begin_of(first) > tile() * tiles_.steps) --first;
    }
    return first;
  }

 private:
  __device__ __forceinline__ bool is_whole() const { return index_ < tiles_.whole; }
  __device__ __forceinline__ int tile() const { return (end_ - 1) / tiles_.steps; }  // of the shared ones
  __device__ __forceinline__ int begin() const { return cluster() < tiles_.sharers ? tiles_.begin_of(cluster()) : 0; }
  __device__ __forceinline__ Place place(int index, int first, int last) const {
    const TileAt tile = tile_at(index, tiles_.along_m, tiles_.pairs);
    return {tile.m, tile.pair, first, last};
  }

  const Tiles& tiles_;
  int index_, end_;  // of whole tiles; of the steps of shared ones, where those that are left end
};

// Of tiles that are all whole: the same with less to keep.
template <int BLOCKS>
class WholeTiles {
 public:
  __device__ __forceinline__ explicit WholeTiles(const Tiles& tiles) : tiles_(tiles), index_(blockIdx.x / BLOCKS) {}
  __device__ __forceinline__ bool more() const { return index_ < tiles_.whole; }
  __device__ __forceinline__ void next() { index_ += gridDim.x / BLOCKS; }
  __device__ __forceinline__ Place at() const {
    const TileAt tile = tile_at(index_, tiles_.along_m, tiles_.pairs);
    return {tile.m, tile.pair, 0, tiles_.steps};
  }

 private:
  const Tiles& tiles_;
  int index_;
};

}  // namespace qcore_cuda
