"""``qcore kernels``: every kernel that is installed, as declared."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from qcore.facts.target import Target
    from qcore.registry import RegisteredKernel
    from qcore.settings import Settings

__all__ = ["kernels"]


def kernels(
    target: Annotated[
        str | None,
        typer.Option(
            help="Say which of them this machine could use: 'cuda:sm_90', 'cpu:avx2', 'current'.",
            metavar="TARGET",
        ),
    ] = None,
    kernel_type: Annotated[
        str | None,
        typer.Option(
            "--type", help="Only this type: mp, int8, fp8, fp8_block, ...", metavar="TYPE"
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the kernels that are installed, type by type, in the order in which they are asked.

    Only declarations are read: no kernel, extension or vendor's library is imported.
    """
    from qcore.cli.output import print_json
    from qcore.facts.target import Target
    from qcore.kernels.types import KERNEL_TYPES
    from qcore.registry import get_registry
    from qcore.selection.nearest import nearest
    from qcore.settings import Settings

    if kernel_type is not None and kernel_type not in KERNEL_TYPES:
        raise typer.BadParameter(
            f"no kernel type is called {kernel_type!r}{nearest(kernel_type, list(KERNEL_TYPES))}; "
            f"there are: {', '.join(KERNEL_TYPES)}",
            param_hint="--type",
        )
    where = Target.parse(target) if target is not None else None
    settings = Settings.from_env()
    found = {
        name: get_registry().kernels(name)
        for name in KERNEL_TYPES
        if kernel_type is None or name == kernel_type
    }
    if as_json:
        print_json([_plain(k, where, settings) for group in found.values() for k in group])
    else:
        _print(found, where, settings)


def _plain(kernel: RegisteredKernel, target: Target | None, settings: Settings) -> dict[str, Any]:
    from qcore.cli.standing import declared_standing

    spec = kernel.spec
    plain: dict[str, Any] = {
        "kernel": spec.name,
        "kernel_type": spec.kernel_type,
        "backend": spec.backend,
        "distribution": kernel.distribution,
        "plugin": kernel.plugin,
        "platforms": [str(platform) for platform in spec.platforms],
        "priority": int(spec.priority),
        "min_capability": spec.min_capability,
        "max_capability": spec.max_capability,
        "archs": list(spec.archs),
        "cpu_features": list(spec.cpu_features),
        "modules": list(spec.modules),
        "numerics": str(spec.numerics),
        "batch_invariant": spec.batch_invariant,
        "evidence": str(spec.evidence),
        "description": spec.description,
        "entry": spec.entry,
    }
    if target is not None:
        standing = declared_standing(kernel, target, settings)
        plain["target"] = str(target)
        plain["usable"] = standing.usable
        plain["stage"] = str(standing.stage) if standing.stage else None
        plain["reason"] = standing.reason or None
    return plain


def _print(
    found: dict[str, list[RegisteredKernel]], target: Target | None, settings: Settings
) -> None:
    from qcore.cli.output import heading, print_lines
    from qcore.kernels.types import KERNEL_TYPES

    columns = ["prio", "kernel", "backend"]
    columns += ["numerics", "evidence", "from", "runs on"] if target is None else ["evidence", ""]
    rows = {name: [_row(k, target, settings) for k in group] for name, group in found.items()}
    every = [columns, *(row for group in rows.values() for row in group)]
    # Equally wide for all types, so that the eye finds its column again.
    widths = [max(map(len, column)) for column in zip(*every, strict=True)]
    for index, (name, group) in enumerate(rows.items()):
        heading(f"{name}: {KERNEL_TYPES[name].about}", first=index == 0)
        if group:
            _print_group(columns, group, widths, with_titles=index == 0, listed=target is None)
        else:
            print_lines("no kernel is installed", indent=2)
    total = sum(len(group) for group in rows.values())
    if target is None:
        heading(f"{total} kernel{'s' if total != 1 else ''}")
        return
    usable = sum(row[-1] == "usable" for group in rows.values() for row in group)
    heading(f"{usable} of {total} usable on {target}")
    print_lines("as declared: no class was imported, and no layer was looked at")


def _print_group(
    columns: list[str], rows: list[list[str]], widths: list[int], *, with_titles: bool, listed: bool
) -> None:
    """The kernels of a type: a line for each, or two where the terminal is too narrow for that."""
    from qcore.cli.output import line_width, print_lines, print_table

    if not listed or sum(widths) + 2 * len(widths) <= line_width():
        print_table(
            columns,
            rows,
            right=("prio",),
            whole=columns[:-1],
            widths=widths[:-1],
            header=with_titles,
        )
        return
    for prio, kernel, backend, numerics, evidence, origin, runs_on in rows:
        print_lines(f"{prio:>6}  {kernel:<{widths[1]}}  {backend}")
        details = f"{runs_on}; {numerics}; {evidence}; from {origin}"
        for line in textwrap.wrap(
            details, max(40, line_width() - 10), break_long_words=False, break_on_hyphens=False
        ):
            print_lines(line, indent=8)


def _row(kernel: RegisteredKernel, target: Target | None, settings: Settings) -> list[str]:
    from qcore.cli.standing import declared_standing, needs, platforms

    spec = kernel.spec
    row = [str(int(spec.priority)), spec.name, spec.backend]
    if target is not None:
        return [*row, str(spec.evidence), declared_standing(kernel, target, settings).verdict()]
    runs_on = "; ".join(filter(None, (platforms(kernel), needs(kernel))))
    return [*row, str(spec.numerics), str(spec.evidence), kernel.distribution, runs_on]
