import sys

import pytest
import torch
from qcore.errors import ConfigError, RegistrationError
from qcore.facts.platform import Platform
from qcore.facts.scalar_type import scalar_types
from qcore.kernels import MPLinearKernel, MPLinearLayerConfig
from qcore.registry import API_VERSION, KernelSpec, Priority, discover, get_registry
from qcore.selection import Stage, register_linear_kernel, select
from qcore.settings import Settings

CONFIG = MPLinearLayerConfig((64, 8), (64, 8), scalar_types.uint4b8, torch.float32, 32, False)

HEAD = """
from qcore.plugin import API_VERSION, DoctorLine, KernelSpec, PluginInfo, hookimpl

@hookimpl
def qcore_plugin():
    backends = {{"{name}": "made for a test"}}
    return PluginInfo(name="{name}", api_version=API_VERSION, backends=backends)
"""

KERNEL = """
from qcore.kernels import MPLinearKernel

class {kernel}(MPLinearKernel):
    @classmethod
    def can_implement(cls, config):
        return True, None

    def apply_weights(self, layer, x, bias=None):
        return x

@hookimpl
def qcore_kernels():
    return [KernelSpec("{kernel}", "mp", ["cpu"], __name__ + ":{kernel}", backend="{name}")]
"""


def plugin_source(name, kernel):
    return HEAD.format(name=name) + KERNEL.format(name=name, kernel=kernel)


def test_a_plugin_is_found_and_chosen(make_plugin):
    registry = discover(found=[make_plugin("good", plugin_source("good", "GoodKernel"))])
    assert [p.status for p in registry.plugins] == ["ok"]
    assert registry.failures == []
    assert registry.backends() == {"good": "made for a test"}
    decision = select(CONFIG, "cpu", registry=registry)
    assert decision.kernel_name == "GoodKernel"
    assert decision.kernel_class.__name__ == "GoodKernel"


@pytest.mark.parametrize(
    ("source", "what", "reason"),
    [
        ("raise RuntimeError('no driver')", "import", "no driver"),
        ("import sys; sys.exit(3)", "import", "3"),
        ("import a_library_that_is_not_here", "import", "a_library_that_is_not_here"),
        ("def broken(:", "import", "SyntaxError"),
        ("x = 1", "qcore_plugin", "PluginInfo"),
        (
            HEAD.format(name="bad").replace("api_version=API_VERSION", "api_version=99"),
            "qcore_plugin",
            "update qcore",
        ),
        (
            HEAD.format(name="bad").replace("api_version=API_VERSION", "api_version=0"),
            "qcore_plugin",
            "update dist-bad",
        ),
        (
            HEAD.format(name="bad") + "@hookimpl\ndef qcore_kernels():\n    1/0\n",
            "hook qcore_kernels",
            "ZeroDivisionError",
        ),
        (
            HEAD.format(name="bad") + "@hookimpl\ndef qcore_kernels():\n    return ['x']\n",
            "kernel x",
            "not a KernelSpec",
        ),
        (
            HEAD.format(name="bad") + "@hookimpl\ndef qcore_kernelz():\n    return []\n",
            "hook qcore_kernelz",
            "no hook",
        ),
        (
            HEAD.format(name="bad") + "@hookimpl\ndef qcore_kernels(surprise):\n    return []\n",
            "registration",
            "surprise",
        ),
    ],
)
def test_a_broken_plugin_hurts_nobody(make_plugin, source, what, reason):
    bad = make_plugin("bad", source)
    good = make_plugin("good", plugin_source("good", "GoodKernel"))
    registry = discover(found=[bad, good])
    failure = registry.failures[0]
    assert failure.plugin == "bad"
    assert failure.what == what
    assert reason in failure.reason
    assert select(CONFIG, "cpu", registry=registry).kernel_name == "GoodKernel"


def test_two_plugins_with_one_kernel_name(make_plugin):
    points = [
        make_plugin("one", plugin_source("one", "SameKernel"), distribution="b-dist"),
        make_plugin("two", plugin_source("two", "SameKernel"), distribution="a-dist"),
    ]
    registry = discover(found=points)
    assert [k.distribution for k in registry.kernels("mp")] == ["a-dist"]
    assert registry.failures[0].plugin == "one"
    assert "from a-dist" in registry.failures[0].reason


