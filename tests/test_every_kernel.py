"""Every kernel that is registered can be reached, and says so of itself what its class says."""

import pytest
from qcore.facts.target import TARGET_EXAMPLES, Target
from qcore.registry import Evidence, get_registry
from qcore.selection import Stage, select
from qcore.settings import Settings
from qcore.testing import conformance_configs

KERNELS = get_registry().kernels()
TARGETS = [Target.parse(text) for text in TARGET_EXAMPLES]


def test_nothing_failed():
    assert get_registry().failures == []


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
def test_reachable(kernel):
    """Some target and config choose it, if only the kernels above it are disabled one by one.

    A kernel that needs a module is reached on a described machine, where it may be installed.
    """
    best = "nothing"
    for target in TARGETS:
        if target.platform not in kernel.spec.platforms:
            continue
        for config in conformance_configs(kernel.spec.kernel_type):
            decision = select(
                config,
                target,
                settings=Settings(force_kernel=(kernel.name,), approximate=True),
            )
            mine = next(c for c in decision.candidates if c.kernel is kernel)
            if mine.chosen:
                return
            best = f"{target}: {mine.verdict()}"
    pytest.fail(f"{kernel.name} is never chosen; for example {best}")


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
def test_declarations_are_complete(kernel):
    spec = kernel.spec
    assert spec.description
    assert spec.backend != "unnamed"
    assert spec.evidence is not Evidence.UNSTATED
    assert kernel.load().__name__ == spec.name
    assert kernel.load().kernel_type == spec.kernel_type


@pytest.mark.parametrize("text", TARGET_EXAMPLES)
def test_every_layer_type_has_a_kernel_on_every_target(text):
    for kernel_type in {k.spec.kernel_type for k in KERNELS}:
        config = conformance_configs(kernel_type)[0]
        decision = select(config, text, settings=Settings(), exhaustive=True)
        assert decision.chosen is not None, decision.render()
        for candidate in decision.candidates:
            assert candidate.stage is not Stage.IMPORT, candidate.reason
