// How the codes of an output stand in packed words. Included by isa.h; constants only, in a namespace of each
// translation unit.
//
// A word is a whole number of lines; of each line of a block, an output has 32 bits. Slots 2j and 2j + 1, the
// pair j, stand at one place of the two half words. Codes of 2 and 4 bits stand in one line; of 5 and 6 bits
// the lower 4 stand in the first lines, so that a quarter of all pairs begins where a byte does, and the
// others in the last line:
//
//   bits    lines   slots   pair j: line, bit of a half word       its upper bits in the last line
//   2       1       16      0, 2j                                  -
//   4       1       8       0, 4j                                  -
//   5       4 + 1   32      j % 8 / 2, 4 (j % 2) + 8 (j / 8)       bit j
//   6       2 + 1   16      j % 4 / 2, 4 (j % 2) + 8 (j / 4)       bits 2j, 2j + 1
//   8       1       4       four runs of 16 bytes, one a slot, less 128
#pragma once

#include <stdint.h>

namespace qcore_cpu {
namespace {

template <int bits>
struct CodeLayout {
  static_assert(bits == 2 || bits == 4 || bits == 5 || bits == 6 || bits == 8, "not a width that is stored");
  static constexpr int upper_bits = bits == 5 || bits == 6 ? bits - 4 : 0;
  static constexpr int lower_bits = bits - upper_bits;
  static constexpr int slots = upper_bits ? 32 / upper_bits : 32 / bits;
  static constexpr int lines = upper_bits ? slots / 8 + 1 : 1;
  static constexpr int word_bytes = lines * 64;

  // Of the lower bits of a pair. A quarter of the pairs have their first byte, and so on.
  static constexpr int quarter = slots / 4 ? slots / 4 : 1;
  static constexpr int per_byte = 8 / lower_bits;
  static constexpr int line(int pair) { return pair % quarter / per_byte; }
  static constexpr int shift(int pair) {
    return pair % quarter % per_byte * lower_bits + pair / quarter * 8;
  }
  static constexpr int upper_line = lines - 1;
  static constexpr int upper_shift(int pair) { return pair * upper_bits; }
};

// All widths, in the order of the tables of kernels.
struct CodeWord {
  int bits, slots, lines;
};
template <int bits>
constexpr CodeWord kCodeWord = {bits, CodeLayout<bits>::slots, CodeLayout<bits>::lines};
constexpr CodeWord kCodeWords[] = {kCodeWord<2>, kCodeWord<4>, kCodeWord<5>, kCodeWord<6>, kCodeWord<8>};
constexpr int kWidths = sizeof(kCodeWords) / sizeof(kCodeWords[0]);

// -1 of a width that is not stored.
constexpr int width_index(int64_t bits) {
  for (int i = 0; i < kWidths; ++i) {
    if (kCodeWords[i].bits == bits) return i;
  }
  return -1;
}
constexpr CodeWord code_word(int64_t bits) {
  for (const CodeWord& word : kCodeWords) {
    if (word.bits == bits) return word;
  }
  return {};
}

}  // namespace
}  // namespace qcore_cpu
