"""Write docs/ops.md and its translation: ten ops of vLLM, and where qcore does their work.

python docs/ops_page.py

What is said of each op is in ops_of_weights.py and ops_of_activations.py; files, call sites, ops
and kernels are looked up.
"""

from __future__ import annotations

from pathlib import Path

import ops_of_activations
import ops_of_weights
from bilingual import LANGUAGES, Text, link, object_link, page, say, switch, table
from compiled_ops import CompiledOp, call_sites, compiled_ops, users, wrappers
from ops_facts import PLATFORMS, Op
from reach import APPROXIMATE, by_platform, is_approximate, is_reference

STEM = "ops"
OPS = (*ops_of_weights.OPS, *ops_of_activations.OPS)

TITLE = Text("Ops: quantization and GEMM", "算子：量化与 GEMM")
INTRO = Text(
    "Ten ops that vLLM's quantized linear layers call, and where qcore does their work. Made by "
    "`python docs/build.py`: files, call sites and compiled ops are found in the sources, "
    "kernels by asking the declarations and the classes of all plugins, installed or not, for the "
    "targets of [the table of formats](formats-table.md), which says what was asked. Signatures "
    "are those of vLLM 0.33.0; they change between versions.",
    "vLLM 的量化线性层所调用的十个算子，以及 qcore 在何处完成同样的工作。本页由 `python "
    "docs/build.py` 生成：文件、调用点和已编译算子取自源码；内核是就[格式表"
    "](formats-table.zh-CN.md)中的目标询问所有插件（无论是否安装）的声明和内核类得出的，询问了什么见该"
    "表。签名以 vLLM 0.33.0 为准，不同版本之间会变化。",
)
WORDS = Text(
    "M rows (tokens), K inputs, N outputs, G the inputs of a group (the number of groups where a "
    "shape begins with it). Kernels with ≈ round more than the checkpoint does and need "
    "`QCORE_NUMERICS=approximate`; the core's reference kernels run everything everywhere. "
    "[Kernels](kernels.md) has the wheel that brings each kernel, and what else it needs.",
    "M 为行数（token 数），K 为输入数，N 为输出数，G 为一组的输入数（形状以 G 开头时为组数）。带 "
    "≈ 的内核比检查点多做一次舍入，需要 `QCORE_NUMERICS=approximate`；core 的参考内核在任何设备上"
    "都能执行所有类型。每个内核来自哪个 wheel、还需要什么，见 [Kernels](kernels.md)（英文）。",
)
HEAD = (
    Text("op", "算子"),
    Text("role", "用途"),
    Text("qcore: from the layer to the work", "qcore：从层到执行"),
    Text("kernels", "内核"),
    Text("compiled op of this name", "同名的已编译算子"),
)
NONE_YET = Text("none yet", "尚无")
REFERENCE_ONLY = Text("reference only", "仅参考内核")
SIGNATURE = Text("vLLM's signature:", "vLLM 的签名：")
COMPUTES = Text("It computes: ", "计算：")
CONTRACT = Text("Contract:", "约定：")
IN_QCORE = Text("In qcore: ", "在 qcore 中：")
CALLED = Text("Call sites of `{}`: ", "`{}` 的调用点：")
COMPILED = Text("Compiled op: ", "已编译算子：")
ALIKE = Text(
    "Compiled ops that do the same for another layout: ", "在另一种布局上做同样工作的已编译算子："
)
WRAPPER = Text("with a Python function in ", "Python 函数位于")
USED_BY = Text("called by ", "调用者：")
REACHED = Text("Kernels that do it: ", "完成该工作的内核：")
COLON = Text(": ", "：")
SEMICOLON = Text("; ", "；")
STOP = Text(".", "。")


def pages() -> dict[Path, str]:
    """Both pages."""
    return {page(STEM, lang): _page(lang) for lang in LANGUAGES}


def _page(lang: str) -> str:
    said = say(lang)
    lines = [f"# {said(TITLE)}", "", switch(STEM), "", said(INTRO), "", said(WORDS), ""]
    lines += table([said(h) for h in HEAD], [_row(op, lang) for op in OPS])
    for op in OPS:
        lines += _section(op, lang)
    return "\n".join(lines) + "\n"


def _row(op: Op, lang: str) -> tuple[str, ...]:
    said = say(lang)
    named = _named(op)
    return (
        f"[`{op.name}`](#{op.name})",
        said(op.role),
        " → ".join(object_link(entry) for entry in op.path),
        _kernels(op, lang),
        ", ".join(link(f"{o.namespace}::{o.name}", o.path) for o in named) or said(NONE_YET),
    )


def _named(op: Op) -> list[CompiledOp]:
    return [found for found in compiled_ops() if found.name == op.name]


def _kernels(op: Op, lang: str) -> str:
    """The kernels of each platform; those that run everywhere only where there is no other."""
    said = say(lang)
    parts = []
    for platform, names in by_platform(op.layers).items():
        own = [
            f"`{name}`" + (f" {APPROXIMATE}" if is_approximate(name) else "")
            for name in names
            if not is_reference(name)
        ]
        shown = ", ".join(own) or said(REFERENCE_ONLY)
        parts.append(f"{said(PLATFORMS[platform])}{said(COLON)}{shown}")
    return said(SEMICOLON).join(parts)


def _section(op: Op, lang: str) -> list[str]:
    said = say(lang)
    lines = ["", f"## {op.name}", "", said(op.role), ""]
    lines += [said(SIGNATURE), "", "```text", op.schema, "```", ""]
    lines += [f"{said(COMPUTES)}`{op.formula}`", "", said(CONTRACT), ""]
    lines += [f"- {said(text)}{said(STOP)}" for text in op.contract]
    lines += ["", f"{said(IN_QCORE)}{said(op.note)}", ""]
    for name in op.called:
        sites = call_sites(name)
        if not sites:
            raise LookupError(f"nothing calls {name}, which ops_facts.py names for {op.name}")
        shown = ", ".join(link(site.caller, site.path) for site in sites)
        lines.append(f"- {said(CALLED).format(name)}{shown}{said(STOP)}")
    for label, ops in ((COMPILED, _named(op)), (ALIKE, _alike(op))):
        for found in ops:
            lines.append(f"- {said(label)}{_compiled(found, lang)}{said(STOP)}")
    lines.append(f"- {said(REACHED)}{_kernels(op, lang)}{said(STOP)}")
    return lines


def _alike(op: Op) -> list[CompiledOp]:
    return [found for found in compiled_ops() if found.name in op.alike]


def _compiled(found: CompiledOp, lang: str) -> str:
    sites = [s for s in users(found) if "ops" not in (*s.path.parts, s.path.stem)]
    text = (
        f"`{found.namespace}::{found.schema or found.name}` ({link(found.path.name, found.path)})"
    )
    made = [path for path in wrappers(found.name) if found.namespace in path.parts]
    if made:
        text += f", {say(lang)(WRAPPER)}" + ", ".join(link(p.name, p) for p in made)
    if sites:
        shown = ", ".join(link(site.caller, site.path) for site in sites)
        text += f", {say(lang)(USED_BY)}{shown}"
    return text


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
