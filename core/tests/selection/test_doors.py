import pytest
import torch
from qcore.errors import NoKernelError, SettingsError, TargetError
from qcore.facts import quant_key as qk
from qcore.facts.platform import Platform
from qcore.facts.scalar_type import scalar_types
from qcore.kernels import Int8ScaledMMLinearKernel, MPLinearLayerConfig
from qcore.layers import Int8ScaledMMLinearLayerConfig
from qcore.registry import KernelSpec, Numerics, Registry, get_registry, use_registry
from qcore.registry.entry import RegisteredKernel
from qcore.selection import (
    choose_mp_linear_kernel,
    choose_scaled_mm_linear_kernel,
    init_fp8_linear_kernel,
    init_int8_linear_kernel,
    init_mxfp4_linear_kernel,
    init_mxfp8_linear_kernel,
    init_nvfp4_linear_kernel,
)

MP = MPLinearLayerConfig((64, 8), (64, 8), scalar_types.uint4b8, torch.float32, 32, False)
INT8 = Int8ScaledMMLinearLayerConfig(False, True, True)


@pytest.fixture(autouse=True)
def only_the_reference(monkeypatch):
    """Whatever else is installed, these tests are about the doors."""
    monkeypatch.setenv(
        "QCORE_LINEAR_BACKEND", "reference,nvfp4=emulation,mxfp4=emulation,mxfp8=emulation"
    )


def test_choose_mp():
    assert choose_mp_linear_kernel(MP).__name__ == "ReferenceMPLinearKernel"
    assert choose_mp_linear_kernel(MP, 90).__name__ == "ReferenceMPLinearKernel"


def test_choose_scaled_mm():
    assert choose_scaled_mm_linear_kernel(INT8).__name__ == "ReferenceInt8ScaledMMLinearKernel"


class Mine(Int8ScaledMMLinearKernel):
    @classmethod
    def can_implement(cls, config):
        return (False, "static only") if not config.is_static_input_scheme else (True, None)

    def apply_weights(self, layer, x, bias=None):
        return x


class Other(Mine):
    @classmethod
    def can_implement(cls, config):
        return True, None


def test_the_callers_own_list(monkeypatch):
    monkeypatch.delenv("QCORE_LINEAR_BACKEND")
    possible = {Platform.CPU: [Mine, Other], Platform.CUDA: [Other]}
    assert choose_scaled_mm_linear_kernel(INT8, possible) is Other
    static = Int8ScaledMMLinearLayerConfig(True, True, True)
    assert choose_scaled_mm_linear_kernel(static, possible) is Mine
    with pytest.raises(NoKernelError, match="static only"):
        choose_scaled_mm_linear_kernel(INT8, {Platform.CPU: [Mine]})


def test_force_kernel_falls_back_unless_strict(monkeypatch):
    monkeypatch.delenv("QCORE_LINEAR_BACKEND")
    static = Int8ScaledMMLinearLayerConfig(True, True, True)
    assert choose_scaled_mm_linear_kernel(static, force_kernel=Mine) is Mine
    assert choose_scaled_mm_linear_kernel(INT8, force_kernel=Mine) is not Mine
    monkeypatch.setenv("QCORE_STRICT", "1")
    with pytest.raises(NoKernelError, match="static only"):
        choose_scaled_mm_linear_kernel(INT8, force_kernel=Mine)


@pytest.mark.parametrize("way", [{"force_kernel": Other}, {"possible_kernels": {"cpu": [Other]}}])
@pytest.mark.parametrize(
    "setting",
    [
        {"QCORE_FORCE_KERNEL": "ReferenceMPLinearKernel"},
        {"QCORE_FORCE_KERNEL": "ReferenceInt8ScaledMMLinearKernel"},
        {"QCORE_DISABLED_KERNELS": "ReferenceMPLinearKernel"},
        {"QCORE_KERNEL_PRIORITY": "ReferenceMPLinearKernel=7"},
        {"QCORE_LINEAR_BACKEND": "nvfp4=emulation"},
        {"QCORE_LINEAR_BACKEND": "emulation"},
    ],
    ids=lambda setting: "=".join(*setting.items()),
)
def test_settings_about_other_kernels_are_no_errors(monkeypatch, caplog, setting, way):
    """They name what is installed, though it is not among the kernels to choose from."""
    monkeypatch.delenv("QCORE_LINEAR_BACKEND")
    for name, value in setting.items():
        monkeypatch.setenv(name, value)
    assert choose_scaled_mm_linear_kernel(INT8, **way) is Other
    assert "no kernel's name" not in caplog.text


@pytest.mark.parametrize("way", [{"force_kernel": Other}, {"possible_kernels": {"cpu": [Other]}}])
def test_a_name_that_nothing_has_stays_an_error(monkeypatch, way):
    monkeypatch.setenv("QCORE_FORCE_KERNEL", "ReferenceMPLinearKernal")
    with pytest.raises(SettingsError, match="nearest: ReferenceMPLinearKernel"):
        choose_scaled_mm_linear_kernel(INT8, **way)


