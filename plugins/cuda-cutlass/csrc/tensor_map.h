// Descriptions of matrices for the tensor copy engine.
#pragma once

#include <cuda.h>

#include "op_support.h"

namespace qcore_cuda {

// Rows of bytes, `stride` apart, read in boxes of `box_rows` rows of 128 bytes that are swizzled by
// 128 bytes. What lies outside is read as 0.
CUtensorMap byte_matrix_map(const char* op, const void* data, int64_t rows, int64_t bytes, int64_t stride,
                            int box_rows);

// The same in two maps, so that nothing outside is read, which takes longer than what is inside: of `box_rows` rows, and of
// those that are left behind the last such box.
struct RowMaps {
  CUtensorMap whole, rest;
};
RowMaps row_maps(const char* op, const void* data, int64_t rows, int64_t bytes, int64_t stride, int box_rows);

// The same of whole boxes, bytes % 128 == 0: `boxes` of them side by side are one copy (sm90::load_boxes), one behind
// the other in shared memory.
CUtensorMap byte_boxes_map(const char* op, const void* data, int64_t rows, int64_t bytes, int64_t stride, int box_rows,
                           int boxes);

// A matrix without gaps, in boxes that are written to shared memory row after row.
CUtensorMap plain_matrix_map(const char* op, const void* data, int64_t rows, int64_t columns, int element_bytes,
                             int box_rows, int box_columns);

// Words of lanes (gptq_packing.py, in_lanes): `pieces` rows of `blocks` times 1 KiB, in boxes of `box_pieces` of `boxes`
// blocks side by side, which are copied one behind the other (sm90::load_boxes).
CUtensorMap lanes_map(const char* op, const void* data, int64_t pieces, int64_t blocks, int box_pieces, int boxes);

// Rows of floats, `stride` floats apart, likewise. What lies outside is read as 0.
CUtensorMap float_matrix_map(const char* op, const void* data, int64_t rows, int64_t columns, int64_t stride,
                             int box_rows, int box_columns);

}  // namespace qcore_cuda
