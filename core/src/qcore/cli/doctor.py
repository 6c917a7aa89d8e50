"""``qcore doctor``: this machine, what is installed, and what is wrong with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from qcore.cli.diagnosis import Diagnosis

__all__ = ["doctor"]


def doctor(
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose",
            "-v",
            help="Show tracebacks, and the kernels that are for other platforms.",
        ),
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with status 1 if there is a problem.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show this machine, the plugins, the kernels that cannot run here and why, and the settings.

    Unlike the other commands, it imports every kernel that is declared for this machine, to see
    whether that works.
    """
    from qcore.cli.diagnosis import diagnose
    from qcore.cli.output import print_json

    found = diagnose()
    if as_json:
        print_json(found.to_dict())
    else:
        _print(found, verbose)
    if strict and found.problems:
        raise typer.Exit(1)


def _print(found: Diagnosis, verbose: bool) -> None:
    from qcore.cli.output import print_lines

    installed = [f"{name} {version}" for name, version in found.versions.items() if version]
    print_lines(", ".join(installed))
    _print_machine(found)
    _print_plugins(found)
    _print_kernels(found, verbose)
    _print_settings(found)
    _print_problems(found, verbose)


def _print_machine(found: Diagnosis) -> None:
    from qcore.cli.output import heading, print_table

    target = found.target
    rows: list[tuple[str, str]] = [("python", found.system["python"])]
    rows.append(("system", found.system["system"]))
    if target is not None:
        rows.append(("target", str(target)))
        rows.append(("processor" if target.cpu_features else "device", target.device_name or "?"))
        if target.cpu_features:
            rows.append(("features", ", ".join(sorted(target.cpu_features))))
    rows.append(("threads", "?" if found.threads is None else str(found.threads)))
    rows += [("device", device) for device in found.devices] or [("devices", "no accelerator")]
    heading("machine")
    print_table(("", ""), rows, header=False)


def _print_plugins(found: Diagnosis) -> None:
    from qcore.cli.output import heading, print_lines, print_table

    heading("plugins")
    if not found.plugins:
        print_lines("none was found", indent=2)
        return
    rows = [
        (p.name, p.distribution, p.version or "?", p.status, len(p.kernels)) for p in found.plugins
    ]
    columns = ("plugin", "distribution", "version", "status", "kernels")
    print_table(columns, rows, right=("kernels",))
    if found.lines:
        print_lines("")
        said = [
            (plugin, line.topic, "" if line.ok else "!", line.text) for plugin, line in found.lines
        ]
        print_table(("plugin", "says of", "", ""), said, header=False)


def _print_kernels(found: Diagnosis, verbose: bool) -> None:
    from qcore.cli.output import heading, print_lines, print_table
    from qcore.cli.standing import platforms
    from qcore.kernels.types import KERNEL_TYPES

    elsewhere = [s for s in found.standings if s.stage is not None and str(s.stage) == "platform"]
    refused = [s for s in found.standings if not s.usable and s not in elsewhere]
    usable = [s for s in found.standings if s.usable]
    heading(f"kernels: {len(usable)} of {len(found.standings)} usable here")
    if usable:
        rows: dict[str, list[str]] = {}
        for standing in sorted(
            usable, key=lambda s: list(KERNEL_TYPES).index(s.kernel.spec.kernel_type)
        ):
            rows.setdefault(standing.kernel.spec.kernel_type, []).append(standing.kernel.name)
        print_table(
            ("", ""), [(kind, ", ".join(names)) for kind, names in rows.items()], header=False
        )
    if refused or (elsewhere and verbose):
        print_lines("")
        shown = refused + (elsewhere if verbose else [])
        print_table(
            ("cannot run here", "stage", "why"),
            [(s.kernel.name, s.stage, s.reason) for s in shown],
            whole=("cannot run here", "stage"),
        )
    if elsewhere and not verbose:
        counts: dict[str, int] = {}
        for standing in elsewhere:
            where = platforms(standing.kernel)
            counts[where] = counts.get(where, 0) + 1
        named = ", ".join(f"{count} for {where}" for where, count in sorted(counts.items()))
        print_lines("")
        print_lines(f"for other platforms: {named} (--verbose lists them)", indent=2)


def _print_settings(found: Diagnosis) -> None:
    from qcore.cli.output import heading, print_lines, print_table

    heading("settings")
    if found.variables:
        print_table(("", ""), list(found.variables.items()), header=False)
    else:
        print_lines("no QCORE_ variable is set; everything has its default", indent=2)


def _print_problems(found: Diagnosis, verbose: bool) -> None:
    from qcore.cli.output import heading, print_lines

    if not found.problems:
        heading("no problem was found")
        return
    heading(f"problems: {len(found.problems)}")
    for problem in found.problems:
        first, *rest = problem.splitlines() or [""]
        print_lines(f"- {first}", indent=2)
        for line in rest:
            print_lines(line, indent=4)
    traces = [(f"plugin {f.plugin}, {f.what}", f.details) for f in found.failures if f.details]
    traces += [(s.kernel.name, s.details) for s in found.standings if s.details]
    if traces and not verbose:
        print_lines("--verbose shows the tracebacks", indent=2)
    for title, details in traces if verbose else ():
        heading(title)
        print_lines(details, indent=2)