def test_a_forced_class_is_for_the_machine_that_is_asked_about(monkeypatch):
    monkeypatch.delenv("QCORE_LINEAR_BACKEND")
    here = {Platform.CPU: [Mine]}
    for way in ({}, {"possible_kernels": here}):
        forced = {**way, "compute_capability": 90, "force_kernel": Other}
        assert choose_scaled_mm_linear_kernel(INT8, **forced) is Other


def test_an_installed_class_can_be_forced_for_another_machine(monkeypatch):
    monkeypatch.delenv("QCORE_LINEAR_BACKEND")
    reference = "ReferenceInt8ScaledMMLinearKernel"
    (installed,) = (k for k in get_registry().kernels("int8") if k.name == reference)
    monkeypatch.setenv("QCORE_STRICT", "1")
    for capability in (None, 90):
        chosen = choose_scaled_mm_linear_kernel(
            INT8, compute_capability=capability, force_kernel=installed.load()
        )
        assert chosen is installed.load()


def registry_with(*declared):
    """The kernels that (class, fields of its declaration) stand for."""
    registry = Registry()
    for kernel_class, fields in declared:
        name = kernel_class.__name__
        spec = KernelSpec(name, "int8", entry=f"{kernel_class.__module__}:{name}", **fields)
        registry._add(RegisteredKernel(spec, "test", "test-dist", kernel_class))
    return registry


def test_a_forced_class_that_is_not_for_the_machine_leaves_it_the_others(monkeypatch):
    monkeypatch.delenv("QCORE_LINEAR_BACKEND")
    here = {"platforms": ("cpu",)}
    with use_registry(registry_with((Mine, here), (Other, {"platforms": ("cpu", "cuda")}))):
        assert choose_scaled_mm_linear_kernel(INT8, None, 90, force_kernel=Mine) is Other
        monkeypatch.setenv("QCORE_STRICT", "1")
        with pytest.raises(NoKernelError, match=r"Mine is forced, but .*: is for cpu"):
            choose_scaled_mm_linear_kernel(INT8, None, 90, force_kernel=Mine)


def test_a_kernel_that_two_plugins_declare_can_be_forced(monkeypatch):
    """As those of Triton are, for CUDA and for ROCm."""
    monkeypatch.delenv("QCORE_LINEAR_BACKEND")
    monkeypatch.setenv("QCORE_STRICT", "1")
    twice = ((Other, {"platforms": ("rocm",)}), (Other, {"platforms": ("cpu",)}))
    with use_registry(registry_with(*twice)):
        assert choose_scaled_mm_linear_kernel(INT8, force_kernel=Other) is Other


@pytest.mark.parametrize("way", [{"force_kernel": Other}, {"possible_kernels": {"cpu": [Other]}}])
def test_an_installed_class_keeps_what_it_declares(monkeypatch, way):
    monkeypatch.delenv("QCORE_LINEAR_BACKEND")
    rounding = {"platforms": ("cpu",), "numerics": Numerics.APPROXIMATE}
    with use_registry(registry_with((Other, rounding))):
        with pytest.raises(NoKernelError, match="QCORE_NUMERICS=approximate"):
            choose_scaled_mm_linear_kernel(INT8, **way)
        monkeypatch.setenv("QCORE_NUMERICS", "approximate")
        assert choose_scaled_mm_linear_kernel(INT8, **way) is Other


def test_a_class_of_an_installed_name_takes_its_place(monkeypatch):
    monkeypatch.delenv("QCORE_LINEAR_BACKEND")
    name = "ReferenceInt8ScaledMMLinearKernel"
    own = type(name, (Other,), {})
    assert choose_scaled_mm_linear_kernel(INT8, force_kernel=own) is own
    assert choose_scaled_mm_linear_kernel(INT8).__name__ != "Other"


def test_inits_give_instances():
    assert init_int8_linear_kernel(True, False, True).config == INT8
    fp8 = init_fp8_linear_kernel(
        qk.kFp8DynamicTokenSym, qk.kFp8StaticChannelSym, torch.bfloat16, torch.bfloat16, (8, 64)
    )
    assert fp8.kernel_type == "fp8"
    block = init_fp8_linear_kernel(
        qk.kFp8Dynamic128Sym, qk.kFp8Static128BlockSym, torch.bfloat16, torch.bfloat16, (8, 256)
    )
    assert block.kernel_type == "fp8_block"
    assert init_nvfp4_linear_kernel().kernel_type == "nvfp4"
    assert init_nvfp4_linear_kernel(use_a16=True).config.activation_quant_key is None
    assert init_mxfp4_linear_kernel().kernel_type == "mxfp4"
    assert init_mxfp8_linear_kernel().kernel_type == "mxfp8"


def test_an_amd_gpu_is_not_named_by_a_number(monkeypatch):
    from qcore.facts.target import Target

    monkeypatch.setattr(
        Target, "current", classmethod(lambda cls, d=None: Target.parse("rocm:gfx942"))
    )
    with pytest.raises(TargetError, match="gfx942"):
        choose_mp_linear_kernel(MP, 90)
