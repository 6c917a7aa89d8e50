"""What all commands have in common."""

import sys

import pytest
import qcore

COMMANDS = ("doctor", "kernels", "explain", "inspect", "quantize", "generate")


def test_version(cli):
    result = cli("--version")
    assert (result.code, result.out) == (0, f"qcore {qcore.__version__}\n")


def test_help_names_every_command_in_a_whole_line(cli):
    result = cli("--help")
    assert result.code == 0
    for command in COMMANDS:
        assert f"\n  {command} " in result.out
    assert "..." not in result.out.partition("Commands:")[2]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_fits_80_columns(cli, command):
    result = cli(command, "--help")
    assert result.code == 0
    assert max(map(len, result.out.splitlines())) <= 80
    assert "rich_help_panel" not in result.out


def test_no_command_is_help(cli):
    assert "Commands:" in cli().out + cli().err


def test_help_imports_nothing_heavy(process):
    code = (
        "import sys, atexit\n"
        "atexit.register(lambda: print('LOADED', *sys.modules))\n"
        "sys.argv = ['qcore', '--help']\n"
        "from qcore.cli import main\n"
        "main()"
    )
    loaded = process(code=code).out.rpartition("LOADED")[2].split()
    assert "qcore.cli.app" in loaded
    for name in ("torch", "transformers", "safetensors", "pluggy"):
        assert name not in loaded


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra_the_message_names_it(process, missing):
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "sys.argv = ['qcore', 'kernels']\n"
        "from qcore.cli import main\n"
        "sys.exit(main())"
    )
    result = process(code=code)
    assert result.code == 1
    assert f"needs {missing}, not installed: pip install qcore[cli]" in result.err
    assert "Traceback" not in result.err


def test_python_m(process):
    result = process("--version")
    assert result.out == f"qcore {qcore.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", "/no/such/folder"),
        ("explain", "/no/such/folder"),
        ("generate", "/no/such/folder", "--prompt", "x"),
        ("quantize", "/no/such/folder", "/no/such/place"),
        ("kernels", "--target", "quantum:q1"),
        ("explain", "--type", "mp", "--group-size", "-7"),
    ],
)
def test_an_expected_error_is_a_sentence(process, arguments):
    result = process(*arguments)
    assert result.code == 1
    assert result.out == ""
    assert result.err.startswith("error: ")
    assert "Traceback" not in result.err


@pytest.mark.parametrize("before", [True, False])
def test_debug_shows_the_traceback_wherever_it_stands(process, before):
    command = ["kernels", "--target", "quantum:q1"]
    result = process(*(["--debug", *command] if before else [*command, "--debug"]))
    assert result.code == 1
    assert "Traceback" in result.err
    assert result.err.rstrip().splitlines()[-1].startswith("error: target 'quantum:q1'")


def test_a_bad_setting_is_a_sentence(process):
    result = process("explain", "--type", "mp", QCORE_STRICT="perhaps")
    assert result.code == 1
    assert "error: QCORE_STRICT is 'perhaps'" in result.err


@pytest.mark.parametrize(
    "arguments", [("kernel",), ("kernels", "--nonsense"), ("generate", "x"), ("quantize", "x")]
)
def test_a_command_line_that_cannot_be_understood(cli, arguments):
    result = cli(*arguments)
    assert result.code == 2
    assert "Usage:" in result.err


@pytest.mark.skipif(sys.platform == "win32", reason="pipes differ")
def test_a_reader_that_goes_away_is_no_error(tmp_path):
    import subprocess

    command = f"'{sys.executable}' -m qcore kernels --json | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.stdout == "[\n"
    assert "Traceback" not in done.stderr
