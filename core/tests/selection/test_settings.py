import pytest
import qcore.settings
from qcore.errors import SettingsError
from qcore.settings import VARIABLES, Settings, disabled_plugins


def test_nothing_set():
    assert Settings.from_env({}) == Settings()


def test_everything_set():
    settings = Settings.from_env(
        {
            "QCORE_DISABLED_KERNELS": " A , B,",
            "VLLM_DISABLED_KERNELS": "C",
            "QCORE_LINEAR_BACKEND": "cpu,int8=zentorch",
            "QCORE_FORCE_KERNEL": "D,E",
            "QCORE_STRICT": "1",
            "VLLM_BATCH_INVARIANT": "true",
            "QCORE_NUMERICS": "approximate",
            "QCORE_KERNEL_PRIORITY": "A=700, B=-1",
        }
    )
    assert settings.disabled_kernels == {"A", "B", "C"}
    assert settings.source("disabled_kernels") == "QCORE_DISABLED_KERNELS and VLLM_DISABLED_KERNELS"
    assert settings.backend_for("mp") == "cpu"
    assert settings.backend_for("int8") == "zentorch"
    assert settings.force_kernel == ("D", "E")
    assert settings.strict
    assert settings.batch_invariant
    assert settings.approximate
    assert settings.priorities == (("A", 700), ("B", -1))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("QCORE_STRICT", "maybe"),
        ("QCORE_BATCH_INVARIANT", "2"),
        ("QCORE_NUMERICS", "sloppy"),
        ("QCORE_LINEAR_BACKEND", "=cpu"),
        ("QCORE_LINEAR_BACKEND", "mp="),
        ("QCORE_KERNEL_PRIORITY", "A"),
        ("QCORE_KERNEL_PRIORITY", "A=high"),
    ],
)
def test_unreadable_values_name_the_variable(name, value):
    with pytest.raises(SettingsError, match=name):
        Settings.from_env({name: value})


def test_a_change_of_the_environment_takes_effect_at_once(monkeypatch):
    monkeypatch.setenv("QCORE_DISABLED_KERNELS", "X")
    assert Settings.from_env().disabled_kernels == {"X"}
    monkeypatch.setenv("QCORE_DISABLED_KERNELS", "Y")
    assert Settings.from_env().disabled_kernels == {"Y"}


def test_disabled_plugins():
    assert disabled_plugins({"QCORE_DISABLED_PLUGINS": "cuda, qcore-cpu"}) == {"cuda", "qcore-cpu"}
    assert disabled_plugins({}) == frozenset()


def test_the_table_lists_every_variable():
    for name in (*VARIABLES, "QCORE_DISABLED_PLUGINS"):
        assert name in qcore.settings.__doc__
