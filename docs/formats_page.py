"""Write docs/formats-table.md and its translation: which formats load, and which kernels run them.

python docs/formats_page.py

Made of docs/data/format-tests.json (`pytest core/tests/models --format-results FILE`),
docs/data/tool-checkpoints.json (checkpoints that the tools themselves wrote) and the registry.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bilingual import DOCS, LANGUAGES, Text, both, page, say, switch, table
from qcore.kernels import KERNEL_TYPES
from reach import APPROXIMATE, CAN, FIRST, SIDE, TARGETS, Matrix, Scheme, layer_config, matrix
from scheme_text import WORDS, scheme_text

STEM = "formats-table"
TESTS = DOCS / "data" / "format-tests.json"
TOOLS = DOCS / "data" / "tool-checkpoints.json"

Row = dict[str, Any]

INTEGERS = re.compile(
    r"\b(\d) bit (g\d+|channel) (symmetric|asymmetric)(, activation order)?"
    r"(?:, (int8|float8_e4m3fn) activations)?$"
)
"""How every integer format is described (`IntegerWeights.describe`)."""

ABOUT = {
    "mp": "打包的整数权重（W4A16 等）",
    "int8": "int8 权重与激活",
    "fp8": "e4m3 权重，逐张量或逐通道缩放因子",
    "fp8_block": "e4m3 权重，分块缩放因子",
    "nvfp4": "NVFP4 权重",
    "mxfp4": "MXFP4 权重",
    "mxfp8": "MXFP8 权重",
    "gguf": "GGUF 文件的块",
    "codebook": "查表权重（NF4、HQQ 等）",
    "moe_wna16": "混合专家的专家层，打包的整数权重",
    "moe_mxfp4": "混合专家的专家层，MXFP4 权重",
}

TITLE = Text("Formats, tools and kernels", "格式、工具与内核")
INTRO = Text(
    "Made by `python docs/build.py` from the results of the tests and from the kernels' own "
    "declarations; not written by hand. [Checkpoint formats](formats.md) says what each format "
    "is and what is refused.",
    "本页由 `python docs/build.py` 根据测试结果和内核自身的声明生成，不是手写的。各格式的说明以及"
    "哪些会被拒绝，见 [Checkpoint formats](formats.md)（英文）。",
)
ERROR = Text(
    "The error is the relative error (Frobenius norm) of the logits against a float32 model that "
    "holds the dequantized weights and, where the format quantizes activations, rounds the "
    "inputs of its layers; beside it is the bound that the check allows. Where activations are "
    "rounded, a value at the edge between two codes may fall to either side, so each layer is "
    "also compared on one and the same input: the error of the worst layer comes second.",
    "误差指 logits 相对于一个 float32 模型的相对误差（Frobenius 范数）：该模型持有反量化后的权"
    "重，若格式会量化激活，则对各层输入做同样的舍入；旁边是检查所允许的上界。激活被舍入时，恰好落"
    "在两个码之间的值可能舍向任一侧，因此还让每一层在同一输入上比较：第二个数是最差一层的误差。",
)
TOOLS_HEAD = Text("Written by the tools", "由工具写出的检查点")
TOOLS_INTRO = Text(
    "Small models that the tools themselves quantized and saved, loaded by qcore "
    "([results](data/tool-checkpoints.json)). The schemes are in the words of the tools, the sixth "
    "column in those of `qcore inspect`, a refusal in those of the error.",
    "由各工具自行量化并保存、再由 qcore 加载的小模型（[结果](data/tool-checkpoints.json)）。"
    "“方案”一列"
    "是工具自己的叫法，第六列是 `qcore inspect` 的原文，拒绝的原因是错误信息的原文。",
)
TESTS_HEAD = Text("Written by the tests", "由测试写出的检查点")
TESTS_INTRO = Text(
    "Checkpoints that the test suite writes ([results](data/format-tests.json)), by code of its "
    "own that shares nothing with the loader, or with the tool that the second column names. "
    "Every one of them loads. The schemes are in the words of `qcore inspect`.",
    "由测试套件写出的检查点（[结果](data/format-tests.json)）：使用与加载器毫无共享的独立代码，或使用第二列所列的工具。全部都能加"
    "载。“方案”一列是 `qcore inspect` 的原文：symmetric / asymmetric 为对称 / 非对称，channel、"
    "tensor、token、gN 为逐通道、逐张量、逐 token、每组 N 个，activation order 为激活重排，"
    "dynamic / static 为动态 / 静态，weight-only 为仅量化权重。",
)
TOOLS_COLUMNS = (
    Text("tool", "工具"),
    Text("format", "格式"),
    Text("scheme", "方案"),
    Text("made with", "导出方式"),
    Text("loads", "能否加载"),
    Text("`qcore inspect` says", "`qcore inspect` 的描述"),
    Text("error, bound", "误差与上界"),
    Text("layers", "层"),
)
TESTS_COLUMNS = (
    Text("format", "格式"),
    Text("written by", "写出者"),
    Text("scheme", "方案"),
    Text("tests", "测试数"),
    Text("error, bound", "误差与上界"),
    Text("layers", "层"),
)
OWN = Text("the tests", "测试")
YES, REFUSED = Text("yes", "是"), Text("refused", "拒绝")
NOT_WRITTEN = Text("the tool cannot write it here", "该工具在此环境无法写出")
EACH_LAYER = Text("each layer", "逐层")
KERNELS_HEAD = Text("Which kernels run them", "由哪些内核执行")
KERNELS_INTRO = Text(
    f"For a layer of {SIDE} inputs and {SIDE} outputs (8 experts of {SIDE} where there are "
    "experts) with bfloat16 activations, on machines that are described and not present, with "
    "all wheels of this repository and the packages that their kernels need installed "
    "([which](kernels.md)). Asked are the kernels' declarations (platform, compute capability, "
    "architecture, processor features) and what their classes say of the layer "
    "(`can_implement`), as they are in the sources of all plugins. Not asked is `is_supported`, "
    "which looks for compiled libraries and vendors' packages: one that is compiled for fewer "
    "GPUs (qcore-cuda's is by default compiled without sm_75), or of another release, may refuse "
    "more. Smaller or ragged shapes may be refused, too: "
    "[`qcore explain`](selecting-kernels.md) answers for any layer.",
    f"针对 {SIDE} 个输入、{SIDE} 个输出的层（专家层为 8 个大小 {SIDE} 的专家），bfloat16 激活；目"
    "标机器是描述出来的，并不在场，并假定安装了本仓库的全部 wheel 及其内核所需的软件包（[见此处]"
    "(kernels.md)）。所询问的是各插件源码中内核的声明（平台、计算能力、架构、处理器特性）以及内核类对"
    "该层的回答（`can_implement`）；没有询问 `is_supported`，它检查的是已编译的库和厂商软件包：若库"
    "只为较少的 GPU 编译（qcore-cuda 默认不为 sm_75 编译），或软件包版本不同，可能会"
    "拒绝更多。更小或不规整的形状也可能被拒绝："
    "[`qcore explain`](selecting-kernels.md) 可以回答任意一层的情况。",
)
MARKS = (
    (FIRST, Text("runs the layer", "默认选中")),
    (CAN, Text("could run it, at lower priority", "可以执行，优先级较低")),
    (
        APPROXIMATE,
        Text(
            "could, where `QCORE_NUMERICS=approximate` allows that more is rounded",
            "仅在 `QCORE_NUMERICS=approximate` 允许额外舍入时可以执行",
        ),
    ),
    (
        "f16, f32",
        Text(
            "could, with float16 or float32 activations only",
            "仅在 float16 或 float32 激活时可以执行",
        ),
    ),
)
KERNEL = Text("kernel", "内核")
SENTENCE = Text("{about}. Layers: {layers}.", "{about}。层：{layers}。")
SEMICOLON = Text("; ", "；")


def pages() -> dict[Path, str]:
    """Both pages."""
    tests = json.loads(TESTS.read_text(encoding="utf-8"))
    tools = json.loads(TOOLS.read_text(encoding="utf-8")) if TOOLS.exists() else None
    return {page(STEM, lang): _page(lang, tests, tools) for lang in LANGUAGES}


def _page(lang: str, tests: Row, tools: Row | None) -> str:
    said = say(lang)
    known = Layers(tests["rows"], tools["rows"] if tools else ())
    lines = [f"# {said(TITLE)}", "", switch(STEM), "", said(INTRO), "", said(ERROR)]
    if tools:
        lines += ["", f"## {said(TOOLS_HEAD)}", "", said(TOOLS_INTRO), ""]
        lines += [_environment(tools["environment"]), ""]
        rows = [_tool_row(row, known, lang) for row in tools["rows"]]
        lines += table([said(c) for c in TOOLS_COLUMNS], rows)
    lines += ["", f"## {said(TESTS_HEAD)}", "", said(TESTS_INTRO), ""]
    lines += [_environment(tests["environment"]), ""]
    lines += table([said(c) for c in TESTS_COLUMNS], _test_rows(tests["rows"], known, lang))
    lines += ["", f"## {said(KERNELS_HEAD)}", "", said(KERNELS_INTRO), ""]
    lines += table(["", ""], [(mark, said(text)) for mark, text in MARKS])
    lines += known.render(lang)
    return "\n".join(lines) + "\n"


def _environment(values: Row) -> str:
    flat = {k: v for k, v in values.items() if isinstance(v, str)}
    return ", ".join(f"{name} {value}" for name, value in flat.items()) + "."


class Layers:
    """The layer schemes of all rows, those with the same kernels in one section."""

    def __init__(self, tests: Sequence[Row], tools: Sequence[Row]) -> None:
        self.by_words = {
            row["schemes"][0]: row["layers"] for row in tests if len(row["schemes"]) == 1
        }
        # FP8 and int8 layers are described alike whatever the format, but for its name.
        self.by_scales = {_scales(words): layers for words, layers in self.by_words.items()}
        self.by_scales.pop("", None)
        schemes: list[Scheme] = []
        for layer in (x for row in (*tools, *tests) for x in self.of(row)):
            if layer not in schemes:
                schemes.append(layer)
        self.sections: dict[str, list[tuple[Matrix, list[Scheme]]]] = {}
        for name in KERNEL_TYPES:
            groups: dict[Matrix, list[Scheme]] = {}
            for layer in schemes:
                if layer_config(layer).kernel_type == name:
                    groups.setdefault(matrix(layer), []).append(layer)
            if groups:
                self.sections[name] = list(groups.items())

    def of(self, row: Row) -> list[Scheme]:
        """The layers of a row; of a tool's row without them, by what `qcore inspect` calls it."""
        if "layers" in row:
            return list(row["layers"])
        if not row["loads"]:
            return []
        found: list[Scheme] = []
        for words in (row.get("inspect") or "").split("; "):
            found += self._by_words(words)
        return found

    def _by_words(self, words: str) -> list[Scheme]:
        if integers := INTEGERS.search(words):
            bits, group, kind, order, inputs = integers.groups()
            zero_points = kind == "asymmetric"
            name = f"uint{bits}" + ("" if zero_points else f"b{1 << (int(bits) - 1)}")
            layer: dict[str, Any] = {"class": "MPLinearLayerConfig"}
            layer |= {"weight_type": {"class": "ScalarType", "name": name}}
            layer |= {"group_size": -1 if group == "channel" else int(group[1:])}
            layer |= {"zero_points": zero_points, "has_g_idx": order is not None}
            return [layer | ({"act_type": f"torch.{inputs}"} if inputs else {})]
        layers = self.by_words.get(words, ()) or self.by_scales.get(_scales(words), ())
        return [x for x in layers if not x["class"].startswith("Moe")]

    def links(self, row: Row) -> str:
        """Links to the sections of a row's layers; to the kernel types where they are not known."""
        layers = self.of(row)
        if not layers:
            types = (t for t in row.get("layer_types", ()) if t in self.sections)
            return ", ".join(f"[{t}](#{t}-1)" for t in types)
        names = [
            f"[{kind} {at}](#{kind}-{at})"
            for kind, sections in self.sections.items()
            for at, (_, schemes) in enumerate(sections, 1)
            if any(layer in schemes for layer in layers)
        ]
        return ", ".join(names)

    def render(self, lang: str) -> list[str]:
        """A section for each set of kernels."""
        said = say(lang)
        head = [said(KERNEL), *(said(label) for label in TARGETS.values())]
        lines = []
        for kind, sections in self.sections.items():
            english = KERNEL_TYPES[kind].about
            about = said(Text(english[0].upper() + english[1:], ABOUT.get(kind, english)))
            for at, (marks, schemes) in enumerate(sections, 1):
                words = said(SEMICOLON).join(said(scheme_text(layer)) for layer in schemes)
                sentence = said(SENTENCE).format(about=about, layers=words)
                lines += ["", f"### {kind} {at}", "", sentence, ""]
                lines += table(head, [(f"`{name}`", *row) for name, row in marks])
        return lines


