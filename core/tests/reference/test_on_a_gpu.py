"""The reference kernels and the target, on a real GPU; `tests/run_gpu.py` runs these."""

import pytest
import torch
from qcore.facts.platform import Platform
from qcore.facts.scalar_type import scalar_types
from qcore.facts.target import Target
from qcore.kernels import MPLinearLayerConfig, process_weights
from qcore.selection import select
from qcore.testing import make_layer, random_tensors

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here"),
]
CONFIG = MPLinearLayerConfig(
    (256, 96), (256, 96), scalar_types.uint4, torch.float16, 64, True, has_g_idx=True
)


def test_the_target_is_the_device():
    target = Target.current("cuda")
    assert target.is_current
    assert target.platform in (Platform.CUDA, Platform.ROCM)
    major, minor = torch.cuda.get_device_capability()
    assert target.compute_capability == major * 10 + minor
    assert target.device_name == torch.cuda.get_device_name()
    assert Target.current() == target


def test_a_layer_that_was_selected_for_the_device_runs_there():
    decision = select(CONFIG)
    assert decision.target.platform is not Platform.CPU
    outputs = []
    for device in ("cpu", "cuda"):
        layer = make_layer(CONFIG, random_tensors(CONFIG), device=device)
        kernel = select(CONFIG, Target.current(device)).kernel_class.from_config(CONFIG)
        process_weights(kernel, layer)
        x = torch.linspace(-1, 1, 3 * 256).reshape(3, 256).to(torch.float16)
        outputs.append(kernel.apply_weights(layer, x.to(device)).cpu().double())
    # Both round a float32 sum to float16.
    torch.testing.assert_close(outputs[0], outputs[1], rtol=2**-10, atol=2**-8)