def test_two_plugins_with_one_name(make_plugin):
    points = [
        make_plugin("twin", plugin_source("twin", "FirstKernel"), distribution="a-dist"),
        make_plugin("twin", plugin_source("twin", "SecondKernel"), distribution="b-dist"),
    ]
    registry = discover(found=points)
    assert registry.kernel_names() == ["FirstKernel"]
    assert "b-dist" in registry.failures[0].reason


@pytest.mark.parametrize("name", ["good", "dist-good", "GOOD"])
def test_a_disabled_plugin_is_not_imported(make_plugin, name):
    point = make_plugin("good", plugin_source("good", "GoodKernel"))
    registry = discover(disabled=[name], found=[point])
    assert registry.plugins[0].status == "disabled"
    assert registry.kernels() == []
    assert point.module not in sys.modules


def test_a_kernel_is_imported_only_when_it_is_wanted(make_plugin, tmp_path):
    (tmp_path / "heavy_kernel.py").write_text(
        "from qcore.kernels import MPLinearKernel\n"
        "class HeavyKernel(MPLinearKernel):\n"
        "    @classmethod\n"
        "    def can_implement(cls, config):\n"
        "        return True, None\n"
        "    def apply_weights(self, layer, x, bias=None):\n"
        "        return x\n"
    )
    source = HEAD.format(name="lazy") + (
        "@hookimpl\ndef qcore_kernels():\n"
        "    return [KernelSpec('HeavyKernel', 'mp', 'cuda', 'heavy_kernel:HeavyKernel')]\n"
    )
    registry = discover(found=[make_plugin("lazy", source)])
    assert select(CONFIG, "cpu", registry=registry).chosen is None
    assert "heavy_kernel" not in sys.modules
    assert select(CONFIG, "cuda:sm_90", registry=registry).kernel_name == "HeavyKernel"
    assert "heavy_kernel" in sys.modules


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise OSError('libcudart.so.13: cannot open')", "libcudart"),
        ("WrongName = 1", "no attribute"),
        ("AKernel = 3", "not a class"),
        ("class AKernel: pass", "MPLinearKernel"),
        (
            "from qcore.kernels import MPLinearKernel\nclass AKernel(MPLinearKernel): pass",
            "apply_weights",
        ),
    ],
)
def test_a_kernel_that_cannot_be_imported_is_refused_with_the_reason(
    make_plugin, tmp_path, body, words
):
    (tmp_path / "broken_kernel.py").write_text(body)
    sys.modules.pop("broken_kernel", None)
    source = HEAD.format(name="p") + (
        "@hookimpl\ndef qcore_kernels():\n"
        "    return [KernelSpec('AKernel', 'mp', 'cpu', 'broken_kernel:AKernel')]\n"
    )
    registry = discover(found=[make_plugin("p", source)])
    candidate = select(CONFIG, "cpu", registry=registry).candidates[0]
    assert candidate.stage is Stage.IMPORT
    assert words in candidate.reason
    sys.modules.pop("broken_kernel", None)


def test_decoding_passes(make_plugin):
    source = HEAD.format(name="m") + (
        "@hookimpl\ndef qcore_decoding_passes():\n    return ['mod:change', 'nonsense', 3]\n"
    )
    registry = discover(found=[make_plugin("m", source)])
    assert registry.decoding_passes() == ["mod:change"]
    assert [failure.what for failure in registry.failures] == ["decoding pass"] * 2


def test_methods_and_doctors(make_plugin):
    source = HEAD.format(name="m") + (
        "@hookimpl\ndef qcore_quantization_methods():\n"
        "    return {'mine': 'mod:Config', 'bad': 'nothing'}\n"
        "@hookimpl\ndef qcore_doctor():\n"
        "    return [DoctorLine('driver', 'none found', ok=False)]\n"
    )
    grumpy = HEAD.format(name="g") + "@hookimpl\ndef qcore_doctor():\n    raise OSError('ill')\n"
    registry = discover(found=[make_plugin("m", source), make_plugin("g", grumpy)])
    assert registry.quantization_methods() == {"mine": "mod:Config"}
    assert registry.failures[0].what == "method bad"
    lines = dict(registry.doctor())
    assert lines["m"].text == "none found"
    assert not lines["g"].ok
    assert "ill" in lines["g"].text


