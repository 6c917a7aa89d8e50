"""Check qcore on the files that today's tools write, and record the outcome.

    python tests/tools/verify_tools.py --tool llmcompressor --tool torchao
    python tests/tools/verify_tools.py --tool gptqmodel --only desc_act

Each tool must be installed with the version that is to be checked (they want different versions
of transformers, so not all of them at once). A tiny model is quantized on the CPU with each scheme
that the tool exports; the folder is loaded with qcore in float32 and compared with the tool's own
values. The rows go into docs/data/tool-checkpoints.json, in place of those of the same tool, format
and scheme:

==============  ================================================================================
tool, version   the package
format          of the files: what ``quant_method`` or ``format`` says
scheme          the tool's name of the scheme
export          how it was made
loads           whether ``qcore.load_model`` took it
refusal         why not, in qcore's words
not_written     why the tool could not write it here, in its own words; then nothing was loaded
layer_types     the kernel types of the loaded layers
inspect         the scheme as ``qcore inspect`` names it
relative_error  of the logits; ``bound``: what it must stay below. Weight-only: 1e-4. With rounded
                activations: the error that the rounding itself makes
layer_error     with rounded activations, of the worst layer on the tool's own input;
                ``layer_bound`` is a hundredth of the rounding's own error where both round alike
compared_with   who computed what qcore is compared with
==============  ================================================================================

It ends with 1 if anything is not as it should be.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent))

TOOLS = {
    "llmcompressor": "with_llmcompressor",
    "modelopt": "with_modelopt",
    "torchao": "with_torchao",
    "hqq": "with_hqq",
    "quanto": "with_quanto",
    "bitsandbytes": "with_bitsandbytes",
    "transformers": "with_transformers",
    "gptqmodel": "with_gptqmodel",
    "auto-round": "with_auto_round",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tool", action="append", choices=[*TOOLS], help="default: all of them")
    parser.add_argument("--only", default="", help="a part of the schemes' names")
    parser.add_argument("--dry-run", action="store_true", help="leave the file as it is")
    args = parser.parse_args()

    import rows

    failed = 0
    for tool in args.tool or TOOLS:
        for case in importlib.import_module(TOOLS[tool]).CASES:
            if args.only.lower() not in f"{case.format} {case.scheme}".lower():
                continue
            row, wrong = rows.verify(case)
            if not args.dry_run:
                rows.merge([row], {case.tool})
            failed += bool(wrong)
            said = "; ".join(wrong) or row.refusal or row.not_written or row.inspect
            mark = "BAD " if wrong else "ok  "
            numbers = [row.relative_error, row.bound, row.layer_error, row.layer_bound]
            shown = " ".join("-" if n is None else f"{n:.1e}" for n in numbers)
            print(f"{mark} {case.tool} {case.scheme} [{shown}] {said}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