def _scales(words: str) -> str:
    """What the words of a scheme say of its scales; "" where they are of another form."""
    found = re.search(r"\S+ weights, .*$", words)
    return found[0] if found else ""


def _number(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}".replace("e-0", "e-")


def _errors(row: Row, lang: str) -> str:
    shown = []
    name, bound = ("error", "bound") if "error" in row else ("relative_error", "bound")
    if row.get(name) is not None:
        shown.append(f"{_number(row[name])} < {_number(row[bound])}")
    if row.get("layer_error") is not None:
        label = say(lang)(EACH_LAYER)
        shown.append(f"{label} {_number(row['layer_error'])} < {_number(row['layer_bound'])}")
    return say(lang)(SEMICOLON).join(shown)


def _tool_row(row: Row, known: Layers, lang: str) -> tuple[str, ...]:
    said = say(lang)
    loads = said(YES)
    if row.get("not_written"):
        loads = f"{said(NOT_WRITTEN)}: {row['not_written']}"
    elif not row["loads"]:
        loads = f"{said(REFUSED)}: {row['refusal']}"
    return (
        f"{row['tool']} {row['version']}",
        row["format"],
        row["scheme"],
        row["export"],
        loads,
        row.get("inspect") or "",
        _errors(row, lang),
        known.links(row),
    )


