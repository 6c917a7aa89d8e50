"""What a layer scheme is, in a few words of either language."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from bilingual import Text, both
from reach import Scheme, layer_config

_INPUTS = {
    "torch.int8": Text("int8 activations", "int8 激活"),
    "torch.float8_e4m3fn": Text("e4m3 activations", "e4m3 激活"),
}
_GROUPS = {
    (-1, -1): Text("per tensor", "逐张量"),
    (1, -1): Text("per token", "逐 token"),
    (-1, 1): Text("per channel", "逐通道"),
}


def scheme_text(scheme: Scheme) -> Text:
    """For example "uint4b8 in groups of 32, zero points"."""
    words = WORDS.get(scheme["class"])
    if words is None:
        return both(f"`{layer_config(scheme).describe()}`")
    parts = [part for part in words(scheme) if part]
    return Text(", ".join(p.en for p in parts), "，".join(p.zh for p in parts))


def _group(size: int) -> Text:
    if size == -1:
        return _GROUPS[-1, 1]
    return Text(f"in groups of {size}", f"每组 {size} 个")


def _of(what: str, shape: Text, zh: str = "") -> Text:
    """``what`` with scales of this shape."""
    return Text(f"{what} {shape.en}", f"{zh or what}（{shape.zh}）")


def _integers(scheme: Scheme) -> list[Text | None]:
    return [
        _of(f"`{scheme['weight_type']['name']}`", _group(scheme["group_size"])),
        Text("zero points", "零点") if scheme["zero_points"] else None,
        Text("activation order", "激活重排（g_idx）") if scheme["has_g_idx"] else None,
        _INPUTS.get(scheme.get("act_type", "")),
    ]


def _codebook(scheme: Scheme) -> list[Text | None]:
    size = 2 ** scheme["bits"]
    return [
        _of(f"codebook of {size} values", _group(scheme["group_size"]), f"{size} 个值的码本"),
        Text("offsets", "偏移") if scheme["has_offset"] else None,
    ]


def _int8(scheme: Scheme) -> list[Text | None]:
    static, symmetric = scheme["is_static_input_scheme"], scheme["input_symmetric"]
    weights = _GROUPS[-1, 1] if scheme["is_channelwise"] else _GROUPS[-1, -1]
    inputs = _GROUPS[-1, -1] if static else _GROUPS[1, -1]
    zero = None if symmetric else Text("zero points of activations", "激活零点")
    return [_of("int8 weights", weights, "int8 权重"), _inputs("int8", static, inputs), zero]


_WHEN = {True: Text("static", "静态"), False: Text("dynamic", "动态")}


def _shape(group: Mapping[str, Any]) -> Text:
    row, col = group["row"], group["col"]
    if (row, col) in _GROUPS:
        return _GROUPS[row, col]
    if row == 1:
        return _group(col)
    return Text(f"in blocks of {row} x {col}", f"按 {row} x {col} 分块")


def _activations(key: Mapping[str, Any] | None, name: str) -> Text:
    if key is None:
        return Text("weight-only", "仅权重")
    return _inputs(name, key["scale"]["static"], _shape(key["scale"]["group_shape"]))


def _inputs(name: str, static: bool, shape: Text) -> Text:
    when = _WHEN[static]
    return _of(f"{when.en} {name} activations", shape, f"{when.zh} {name} 激活")


def _fp8(scheme: Scheme) -> list[Text | None]:
    shape = _shape(scheme["weight_quant_key"]["scale"]["group_shape"])
    return [
        _of("e4m3 weights", shape, "e4m3 权重"),
        _activations(scheme["activation_quant_key"], "e4m3"),
    ]


def _blocks(name: str) -> Callable[[Scheme], list[Text | None]]:
    def words(scheme: Scheme) -> list[Text | None]:
        key = scheme["activation_quant_key"]
        weights = Text(f"{name} weights", f"{name} 权重")
        if key is None:
            return [weights, _activations(None, "")]
        return [weights, Text(f"{_format(key)} activations", f"{_format(key)} 激活")]

    return words


def _format(key: Mapping[str, Any]) -> str:
    if key["scale2"] is not None:
        return "NVFP4"
    return "MXFP4" if isinstance(key["dtype"], Mapping) else "MXFP8"


WORDS: dict[str, Callable[[Scheme], list[Text | None]]] = {
    "MPLinearLayerConfig": _integers,
    "MoeWNA16LayerConfig": lambda s: [Text("experts", "专家"), *_integers(s)],
    "MoeMxfp4LayerConfig": lambda s: [Text("experts", "专家"), both("MXFP4")],
    "CodebookLinearLayerConfig": _codebook,
    "Int8ScaledMMLinearLayerConfig": _int8,
    "FP8ScaledMMLinearLayerConfig": _fp8,
    "Fp8BlockScaledMMLinearLayerConfig": _fp8,
    "NvFp4LinearLayerConfig": _blocks("NVFP4"),
    "MxFp4LinearLayerConfig": _blocks("MXFP4"),
    "Mxfp8LinearLayerConfig": _blocks("MXFP8"),
    "GGUFLinearLayerConfig": lambda s: [both(f"GGUF `{s['qtype']}`")],
}
"""How the layers of each config class are put into words."""
