"""Write FP8, NVFP4, MXFP4 and MXFP8 layers, by code that shares nothing with the loaders.

A ``*_layer`` function takes a float weight [N, K] and returns the checkpoint's tensors and the
weight that they stand for. A ``round_*`` function is what a format does to a layer's input.
"""

from __future__ import annotations

import checkpoint_writers as w
import torch

FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def e4m3(values):
    return values.clamp(-448, 448).to(torch.float8_e4m3fn)


def fp4_codes(values):
    """The nearest of FP4's magnitudes; of two equally near ones that with the even code."""
    distance = (values.abs()[..., None] - FP4).abs()
    nearest = distance == distance.amin(-1, keepdim=True)
    even = torch.tensor([1, 0] * 4)
    codes = (nearest * (1 + even)).argmax(-1)
    return codes + 8 * (values < 0)


def fp4_values(codes):
    return torch.where(codes >= 8, -1.0, 1.0) * FP4[codes % 8]


def fp4_bytes(codes):
    return (codes[:, 0::2] + 16 * codes[:, 1::2]).to(torch.uint8)


def spread(scales, rows, columns, shape):
    """A scale for each element of ``shape``."""
    wide = scales.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
    return wide[: shape[0], : shape[1]]


# -- weights -----------------------------------------------------------------------------------


def fnuz(values):
    """e4m3fnuz by its definition: bias 8, no -0, up to 240; ties to the even code."""
    table = torch.tensor([fnuz_value(code) for code in range(128)])
    distance = (values.abs().double()[..., None] - table).abs()
    nearest = distance == distance.amin(-1, keepdim=True)
    codes = (nearest * (1 + torch.tensor([1, 0] * 64))).argmax(-1)
    codes = torch.where((values < 0) & (codes > 0), codes + 128, codes)
    return codes.to(torch.uint8).view(torch.float8_e4m3fnuz)


def fnuz_value(code):
    """Of one of the 256 codes, in Python's floats."""
    if code == 0x80:
        return float("nan")
    sign, exponent, fraction = code >> 7, code >> 3 & 15, code & 7
    value = fraction / 8 * 2.0**-7 if exponent == 0 else (1 + fraction / 8) * 2.0 ** (exponent - 8)
    return -value if sign else value


def fnuz_floats(codes):
    table = torch.tensor([fnuz_value(code) for code in range(256)])
    return table[codes.view(torch.uint8).long()]


