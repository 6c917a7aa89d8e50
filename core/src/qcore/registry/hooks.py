"""The hooks by which a plugin tells the core what it brings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pluggy

from qcore.registry.spec import KernelSpec

__all__ = [
    "API_VERSION",
    "ENTRY_POINT_GROUP",
    "PROJECT",
    "DoctorLine",
    "PluginHooks",
    "PluginInfo",
    "hookimpl",
    "hookspec",
]

API_VERSION = 1
"""Version of this contract. A plugin made for another is recorded and left out."""

PROJECT = "qcore"
ENTRY_POINT_GROUP = "qcore.plugins"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a plugin's implementation of a hook."""


@dataclass(frozen=True)
class PluginInfo:
    """Who a plugin is.

    Attributes:
        name: short, unique.
        api_version: the `API_VERSION` that it was written for.
        backends: the backend names that it contributes, each with a line of explanation.
    """

    name: str
    api_version: int
    backends: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class DoctorLine:
    """One finding about the machine or the installation.

    Attributes:
        topic: what it is about, in a word or two.
        text: the finding.
        ok: False where something is unusable; ``text`` then says why.
    """

    topic: str
    text: str
    ok: bool = True


class PluginHooks:
    """The hook specifications. `qcore_plugin` is required, the others are optional.

    No implementation may import a vendor's library or load an extension, except `qcore_doctor`.
    """

    @hookspec
    def qcore_plugin(self) -> PluginInfo:  # type: ignore[empty-body]
        """Who the plugin is."""

    @hookspec
    def qcore_kernels(self) -> Sequence[KernelSpec]:  # type: ignore[empty-body]
        """The kernels that it brings."""

    @hookspec
    def qcore_quantization_methods(self) -> Mapping[str, str]:  # type: ignore[empty-body]
        """Checkpoint formats: ``quant_method`` -> ``module:QuantizationConfigSubclass``."""

    @hookspec
    def qcore_decoding_passes(self) -> Sequence[str]:  # type: ignore[empty-body]
        """What it changes in the graph of a compiled decoding step, as ``module:function``.

        `qcore.models.compile_decoding` calls each with the ``torch.fx.GraphModule``, before its
        backend does; ``meta["example_value"]`` of a node is what it gives.
        """

    @hookspec
    def qcore_doctor(self) -> Sequence[DoctorLine]:  # type: ignore[empty-body]
        """What ``qcore doctor`` should say; may load the extension to find out."""
