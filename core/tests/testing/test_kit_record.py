"""`QCORE_TEST_REPORT`: what the kit notes, and the file at the end of the process."""

import json
import os
import subprocess
import sys

import pytest
from qcore.errors import ConfigError, TargetError
from qcore.reference.kernels import ReferenceInt8ScaledMMLinearKernel
from qcore.testing import (
    ConformanceError,
    Subject,
    check_contract,
    check_numerics,
    conformance_configs,
    evidence,
    note_run,
    record,
)

KERNEL = ReferenceInt8ScaledMMLinearKernel
CONFIG = conformance_configs("int8")[0]


class Broken(KERNEL):
    """Off by one."""

    def apply_weights(self, layer, x, bias=None):
        return super().apply_weights(layer, x, bias) + 1


@pytest.fixture(autouse=True)
def noting(monkeypatch, tmp_path):
    monkeypatch.setattr(record, "_runs", {})
    monkeypatch.setattr(record.atexit, "register", lambda function: None)
    monkeypatch.setenv("QCORE_TEST_REPORT", str(tmp_path / "report.json"))


def test_checks_note_themselves():
    check_contract(KERNEL, CONFIG)
    check_numerics(kernel=Subject(KERNEL), config=CONFIG)
    check_numerics(KERNEL, CONFIG)
    (run,) = record.report()["runs"]
    assert run["kernel"] == KERNEL.__name__
    assert run["how"] is None
    assert (run["platform"], run["ok"]) == ("cpu", True)
    assert run["target"].startswith("cpu")
    assert run["checks"]["check_contract"] == {"runs": 1, "failed": 0, "not_run": 0}
    assert run["checks"]["check_numerics"]["runs"] == 2
    assert 0 <= run["worst_ratio"] <= 1


def test_failures_are_noted():
    with pytest.raises(ConformanceError):
        check_numerics(Broken, CONFIG)
    (run,) = record.report()["runs"]
    assert not run["ok"]
    assert run["checks"]["check_numerics"]["failed"] == 1
    assert "results are wrong" in run["failures"][0]


def test_what_a_test_says_of_itself():
    with evidence("stand-in", "an emulator"):
        check_contract(KERNEL, CONFIG)
    check_contract(KERNEL, CONFIG)
    by_how = {run["how"]: run for run in record.report()["runs"]}
    assert by_how["stand-in"]["what"] == "an emulator"
    assert by_how["stand-in"]["target"] == ""
    assert by_how[None]["target"]


def test_what_the_environment_says(monkeypatch):
    monkeypatch.setenv("QCORE_TEST_EVIDENCE", "stand-in: an interpreter")
    check_contract(KERNEL, CONFIG)
    with evidence("contract", "a stand-in"):
        check_contract(KERNEL, CONFIG)
    said = [(run["how"], run["what"]) for run in record.report()["runs"]]
    assert said == [("contract", "a stand-in"), ("stand-in", "an interpreter")]
    for wrong in ("interpreter", "stand-in", "stand-in: "):
        monkeypatch.setenv("QCORE_TEST_EVIDENCE", wrong)
        with pytest.raises(ConfigError):
            check_contract(KERNEL, CONFIG)


def test_other_evidence():
    note_run("K", "compiled", "clang", target="rocm:gfx942", instructions=3)
    note_run("K", "compiled", "clang", target="rocm:gfx942", ok=False)
    (run,) = record.report()["runs"]
    assert run == {
        "kernel": "K",
        "how": "compiled",
        "what": "clang",
        "target": "rocm:gfx942",
        "ok": False,
        "instructions": 3,
    }


def test_what_is_refused():
    with pytest.raises(ConfigError, match="it must be one of executed, stand-in"):
        note_run("K", "tested", "somehow")
    with pytest.raises(ConfigError, match="what is empty"), evidence("contract", " "):
        pass
    with pytest.raises(TargetError):
        note_run("K", "compiled", "clang", target="gfx942?")


def test_nothing_is_noted_without_the_variable(monkeypatch):
    monkeypatch.delenv("QCORE_TEST_REPORT")
    check_contract(KERNEL, CONFIG)
    assert record.report()["runs"] == []


def test_the_file_is_written_at_the_end(tmp_path):
    file = tmp_path / "new" / "report.json"
    code = (
        "from qcore.testing import check_contract, conformance_configs\n"
        "from qcore.reference.kernels import ReferenceInt8ScaledMMLinearKernel as K\n"
        "check_contract(K, conformance_configs('int8')[0])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "QCORE_TEST_REPORT": str(file)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    written = json.loads(file.read_text(encoding="utf-8"))
    assert written["format"] == record.FORMAT
    assert [run["kernel"] for run in written["runs"]] == [KERNEL.__name__]
