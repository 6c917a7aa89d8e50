import logging

import pytest
import torch
from qcore.errors import NoKernelError, SettingsError
from qcore.facts.current_platform import current_platform
from qcore.facts.scalar_type import scalar_types
from qcore.facts.target import Target
from qcore.kernels import MPLinearKernel, MPLinearLayerConfig
from qcore.registry import KernelSpec, Numerics, Registry
from qcore.registry.entry import RegisteredKernel
from qcore.selection import Stage, algorithm, select
from qcore.settings import Settings

CONFIG = MPLinearLayerConfig((64, 8), (64, 8), scalar_types.uint4b8, torch.float32, 32, False)


def kernel(name, *, supported=(True, None), able=(True, None), **spec):
    """A registered kernel whose class gives these answers (or raises them)."""

    def reply(value):
        if isinstance(value, BaseException):
            raise value
        return value

    kernel_class = type(
        name,
        (MPLinearKernel,),
        {
            "is_supported": classmethod(lambda cls, cc=None: reply(supported)),
            "can_implement": classmethod(lambda cls, config: reply(able)),
            "apply_weights": lambda self, layer, x, bias=None: x,
        },
    )
    fields = {"platforms": ("cpu",), "priority": 500, "backend": "plain", **spec}
    spec = KernelSpec(name=name, kernel_type="mp", entry=f"nowhere:{name}", **fields)
    return RegisteredKernel(spec, "test", fields.get("backend"), kernel_class)


def registry_of(*kernels):
    registry = Registry()
    for item in kernels:
        registry._add(item)
    return registry


def choose(*kernels, target="cpu:avx2", config=CONFIG, force=(), exhaustive=False, **settings):
    return select(
        config,
        target,
        settings=Settings(**settings),
        registry=registry_of(*kernels),
        force=force,
        exhaustive=exhaustive,
    )


def test_priority_then_distribution_then_name():
    low, high = kernel("Low", priority=1), kernel("High", priority=2)
    assert choose(low, high).kernel_name == "High"
    b, a = kernel("B", backend="a"), kernel("A", backend="b")
    assert [c.name for c in choose(a, b).candidates] == ["B", "A"]


def test_priority_can_be_overridden():
    low, high = kernel("Low", priority=1), kernel("High", priority=2)
    decision = choose(low, high, priorities=(("Low", 3),))
    assert decision.kernel_name == "Low"
    assert decision.chosen.priority == 3


@pytest.mark.parametrize(
    ("refused", "settings", "stage", "words"),
    [
        ({}, {"disabled_kernels": frozenset({"First"})}, Stage.DISABLED, "disabled_kernels"),
        ({"backend": "other"}, {"linear_backend": "plain"}, Stage.BACKEND, "'plain'.*'other'"),
        ({}, {"batch_invariant": True}, Stage.BATCH_INVARIANCE, "batch"),
        ({"numerics": Numerics.APPROXIMATE}, {}, Stage.NUMERICS, "QCORE_NUMERICS"),
        ({"platforms": ("cuda", "rocm")}, {}, Stage.PLATFORM, "cuda, rocm"),
        ({"cpu_features": ("amx_int8",)}, {}, Stage.CAPABILITY, "amx_int8"),
        ({"archs": ("gfx942",)}, {}, Stage.CAPABILITY, "gfx942"),
        ({"supported": (False, "no driver")}, {}, Stage.SUPPORT, "no driver"),
        ({"able": (False, "K=64")}, {}, Stage.CONFIG, "K=64"),
        ({"able": ValueError("oops")}, {}, Stage.CONFIG, "ValueError: oops"),
        ({"supported": SystemExit(1)}, {}, Stage.SUPPORT, "SystemExit"),
        ({"able": None}, {}, Stage.CONFIG, "None"),
        ({"able": True}, {}, Stage.CONFIG, "reason"),
        ({"able": (False, None)}, {}, Stage.CONFIG, "no reason"),
    ],
)
def test_every_stage_can_refuse_and_says_why(refused, settings, stage, words):
    first = kernel("First", **{"priority": 900, "backend": "plain", **refused})
    second = kernel("Second", batch_invariant=True)
    decision = choose(first, second, **settings)
    assert decision.kernel_name == "Second"
    candidate = decision.candidates[0]
    assert candidate.stage is stage
    import re

    assert re.search(words, candidate.reason), candidate.reason
    assert candidate.reason in decision.render()
    assert "First" in decision.reason or stage is Stage.PLATFORM


