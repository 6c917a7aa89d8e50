"""`TensorArgs`: how compressed-tensors describes the quantization of one tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qcore.quantization.fields import Fields

__all__ = ["TensorArgs"]

_ACT_ORDER = {"group": True, "dynamic": True, "weight": False, "static": False}


@dataclass(frozen=True)
class TensorArgs:
    """How one tensor (weights, or a layer's input) is quantized.

    Attributes:
        fields: as they were read, for messages.
        number: "int" or "float".
        bits: of a code.
        strategy: which elements share a scale: tensor, channel, token, group, tensor_group, block.
        group_size: of the strategies group and tensor_group; -1 for others.
        block: (rows, columns) of the strategy block.
        symmetric: without zero points.
        dynamic: scales are computed from the input.
        local: only those of the groups are; the tensor's is in the checkpoint.
        e8m0: scales are powers of two, in a byte.
        act_order: a table assigns inputs to groups.
    """

    fields: Fields
    number: str
    bits: int
    strategy: str
    group_size: int
    block: tuple[int, int] | None
    symmetric: bool
    dynamic: bool
    local: bool
    e8m0: bool
    act_order: bool

    @classmethod
    def read(cls, values: object, where: str) -> TensorArgs | None:
        """Read the JSON object; None where it is null.

        Raises:
            CheckpointError: a field has a value that means nothing.
            UnsupportedQuantizationError: a field has a value that is not supported.
        """
        if values is None:
            return None
        fields = Fields(values, where)
        number = fields.text("type", allowed=("int", "float"), default="int")
        act_order = fields.values.get("actorder")
        if isinstance(act_order, str):
            act_order = _ACT_ORDER.get(act_order.lower())
            if act_order is None:
                raise fields.unsupported("actorder", ", ".join(_ACT_ORDER))
        group_size = fields.group_size("group_size", default=-1)
        strategy = fields.text("strategy", default=_default_strategy(fields.values)).lower()
        if strategy == "group" and group_size == -1:
            strategy = "channel"
        local = fields.values.get("dynamic") == "local"
        allowed = (4, 8) if number == "float" else range(2, 9)
        return cls(
            fields=fields,
            number=number,
            bits=fields.integer("num_bits", allowed=allowed, default=8),
            strategy=strategy,
            group_size=group_size if strategy in ("group", "tensor_group") else -1,
            block=_block(fields) if strategy == "block" else None,
            symmetric=fields.boolean("symmetric", default=True),
            dynamic=local or fields.boolean("dynamic", default=False),
            local=local,
            e8m0=str(fields.values.get("scale_dtype") or "").removeprefix("torch.") == "uint8",
            act_order=bool(act_order),
        )

    def require(self, name: str, good: bool, supported: str) -> None:
        """Raise `UnsupportedQuantizationError` for the field ``name`` unless ``good``."""
        if not good:
            raise self.fields.unsupported(name, supported)


def _default_strategy(values: Mapping[str, Any]) -> str:
    """What compressed-tensors takes where no strategy is written."""
    if values.get("dynamic"):
        return "token"
    group_size = values.get("group_size")
    return "tensor" if group_size is None else "channel" if group_size == -1 else "group"


def _block(fields: Fields) -> tuple[int, int]:
    """``[128, 128]``, or as early versions wrote it ``"128x128"``."""
    value = fields.values.get("block_structure")
    sides: list[Any] = []
    if isinstance(value, str):
        sides = [int(side) if side.isdecimal() else side for side in value[:40].split("x")]
    elif isinstance(value, list):
        sides = value
    good = len(sides) == 2 and all(type(side) is int and 1 <= side < 2**31 for side in sides)
    if not good:
        raise fields.wrong("block_structure", "two positive integers, such as [128, 128]")
    return sides[0], sides[1]
