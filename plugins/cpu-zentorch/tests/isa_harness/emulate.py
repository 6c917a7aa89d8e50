"""Run the harness under an emulator of a processor that this machine is not.

    python emulate.py bochs HARNESS NAME [SEED]      x86: AVX-VNNI, AMX
    python emulate.py qemu-aarch64 HARNESS NAME      Arm

HARNESS is the static program that CMakeLists.txt builds, NAME an instruction set. Under Bochs it
runs on a bare machine: bochs/rom.S and bochs/kernel.c stand for the firmware and for Linux.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["MODELS", "run_bochs", "run_qemu"]

MODELS = {"avxvnni": "arrow_lake", "amx": "sapphire_rapids"}
"""The model of Bochs that has an instruction set."""

_HERE = Path(__file__).parent
_ROM = 4 << 20  # ends where the first 4 GiB do
_PROGRAM, _ARGUMENTS, _KERNEL, _FIRMWARE = (
    0,
    0x3F6000,
    0x3F7000,
    0x3FF000,
)  # in it, as kernel.c and rom.S say

_BARE = [
    "-O1",
    "-ffreestanding",
    "-nostdlib",
    "-fno-pic",
    "-no-pie",
    "-mgeneral-regs-only",
    "-mno-red-zone",
    "-fno-stack-protector",
    "-fcf-protection=none",
    "-fno-asynchronous-unwind-tables",
]

_SETTINGS = """\
cpu: model={model}, count=1, ips=100000000, reset_on_triple_fault=0
memory: guest=512, host=512
romimage: file={rom}, options=none
vgaromimage: file={vga}
display_library: nogui
port_e9_hack: enabled=1
log: {log}
panic: action=fatal
"""


def _flat(source: Path, work: Path, compile_flags: list[str], link_flags: list[str]) -> bytes:
    """Compile and link one file to the bytes that it is in memory."""
    compiled, linked = work / f"{source.stem}.o", work / f"{source.stem}.bin"
    subprocess.run(["gcc", *compile_flags, "-c", source, "-o", compiled], check=True)
    subprocess.run(["ld", *link_flags, "--oformat", "binary", "-o", linked, compiled], check=True)
    return linked.read_bytes()


def _image(harness: Path, arguments: list[str], work: Path) -> bytes:
    bochs = _HERE / "bochs"
    rom = bytearray(b"\xff" * _ROM)
    words = b"".join(word.encode() + b"\0" for word in ("isa_harness", *arguments)) + b"\0"
    for start, end, part in (
        (_PROGRAM, _ARGUMENTS, harness.read_bytes()),
        (_ARGUMENTS, _KERNEL, words),
        (
            _KERNEL,
            _FIRMWARE,
            _flat(bochs / "kernel.c", work, _BARE, ["-T", str(bochs / "kernel.ld")]),
        ),
        (_FIRMWARE, _ROM, _flat(bochs / "rom.S", work, [], ["-Ttext=0xfffff000"])),
    ):
        if len(part) > end - start:
            raise ValueError(f"{len(part)} bytes do not fit into {end - start} of the ROM")
        rom[start : start + len(part)] = part
    return bytes(rom)


def run_bochs(bochs: str, harness: Path, arguments: list[str]) -> tuple[int, str]:
    """Run the harness on a bare machine of Bochs, of the model that has its first argument.

    Args:
        bochs: The emulator, version 3.0 or later, compiled with AVX-512 and AMX.
        harness: The static program.
        arguments: An instruction set, and perhaps a seed.

    Returns:
        Its exit status and what it printed.

    Raises:
        RuntimeError: the machine ended without one; the message has what it printed.
    """
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "rom.bin").write_bytes(_image(harness, arguments, work))
        (work / "vga.bin").write_bytes(bytes(512))  # Bochs asks for one
        model = MODELS.get(arguments[0], "sapphire_rapids")
        settings = _SETTINGS.format(
            model=model, rom=work / "rom.bin", vga=work / "vga.bin", log=work / "bochs.log"
        )
        (work / "bochsrc").write_text(settings)
        # Once the program has ended, Bochs reports its own end as an error.
        ended = subprocess.run(
            [bochs, "-q", "-f", work / "bochsrc"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=1800,
        )
        text = (ended.stdout + ended.stderr).decode(errors="replace")
    found = re.search(r"\nexit status: ([0-9a-f]{16})", text)
    if found is None:
        raise RuntimeError(f"the machine of {bochs} did not end as it should:\n{text}")
    lines = text[: found.start()].splitlines()
    printed = [line for line in lines if not re.match(r"={20}|0{11}|\d{11,}i|  +", line)]
    return int(found[1], 16), "\n".join(printed) + "\n"


def run_qemu(qemu: str, harness: Path, arguments: list[str]) -> tuple[int, str]:
    """Run the harness under qemu-user, on the processor that has all that it can emulate.

    Returns:
        Its exit status and what it printed.
    """
    ended = subprocess.run(
        [qemu, "-cpu", "max", harness, *arguments], capture_output=True, text=True, timeout=1800
    )
    return ended.returncode, ended.stdout + ended.stderr


def main(words: list[str]) -> int:
    if len(words) < 3 or shutil.which(words[0]) is None:
        print(__doc__)
        return 2
    run = run_bochs if "bochs" in Path(words[0]).name else run_qemu
    status, text = run(words[0], Path(words[1]), words[2:])
    print(text, end="")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