@pytest.mark.parametrize(
    ("least", "most", "target", "fits"),
    [
        (80, None, "cuda:sm_75", False),
        (80, None, "cuda:sm_80", True),
        (None, 90, "cuda:sm_100", False),
        (None, 90, "cuda:sm_90", True),
        (80, 90, "cuda:sm_89", True),
    ],
)
def test_capability_range(least, most, target, fits):
    only = kernel("Only", platforms=("cuda",), min_capability=least, max_capability=most)
    assert (choose(only, target=target).chosen is not None) is fits


def test_missing_modules_count_only_here():
    only = kernel("Only", modules=("a_vendor_library",))
    here = choose(only, target=Target.current("cpu"))
    assert here.candidates[0].stage is Stage.DEPENDENCY
    assert "a_vendor_library" in here.candidates[0].reason
    there = choose(only, target="cpu:avx2")
    assert there.kernel_name == "Only"
    assert "a_vendor_library" in there.notes[0]


def test_kernels_are_asked_about_the_target_and_not_about_this_machine():
    seen = []

    class Curious(MPLinearKernel):
        @classmethod
        def can_implement(cls, config):
            seen.append(current_platform.get_device_capability())
            return True, None

        def apply_weights(self, layer, x, bias=None):
            return x

    spec = KernelSpec("Curious", "mp", ("cuda",), "nowhere:Curious")
    registry = Registry()
    registry.register_class(Curious, spec)
    select(CONFIG, "cuda:sm_90", registry=registry, settings=Settings())
    assert seen == [(9, 0)]


def test_later_candidates_are_asked_only_on_request():
    first, second = kernel("A"), kernel("B", able=(False, "never"))
    assert not choose(first, second).candidates[1].tried
    told = choose(first, second, exhaustive=True)
    assert told.candidates[1].reason == "never"
    assert told.kernel_name == "A"


def test_no_kernel_gives_every_reason():
    decision = choose(kernel("A", able=(False, "too wide")), kernel("B", platforms=("cuda",)))
    assert decision.chosen is None
    with pytest.raises(NoKernelError) as caught:
        _ = decision.kernel_class
    for words in ("A", "too wide", "B", "is for cuda", "K=64 N=8"):
        assert words in str(caught.value)
    assert caught.value.decision is decision
    assert isinstance(caught.value, ValueError)


# -- what users ask for ------------------------------------------------------------------------


def test_backend_falls_back_layer_by_layer_and_says_so_once(caplog):
    algorithm._warn_once.cache_clear()
    wanted = kernel("Wanted", backend="wanted", able=(False, "odd K"))
    other = kernel("Other", backend="other")
    with caplog.at_level(logging.WARNING, "qcore.selection"):
        decision = choose(wanted, other, linear_backend="wanted")
        choose(wanted, other, linear_backend="wanted")
    assert decision.kernel_name == "Other"
    assert "wanted" in decision.notes[0]
    assert caplog.text.count("backend 'wanted' has no kernel") == 1
    with pytest.raises(NoKernelError, match="odd K"):
        choose(wanted, other, linear_backend="wanted", strict=True)


def test_backend_per_kernel_type():
    a, b = kernel("A", backend="a"), kernel("B", backend="b", priority=1)
    assert choose(a, b, linear_backend_per_type=(("mp", "b"),)).kernel_name == "B"
    assert choose(a, b, linear_backend_per_type=(("int8", "b"),)).kernel_name == "A"
    both = choose(a, b, linear_backend="b", linear_backend_per_type=(("mp", "auto"),))
    assert both.kernel_name == "A"


def test_unknown_backend_and_type():
    with pytest.raises(SettingsError, match=r"plan.*nearest: plain"):
        choose(kernel("A"), linear_backend="plan")
    with pytest.raises(SettingsError, match="int3"):
        choose(kernel("A"), linear_backend_per_type=(("int3", "plain"),))


def test_forcing():
    a, b = kernel("A", priority=9), kernel("B", priority=1)
    assert choose(a, b, force_kernel=("B",)).kernel_name == "B"
    assert choose(a, b, force=("B",)).kernel_name == "B"
    assert choose(a, b, force=("B",), linear_backend="plain").kernel_name == "B"
    with pytest.raises(SettingsError, match=r"AA.*nearest: A"):
        choose(a, b, force_kernel=("AA",))


def test_a_forced_kernel_that_refuses():
    a, b = kernel("A", priority=9), kernel("B", priority=1, able=(False, "odd"))
    decision = choose(a, b, force_kernel=("B",))
    assert decision.kernel_name == "A"
    assert "B is forced" in decision.notes[0]
    assert "odd" in decision.notes[0]
    with pytest.raises(NoKernelError, match="odd"):
        choose(a, b, force_kernel=("B",), strict=True)


