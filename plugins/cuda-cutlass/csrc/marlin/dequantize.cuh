// Codes to the tensor cores' operands, in registers.
//
// A thread's words of a piece hold, for each run of 16 outputs, those with index lane / 4 and lane / 4 + 8
// of it: the rows of a 16 x 32-byte operand, whose registers are [inputs low: row, row + 8; inputs high:
// row, row + 8]. Integers become 1024 + code by one LOP3 (half), from which an addition takes off 1024 +
// zero; small floats are shifted to where the wide format has sign, exponent and mantissa, which leaves a
// power of two: FACTOR is what of it is left to the end.
#pragma once

#include "config.cuh"

namespace qcore_marlin {

MARLIN_DEVICE u32 and_or(u32 a, u32 mask, u32 base) { return lop3<0xea>(a, mask, base); }
MARLIN_DEVICE u32 and_xor(u32 a, u32 mask, u32 with) { return lop3<0x6a>(a, mask, with); }

// The power of two by which weights are too small in the products; and, where that would not fit, the
// pairs by which they are multiplied at once.
template <class C>
MARLIN_DEVICE constexpr float factor() {
  if (C::WIDE && C::WEIGHT == kE2m1 && C::SCALE == kE4m3Scale) return C::BF16 ? 256.0f : 16384.0f;
  if (C::WIDE && C::WEIGHT == kE4m3 && !C::BF16 && !C::GROUPED) return 256.0f;
  if (C::INT8 && C::WEIGHT == kU4B8) return 0.0625f;
  if (C::ACT == kActE4m3) return C::WEIGHT == kE2m1 ? 64.0f : 512.0f;
  return 1.0f;
}

// ---- activations of 16 bits ----------------------------------------------------------------------

// What is taken off codes that have no zero points.
template <class C>
MARLIN_DEVICE constexpr u32 bias() {
  return C::WEIGHT == kU4B8 ? 8 : C::WEIGHT == kU8B128 ? 128 : 0;
}

// Four operands of outputs [16 tile, 16 tile + 16) from a thread's words. `zeros` as `load_zeros` has left
// them.
template <class C>
MARLIN_DEVICE void wide_weights(const u32* words, int tile, const u32* zeros, u32* w) {
  constexpr bool BF16 = C::BF16;
  constexpr u32 BASE = BF16 ? 0x43004300u : 0x64006400u;  // 128, 1024
  if constexpr (C::WEIGHT == kU4 || C::WEIGHT == kU4B8) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {  // i: two bits, row and inputs
      const int at = i / 2 + i % 2 * 2;
      if constexpr (!C::ZEROS || C::FLOAT_ZERO) {
        if (!BF16 && i % 2 == 1) {  // 1024 + 16 code
          const u32 v = and_or(words[tile] >> (4 * (i - 1)), 0x00f000f0u, BASE);
          w[at] = fma2<false>(v, 0x2c002c00u, 0xd400d400u | bias<C>() * 0x00100010u);
        } else {
          const u32 v = and_or(words[tile] >> (4 * i), 0x000f000fu, BASE);
          w[at] = add2<BF16>(v, (BASE | bias<C>() * 0x00010001u) ^ 0x80008000u);
        }
        if constexpr (C::FLOAT_ZERO) w[at] = add2<BF16>(w[at], zeros[2 * tile + i / 2]);
      } else {
        const u32 v = and_or(words[tile] >> (4 * i), 0x000f000fu, BASE);
        w[at] = add2<BF16>(v, zeros[2 * tile + i / 2]);
      }
    }
  } else if constexpr (C::WEIGHT == kU8 || C::WEIGHT == kU8B128) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const u32 word = words[2 * tile + row];
#pragma unroll
      for (int high = 0; high < 2; ++high) {  // bytes 0 and 2, 1 and 3
        if constexpr (!BF16) {
          const u32 off = C::ZEROS ? zeros[2 * tile + row] : (BASE | bias<C>() * 0x00010001u) ^ 0x80008000u;
          w[2 * high + row] = add2<false>(permute(word, 0x64646464u, high ? 0x4341 : 0x4240), off);
        } else {  // 2^23 + code, in float32
          const float off = bits_to_float(C::ZEROS ? zeros[2 * tile + row] : 0x4b000000u | bias<C>());
          const float a = bits_to_float(permute(word, 0x4b000000u, 0x7540 | high)) - off;
          const float b = bits_to_float(permute(word, 0x4b000000u, 0x7540 | (high + 2))) - off;
          w[2 * high + row] = narrow2<true>(a, b);
        }
      }
    }
  } else if constexpr (C::WEIGHT == kE4m3) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const u32 word = words[2 * tile + row];
#pragma unroll
      for (int high = 0; high < 2; ++high) {
        const u32 y = high ? word : word << 8;
        u32 v = and_or(y, 0x80008000u, (y & 0x7f007f00u) >> (BF16 ? 4 : 1));
        if constexpr (BF16) v = mul2<true>(v, 0x7b807b80u);                 // 2^120
        else if constexpr (factor<C>() == 1.0f) v = mul2<false>(v, 0x5c005c00u);  // 2^8
        w[2 * high + row] = v;
      }
    }
  } else {
    static_assert(C::WEIGHT == kE2m1, "weights");
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const u32 y = words[tile] << (12 - 4 * i);
      u32 v = and_or(y, 0x80008000u, (y & 0x70007000u) >> (BF16 ? 6 : 3));
      if constexpr (factor<C>() == 1.0f) v = mul2<BF16>(v, BF16 ? 0x7e807e80u : 0x74007400u);  // 2^126, 2^14
      w[i / 2 + i % 2 * 2] = v;
    }
  }
}

