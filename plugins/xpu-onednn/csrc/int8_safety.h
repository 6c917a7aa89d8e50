// Products of bytes that lose carries on some processors.
#pragma once

#include <string>

#include "matmul_types.h"

namespace qcore_xpu {

// Whether an implementation of oneDNN's may give wrong sums for these types.
//
// Without VNNI, x86 multiplies bytes in pairs and adds each pair in 16 bits with saturation
// (vpmaddubsw): 2 * 255 * 127 does not fit. oneDNN's documentation asks for weights of 7 bits there;
// checkpoints have 8. With random codes over the full range, gemm:jit and brg_matmul:avx512_core of
// oneDNN 3.13.2 are off by 0.18 of the result's norm. Its reference implementations ("ref...") multiply one by one. Codes of 4 bits fit:
// 2 * 255 * 15 = 7650.
//
//   implementation: as the primitive descriptor names it ("gemm:jit", "ref_int8:any").
//   has_vnni: whether the processor, as far as oneDNN may use it, adds products of bytes in 32 bits.
inline bool may_saturate(const std::string& implementation, bool has_vnni, Element a, Element b) {
  const auto is_byte = [](Element type) { return type == kS8 || type == kU8; };
  return is_byte(a) && is_byte(b) && !has_vnni && implementation.rfind("ref", 0) != 0;
}

// Whether the instructions that oneDNN uses on this processor include VNNI.
bool onednn_has_vnni();

}  // namespace qcore_xpu