def test_the_note_on_a_forced_kernel_says_what_came_of_it():
    a, b = kernel("A", priority=9), kernel("B", priority=1, able=(False, "odd"))
    (note,) = choose(a, b, force_kernel=("B",)).notes
    assert note == "B is forced, but cannot run this layer: odd; A runs it instead"
    nothing = choose(kernel("A", able=(False, "no")), b, force_kernel=("B",))
    assert nothing.chosen is None
    assert nothing.notes == ("B is forced, but cannot run this layer: odd; nor can any other",)
    assert nothing.reason == "no kernel can run it"


def test_strict_mode_says_that_another_could_run_the_layer():
    a, b = kernel("A", priority=9), kernel("B", priority=1, able=(False, "odd"))
    with pytest.raises(NoKernelError) as caught:
        choose(a, kernel("C"), b, force_kernel=("B",), strict=True, exhaustive=True)
    decision = caught.value.decision
    verdicts = {c.name: c.verdict() for c in decision.candidates}
    assert verdicts["B"] == "refused (config): odd"
    assert verdicts["A"] == verdicts["C"] == "could run it, but strict mode wants the forced kernel"
    assert decision.reason == "B is forced, but cannot run this layer: odd"
    text = decision.render()
    assert "kernel: none, in strict mode; what each of them lacks:" in text
    assert "note: B is forced, but cannot run this layer: odd" in text
    assert "priority" not in text


def test_a_forced_kernel_is_not_said_to_have_the_highest_priority():
    a, b = kernel("A", priority=9), kernel("B", priority=1)
    decision = choose(a, b, force_kernel=("B",))
    assert decision.reason == "forced"
    assert decision.candidates[1].verdict() == "after the forced kernel, not tried"
    told = choose(a, b, force_kernel=("B",), exhaustive=True)
    assert told.candidates[1].verdict() == "could run it, after the forced kernel"
    assert choose(a, b).reason == "highest priority for cpu"
    assert choose(a, b).candidates[1].verdict() == "lower priority, not tried"


def test_disabled_beats_forced():
    decision = choose(
        kernel("A"), kernel("B"), force_kernel=("B",), disabled_kernels=frozenset({"B"})
    )
    assert decision.kernel_name == "A"


def test_a_disabled_name_that_matches_nothing_is_reported():
    decision = choose(kernel("MarlinKernel"), disabled_kernels=frozenset({"MarlinKernal"}))
    assert "MarlinKernal" in decision.notes[0]
    assert "nearest: MarlinKernel" in decision.notes[0]


def test_batch_invariance_and_numerics():
    plain = kernel("Plain", priority=9, numerics=Numerics.APPROXIMATE)
    invariant = kernel("Invariant", priority=1, batch_invariant=True)
    assert choose(plain, invariant).kernel_name == "Invariant"
    assert choose(plain, invariant, approximate=True).kernel_name == "Plain"
    both = choose(plain, invariant, approximate=True, batch_invariant=True)
    assert both.kernel_name == "Invariant"


# -- the decision ------------------------------------------------------------------------------


def test_decision_as_data():
    decision = choose(kernel("A", able=(False, "no")), kernel("B", priority=1))
    data = decision.to_dict()
    assert data["kernel"] == "B"
    assert data["target"] == "cpu:avx2"
    assert data["candidates"][0]["stage"] == "config"
    assert data["candidates"][1]["chosen"]
    assert decision.reason == "after A: config: no"


def test_decisions_are_cached_and_follow_the_registry():
    registry = registry_of(kernel("A", priority=1))
    settings = Settings()
    first = select(CONFIG, "cpu", settings=settings, registry=registry)
    assert select(CONFIG, "cpu", settings=settings, registry=registry) is first
    registry.register_class(
        kernel("B").load(), KernelSpec("B", "mp", ("cpu",), "nowhere:B", priority=5)
    )
    assert select(CONFIG, "cpu", settings=settings, registry=registry).kernel_name == "B"


def test_a_warm_selection_does_little(monkeypatch):
    """Stands in for a timing: nothing but a dictionary is asked the second time."""
    settings, registry = Settings(), registry_of(kernel("A"))
    select(CONFIG, "cpu", settings=settings, registry=registry)
    monkeypatch.setattr(algorithm, "_select", lambda *a: pytest.fail("selected again"))
    assert select(CONFIG, "cpu", settings=settings, registry=registry).kernel_name == "A"
