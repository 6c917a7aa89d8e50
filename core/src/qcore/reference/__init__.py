"""Floor 4: a plain-PyTorch kernel for every type on every platform: fallback and oracle."""
