"""The ops for packed weights: AWQ, GPTQ, Marlin. Facts of vLLM 0.33.0; see `ops_facts`."""

from __future__ import annotations

from bilingual import Text
from ops_facts import (
    CHANNEL,
    INTEGER_CONFIG,
    MP,
    MP_RUN,
    NVFP4,
    W4,
    W4_ZERO,
    Op,
    fp8,
    integers,
)

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
            MP,
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
        layers=(W4_ZERO,),
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
            INTEGER_CONFIG,
            MP,
            MP_RUN,
        ),
        called=("MPLinearLayerConfig",),
        note=Text(
            "A layer of the type mp with uint4 codes and zero points, whatever tool wrote it.",
            "类型为 mp 的层，uint4 权重码加零点，与写出它的工具无关。",
        ),
        layers=(W4_ZERO,),
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
        layers=(integers("uint4b8", has_g_idx=True),),
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
            INTEGER_CONFIG,
            MP,
            MP_RUN,
        ),
        called=("MPLinearLayerConfig",),
        note=Text(
            "2, 3, 4 and 8 bits, symmetric or not, with activation order or without; zero points "
            "of version 1 are corrected when they are read.",
            "支持 2、3、4、8 位，对称或非对称，有无激活重排均可；v1 的零点在读取时即被更正。",
        ),
        layers=(
            W4,
            integers("uint2"),
            integers("uint3b4"),
            integers("uint8b128"),
            integers("uint4b8", has_g_idx=True),
        ),
        alike=("wna16_linear",),
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
        path=(MP, "qcore.kernels:LinearKernel.pack_weights", MP_RUN),
        called=("MPLinearLayerConfig", "pack_weights"),
        note=Text(
            "Layers of the types mp, fp8, nvfp4, mxfp4 and mxfp8 can be run in this way; each "
            "kernel says which it takes.",
            "mp、fp8、nvfp4、mxfp4 和 mxfp8 类型的层都可以这样执行，各内核自行声明支持哪些。",
        ),
        layers=(
            W4,
            W4_ZERO,
            integers("uint8b128"),
            fp8(CHANNEL, None),
            {**NVFP4, "activation_quant_key": None},
            {"class": "MxFp4LinearLayerConfig", "activation_quant_key": None},
            {"class": "Mxfp8LinearLayerConfig", "activation_quant_key": None},
        ),
        alike=("wna16_linear",),
    ),
)
