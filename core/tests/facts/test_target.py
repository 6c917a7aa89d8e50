import pytest
import torch
from qcore.errors import TargetError
from qcore.facts.cpu_features import CPU_LEVELS
from qcore.facts.current_platform import current_platform, weighing
from qcore.facts.platform import Platform
from qcore.facts.target import TARGET_EXAMPLES, Target


@pytest.mark.parametrize("text", TARGET_EXAMPLES)
def test_examples_parse_and_print_as_themselves(text):
    target = Target.parse(text)
    assert str(Target.parse(str(target))) == str(target)
    assert target.platform.value == text.split(":")[0]
    assert not target.is_current


@pytest.mark.parametrize(
    ("text", "capability", "arch"),
    [
        ("cuda:sm_75", 75, "sm_75"),
        ("cuda:sm_120", 120, "sm_120"),
        ("cuda:sm90a", 90, "sm_90"),
        ("CUDA:9.0", 90, "sm_90"),
        ("cuda:100", 100, "sm_100"),
        ("rocm:gfx90a", 90, "gfx90a"),
        ("rocm:gfx942", 94, "gfx942"),
        ("rocm:gfx950", 95, "gfx950"),
        ("rocm:gfx1201", 120, "gfx1201"),
    ],
)
def test_capabilities(text, capability, arch):
    target = Target.parse(text)
    assert (target.compute_capability, target.arch) == (capability, arch)


def test_cpu_levels_imply_what_is_below_them():
    target = Target.parse("cpu:avx512_vnni")
    assert target.has("avx2")
    assert target.has("avx512_vnni")
    assert not target.has("avx512_bf16")
    assert Target.parse("cpu").cpu_features == frozenset()
    both = Target.parse("cpu:avx2+amd")
    assert both.has("amd")
    assert set(CPU_LEVELS["avx2"]) <= both.cpu_features


@pytest.mark.parametrize(
    "text",
    [
        "",
        "gpu",
        "cuda",
        "cuda:",
        "cuda:gfx942",
        "rocm:sm_90",
        "cpu:avx3",
        "xpu:arc",
        "cuda:sm_9000",
    ],
)
def test_unreadable_targets_say_what_is_allowed(text):
    with pytest.raises(TargetError, match="cuda:sm_90"):
        Target.parse(text)


def test_current():
    here = Target.current("cpu")
    assert here.platform is Platform.CPU
    assert here.is_current
    assert Target.parse("current") == Target.current()
    assert here.torch_device == torch.device("cpu")
    assert "cpu" in here.describe()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_not_here_says_so():
    with pytest.raises(TargetError, match=r"CPU build|no GPU"):
        Target.current("cuda")


def test_current_platform_answers_for_the_weighed_target():
    with weighing(Target.parse("cuda:sm_90")):
        assert current_platform.is_cuda()
        assert current_platform.get_device_capability() == (9, 0)
        assert current_platform.has_device_capability((8, 9))
        assert not current_platform.has_device_capability(100)
    with weighing(Target.parse("rocm:gfx942")):
        assert current_platform.is_cuda_alike()
        assert current_platform.is_fp8_fnuz()
    with weighing(Target.parse("cpu:zen4")):
        assert current_platform.is_zen_cpu()
        assert current_platform.get_device_capability() is None
