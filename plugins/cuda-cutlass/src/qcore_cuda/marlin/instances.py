"""Which Marlin kernels there are: schemes, tiles, and one `Instance` for each combination.

Only the standard library is used here, so that the build can run it before anything is installed.
Names of types are those of generated files; a group is given in blocks of 16 inputs: -1 for one
group of all inputs, 0 where each input names its group (activation order).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypedDict

__all__ = [
    "QUANT_CONFIGS",
    "SETS",
    "THREAD_CONFIGS",
    "THREAD_M_BLOCKS",
    "Instance",
    "QuantConfig",
    "Scheme",
    "families_of",
    "instances",
    "parse_archs",
    "schemes",
    "tiles_of",
]


class QuantConfig(TypedDict):
    """A family of schemes: every activation with every number of blocks in a group."""

    name: str
    a_types: tuple[str, ...]
    b_type: str
    s_type: str | None
    c_types: tuple[str, ...]
    group_blocks: tuple[int, ...]
    is_zp_float: bool
    m_blocks: tuple[float, ...]


THREAD_M_BLOCKS: tuple[float, ...] = (0.5, 1, 2, 3, 4)
"""Rows of a tile, in units of 16."""

THREAD_CONFIGS: tuple[tuple[int, int, int], ...] = (
    (128, 128, 256),
    (64, 256, 256),
    (64, 128, 128),
    (128, 64, 128),
)
"""Inputs and outputs of a tile, threads of a block. Of those with 256 threads the first is for
up to 16 rows, the second for more."""

_WIDE = ("float16", "bfloat16")
_WHOLE_BLOCKS = (1, 2, 3, 4)


def _config(
    name: str,
    a_types: tuple[str, ...],
    b_type: str,
    group_blocks: tuple[int, ...],
    *,
    s_type: str | None = None,
    c_types: tuple[str, ...] = (),
    is_zp_float: bool = False,
) -> QuantConfig:
    narrow = a_types[0] not in _WIDE
    return QuantConfig(
        name=name,
        a_types=a_types,
        b_type=b_type,
        s_type=s_type,
        c_types=c_types,
        group_blocks=group_blocks,
        is_zp_float=is_zp_float,
        m_blocks=_WHOLE_BLOCKS if narrow else THREAD_M_BLOCKS,
    )


QUANT_CONFIGS: tuple[QuantConfig, ...] = (
    _config("awq-int4", _WIDE, "u4", (-1, 2, 4, 8)),
    _config("hqq", ("float16",), "u4", (4,), is_zp_float=True),
    _config("gptq-int4", _WIDE, "u4b8", (-1, 0, 2, 4, 8)),
    _config("gptq-int8", _WIDE, "u8b128", (-1, 0, 2, 4, 8)),
    _config("awq-int8", _WIDE, "u8", (-1, 2, 4, 8)),
    _config("fp8", _WIDE, "fe4m3fn", (-1, 8)),
    _config("nvfp4", _WIDE, "fe2m1f", (1,), s_type="fe4m3fn"),
    _config("mxfp4", ("bfloat16",), "fe2m1f", (2,), s_type="fe8m0fnu"),
    _config("mxfp8", ("bfloat16",), "fe4m3fn", (2,), s_type="fe8m0fnu"),
    _config("int8-awq-int4", ("s8",), "u4", (-1, 2, 4, 8), c_types=_WIDE),
    _config("int8-gptq-int4", ("s8",), "u4b8", (-1, 2, 4, 8), c_types=_WIDE),
    _config("int8-gptq-int8", ("s8",), "u8b128", (-1, 2, 4, 8), c_types=_WIDE),
    _config("fp8-awq-int4", ("fe4m3fn",), "u4", (-1, 2, 4, 8), c_types=_WIDE),
    _config("fp8-gptq-int4", ("fe4m3fn",), "u4b8", (-1, 2, 4, 8), c_types=_WIDE),
    _config("fp8-mxfp4", ("fe4m3fn",), "fe2m1f", (2,), s_type="fe8m0fnu", c_types=("bfloat16",)),
)
"""Every scheme. ``c_types``: types of the output; none where it is that of the activations."""

_A = {"float16": 0, "bfloat16": 1, "s8": 2, "fe4m3fn": 3}
_B = {"u4": 0, "u4b8": 1, "u8": 2, "u8b128": 3, "fe4m3fn": 4, "fe2m1f": 5}
_S = {None: 0, "fe4m3fn": 1, "fe8m0fnu": 2}
_GROUPS = (-1, 0, 1, 2, 4, 8)
_FAMILIES = (75, 80, 89)

SETS = ("all", "default", "ci")
"""``all`` the kernels; the ``default`` of a wheel, with one tile for each number of rows; and of
those the few that ``ci`` builds: each format of weights once."""

_CI = {
    "awq-int4": ("float16", 8),
    "hqq": ("float16", 4),
    "gptq-int4": ("bfloat16", 8),
    "gptq-int8": ("bfloat16", -1),
    "fp8": ("bfloat16", -1),
    "nvfp4": ("bfloat16", 1),
    "mxfp4": ("bfloat16", 2),
    "int8-gptq-int4": ("s8", 8),
}


@dataclass(frozen=True)
class Scheme:
    """What a kernel multiplies, and with which family of instructions."""

    config: str
    family: int
    a_type: str
    b_type: str
    c_type: str
    group_blocks: int
    s_type: str | None = None
    is_zp_float: bool = False

    @property
    def key(self) -> int:
        """A number that names it, of 14 bits."""
        key = _FAMILIES.index(self.family)
        key = key << 2 | _A[self.a_type]
        key = key << 3 | _B[self.b_type]
        key = key << 2 | _S[self.s_type]
        key = key << 1 | (self.c_type == "bfloat16")
        key = key << 3 | _GROUPS.index(self.group_blocks)
        return key << 1 | self.is_zp_float

    @property
    def file_name(self) -> str:
        """The generated file in which its kernels are."""
        return f"sm{self.family}_kernel_{self.a_type}_{self.b_type}_{self.c_type}.cu"


@dataclass(frozen=True)
class Instance:
    """One kernel."""

    scheme: Scheme
    m_block: int
    thread_config: int

    @property
    def slot(self) -> int:
        """Its place among the kernels of its scheme."""
        return self.m_block * len(THREAD_CONFIGS) + self.thread_config

    @property
    def name(self) -> str:
        """Its symbol."""
        s = self.scheme
        group = "all" if s.group_blocks == -1 else "any" if s.group_blocks == 0 else s.group_blocks
        scales = {None: "", "fe4m3fn": "_e4m3", "fe8m0fnu": "_e8m0"}[s.s_type]
        zeros = "_zf" if s.is_zp_float else ""
        tile_k, tile_n, threads = THREAD_CONFIGS[self.thread_config]
        rows = int(16 * THREAD_M_BLOCKS[self.m_block])
        return (
            f"qcore_marlin_sm{s.family}_{s.a_type}_{s.b_type}{scales}{zeros}_{s.c_type}"
            f"_g{group}_{rows}x{tile_n}x{tile_k}_{threads}"
        )

    @property
    def parameters(self) -> str:
        """The arguments of the template ``Config``."""
        s = self.scheme
        tile_k, tile_n, threads = THREAD_CONFIGS[self.thread_config]
        values = (
            s.family,
            _A[s.a_type],
            _B[s.b_type],
            _S[s.s_type],
            str(s.c_type == "bfloat16").lower(),
            s.group_blocks,
            str(s.is_zp_float).lower(),
            int(2 * THREAD_M_BLOCKS[self.m_block]),
            tile_k,
            tile_n,
            threads,
            2 if s.family == 75 else 4,
        )
        return ", ".join(map(str, values))

    @property
    def line(self) -> str:
        """The line of source that makes it."""
        return f"QCORE_MARLIN_KERNEL({self.name}, {self.parameters})"


def parse_archs(text: str) -> tuple[int, ...]:
    """``7.5,8.0,9.0a`` as (75, 80, 90), rising.

    Raises:
        ValueError: it is no such list, or an architecture is older than 7.5.
    """
    found = set()
    for part in text.replace(";", ",").replace(" ", ",").split(","):
        if not part:
            continue
        major, dot, minor = part.strip().rstrip("af").partition(".")
        if not (dot and major.isdigit() and minor.isdigit() and len(minor) == 1):
            raise ValueError(
                f"architectures are {text!r}; write them as 7.5,8.0,9.0 (got {part!r})"
            )
        arch = int(major) * 10 + int(minor)
        if arch < 75:
            raise ValueError(f"architecture {part} is too old; 7.5 is the first")
        found.add(arch)
    if not found:
        raise ValueError("no architectures are given; write them as 7.5,8.0,9.0")
    return tuple(sorted(found))


def families_of(archs: Iterable[int]) -> tuple[int, ...]:
    """The families of instructions that ``archs`` run: 75 or 80, and 89 for FP8."""
    found = set()
    for arch in archs:
        found.add(75 if arch < 80 else 80)
        if arch >= 89:
            found.add(89)
    return tuple(sorted(found))


def _schemes_of(config: QuantConfig, families: Sequence[int]) -> Iterator[Scheme]:
    for family in families:
        for a_type in config["a_types"]:
            if (a_type == "fe4m3fn") != (family == 89):
                continue
            for c_type in config["c_types"] or (a_type,):
                if family == 75 and "bfloat16" in (a_type, c_type):
                    continue
                for group_blocks in config["group_blocks"]:
                    yield Scheme(
                        config["name"],
                        family,
                        a_type,
                        config["b_type"],
                        c_type,
                        group_blocks,
                        config["s_type"],
                        config["is_zp_float"],
                    )


def schemes(archs: Iterable[int], names: Iterable[str] | None = None) -> list[Scheme]:
    """The schemes for processors of ``archs``.

    Args:
        archs: 80 for sm_80.
        names: of `QUANT_CONFIGS`; None for all.

    Raises:
        ValueError: a name is not known.
    """
    known = [config["name"] for config in QUANT_CONFIGS]
    wanted = set(known if names is None else names)
    strange = sorted(wanted - set(known))
    if strange:
        raise ValueError(f"schemes {', '.join(strange)} are not known; known: {', '.join(known)}")
    families = families_of(archs)
    return [
        scheme
        for config in QUANT_CONFIGS
        if config["name"] in wanted
        for scheme in _schemes_of(config, families)
    ]


def tiles_of(scheme: Scheme) -> Iterator[Instance]:
    """The kernels of a scheme."""
    config = next(config for config in QUANT_CONFIGS if config["name"] == scheme.config)
    # 64 rows of 8-bit activations whose groups are scaled on their own do not fit in 255 registers.
    scaled = scheme.a_type not in _WIDE and scheme.group_blocks != -1
    for m_block, blocks in enumerate(THREAD_M_BLOCKS):
        if blocks not in config["m_blocks"] or (scaled and blocks == 4):
            continue
        for thread_config, (_, _, threads) in enumerate(THREAD_CONFIGS):
            if threads == 256 and thread_config != (0 if blocks <= 1 else 1):
                continue
            yield Instance(scheme, m_block, thread_config)


def instances(
    archs: Iterable[int], names: Iterable[str] | None = None, of_set: str = "all"
) -> list[Instance]:
    """The kernels to build, in a fixed order.

    Args:
        archs: 80 for sm_80.
        names: of `QUANT_CONFIGS`; None for all.
        of_set: one of `SETS`.

    Raises:
        ValueError: a name is not known.
    """
    if of_set not in SETS:
        raise ValueError(f"the set is {of_set!r}; allowed: {', '.join(SETS)}")
    found = []
    for scheme in schemes(archs, names):
        if of_set == "ci" and _CI.get(scheme.config) != (scheme.a_type, scheme.group_blocks):
            continue
        for instance in tiles_of(scheme):
            if of_set == "all" or THREAD_CONFIGS[instance.thread_config][2] == 256:
                found.append(instance)
    return found
