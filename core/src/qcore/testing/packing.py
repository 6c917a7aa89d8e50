"""`check_packing`: repacking is pure, repeatable, done once, and leaves no half-packed layer."""

from __future__ import annotations

import torch

from qcore.errors import WeightError
from qcore.kernels.base import LinearKernel
from qcore.kernels.loading import process_weights
from qcore.kernels.moe import ExpertsKernel
from qcore.layers.base import MMLinearLayerConfig
from qcore.testing.outcome import Outcome
from qcore.testing.record import recorded
from qcore.testing.results import compare
from qcore.testing.snapshot import Snapshot, layer_tensors
from qcore.testing.subject import Kernel, Subject, subject_of
from qcore.testing.tensors import load_tensors, make_layer, random_input, random_tensors

__all__ = ["check_packing"]

_CHECK = "check_packing"


@recorded
def check_packing(kernel: Kernel, config: MMLinearLayerConfig) -> Outcome:
    """Packing is a function of the canonical tensors and nothing else.

    It does not change its arguments, gives the same bits each time, changes nothing when it is done
    again, leaves the layer as it was when a tensor is missing, and packs a layer that is loaded
    anew with other weights as it packs a fresh one.

    Raises:
        ConformanceError: something of this is not so.
    """
    subject = subject_of(kernel)
    _check_pure(subject, config)
    _check_repeatable(subject, config)
    _check_failure(subject, config)
    _check_reload(subject, config)
    return Outcome()


def _packs_purely(subject: Subject) -> bool:
    """Whether the class packs by ``pack_weights``, under the base's processing."""
    base = LinearKernel.process_weights_after_loading
    return subject.kernel_class.process_weights_after_loading is base


def _check_pure(subject: Subject, config: MMLinearLayerConfig) -> None:
    if not _packs_purely(subject):
        return
    tensors = {
        name: tensor.to(subject.device, copy=True)
        for name, tensor in random_tensors(config).items()
    }
    before = Snapshot(tensors)
    with subject.guarding(_CHECK, config, "pack_weights"):
        kernel = subject.kernel_class.from_config(config)
        packed = dict(kernel.pack_weights(tensors))
        first = Snapshot(packed)
        again = dict(kernel.pack_weights(tensors))
    if changed := before.difference(tensors):
        raise subject.error(_CHECK, config, f"pack_weights changes its arguments: {changed}")
    if changed := first.difference(again):
        raise subject.error(_CHECK, config, f"pack_weights, called twice: {changed}")


def _check_repeatable(subject: Subject, config: MMLinearLayerConfig) -> None:
    with subject.guarding(_CHECK, config, "packing"):
        one, two = subject.build(config), subject.build(config)
    first = Snapshot(layer_tensors(one.layer, one.kernel))
    if changed := first.difference(layer_tensors(two.layer, two.kernel)):
        raise subject.error(_CHECK, config, f"the same weights, packed twice: {changed}")
    where = {name: tensor.data_ptr() for name, tensor in layer_tensors(one.layer).items()}
    with subject.guarding(_CHECK, config, "packing a layer that is packed"):
        process_weights(one.kernel, one.layer)
        if _packs_purely(subject):
            one.kernel.process_weights_after_loading(one.layer)
    if changed := first.difference(layer_tensors(one.layer, one.kernel)):
        raise subject.error(_CHECK, config, f"packing a packed layer again: {changed}")
    moved = [name for name, t in layer_tensors(one.layer).items() if t.data_ptr() != where[name]]
    if moved:
        raise subject.error(
            _CHECK, config, f"packing a packed layer again moves {', '.join(moved)} in memory"
        )


def _check_failure(subject: Subject, config: MMLinearLayerConfig) -> None:
    tensors = random_tensors(config)
    for missing in tensors:
        rest = {name: tensor for name, tensor in tensors.items() if name != missing}
        layer = make_layer(config, rest, device=subject.device)
        before, had = Snapshot(layer_tensors(layer)), set(vars(layer))
        kernel = subject.kernel_class.from_config(config)
        try:
            process_weights(kernel, layer)
        except Exception as error:
            if _packs_purely(subject) and not isinstance(error, WeightError):
                problem = f"without {missing}, packing raises {type(error).__name__}: {error}"
                raise subject.error(
                    _CHECK, config, f"{problem}; it must be a WeightError"
                ) from error
        else:
            if _packs_purely(subject):
                raise subject.error(_CHECK, config, f"a layer without {missing} is packed")
            continue
        if changed := before.difference(layer_tensors(layer)):
            problem = f"packing without {missing} fails and leaves a changed layer: {changed}"
            raise subject.error(_CHECK, config, problem)
        if left := set(vars(layer)) ^ had:
            problem = f"packing without {missing} fails and leaves {', '.join(sorted(left))} behind"
            raise subject.error(_CHECK, config, problem)


def _check_reload(subject: Subject, config: MMLinearLayerConfig) -> None:
    with subject.guarding(_CHECK, config, "packing"):
        used, fresh = subject.build(config, seed=0), subject.build(config, seed=7)
    with subject.guarding(_CHECK, config, "packing a layer that was loaded anew"):
        load_tensors(used.layer, config, fresh.tensors, device=subject.device)
        kernel = subject.kernel_class.from_config(config)
        process_weights(kernel, used.layer)
    expected = Snapshot(layer_tensors(fresh.layer, fresh.kernel))
    if changed := expected.difference(layer_tensors(used.layer, kernel)):
        problem = f"a layer loaded anew is not packed like a fresh one: {changed}"
        raise subject.error(_CHECK, config, problem)
    if isinstance(kernel, ExpertsKernel):
        return  # `check_experts` runs it
    x = random_input(config, 3).to(subject.device)
    with subject.guarding(_CHECK, config, "apply_weights on a layer that was loaded anew"):
        out: torch.Tensor = kernel.apply_weights(used.layer, x, None)
    oracle = subject.oracle(config, fresh.tensors)
    compare(fresh, oracle, _CHECK, "after loading other weights", x, None, out)
