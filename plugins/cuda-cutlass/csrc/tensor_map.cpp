#include "tensor_map.h"

namespace qcore_cuda {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

// The driver is asked for, not linked, so that the library loads where there is none.
Encode find_encode() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
  return error == cudaSuccess && found == cudaDriverEntryPointSuccess ? reinterpret_cast<Encode>(function) : nullptr;
}

template <int RANK>
CUtensorMap encoded(const char* op, CUtensorMapDataType type, const void* data, const cuuint64_t (&sizes)[RANK],
                    const cuuint64_t (&strides)[RANK - 1], const cuuint32_t (&box)[RANK], CUtensorMapSwizzle swizzle) {
  static const Encode encode = find_encode();
  QCORE_CHECK(encode != nullptr, op, ": the driver has no cuTensorMapEncodeTiled; it needs to be of CUDA 12");
  CUtensorMap map;
  const cuuint32_t steps[3] = {1, 1, 1};
  const CUresult result =
      encode(&map, type, RANK, const_cast<void*>(data), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  QCORE_CHECK(result == CUDA_SUCCESS, op, ": no tensor map for a matrix of ", sizes[1], " x ", sizes[0],
              " elements, rows ", strides[0], " bytes apart (", static_cast<int>(result), ")");
  return map;
}

// Rows `stride` elements apart, in boxes that are written to shared memory row after row.
CUtensorMap not_swizzled(const char* op, CUtensorMapDataType type, const void* data, int64_t rows, int64_t columns,
                         int64_t stride, int element_bytes, int box_rows, int box_columns) {
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  return encoded<2>(op, type, data, sizes, {static_cast<cuuint64_t>(stride * element_bytes)},
                    {static_cast<cuuint32_t>(box_columns), static_cast<cuuint32_t>(box_rows)},
                    CU_TENSOR_MAP_SWIZZLE_NONE);
}

}  // namespace

CUtensorMap byte_matrix_map(const char* op, const void* data, int64_t rows, int64_t bytes, int64_t stride,
                            int box_rows) {
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(bytes), static_cast<cuuint64_t>(rows)};
  return encoded<2>(op, CU_TENSOR_MAP_DATA_TYPE_UINT8, data, sizes, {static_cast<cuuint64_t>(stride)},
                    {128, static_cast<cuuint32_t>(box_rows)}, CU_TENSOR_MAP_SWIZZLE_128B);
}

RowMaps row_maps(const char* op, const void* data, int64_t rows, int64_t bytes, int64_t stride, int box_rows) {
  const auto map = [&](int box) { return byte_matrix_map(op, data, rows, bytes, stride, box); };
  const int left = static_cast<int>(rows % box_rows);
  RowMaps maps;
  if (left) maps.rest = map(left);
  maps.whole = rows >= box_rows ? map(box_rows) : maps.rest;
  if (!left) maps.rest = maps.whole;
  return maps;
}

CUtensorMap byte_boxes_map(const char* op, const void* data, int64_t rows, int64_t bytes, int64_t stride, int box_rows,
                           int boxes) {
  const cuuint64_t sizes[3] = {128, static_cast<cuuint64_t>(rows), static_cast<cuuint64_t>(bytes / 128)};
  return encoded<3>(op, CU_TENSOR_MAP_DATA_TYPE_UINT8, data, sizes, {static_cast<cuuint64_t>(stride), 128},
                    {128, static_cast<cuuint32_t>(box_rows), static_cast<cuuint32_t>(boxes)}, CU_TENSOR_MAP_SWIZZLE_128B);
}

CUtensorMap plain_matrix_map(const char* op, const void* data, int64_t rows, int64_t columns, int element_bytes,
                             int box_rows, int box_columns) {
  const auto type = element_bytes == 2 ? CU_TENSOR_MAP_DATA_TYPE_UINT16 : CU_TENSOR_MAP_DATA_TYPE_UINT32;
  return not_swizzled(op, type, data, rows, columns, columns, element_bytes, box_rows, box_columns);
}

CUtensorMap lanes_map(const char* op, const void* data, int64_t pieces, int64_t blocks, int box_pieces, int boxes) {
  const cuuint64_t sizes[3] = {256, static_cast<cuuint64_t>(pieces), static_cast<cuuint64_t>(blocks)};
  return encoded<3>(op, CU_TENSOR_MAP_DATA_TYPE_UINT32, data, sizes, {static_cast<cuuint64_t>(blocks * 1024), 1024},
                    {256, static_cast<cuuint32_t>(box_pieces), static_cast<cuuint32_t>(boxes)}, CU_TENSOR_MAP_SWIZZLE_NONE);
}

CUtensorMap float_matrix_map(const char* op, const void* data, int64_t rows, int64_t columns, int64_t stride,
                             int box_rows, int box_columns) {
  return not_swizzled(op, CU_TENSOR_MAP_DATA_TYPE_FLOAT32, data, rows, columns, stride, 4, box_rows, box_columns);
}

}  // namespace qcore_cuda
