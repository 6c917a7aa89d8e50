"""What is to be said of ten ops of vLLM, in English and in Chinese.

Signatures and layouts are facts of vLLM 0.33.0 (csrc/torch_bindings.cpp, vllm/_custom_ops.py and
the kernels behind them); they differ between its versions. Where qcore does the work of an op is
given by name here and looked up in the sources when the page is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bilingual import Text, both
from reach import Scheme


@dataclass(frozen=True)
class Op:
    """One op.

    Attributes:
        name: in vLLM.
        role: what it is for.
        schema: as vLLM registers it.
        formula: what it computes.
        contract: shapes, dtypes, layouts and limits.
        path: qcore's objects that lead to this work, ``module:Object``, in order.
        called: names of functions and classes of qcore whose call sites are listed.
        note: how qcore does it.
        layers: layers whose kernels do this work.
        alike: ops of qcore's own that do the same for another layout.
    """

    name: str
    role: Text
    schema: str
    formula: str
    contract: tuple[Text, ...]
    path: tuple[str, ...]
    called: tuple[str, ...]
    note: Text
    layers: tuple[Scheme, ...]
    alike: tuple[str, ...] = ()


def _integers(kind: str, group: int = 128, **more: Any) -> Scheme:
    stated = {"group_size": group, "zero_points": False, "has_g_idx": False, **more}
    name = {"class": "ScalarType", "name": kind}
    return {"class": "MPLinearLayerConfig", "weight_type": name, **stated}


def _key(row: int, col: int, static: bool, scale: str = "float32", dtype: Any = None) -> Scheme:
    group = {"class": "GroupShape", "row": row, "col": col}
    desc = {"class": "ScaleDesc", "dtype": f"torch.{scale}", "static": static, "group_shape": group}
    dtype = dtype or "torch.float8_e4m3fn"
    return {"class": "QuantKey", "dtype": dtype, "scale": desc, "scale2": None, "symmetric": True}


def _int8(static: bool, symmetric: bool) -> Scheme:
    stated = {"is_static_input_scheme": static, "is_channelwise": True}
    stated |= {"input_symmetric": symmetric, "is_fused_module": False}
    return {"class": "Int8ScaledMMLinearLayerConfig", **stated}


def _fp8(weight: Scheme, inputs: Scheme | None) -> Scheme:
    keys = {"weight_quant_key": weight, "activation_quant_key": inputs}
    block = weight["scale"]["group_shape"]["row"] > 1
    return {"class": f"F{'p8Block' if block else 'P8'}ScaledMMLinearLayerConfig", **keys}


_CHANNEL, _TOKEN = _key(-1, 1, True), _key(1, -1, False)
_BLOCK, _GROUP = _key(128, 128, True), _key(1, 128, False)
_E2M1 = {"class": "ScalarType", "name": "float4_e2m1f"}
_NVFP4_INPUT = _key(1, 16, False, "float8_e4m3fn", _E2M1)
_NVFP4_INPUT = {**_NVFP4_INPUT, "scale2": _key(-1, -1, True)["scale"]}

_W4 = _integers("uint4b8")
_W4_ZERO = _integers("uint4", zero_points=True)
_FP8 = _fp8(_CHANNEL, _TOKEN)
_FP8_BLOCK = _fp8(_BLOCK, _GROUP)
_NVFP4: Scheme = {"class": "NvFp4LinearLayerConfig", "activation_quant_key": _NVFP4_INPUT}

_MP = "qcore.layers:MPLinearLayerConfig"
_MP_RUN = "qcore.kernels:MPLinearKernel.apply_weights"
_INTEGER_CONFIG = "qcore.quantization.integer:IntegerWeights.layer_config"

OPS: tuple[Op, ...] = (
    Op(
        name="awq_dequantize",
        role=Text(
            "Turns packed AWQ weights into a dense matrix, for a plain product with many tokens.",
            "把打包的 AWQ 权重还原为稠密矩阵，供 token 较多时使用普通矩阵乘法。",
        ),
        schema=(
            "awq_dequantize(Tensor _kernel, Tensor _scaling_factors, Tensor _zeros, SymInt "
            "split_k_iters, int thx, int thy) -> Tensor"
        ),
        formula="w[k, n] = (q[k, n] - z[k // G, n]) * s[k // G, n]",
        contract=(
            Text(
                "codes int32 [K, N/8]; scales float16 [K/G, N]; zero points int32 [K/G, N/8]; "
                "the result is float16 [K, N], never bfloat16",
                "权重码 int32 [K, N/8]；缩放因子 float16 [K/G, N]；零点 int32 [K/G, N/8]；结果为 "
                "float16 [K, N]，没有 bfloat16",
            ),
            Text(
                "a word holds eight outputs: nibble i is output 8j + (0, 2, 4, 6, 1, 3, 5, "
                "7)[i]; zero points lie in the same order and are stored as they are (no offset "
                "of one)",
                "一个 32 位字存放 8 个输出通道：第 i 个半字节对应输出 8j + (0, 2, 4, 6, 1, 3, 5, "
                "7)[i]；零点采用相同次序，按原值存储（没有减一）",
            ),
        ),
        path=(
            "qcore.quantization.awq:AWQScheme.canonicalize",
            _MP,
            "qcore.numerics.dequantize:dequantize_weight",
        ),
        called=("dequantize_weight",),
        note=Text(
            "AWQ's order is undone once, when the checkpoint is loaded; no kernel knows it. The "
            "reference kernel makes the dense matrix at each call; other kernels make it only "
            "where that is their way to multiply.",
            "AWQ 的次序在加载检查点时一次性还原，内核无需了解。参考内核每次调用都生成稠密矩阵；其"
            "他内核只在自己的乘法需要时才生成。",
        ),
        layers=(_W4_ZERO,),
    ),
    Op(
        name="awq_gemm",
        role=Text(
            "W4A16 product with AWQ weights, for few tokens.",
            "使用 AWQ 权重的 W4A16 矩阵乘法，用于 token 较少的情形。",
        ),
        schema=(
            "awq_gemm(Tensor _in_feats, Tensor _kernel, Tensor _scaling_factors, Tensor _zeros, "
            "SymInt split_k_iters) -> Tensor"
        ),
        formula="y = x @ w,  w[k, n] = (q[k, n] - z[k // G, n]) * s[k // G, n]",
        contract=(
            Text(
                "x float16 [M, K]; weights as for awq_dequantize; N a multiple of 64 and of G, G "
                "a multiple of 32",
                "x 为 float16 [M, K]；权重同 awq_dequantize；N 须为 64 和 G 的倍数，G 须为 32 的"
                "倍数",
            ),
            Text(
                "K is cut into split_k_iters parts (vLLM passes 8), whose sums are added in a "
                "buffer [split, M, N]; from 256 tokens on vLLM dequantizes instead",
                "K 被切成 split_k_iters 段（vLLM 传入 8），各段的和在缓冲区 [split, M, N] 中相"
                "加；token 数达到 256 时 vLLM 改为先反量化",
            ),
        ),
        path=(
            "qcore.quantization.awq:AWQConfig.get_quant_method",
            "qcore.quantization.awq:AWQScheme.layer_config",
            _INTEGER_CONFIG,
            _MP,
            _MP_RUN,
        ),
        called=("MPLinearLayerConfig",),
        note=Text(
            "A layer of the type mp with uint4 codes and zero points, whatever tool wrote it.",
            "类型为 mp 的层，uint4 权重码加零点，与写出它的工具无关。",
        ),
        layers=(_W4_ZERO,),
        alike=("wna16_linear",),
    ),
    Op(
        name="gptq_shuffle",
        role=Text(
            "Reorders GPTQ codes in place for the kernel behind gptq_gemm, once after loading.",
            "加载后一次性地就地重排 GPTQ 权重码，供 gptq_gemm 背后的内核使用。",
        ),
        schema="gptq_shuffle(Tensor! q_weight, int bit) -> ()",
        formula="new[i] = old[(0, 2, 4, 6, 1, 3, 5, 7)[i]]  (the codes of a word, 4 bit)",
        contract=(
            Text(
                "int32 [K * bit / 32, N], changed in place; bit is 2, 3, 4 or 8, and 8 changes "
                "nothing",
                "int32 [K * bit / 32, N]，就地修改；bit 为 2、3、4 或 8，其中 8 不做任何改动",
            ),
            Text(
                "it reorders codes inside a word only. Rows in the order of g_idx are another "
                "matter: older versions took the permutation as an argument, 0.33.0 has no "
                "activation order",
                "只在字内部调整码的次序。按 g_idx 排列各行是另一回事：旧版本以参数形式接收该排"
                "列，0.33.0 已不支持激活重排（activation order）",
            ),
        ),
        path=(
            "qcore.quantization.gptq:GPTQScheme.canonicalize",
            "qcore.quantization.integer:IntegerWeights.canonical",
            "qcore.kernels:LinearKernel.pack_weights",
        ),
        called=("pack_weights",),
        note=Text(
            "Each kernel packs its own layout from the canonical one, by a pure function. A real "
            "g_idx is kept as weight_g_idx, and kernels that take it say so.",
            "每个内核用纯函数从规范布局打包出自己的布局。真正起作用的 g_idx 会保留为 "
            "weight_g_idx，支持它的内核会自行声明。",
        ),
        layers=(_integers("uint4b8", has_g_idx=True),),
        alike=("wna16_pack",),
    ),
    Op(
        name="gptq_gemm",
        role=Text(
            "Product with GPTQ weights of 2, 3, 4 or 8 bits, scales and zero points by group.",
            "使用 2、3、4 或 8 位 GPTQ 权重的矩阵乘法，缩放因子和零点按组存放。",
        ),
        schema=(
            "gptq_gemm(Tensor a, Tensor b_q_weight, Tensor b_gptq_qzeros, Tensor b_gptq_scales, "
            "bool use_exllama, bool use_v2_format, int bit) -> Tensor"
        ),
        formula="y = a @ w,  w[k, n] = (q - (z + 1)) * s  (v1);  (q - z) * s  (v2)",
        contract=(
            Text(
                "a float16 [M, K]; codes int32 [K * bit / 32, N], packed along K; zero points "
                "int32 [G, N * bit / 32]; scales float16 [G, N]",
                "a 为 float16 [M, K]；权重码 int32 [K * bit / 32, N]，沿 K 打包；零点 int32 [G, "
                "N * bit / 32]；缩放因子 float16 [G, N]",
            ),
            Text(
                "checkpoints of version 1 store the zero point less one, those of version 2 as "
                "it is; use_v2_format must say which",
                "v1 检查点存储的是零点减一，v2 检查点存储零点原值；须由 use_v2_format 指明",
            ),
            Text(
                "use_exllama needs codes that gptq_shuffle has reordered; with more than 50 rows "
                "(24 for 8 bits) the weight is made dense first. vLLM's method passes 4 and 8 "
                "bits, symmetric, only",
                "use_exllama 要求权重码已由 gptq_shuffle 重排；超过 50 行（8 位时为 24 行）时先还"
                "原为稠密矩阵。vLLM 的量化方法只会传入对称的 4 位和 8 位",
            ),
        ),
        path=(
            "qcore.quantization.gptq:GPTQConfig.get_quant_method",
            "qcore.quantization.gptq:GPTQScheme.layer_config",
            _INTEGER_CONFIG,
            _MP,
            _MP_RUN,
        ),
        called=("MPLinearLayerConfig",),
        note=Text(
            "2, 3, 4 and 8 bits, symmetric or not, with activation order or without; zero points "
            "of version 1 are corrected when they are read.",
            "支持 2、3、4、8 位，对称或非对称，有无激活重排均可；v1 的零点在读取时即被更正。",
        ),
        layers=(
            _W4,
            _integers("uint2"),
            _integers("uint3b4"),
            _integers("uint8b128"),
            _integers("uint4b8", has_g_idx=True),
        ),
        alike=("wna16_linear",),
    ),
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
        layers=(_int8(False, False), _int8(True, False)),
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
        layers=(_int8(False, True), _int8(True, True), _FP8, _FP8_BLOCK),
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
        layers=(_FP8_BLOCK,),
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
        layers=(_FP8_BLOCK,),
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
        layers=(_NVFP4,),
    ),
    Op(
        name="marlin_gemm",
        role=Text(
            "Product with weights of 4 or 8 bits in Marlin's tiles, decoded in registers.",
            "使用 Marlin 瓦片布局的 4 位或 8 位权重的矩阵乘法，在寄存器中解码。",
        ),
        schema=(
            "marlin_gemm(Tensor a, Tensor? c_or_none, Tensor b_q_weight, Tensor? b_bias_or_none, "
            "Tensor b_scales, Tensor? a_scales, Tensor? global_scale, Tensor? b_zeros_or_none, "
            "Tensor workspace, int b_type_id, SymInt size_m, SymInt size_n, SymInt size_k, bool "
            "use_atomic_add, bool use_fp32_reduce, bool is_zp_float) -> Tensor"
        ),
        formula="y = a @ w,  w[k, n] = (q - z) * s",
        contract=(
            Text(
                "a float16, bfloat16, int8 or e4m3 [M, K], 16-byte aligned; codes int32 [K/16, N "
                "* 16 / pack]; scales [groups, N]; zero points int32 [groups, N/pack]; N a "
                "multiple of 64",
                "a 为 float16、bfloat16、int8 或 e4m3 [M, K]，16 字节对齐；权重码 int32 [K/16, N "
                "* 16 / pack]；缩放因子 [groups, N]；零点 int32 [groups, N/pack]；N 须为 64 的倍"
                "数",
            ),
            Text(
                "not only W4A16: weights uint4 with zero points, uint4b8, uint8b128, e4m3, "
                "NVFP4, MXFP4 and MXFP8; e4m3 activations on sm_89 and sm_12x only, and sm_75 "
                "has float16 and int8 only",
                "不只是 W4A16：权重可为带零点的 uint4、uint4b8、uint8b128、e4m3、NVFP4、MXFP4 和 "
                "MXFP8；e4m3 激活仅限 sm_89 与 sm_12x，sm_75 只有 float16 和 int8",
            ),
            Text(
                "tiles of 16 x 16, every 16 x 64 values permuted for the tensor cores' registers "
                "and interleaved; scales and zero points are permuted to match; workspace holds "
                "a zeroed int32 for each multiprocessor; activation order and float zero points "
                "are gone in 0.33.0",
                "16 x 16 的瓦片，每 16 x 64 个值按张量核心的寄存器排布置换并交错；缩放因子和零点"
                "做相应置换；workspace 为每个多处理器提供一个清零的 int32；0.33.0 已不再支持激活"
                "重排和浮点零点",
            ),
        ),
        path=(_MP, "qcore.kernels:LinearKernel.pack_weights", _MP_RUN),
        called=("MPLinearLayerConfig", "pack_weights"),
        note=Text(
            "Layers of the types mp, fp8, nvfp4, mxfp4 and mxfp8 can be run in this way; each "
            "kernel says which it takes.",
            "mp、fp8、nvfp4、mxfp4 和 mxfp8 类型的层都可以这样执行，各内核自行声明支持哪些。",
        ),
        layers=(
            _W4,
            _W4_ZERO,
            _integers("uint8b128"),
            _fp8(_CHANNEL, None),
            {**_NVFP4, "activation_quant_key": None},
            {"class": "MxFp4LinearLayerConfig", "activation_quant_key": None},
            {"class": "Mxfp8LinearLayerConfig", "activation_quant_key": None},
        ),
        alike=("wna16_linear",),
    ),
)

PLATFORMS = {"cpu": both("CPU"), "cuda": both("CUDA"), "rocm": both("ROCm"), "xpu": both("XPU")}
