// A block's product of ROWS x 64 outputs: both sides lie in shared memory as rows of kStep bytes of
// operands, and four waves multiply.
#pragma once

#include "matrix_unit.h"

constexpr int kColumns = 64;             // outputs of a tile
constexpr int kStep = 128;               // bytes along K
constexpr int kPitch = kStep + 16;       // so that rows begin in different banks

template <int ROWS>
struct alignas(16) SharedTile {
  uint8_t left[ROWS * kPitch];
  uint8_t right[kColumns * kPitch];
};

template <typename Element, int ROWS>
struct TileProduct {
  using Unit = MatrixUnit<Element>;
  static constexpr int kUnitRows = ROWS == 64 ? 2 : 1;     // units of a wave, one below the other
  static constexpr int kUnitColumns = ROWS == 64 ? 2 : 1;  // ... side by side
  typename Unit::Sums sums[kUnitRows][kUnitColumns];
  int first_row, first_column;

  QCORE_DEVICE TileProduct() {
    const int wave = wave_index();
    first_row = ROWS == 64 ? wave / 2 * 32 : 0;
    first_column = ROWS == 64 ? wave % 2 * 32 : wave * 16;
    QCORE_UNROLL
    for (int i = 0; i < kUnitRows; ++i) {
      QCORE_UNROLL
      for (int j = 0; j < kUnitColumns; ++j) {
        QCORE_UNROLL
        for (int r = 0; r < Unit::kSums; ++r) sums[i][j][r] = 0;
      }
    }
  }

  // Add the products of one step.
  QCORE_DEVICE void add(const SharedTile<ROWS>& tile) {
    using Operand = Bytes<Unit::kBytes>;
    const int row = lane_index() % 16, place = lane_index() / 16 * Unit::kBytes;
    constexpr int kAtOnce = kWave / 16 * Unit::kBytes;
    QCORE_UNROLL
    for (int k = 0; k < kStep; k += kAtOnce) {
      Operand left[kUnitRows], right[kUnitColumns];
      QCORE_UNROLL
      for (int i = 0; i < kUnitRows; ++i) {
        const int at = (first_row + i * 16 + row) * kPitch + k + place;
        left[i] = *reinterpret_cast<const Operand*>(tile.left + at);
      }
      QCORE_UNROLL
      for (int j = 0; j < kUnitColumns; ++j) {
        const int at = (first_column + j * 16 + row) * kPitch + k + place;
        right[j] = *reinterpret_cast<const Operand*>(tile.right + at);
      }
      QCORE_UNROLL
      for (int i = 0; i < kUnitRows; ++i) {
        QCORE_UNROLL
        for (int j = 0; j < kUnitColumns; ++j) {
          sums[i][j] = Unit::multiply(left[i], right[j], sums[i][j]);
        }
      }
    }
  }

  // Add the sums of `other`, each times scale(row, column).
  template <typename Scale>
  QCORE_DEVICE void add_scaled(const TileProduct& other, const Scale& scale) {
    const int row = lane_index() / 16 * Unit::kSums, column = lane_index() % 16;
    QCORE_UNROLL
    for (int i = 0; i < kUnitRows; ++i) {
      QCORE_UNROLL
      for (int j = 0; j < kUnitColumns; ++j) {
        QCORE_UNROLL
        for (int r = 0; r < Unit::kSums; ++r) {
          sums[i][j][r] += other.sums[i][j][r] * scale(first_row + i * 16 + row + r,
                                                       first_column + j * 16 + column);
        }
      }
    }
  }

  // Call use(row, column, sum) for what this lane has, rows and columns counted in the tile.
  template <typename Use>
  QCORE_DEVICE void each(const Use& use) const {
    const int row = lane_index() / 16 * Unit::kSums, column = lane_index() % 16;
    QCORE_UNROLL
    for (int i = 0; i < kUnitRows; ++i) {
      QCORE_UNROLL
      for (int j = 0; j < kUnitColumns; ++j) {
        QCORE_UNROLL
        for (int r = 0; r < Unit::kSums; ++r) {
          use(first_row + i * 16 + row + r, first_column + j * 16 + column, sums[i][j][r]);
        }
      }
    }
  }
};

// 16 bytes each of a matrix's rows, for all threads together: ROWS rows of kStep bytes.
template <int ROWS>
struct Loader {
  static constexpr int kPieces = ROWS * kStep / 16;
  static constexpr int kEach = (kPieces + kThreads - 1) / kThreads;
  Bytes<16> held[kEach];

  // Rows begin at data, `pitch` bytes apart. Zeros stand for rows from `rows` on, bytes from `width` on.
  QCORE_DEVICE void load(const uint8_t* data, size_t pitch, int rows, int at, int width) {
    QCORE_UNROLL
    for (int i = 0; i < kEach; ++i) {
      const int piece = thread_index() + i * kThreads;
      const int row = piece / (kStep / 16), byte = at + piece % (kStep / 16) * 16;
      held[i] = Bytes<16>{};
      if (row < rows && byte < width && piece < kPieces) {
        held[i] = *reinterpret_cast<const Bytes<16>*>(data + row * pitch + byte);
      }
    }
  }

  QCORE_DEVICE void store(uint8_t* shared) const {
    QCORE_UNROLL
    for (int i = 0; i < kEach; ++i) {
      const int piece = thread_index() + i * kThreads;
      const int row = piece / (kStep / 16), byte = piece % (kStep / 16) * 16;
      if (kPieces % kThreads != 0 && piece >= kPieces) continue;
      *reinterpret_cast<Bytes<16>*>(shared + row * kPitch + byte) = held[i];
    }
  }
};
