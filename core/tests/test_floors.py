"""A lower floor never imports a higher one (docs/adr/0001)."""

import ast
from pathlib import Path

import pytest
import qcore

ROOT = Path(qcore.__file__).parent

# What each package may import beside itself. `errors` names `Decision` for the type checker only.
BASE = {"errors"}
FACTS = BASE | {"facts"}
LAYERS = FACTS | {"layers"}
NUMERICS = LAYERS | {"numerics"}
KERNELS = NUMERICS | {"kernels"}
REGISTRY = KERNELS | {"registry", "settings"}
SELECTION = REGISTRY | {"selection"}
QUANTIZATION = SELECTION | {"quantization"}
MODELS = QUANTIZATION | {"models", "quantize"}
ALLOWED = {
    "errors": set(),
    "settings": BASE,
    "facts": FACTS,
    "layers": LAYERS,
    "numerics": NUMERICS,
    "kernels": KERNELS,
    "reference": KERNELS | {"reference", "plugin"},
    "triton": KERNELS | {"triton", "plugin"},
    "registry": REGISTRY,
    "plugin": REGISTRY,
    "selection": SELECTION,
    "quantization": QUANTIZATION,
    "models": MODELS,
    "quantize": MODELS,
    "testing": SELECTION | {"testing", "reference", "plugin"},
    "transformers": MODELS | {"transformers"},
    "cli": MODELS | {"cli", "reference", "plugin", "testing", "__version__"},
    "__main__": {"cli"},
}


def imported(path):
    """Names of the packages of qcore that a file imports, type-checking blocks left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "qcore":
                yield from (alias.name for alias in node.names)
            elif node.module.startswith("qcore."):
                yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("qcore."):
                    yield alias.name.split(".")[1]


@pytest.mark.parametrize(
    "path", sorted(ROOT.rglob("*.py")), ids=lambda p: p.relative_to(ROOT).as_posix()
)
def test_imports_go_down(path):
    package = path.relative_to(ROOT).parts[0].removesuffix(".py")
    if package == "__init__":
        return
    above = set(imported(path)) - ALLOWED[package] - {package}
    assert not above, f"{path.relative_to(ROOT)} imports {sorted(above)}"
