"""What every layer that a kernel claims must pass; its package may be a stand-in."""

from __future__ import annotations

from typing import Any

from qcore.testing import (
    Subject,
    check_compile,
    check_contract,
    check_nan_propagation,
    check_numerics,
    check_opcheck,
    check_packing,
    evidence,
)
from qcore.testing.answers import check_refusals


def check_claimed(who: Subject, configs: Any, claimed: list[Any], shown: tuple[str, str]) -> None:
    """``claimed`` pass the checks of the kit; the other ``configs`` are refused in words."""
    with evidence(*shown):
        for config in claimed:
            check_contract(who, config)
            check_numerics(who, config)
            check_packing(who, config)
            check_nan_propagation(who, config)
        check_opcheck(who, claimed[0])
        check_compile(who, claimed[0], backend="aot_eager")
    for config in set(configs) - set(claimed):
        check_refusals(who, config)
