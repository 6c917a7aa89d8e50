"""Tiles, and steps of K, that clusters of csrc/scaled_mm_sm90_tiles.cuh take: on the processor."""

from __future__ import annotations

import ctypes
import functools
from typing import NamedTuple

from host_compiler import compiled

__all__ = ["Place", "Share", "places", "share", "whole_places"]

SOURCE = """
#include <algorithm>
#define __host__
#define __device__
#define __forceinline__
using std::max, std::min;
struct { int x; } blockIdx, gridDim;
#include "scaled_mm_share.h"
#include "scaled_mm_sm90_walk.cuh"
using namespace qcore_cuda;

extern "C" void share(int tiles, int clusters, int steps, int* found) {
  const Share share(tiles, clusters, steps);
  found[0] = share.whole;
  found[1] = share.sharers;
}

template <int BLOCKS>
int of(int cluster, int clusters, const Tiles& tiles, int* found) {
  blockIdx.x = cluster * BLOCKS + BLOCKS - 1;
  gridDim.x = clusters * BLOCKS;
  int count = 0;
  for (Walk<BLOCKS> walk(tiles); walk.more(); walk.next(), ++count) {
    const Place at = walk.at();
    const int place[] = {at.m, at.pair, at.first, at.last, walk.first_giver()};
    std::copy(place, place + 5, found + 5 * count);
  }
  return count;
}
extern "C" int whole_places(int block, int blocks, int along_m, int pairs, int* found) {
  blockIdx.x = block;
  gridDim.x = blocks;
  int count = 0;
  const Tiles tiles{along_m, pairs, 1, along_m * pairs, 0};
  for (WholeTiles<1> tour(tiles); tour.more(); tour.next(), ++count) {
    found[2 * count] = tour.at().m;
    found[2 * count + 1] = tour.at().pair;
  }
  return count;
}
extern "C" int places(int blocks, int cluster, int clusters, int along_m, int pairs, int steps,
                      int whole, int sharers, int* found) {
  const Tiles tiles{along_m, pairs, steps, whole, sharers};
  const auto all = blocks == 1 ? of<1> : of<2>;
  return all(cluster, clusters, tiles, found);
}
"""


class Share(NamedTuple):
    """The first ``whole`` tiles are not shared; ``sharers`` clusters share the others."""

    whole: int
    sharers: int


class Place(NamedTuple):
    """A cluster's steps of a tile, and the first of the clusters that have some before it."""

    m: int
    pair: int
    first: int
    last: int
    first_giver: int


@functools.cache
def _library() -> ctypes.CDLL:
    return compiled(SOURCE)


def share(tiles: int, clusters: int, steps: int) -> Share:
    """What csrc/scaled_mm_share.h says."""
    found = (ctypes.c_int * 2)()
    _library().share(tiles, clusters, steps, found)
    return Share(*found)


def places(
    along_m: int, pairs: int, steps: int, clusters: int, shared: Share, blocks: int = 2
) -> list[list[Place]]:
    """Of each of the clusters that are launched, in its order."""
    launched = max(shared.sharers, min(shared.whole, clusters))
    room = (ctypes.c_int * (5 * (along_m * pairs + 8)))()
    every = []
    for cluster in range(launched):
        count = _library().places(blocks, cluster, launched, along_m, pairs, steps, *shared, room)
        every.append([Place(*room[5 * i : 5 * i + 5]) for i in range(count)])
    return every


def whole_places(along_m: int, pairs: int, blocks: int) -> list[list[tuple[int, int]]]:
    """The tiles, row and column, of each of so many blocks that share none."""
    room = (ctypes.c_int * (2 * along_m * pairs))()
    every = []
    for block in range(blocks):
        count = _library().whole_places(block, blocks, along_m, pairs, room)
        every.append([(room[2 * i], room[2 * i + 1]) for i in range(count)])
    return every
