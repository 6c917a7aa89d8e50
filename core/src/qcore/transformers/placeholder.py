"""`Placeholder`: stands for a quantized layer while transformers loads the rest of the model."""

from __future__ import annotations

from typing import Any

import torch

from qcore.errors import WeightError

__all__ = ["Placeholder"]


class Placeholder(torch.nn.Module):
    """A module without tensors, so that nothing is loaded into it.

    Args:
        prefix: the layer's name.
        nbytes: of its tensors in the checkpoint.
    """

    def __init__(self, prefix: str, nbytes: int) -> None:
        super().__init__()
        self.prefix = prefix
        self.nbytes = nbytes
        self.size: torch.nn.Parameter | None = None

    def show_size(self, shown: bool) -> None:
        """Have a parameter of the size, while transformers distributes layers over devices."""
        self.size = None
        if shown:
            size = torch.empty(self.nbytes, dtype=torch.uint8, device="meta")
            self.size = torch.nn.Parameter(size, requires_grad=False)

    def forward(self, *_args: Any, **_kwargs: Any) -> Any:
        """Refuse.

        Raises:
            WeightError: always.
        """
        raise WeightError(f"{self.prefix}: loading has not come to this layer")
