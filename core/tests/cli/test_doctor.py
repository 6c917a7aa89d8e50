import json

import pytest

KERNELS = """
@hookimpl
def qcore_kernels():
    return [
        KernelSpec("AbsentModule", "mp", ("cpu",), "made_sick.a:A", modules=("no_such_module",)),
        KernelSpec("BadImport", "mp", ("cpu",), "made_sick.absent:BadImport"),
        KernelSpec("Exits", "mp", ("cpu",), "made_sick.exits:Exits"),
        KernelSpec("Raises", "mp", ("cpu",), "made_sick.kernels:Raises"),
        KernelSpec("Refuses", "mp", ("cpu",), "made_sick.kernels:Refuses"),
        KernelSpec("Elsewhere", "mp", ("rocm",), "made_sick.a:A"),
    ]

@hookimpl
def qcore_doctor():
    return [DoctorLine("extension", "loaded"), DoctorLine("driver", "too old", ok=False)]
"""

CLASSES = """
from qcore.kernels import MPLinearKernel

class Raises(MPLinearKernel):
    @classmethod
    def is_supported(cls, compute_capability=None):
        raise RuntimeError("a driver said no")

    @classmethod
    def can_implement(cls, config):
        return True, None

    def apply_weights(self, layer, x, bias=None):
        return x

class Refuses(Raises):
    @classmethod
    def is_supported(cls, compute_capability=None):
        return False, "only on Tuesdays"
"""


@pytest.fixture
def sick(install):
    """A plugin of which nearly everything is wrong, and one that cannot be imported."""
    site = install("sick", KERNELS)
    (site / "made_sick" / "kernels.py").write_text(CLASSES)
    (site / "made_sick" / "exits.py").write_text("raise SystemExit('no licence')")
    install("broken", "import no_such_library_at_all", introduced=False)
    install("raising", "@hookimpl\ndef qcore_doctor():\n    raise ZeroDivisionError('in doctor')")


def test_a_healthy_installation(cli):
    result = cli("doctor")
    assert result.code == 0
    for text in ("qcore 0.", "torch ", "machine", "threads", "plugins", "settings"):
        assert text in result.out
    assert "ReferenceMPLinearKernel" in result.out


def test_every_sickness_has_its_reason(cli, sick):
    result = cli("doctor")
    assert result.code == 0
    lines = result.out.splitlines()

    def line(start):
        return next(text for text in lines if text.strip().startswith(start))

    assert "dependency" in line("AbsentModule")
    assert "no_such_module, not installed" in line("AbsentModule")
    assert "import" in line("BadImport")
    assert "made_sick.absent" in line("BadImport")
    assert "no licence" in line("Exits")
    assert "a driver said no" in line("Raises")
    assert "only on Tuesdays" in line("Refuses")
    assert "failed" in line("broken")
    assert "no_such_library_at_all" in line("- plugin broken")
    assert "too old" in line("- plugin sick, driver")
    assert "in doctor" in line("- plugin raising")
    assert "1 for rocm" in result.out
    assert "Elsewhere" not in result.out
    assert "Traceback" not in result.out


def test_verbose_shows_tracebacks_and_the_other_platforms(cli, sick):
    out = cli("doctor", "--verbose").out
    assert "Traceback" in out
    assert "Elsewhere" in out


def test_strict_is_for_scripts(cli, sick):
    assert cli("doctor").code == 0
    assert cli("doctor", "--strict").code == 1


def test_what_hardware_rules_out_is_no_problem(cli, install):
    install(
        "gpu",
        """
        @hookimpl
        def qcore_kernels():
            return [
                KernelSpec("Gpu", "mp", ("rocm",), "made_gpu.a:A"),
                KernelSpec("Arm", "mp", ("cpu",), "made_gpu.a:A", cpu_features=("sve", "avx2")),
            ]
        """,
    )
    assert cli("doctor", "--strict").code == 0


def test_json(cli, sick):
    found = json.loads(cli("doctor", "--json").out)
    assert {plugin["name"]: plugin["status"] for plugin in found["plugins"]}["broken"] == "failed"
    refused = {kernel["kernel"]: kernel["stage"] for kernel in found["unusable_kernels"]}
    assert refused["Refuses"] == "support"
    assert refused["Elsewhere"] == "platform"
    assert "ReferenceMPLinearKernel" in found["usable_kernels"]
    assert found["problems"]


def test_variables_in_force_and_those_that_mean_nothing(cli, monkeypatch):
    monkeypatch.setenv("QCORE_DISABLED_KERNELS", "ReferenceMPLinearKernell")
    monkeypatch.setenv("QCORE_KERNEL_PRIORITIES", "A=1")
    monkeypatch.setenv("QCORE_DISABLED_PLUGINS", "referense")
    monkeypatch.setenv("QCORE_LINEAR_BACKEND", "refrence")
    out = cli("doctor").out
    settings, _, problems = out.partition("problems:")
    assert "QCORE_DISABLED_KERNELS" in settings
    assert "QCORE_KERNEL_PRIORITIES is set, but nothing in the core reads it" in problems
    assert "'referense', no installed plugin; nearest: reference" in problems
    assert "'refrence'" in problems


def test_a_disabled_kernel_that_is_misspelt(cli, monkeypatch):
    monkeypatch.setenv("QCORE_DISABLED_KERNELS", "ReferenceMPLinearKernell")
    assert "nearest: ReferenceMPLinearKernel" in cli("doctor").out


def test_settings_that_cannot_be_read_do_not_stop_it(cli, monkeypatch):
    monkeypatch.setenv("QCORE_STRICT", "perhaps")
    result = cli("doctor")
    assert result.code == 0
    assert "QCORE_STRICT is 'perhaps'" in result.out
    assert "ReferenceMPLinearKernel" in result.out


@pytest.mark.parametrize("what", ["_target", "_devices", "_threads", "_registry"])
def test_nothing_that_raises_stops_it(cli, monkeypatch, what):
    def fail():
        raise OSError("the driver is gone")

    monkeypatch.setattr(f"qcore.cli.diagnosis.{what}", fail)
    for arguments in ((), ("--json",), ("--verbose",)):
        result = cli("doctor", *arguments)
        assert result.code == 0
        assert "the driver is gone" in result.out