def fnuz_layer(weight, block=None, channel=False, scale_name="weight_scale", **more):
    N, K = weight.shape
    rows, columns = block or (1 if channel else N, K)
    tops = torch.zeros(-(-N // rows), -(-K // columns))
    for i in range(tops.shape[0]):
        for j in range(tops.shape[1]):
            part = weight[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]
            tops[i, j] = part.abs().max()
    scales = tops / 240
    wide = spread(scales, rows, columns, weight.shape)
    codes = fnuz(weight / wide)
    stored = scales.reshape(()) if not (block or channel) else scales
    extra = {name: torch.tensor(value) for name, value in more.items()}
    return {"weight": codes, scale_name: stored, **extra}, fnuz_floats(codes) * wide


def round_fnuz(scale=None):
    """Per token, to 224 as AMD's kernels do; or by a known scale."""

    def rounded(x):
        one = x.abs().amax(-1, keepdim=True) / 224 if scale is None else torch.tensor(scale)
        return fnuz_floats(fnuz((x / one).clamp(-224, 224))) * one

    return rounded


def fp8_layer(
    weight, block=None, channel=False, scale_name="weight_scale", dtype=torch.float32, **more
):
    N, K = weight.shape
    rows, columns = block or (1 if channel else N, K)
    tops = torch.zeros(-(-N // rows), -(-K // columns))
    for i in range(tops.shape[0]):
        for j in range(tops.shape[1]):
            part = weight[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]
            tops[i, j] = part.abs().max()
    scales = (tops / 448).to(dtype)
    wide = spread(scales.float(), rows, columns, weight.shape)
    codes = e4m3(weight / wide)
    stored = scales.reshape(()) if not (block or channel) else scales
    extra = {name: torch.tensor(value) for name, value in more.items()}
    return {"weight": codes, scale_name: stored, **extra}, codes.float() * wide


def nvfp4_layer(weight, modelopt=False, input_scale=None):
    outer = weight.abs().max() / (448 * 6)
    inner = e4m3(weight.reshape(len(weight), -1, 16).abs().amax(-1) / 6 / outer)
    wide = spread(inner.float(), 1, 16, weight.shape) * outer
    codes = fp4_codes(weight / wide)
    one = outer.reshape(()) if modelopt else (1 / outer).reshape(1)
    tensors = {
        "weight" if modelopt else "weight_packed": fp4_bytes(codes),
        "weight_scale": inner,
        "weight_scale_2" if modelopt else "weight_global_scale": one,
    }
    if input_scale is not None:
        name = "input_scale" if modelopt else "input_global_scale"
        tensors[name] = torch.tensor(input_scale if modelopt else [1 / input_scale])
    return tensors, fp4_values(codes) * wide


def _exponents(values, top, up=2.0):
    """Of each block; ``up``: from which fraction of a power of two the next one counts."""
    amax = values.reshape(*values.shape[:-1], -1, 32).abs().amax(-1).double()
    exponents = torch.floor(torch.log2(amax)).long()
    return exponents + (amax >= up * torch.exp2(exponents.double())) - top


def _powers(values, top, up=2.0):
    exponents = _exponents(values, top, up).repeat_interleave(32, -1)
    return torch.pow(torch.tensor(2.0, dtype=torch.float64), exponents).float()


def mxfp4_layer(weight):
    wide = _powers(weight, 2)
    codes = fp4_codes(weight / wide)
    exponents = (_exponents(weight, 2) + 127).to(torch.uint8)
    return {"weight_packed": fp4_bytes(codes), "weight_scale": exponents}, fp4_values(codes) * wide


def mxfp8_layer(weight):
    wide = _powers(weight, 8)
    codes = e4m3(weight / wide)
    exponents = (_exponents(weight, 8) + 127).to(torch.uint8)
    return {"weight": codes, "weight_scale": exponents}, codes.float() * wide


# -- inputs ------------------------------------------------------------------------------------


def round_fp8(size=-1, scale=None, bound=None):
    """Per ``size`` inputs of a token (-1: the token, 0: the tensor), or by a known scale."""

    def rounded(x):
        if scale is not None:
            return e4m3(x / scale).float() * scale
        if size == 0:
            return round_fp8(scale=x.abs().max() / 448)(x)
        parts = []
        for part in x.split(size if size > 0 else x.shape[-1], dim=-1):
            amax = part.abs().amax(-1, keepdim=True)
            one = (amax.clamp(max=bound) if bound else amax) / 448
            parts.append(e4m3(part / one).float() * one)
        return torch.cat(parts, -1)

    return rounded


def round_int8(x):
    scale = x.abs().amax(-1, keepdim=True) / 127
    return (x / scale).round().clamp(-127, 127) * scale


def round_nvfp4(outer):
    def rounded(x):
        inner = e4m3(x.reshape(*x.shape[:-1], -1, 16).abs().amax(-1) / 6 / outer).float() * outer
        wide = inner.repeat_interleave(16, -1)
        return fp4_values(fp4_codes(x / wide)) * wide

    return rounded


def round_mxfp4(x):
    wide = _powers(x, 2, up=1.75)
    return fp4_values(fp4_codes(x / wide)) * wide


def round_mxfp8(x):
    wide = _powers(x, 8, up=1.75)
    return e4m3(x / wide).float() * wide


# -- models ------------------------------------------------------------------------------------


def quantize_model(model, to_layer, rounding=None):
    """Round ``model`` in place, its inputs too; returns the tensors of the checkpoint."""
    tensors, gone = {}, set()
    for name, module in w.linears(model):
        made, weight = to_layer(module.weight.detach())
        module.weight = torch.nn.Parameter(weight, requires_grad=False)
        tensors.update({f"{name}.{suffix}": tensor for suffix, tensor in made.items()})
        gone.add(f"{name}.weight")
        if rounding is not None:
            module.register_forward_pre_hook(lambda _, args: (rounding(args[0]),))
    kept = {k: v.clone() for k, v in model.state_dict().items() if k not in {*gone, *tensors}}
    return {**tensors, **kept}


def ct(fmt, weights, inputs=None, **changes):
    """compressed-tensors' config for weights that are no integers."""
    return w.ct_config(
        fmt, {"type": "float", "num_bits": 8, "group_size": None, **weights}, inputs, **changes
    )


def ct_inputs(strategy, **changes):
    args = {"type": "float", "num_bits": 8, "strategy": strategy, "dynamic": True}
    return {**args, "symmetric": True, "group_size": None, **changes}
