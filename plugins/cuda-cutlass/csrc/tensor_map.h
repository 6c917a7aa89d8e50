// Descriptions of matrices for the tensor copy engine.
#pragma once

#include <cuda.h>

#include "op_support.h"

namespace qcore_cuda {

// Rows of bytes, `stride` apart, read in boxes of `box_rows` rows of 128 bytes that are swizzled by
// 128 bytes. What lies outside is read as 0.
CUtensorMap byte_matrix_map(const char* op, const void* data, int64_t rows, int64_t bytes, int64_t stride,
                            int box_rows);

// A matrix without gaps, in boxes that are written to shared memory row after row.
CUtensorMap plain_matrix_map(const char* op, const void* data, int64_t rows, int64_t columns, int element_bytes,
                             int box_rows, int box_columns);

}  // namespace qcore_cuda
