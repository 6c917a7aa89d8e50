"""The core is tested alone, whatever else is installed."""

import os
from importlib.metadata import entry_points

for name in [name for name in os.environ if name.startswith(("QCORE_", "VLLM_"))]:
    if not name.startswith("QCORE_TEST_"):
        del os.environ[name]
others = {point.name for point in entry_points(group="qcore.plugins")} - {"reference"}
os.environ["QCORE_DISABLED_PLUGINS"] = ",".join(sorted(others))


def pytest_addoption(parser):
    parser.addoption(
        "--format-results",
        metavar="FILE",
        help="write what the tests of checkpoint formats found out to this JSON file",
    )
