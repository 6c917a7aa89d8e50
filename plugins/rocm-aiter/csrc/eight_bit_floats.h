// e4m3 to and from float32, by the bits.
//
// e4m3fn (OCP 8-bit Floating Point Specification) has exponent bias 7; 0x7f and 0xff are NaN.
// e4m3fnuz (AMD, Graphcore, Qualcomm: arXiv 2206.02915) has bias 8, so the same bits are worth half; 0x80
// is NaN and there is no -0. Every value of e4m3fn is twice one of e4m3fnuz. Codes are therefore made as
// e4m3fn's, and two of them renamed where the hardware takes the other kind: what is lost in the factor
// of two is in the scales that come with the weight.
#pragma once

#include "gpu_runtime.h"

// The code of the nearest value; |value| is at most 448, or NaN.
QCORE_DEVICE uint32_t encode_e4m3(float value) {
  const uint32_t bits = bits_of<uint32_t>(value);
  const uint32_t sign = bits >> 24 & 0x80, size = bits & 0x7fffffff;
  if (value != value) return kFnuz ? 0x80 : sign | 0x7f;
  uint32_t code;
  if (size < 0x3c800000) {  // below 2**-6: steps of 2**-9
    code = static_cast<uint32_t>(__builtin_rintf(bits_of<float>(size) * 512.0f));
  } else {
    const uint32_t rounded = size + 0x7ffff + (size >> 20 & 1);
    code = (rounded >> 20) - (120 << 3);
  }
  return kFnuz && code == 0 ? 0 : sign | code;
}

// The value of a code, of the kind of this machine.
QCORE_DEVICE float decode_e4m3(uint32_t code) {
  const uint32_t exponent = code >> 3 & 15, mantissa = code & 7;
  if (kFnuz ? code == 0x80 : (code & 0x7f) == 0x7f) return __builtin_nanf("");
  const float size = exponent == 0 ? mantissa * 0.001953125f
                                   : bits_of<float>((exponent + 120) << 23 | mantissa << 20);
  const float value = kFnuz ? size * 0.5f : size;
  return code & 0x80 ? -value : value;
}
