// SM90's wgmma of 8-bit numbers from shared memory, by their type and the number of the right operand's columns.
#pragma once

#include <cstdint>

#include "scaled_mm.cuh"
#include "sm90_ptx.cuh"

namespace qcore_cuda::sm90 {

namespace gmma = cute::SM90::GMMA;

template <typename Element, int COLUMNS>
struct Atom;
#define QCORE_ATOM(COLUMNS)                                                                             \
  template <>                                                                                           \
  struct Atom<E4m3, COLUMNS> {                                                                          \
    using Type = gmma::MMA_64x##COLUMNS##x32_F32E4M3E4M3_SS_TN<gmma::ScaleIn::One, gmma::ScaleIn::One>; \
    using Register = float;                                                                             \
  };                                                                                                    \
  template <>                                                                                           \
  struct Atom<Int8, COLUMNS> {                                                                          \
    using Type = gmma::MMA_64x##COLUMNS##x32_S32S8S8_SS_TN;                                             \
    using Register = uint32_t;                                                                          \
  };
QCORE_ATOM(8)
QCORE_ATOM(16)
QCORE_ATOM(32)
QCORE_ATOM(64)
QCORE_ATOM(128)
#undef QCORE_ATOM

}  // namespace qcore_cuda::sm90