def _test_rows(rows: Iterable[Row], known: Layers, lang: str) -> list[tuple[str, ...]]:
    """A line for all tests of one format, writer and scheme."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        writer = f"{row['tool']} {row['version']}" if row["tool"] else ""
        name = row["format"] + (f", {row['variant']}" if row["variant"] else "")
        words = "; ".join(row["schemes"]) or say(lang)(_unnamed(row))
        groups.setdefault((name, writer, words), []).append(row)
    lines: list[tuple[str, ...]] = []
    for (name, writer, words), group in sorted(groups.items()):
        worst: Row = {}
        for key in ("error", "bound", "layer_error", "layer_bound"):
            values = [row[key] for row in group if row[key] is not None]
            worst[key] = max(values) if values else None
        layers = {"layers": [layer for row in group for layer in row["layers"]]}
        lines.append(
            (
                name,
                writer or say(lang)(OWN),
                words,
                str(len(group)),
                _errors(worst, lang),
                known.links(layers),
            )
        )
    return lines


def _unnamed(row: Row) -> Text:
    """A scheme that no name was given: its first layer."""
    return scheme_text(row["layers"][0]) if row["layers"] else both("")


def untranslated() -> list[str]:
    """What the Chinese page says in English, as nobody has translated it yet."""
    classes = {kind.config_class.__name__ for kind in KERNEL_TYPES.values()}
    return sorted({*KERNEL_TYPES} - {*ABOUT}) + sorted(classes - {*WORDS})


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
