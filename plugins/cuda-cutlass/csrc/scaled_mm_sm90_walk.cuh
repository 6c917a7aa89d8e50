// Which tiles SM90's kernels of 8-bit tiles (scaled_mm_sm90_tiles.cuh, scaled_mm_sm90_blocks.cuh) take, cluster by
// cluster, and what of K. Tests run this on the processor.
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

// A cluster's whole tiles, one after another.
template <int BLOCKS>  // of a cluster
class WholeTiles {
 public:
  __device__ __forceinline__ explicit WholeTiles(const Tiles& tiles) : tiles_(tiles), index_(cluster()) {}
  static __device__ __forceinline__ int cluster() { return blockIdx.x / BLOCKS; }
  __device__ __forceinline__ bool more() const { return index_ < tiles_.whole; }
  __device__ __forceinline__ void next() { index_ += gridDim.x / BLOCKS; }
  __device__ __forceinline__ Place at() const { return place(index_, 0, tiles_.steps); }

 protected:
  __device__ __forceinline__ Place place(int index, int first, int last) const {
    const TileAt tile = tile_at(index, tiles_.along_m, tiles_.pairs);
    return {tile.m, tile.pair, first, last};
  }

  const Tiles& tiles_;

 private:
  int index_;
};

// All of a cluster's places: the whole tiles; then, of its steps of the shared ones, the last tile first. So who takes
// sums of others has given its own, and who gives need not wait. Few numbers are kept: registers are for sums.
template <int BLOCKS>
class Walk : public WholeTiles<BLOCKS> {
  using Whole = WholeTiles<BLOCKS>;
  using Whole::tiles_, Whole::place;

 public:
  using Whole::cluster;

  __device__ __forceinline__ explicit Walk(const Tiles& tiles) : Whole(tiles) {
    end_ = cluster() < tiles.sharers ? tiles.begin_of(cluster() + 1) : 0;
  }
  __device__ __forceinline__ bool more() const { return Whole::more() || end_ > begin(); }
  __device__ __forceinline__ void next() {
    if (Whole::more()) Whole::next();
    else end_ = tile() * tiles_.steps;
  }
  __device__ __forceinline__ Place at() const {
    if (Whole::more()) return Whole::at();
    const int zero = tile() * tiles_.steps;
    return place(tiles_.whole + tile(), max(begin() - zero, 0), end_ - zero);
  }
  // Of a shared tile: the first of the clusters that have steps of it; all from there on to this one give to it.
  __device__ __forceinline__ int first_giver() const {
    int first = cluster();
    if (!Whole::more()) {
      while (tiles_.begin_of(first) > tile() * tiles_.steps) --first;
    }
    return first;
  }

 private:
  __device__ __forceinline__ int tile() const { return (end_ - 1) / tiles_.steps; }  // of the shared ones
  __device__ __forceinline__ int begin() const { return cluster() < tiles_.sharers ? tiles_.begin_of(cluster()) : 0; }

  int end_;  // of the steps of shared tiles, where those that are left end
};

}  // namespace qcore_cuda
