// The kernels by name. One argument each, a struct; launching.py has the same structs.
#include "quantize_rows.h"
#include "scaled_mm.h"
#include "w4a16.h"

#define QUANTIZE(NAME, ELEMENT)                                                                     \
  QCORE_KERNEL(quantize_##NAME##_f32, QuantizeRows, p) { quantize_rows<ELEMENT, kF32>(p); }         \
  QCORE_KERNEL(quantize_##NAME##_f16, QuantizeRows, p) { quantize_rows<ELEMENT, kF16>(p); }         \
  QCORE_KERNEL(quantize_##NAME##_bf16, QuantizeRows, p) { quantize_rows<ELEMENT, kBf16>(p); }

#define SCALED_MM(NAME, ELEMENT)                                                                    \
  QCORE_KERNEL(scaled_mm_##NAME##_16, ScaledMM, p) { scaled_mm<ELEMENT, 16>(p); }                   \
  QCORE_KERNEL(scaled_mm_##NAME##_64, ScaledMM, p) { scaled_mm<ELEMENT, 64>(p); }

#define W4A16_OF(NAME, FLOAT)                                                                       \
  QCORE_KERNEL(w4a16_##NAME##_few, W4A16, p) { w4a16_few<FLOAT>(p); }                               \
  QCORE_KERNEL(w4a16_##NAME##_16, W4A16, p) { w4a16<FLOAT, 16>(p); }                                \
  QCORE_KERNEL(w4a16_##NAME##_64, W4A16, p) { w4a16<FLOAT, 64>(p); }

QUANTIZE(int8, Int8)
SCALED_MM(int8, Int8)
#if defined(QCORE_HAS_FP8)
QUANTIZE(fp8, Fp8)
SCALED_MM(fp8, Fp8)
QCORE_KERNEL(quantize_groups_f32, QuantizeGroups, p) { quantize_groups<kF32>(p); }
QCORE_KERNEL(quantize_groups_f16, QuantizeGroups, p) { quantize_groups<kF16>(p); }
QCORE_KERNEL(quantize_groups_bf16, QuantizeGroups, p) { quantize_groups<kBf16>(p); }
QCORE_KERNEL(block_scaled_mm_fp8_16, BlockScaledMM, p) { block_scaled_mm<Fp8, 16>(p); }
QCORE_KERNEL(block_scaled_mm_fp8_64, BlockScaledMM, p) { block_scaled_mm<Fp8, 64>(p); }
#endif
W4A16_OF(f16, F16)
W4A16_OF(bf16, Bf16)