# -- specs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "not a name"}, "name"),
        ({"entry": "module"}, "entry"),
        ({"platforms": ()}, "platforms"),
        ({"platforms": ("gpu",)}, "gpu"),
        ({"backend": "Not Good"}, "backend"),
        ({"priority": "high"}, "priority"),
        ({"min_capability": "8.0"}, "min_capability"),
        ({"cpu_features": ("avx3",)}, "avx3"),
        ({"numerics": "sloppy"}, "sloppy"),
    ],
)
def test_bad_specs(changes, words):
    good = {"name": "K", "kernel_type": "mp", "platforms": ("cpu",), "entry": "m:K"}
    KernelSpec(**good)
    with pytest.raises(ConfigError, match=words):
        KernelSpec(**{**good, **changes})


def test_an_unknown_kernel_type_is_recorded(make_plugin):
    source = HEAD.format(name="p") + (
        "@hookimpl\ndef qcore_kernels():\n"
        "    return [KernelSpec('AKernel', 'int3', 'cpu', 'm:AKernel')]\n"
    )
    registry = discover(found=[make_plugin("p", source)])
    assert "int3" in registry.failures[0].reason


# -- run-time registration ---------------------------------------------------------------------


class RuntimeKernel(MPLinearKernel):
    @classmethod
    def can_implement(cls, config):
        return True, None

    def apply_weights(self, layer, x, bias=None):
        return x


@pytest.fixture
def cleanup():
    yield
    get_registry().unregister(["RuntimeKernel"])


@pytest.mark.usefixtures("cleanup")
def test_register_linear_kernel():
    before = len(get_registry().kernels())
    for _ in range(3):
        register_linear_kernel(RuntimeKernel, Platform.CPU, "mp")
    assert len(get_registry().kernels()) == before + 1
    assert select(CONFIG, "cpu").kernel_name == "RuntimeKernel"
    assert select(CONFIG, "cpu").chosen.priority == Priority.RUNTIME
    assert select(CONFIG, "cuda:sm_90").kernel_name != "RuntimeKernel"

    other = type("RuntimeKernel", (RuntimeKernel,), {})
    with pytest.raises(RegistrationError, match="there already"):
        register_linear_kernel(other, "cpu", "mp")


def test_unregistering_brings_back_what_was_there():
    register_linear_kernel(RuntimeKernel, "cpu")
    get_registry().unregister(["RuntimeKernel"])
    assert select(CONFIG, "cpu", settings=Settings()).kernel_name != "RuntimeKernel"


@pytest.mark.parametrize(
    ("kernel", "platform", "kernel_type", "words"),
    [
        (RuntimeKernel, "cpu", "int8", "Int8ScaledMMLinearKernel"),
        (RuntimeKernel, "cpu", "int3", "int3"),
        (RuntimeKernel, "gpu", "mp", "gpu"),
        (MPLinearKernel, "cpu", "mp", "apply_weights"),
        (int, "cpu", "mp", "MPLinearKernel"),
        ("RuntimeKernel", "cpu", "mp", "class"),
    ],
)
def test_registration_is_validated(kernel, platform, kernel_type, words):
    with pytest.raises((RegistrationError, ConfigError), match=words):
        register_linear_kernel(kernel, platform, kernel_type)


def test_the_cores_own_plugin():
    registry = get_registry()
    record = next(p for p in registry.plugins if p.name == "reference")
    assert record.status == "ok"
    assert record.info.api_version == API_VERSION
    types = {k.spec.kernel_type for k in registry.kernels() if k.plugin == "reference"}
    assert types == {
        "mp",
        "int8",
        "fp8",
        "fp8_block",
        "nvfp4",
        "mxfp4",
        "mxfp8",
        "gguf",
        "codebook",
        "moe_wna16",
        "moe_mxfp4",
    }