// Eight numbers from eight bytes, each twice: scales of a thread's outputs lane / 4 + 8 i.
template <class C>
MARLIN_DEVICE void wide_scales(const char* row, int position, u32* scales) {
  constexpr bool BF16 = C::BF16;
  if constexpr (C::SCALE == kOwnScale) {
    const Quad v = *reinterpret_cast<const Quad*>(row + 2 * position);
    const u32 pairs[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) scales[i] = permute(pairs[i / 2], 0, i % 2 ? 0x3232 : 0x1010);
  } else {
#pragma unroll
    for (int word = 0; word < 2; ++word) {
      const u32 bytes = *reinterpret_cast<const u32*>(row + position + 4 * word);
#pragma unroll
      for (int odd = 0; odd < 2; ++odd) {  // bytes 0 and 2, 1 and 3
        u32 v;
        if constexpr (C::SCALE == kE4m3Scale) {
          const u32 y = odd ? bytes : bytes << 8;
          v = and_or(y, 0x80008000u, (y & 0x7f007f00u) >> (BF16 ? 4 : 1));
          v = mul2<BF16>(v, BF16 ? 0x7b807b80u : 0x5c005c00u);
          if constexpr (BF16) v = mul2<true>(v, 0x7a807a80u);  // 2^118: codes are 2^126 too small
        } else {
          v = ((odd ? bytes >> 8 : bytes) & 0x00ff00ffu) << 7;
        }
        scales[4 * word + odd] = permute(v, 0, 0x1010);
        scales[4 * word + odd + 2] = permute(v, 0, 0x3232);
      }
    }
  }
}

// Zero points of a thread's outputs lane / 4 + 8 i, as what is added to codes: minus the base and them.
template <class C>
MARLIN_DEVICE void load_zeros(const char* row, int position, u32* zeros) {
  if constexpr (C::FLOAT_ZERO) {
    const Quad v = *reinterpret_cast<const Quad*>(row + 2 * position);
    const u32 pairs[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) zeros[i] = permute(pairs[i / 2], 0, i % 2 ? 0x3232 : 0x1010) ^ 0x80008000u;
  } else {
    const u32* words = reinterpret_cast<const u32*>(row + position * C::BITS / 8);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      u32 zero;
      if constexpr (!C::WIDE) zero = words[0] >> (4 * i) & 0xfu;  // in order
      else if constexpr (C::BITS == 4) zero = words[0] >> (4 * (i / 2 + i % 2 * 4)) & 0xfu;
      else zero = words[i / 4] >> (8 * (i % 4 == 1 ? 2 : i % 4 == 2 ? 1 : i % 4)) & 0xffu;
      if constexpr (!C::WIDE) zeros[i] = zero * 0x01010101u;
      else if constexpr (C::BF16 && C::BITS == 8) zeros[i] = 0x4b000000u | zero;
      else zeros[i] = (zero * 0x00010001u | (C::BF16 ? 0x43004300u : 0x64006400u)) ^ 0x80008000u;
    }
  }
}

// ---- activations of 8 bits -----------------------------------------------------------------------

// Codes 0 to 15 of four bytes, less `zero` in each, in the activations' format.
template <class C>
MARLIN_DEVICE u32 less_zero(u32 codes, u32 zero) {
  const u32 t = (codes | 0x80808080u) - zero;  // 128 + difference: no byte borrows
  if constexpr (C::INT8) return t ^ 0x80808080u;
  // e4m3's numbers up to 15 / 512 are whole multiples of 1 / 512, with their count as bits.
  const u32 sign = ~t & 0x80808080u, negative = (sign >> 7) * 0x7fu;  // seven ones where it is below zero
  return (((t & 0x7f7f7f7fu) ^ negative) + (sign >> 7)) | sign;
}

// Operands of 16 outputs, `zeros` of their two rows.
template <class C>
MARLIN_DEVICE void narrow_weights(const u32* words, const u32* zeros, u32* w) {
#pragma unroll
  for (int row = 0; row < 2; ++row) {
#pragma unroll
    for (int high = 0; high < 2; ++high) {
      u32& v = w[2 * high + row];
      if constexpr (C::BITS == 8) {
        v = words[2 * row + high];
        if constexpr (C::WEIGHT == kU8B128) v ^= 0x80808080u;
      } else {
        const u32 word = words[row];
        if constexpr (C::WEIGHT == kE2m1) {
          const u32 y = high ? word : word << 4;
          v = and_or(y, 0x80808080u, (y & 0x70707070u) >> 2);
        } else if constexpr (C::INT8 && C::WEIGHT == kU4B8) {
          v = and_xor(high ? word : word << 4, 0xf0f0f0f0u, 0x80808080u);  // sixteen times code - 8
        } else {
          const u32 codes = (high ? word >> 4 : word) & 0x0f0f0f0fu;
          v = less_zero<C>(codes, C::ZEROS ? zeros[row] : 0x08080808u);
        }
      }
    }
  }
}

// Scales of a thread's outputs lane / 4 + 16 tile + {0, 8}, in the order of those that are one for each
// output: there these two are two places apart.
template <class C>
MARLIN_DEVICE void narrow_scales(const char* row, int column, int tile, int lane, float* scales) {
  const int group = lane / 4, position = column + tile / 2 * 32 + group / 2 * 8 + tile % 2 * 4 + group % 2;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if constexpr (C::SCALE == kOwnScale) {
      scales[i] = widen<C::BF16_OUT>(*reinterpret_cast<const unsigned short*>(row + 2 * (position + 2 * i)));
    } else {
      const u32 byte = *reinterpret_cast<const u8*>(row + position + 2 * i);
      scales[i] = bits_to_float(byte << 23);
    }
  }
}

}  // namespace qcore_marlin
