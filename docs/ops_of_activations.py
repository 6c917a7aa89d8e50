"""The ops for quantized activations: products and rounding. Facts of vLLM 0.33.0."""

from __future__ import annotations

from bilingual import Text
from ops_facts import FP8, FP8_BLOCK, NVFP4, Op, int8

OPS: tuple[Op, ...] = (
    Op(
        name="cutlass_scaled_mm_azp",
        role=Text(
            "W8A8 product with int8 activations that have a zero point (azp).",
            "W8A8 矩阵乘法，int8 激活带有零点（azp）。",
        ),
        schema=(
            "cutlass_scaled_mm_azp(Tensor! out, Tensor a, Tensor b, Tensor a_scales, Tensor "
            "b_scales, Tensor azp_adj, Tensor? azp, Tensor? bias) -> ()"
        ),
        formula="out = sa * sb * (a @ b - azp * azp_adj) + bias,  azp_adj[n] = sum_k b[k, n]",
        contract=(
            Text(
                "a int8 [M, K] by rows, b int8 [K, N] by columns; scales float32, one or M of a, "
                "one or N of b; out bfloat16 or float16",
                "a 为 int8 [M, K]，行主序；b 为 int8 [K, N]，列主序；缩放因子 float32，a 有 1 个"
                "或 M 个，b 有 1 个或 N 个；out 为 bfloat16 或 float16",
            ),
            Text(
                "one zero point a token: azp int32 [M]; one for the tensor: azp is absent and "
                "azp_adj is multiplied by it beforehand",
                "逐 token 零点：azp 为 int32 [M]；逐张量零点：不传 azp，而是事先乘进 azp_adj",
            ),
        ),
        path=(
            "qcore.quantization.compressed_schemes:Int8Scheme.layer_config",
            "qcore.layers:Int8ScaledMMLinearLayerConfig",
            "qcore.kernels:Int8ScaledMMLinearKernel.apply_weights",
            "qcore.numerics.activation_quant:dynamic_int8_quant",
            "qcore.numerics.activation_quant:static_int8_quant",
        ),
        called=("Int8ScaledMMLinearLayerConfig", "dynamic_int8_quant", "static_int8_quant"),
        note=Text(
            "A layer of the type int8 with input_symmetric false. A kernel adds the sums of the "
            "rows when it packs.",
            "类型为 int8 的层，input_symmetric 为 false。行和由内核在打包时加入。",
        ),
        layers=(int8(False, False), int8(True, False)),
        alike=("int8_scaled_linear",),
    ),
    Op(
        name="cutlass_scaled_mm",
        role=Text(
            "W8A8 product: int8 with int8, or e4m3 with e4m3, scales applied to the sums.",
            "W8A8 矩阵乘法：int8 乘 int8，或 e4m3 乘 e4m3，缩放因子作用于累加结果。",
        ),
        schema=(
            "cutlass_scaled_mm(Tensor! out, Tensor a, Tensor b, Tensor a_scales, Tensor "
            "b_scales, Tensor? bias) -> ()"
        ),
        formula="out[m, n] = sa[m] * sb[n] * sum_k a[m, k] * b[k, n] + bias[n]",
        contract=(
            Text(
                "a [M, K] by rows, b [K, N] by columns, both int8 or both e4m3; bfloat16 and "
                "float16 are dtypes of the result, not of the inputs",
                "a 为 [M, K] 行主序，b 为 [K, N] 列主序，二者同为 int8 或同为 e4m3；bfloat16 与 "
                "float16 是结果的类型，而不是输入的类型",
            ),
            Text(
                "scales float32: one or M of a, one or N of b; or in blocks, a [M, ceil(K/128)] "
                "and b [ceil(K/128), ceil(N/128)], and then no bias; K and N are multiples of 16",
                "缩放因子 float32：a 有 1 个或 M 个，b 有 1 个或 N 个；也可分块，a 为 [M, "
                "ceil(K/128)]，b 为 [ceil(K/128), ceil(N/128)]，此时没有偏置；K 和 N 须为 16 的倍"
                "数",
            ),
        ),
        path=(
            "qcore.quantization.compressed_schemes:Int8Scheme.layer_config",
            "qcore.quantization.float8:Float8Scheme.layer_config",
            "qcore.layers:Int8ScaledMMLinearLayerConfig",
            "qcore.layers:FP8ScaledMMLinearLayerConfig",
            "qcore.layers:Fp8BlockScaledMMLinearLayerConfig",
            "qcore.kernels:Int8ScaledMMLinearKernel.apply_weights",
            "qcore.kernels:FP8ScaledMMLinearKernel.apply_scaled_mm",
            "qcore.kernels:Fp8BlockScaledMMLinearKernel.apply_block_scaled_mm",
        ),
        called=("Int8ScaledMMLinearLayerConfig", "scaled_fp8_quant"),
        note=Text(
            "Three layer types, so that a kernel can refuse what it does not do: int8, fp8 "
            "(tensor, channel, token) and fp8_block.",
            "分为三种层类型，以便内核拒绝自己做不到的：int8、fp8（张量、通道、token）和 "
            "fp8_block。",
        ),
        layers=(int8(False, True), int8(True, True), FP8, FP8_BLOCK),
        alike=("int8_scaled_linear",),
    ),
    Op(
        name="per_token_group_fp8_quant",
        role=Text(
            "Quantizes activations to FP8 with a scale for each group of each token.",
            "把激活量化为 FP8，每个 token 的每一组各有一个缩放因子。",
        ),
        schema=(
            "per_token_group_fp8_quant(Tensor input, Tensor! output_q, Tensor! output_s, int "
            "group_size, float eps, float fp8_min, float fp8_max, bool scale_ue8m0, bool "
            "dummy_is_scale_transposed, bool dummy_is_tma_aligned) -> ()"
        ),
        formula="s = max(eps, amax(group)) / fp8_max;  q = clamp(x * (1 / s), fp8_min, fp8_max)",
        contract=(
            Text(
                "input contiguous [..., K], K a multiple of the group; scales float32 [M, K/G], "
                "by rows or by columns as the strides of output_s say (the two last arguments do "
                "nothing)",
                "input 为连续的 [..., K]，K 须为组大小的倍数；缩放因子 float32 [M, K/G]，行主序或"
                "列主序由 output_s 的步长决定（最后两个参数不起作用）",
            ),
            Text(
                "eps is 1e-10; with scale_ue8m0 the scale is rounded up to a power of two",
                "eps 为 1e-10；scale_ue8m0 为真时缩放因子向上取整到 2 的幂",
            ),
        ),
        path=(
            "qcore.quantization.float8:Float8Scheme.layer_config",
            "qcore.layers:Fp8BlockScaledMMLinearLayerConfig",
            "qcore.kernels:Fp8BlockScaledMMLinearKernel.apply_weights",
            "qcore.numerics.activation_quant:group_fp8_quant",
        ),
        called=("group_fp8_quant",),
        note=Text(
            "scale = amax / 448, and 1 for a group of zeros; the last group may be shorter. The "
            "base class of the kernels does it, so that a kernel is given codes and scales.",
            "缩放因子为 amax / 448，全零的组取 1；最后一组可以较短。由内核基类完成，因此内核拿到"
            "的就是码和缩放因子。",
        ),
        layers=(FP8_BLOCK,),
    ),
    Op(
        name="per_token_group_fp8_quant_packed",
        role=Text(
            "The same with power-of-two scales, four of them packed into a word, for kernels "
            "that load scales by TMA.",
            "同上，但缩放因子为 2 的幂，每四个打包进一个字，供通过 TMA 读取缩放因子的内核使用。",
        ),
        schema=(
            "per_token_group_fp8_quant_packed(Tensor input, Tensor! output_q, Tensor! "
            "output_s_packed, int group_size, float eps, float fp8_min, float fp8_max) -> ()"
        ),
        formula="s = 2 ** ceil(log2(max(eps, amax(group)) / fp8_max));  q = clamp(x / s)",
        contract=(
            Text(
                "float16 or bfloat16 input, groups of 32 or 128; the codes are plain FP8, only "
                "the scales are packed",
                "输入为 float16 或 bfloat16，组大小 32 或 128；码是普通的 FP8，被打包的只有缩放因"
                "子",
            ),
            Text(
                "scales int32 [M, ceil(K/G/4)] by columns, the column stride being M rounded up "
                "to a multiple of 4; byte g % 4 of word [m, g // 4] is the exponent of group g, "
                "padding is 0",
                "缩放因子 int32 [M, ceil(K/G/4)]，列主序，列步长为 M 向上取整到 4 的倍数；字 [m, "
                "g // 4] 的第 g % 4 个字节是第 g 组的指数，填充为 0",
            ),
        ),
        path=(
            "qcore.layers:Fp8BlockScaledMMLinearLayerConfig",
            "qcore.numerics.activation_quant:group_fp8_quant",
            "qcore.layers:Mxfp8LinearLayerConfig",
            "qcore.numerics.activation_quant:mxfp8_quant",
        ),
        called=("group_fp8_quant", "mxfp8_quant"),
        note=Text(
            "Packed scales are the layout of one kernel and no part of a layer: fp8_block layers "
            "have float32 scales of activations. Exponents as scales are those of the type mxfp8 "
            "(groups of 32, plain rows of bytes).",
            "打包的缩放因子是某个内核自己的布局，不属于层的定义：fp8_block 层的激活缩放因子为 "
            "float32。以指数作缩放因子的是 mxfp8 类型（每组 32 个，按行存放的字节）。",
        ),
        layers=(FP8_BLOCK,),
    ),
    Op(
        name="scaled_fp4_quant",
        role=Text(
            "Quantizes activations to NVFP4: e2m1 codes, an e4m3 scale for 16 elements, one "
            "global scale.",
            "把激活量化为 NVFP4：e2m1 码，每 16 个元素一个 e4m3 缩放因子，外加一个全局缩放因子。",
        ),
        schema=(
            "scaled_fp4_quant(Tensor input, Tensor input_scale, bool is_sf_swizzled_layout) -> "
            "(Tensor, Tensor)"
        ),
        formula="sf = e4m3(g * amax16 / 6);  q = e2m1(x * g / sf),  g = 448 * 6 / amax",
        contract=(
            Text(
                "float16 or bfloat16 [M, K], K a multiple of 16; the global scale is float32 and "
                "the inverse of what multiplies; block scales are rounded to e4m3 before they "
                "are used",
                "float16 或 bfloat16 [M, K]，K 须为 16 的倍数；全局缩放因子为 float32，是乘数的倒"
                "数；块缩放因子先舍入到 e4m3 再使用",
            ),
            Text(
                "codes uint8 [M, K/2], the even element in the low half; scales in tiles of 128 "
                "x 4 (int32 [ceil128(M), ceil4(K/16)/4]), or by rows uint8 [M, K/16]",
                "码为 uint8 [M, K/2]，偶数元素在低半字节；缩放因子按 128 x 4 的瓦片排列（int32 "
                "[ceil128(M), ceil4(K/16)/4]），或按行 uint8 [M, K/16]",
            ),
        ),
        path=(
            "qcore.quantization.block_formats:NvFp4Scheme.layer_config",
            "qcore.layers:NvFp4LinearLayerConfig",
            "qcore.kernels:NvFp4LinearKernel.apply_weights",
            "qcore.numerics.activation_quant:nvfp4_round",
        ),
        called=("nvfp4_round",),
        note=Text(
            "Global scales multiply; the inverses that some tools store are turned when they are "
            "read. Scales lie in plain rows; a kernel that wants tiles makes them when it packs.",
            "全局缩放因子一律是乘数；某些工具存储的倒数在读取时即被换算。缩放因子按行存放，需要瓦"
            "片排列的内核在打包时自行转换。",
        ),
        layers=(NVFP4,),
    ),
)
