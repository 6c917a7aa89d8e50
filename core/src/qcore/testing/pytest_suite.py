"""`KernelConformance`: the checks as a class of pytest tests, one for each check and layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from qcore.kernels.base import LinearKernel
from qcore.layers.base import MMLinearLayerConfig
from qcore.registry.spec import KernelSpec
from qcore.testing.answers import check_answers
from qcore.testing.configs import conformance_configs, label
from qcore.testing.oracle import Arithmetic
from qcore.testing.subject import Subject
from qcore.testing.suite import CHECKS, layers_for

__all__ = ["KernelConformance"]


class KernelConformance:
    """Subclass it in a test module, with a name that pytest collects::

        class TestMyKernel(KernelConformance):
            kernel_class = MyKernel

    The other attributes are the arguments of `qcore.testing.check_kernel`. Where the kernel cannot
    run on this machine, all but ``test_answers`` is skipped, with the reason.
    """

    kernel_class: ClassVar[type[LinearKernel[Any]]]
    device: ClassVar[str] = "cpu"
    spec: ClassVar[KernelSpec | None] = None
    configs: ClassVar[Sequence[MMLinearLayerConfig] | None] = None
    arithmetic: ClassVar[Arithmetic | None] = None
    tolerance: ClassVar[float | None] = None
    thorough: ClassVar[bool] = False

    @classmethod
    def subject(cls) -> Subject:
        """What is tested."""
        arithmetic = cls.arithmetic or Arithmetic.of(cls.kernel_class)
        return Subject(cls.kernel_class, cls.device, cls.spec, arithmetic, cls.tolerance)

    @classmethod
    def _offered(cls) -> Sequence[MMLinearLayerConfig]:
        if cls.configs is not None:
            return cls.configs
        return conformance_configs(cls.kernel_class.kernel_type, thorough=cls.thorough)

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Give each test the layers that it is for."""
        if "config" not in metafunc.fixturenames:
            return
        cls = metafunc.cls
        check = metafunc.function.__name__.replace("test_", "check_", 1)
        subject = cls.subject()
        chosen = layers_for(check, subject, cls._offered(), thorough=cls.thorough)
        if check == "check_batch_invariance" and not subject.declared.batch_invariant:
            chosen = []  # one skipped test rather than one for each layer
        metafunc.parametrize("config", chosen, ids=label)

    def _run(self, check: str, config: MMLinearLayerConfig) -> None:
        import pytest

        subject = self.subject()
        why = subject.unavailable() if check != "check_refusals" else None
        if why is not None:
            pytest.skip(f"{subject.name} cannot be run here: {why}")
        outcome = CHECKS[check][0](subject, config)
        if outcome.not_run:
            pytest.skip(outcome.not_run)

    def test_answers(self) -> None:
        """See `check_answers`."""
        check_answers(self.subject(), self._offered())

    def test_refusals(self, config: MMLinearLayerConfig) -> None:
        """See `check_refusals`."""
        self._run("check_refusals", config)

    def test_contract(self, config: MMLinearLayerConfig) -> None:
        """See `check_contract`."""
        self._run("check_contract", config)

    def test_numerics(self, config: MMLinearLayerConfig) -> None:
        """See `check_numerics`."""
        self._run("check_numerics", config)

    def test_packing(self, config: MMLinearLayerConfig) -> None:
        """See `check_packing`."""
        self._run("check_packing", config)

    def test_nan_propagation(self, config: MMLinearLayerConfig) -> None:
        """See `check_nan_propagation`."""
        self._run("check_nan_propagation", config)

    def test_batch_invariance(self, config: MMLinearLayerConfig) -> None:
        """See `check_batch_invariance`."""
        self._run("check_batch_invariance", config)

    def test_experts(self, config: MMLinearLayerConfig) -> None:
        """See `check_experts`; for kernels that run the experts of a mixture."""
        self._run("check_experts", config)

    def test_opcheck(self, config: MMLinearLayerConfig) -> None:
        """See `check_opcheck`."""
        self._run("check_opcheck", config)

    def test_compile(self, config: MMLinearLayerConfig) -> None:
        """See `check_compile`."""
        self._run("check_compile", config)
