import json

SPECS = """
@hookimpl
def qcore_kernels():
    return [
        KernelSpec("HopperKernel", "mp", ("cuda",), "made_vendor.cuda:HopperKernel", 820, "hopper",
                   min_capability=90, max_capability=90, modules=("no_such_extension",),
                   evidence="executed"),
        KernelSpec("VnniKernel", "int8", ("cpu",), "made_vendor.cpu:VnniKernel", 600, "vnni",
                   cpu_features=("avx512f", "avx512_vnni"), numerics="approximate"),
    ]
"""


def test_nothing_of_a_plugin_but_its_declaration_is_imported(process, install):
    site = install("vendor", SPECS)
    (site / "made_vendor" / "cuda.py").write_text("raise SystemExit('imported')")
    (site / "made_vendor" / "cpu.py").write_text("raise SystemExit('imported')")
    code = (
        "import sys, atexit\n"
        "atexit.register(lambda: print('LOADED', *sys.modules))\n"
        "from qcore.cli import main\n"
        "main()"
    )
    for extra in ((), ("--target", "cuda:sm_90"), ("--json",)):
        result = process("kernels", *extra, code=code, PYTHONPATH=str(site))
        text, _, loaded = result.out.rpartition("LOADED")
        loaded = loaded.split()
        assert "HopperKernel" in text
        assert "made_vendor.plugin" in loaded
        for name in ("made_vendor.cuda", "made_vendor.cpu", "qcore.reference.kernels"):
            assert name not in loaded
        for name in ("transformers", "triton", "zentorch", "flashinfer", "aiter", "vllm"):
            assert name not in loaded


def test_the_list(cli, install):
    install("vendor", SPECS)
    out = cli("kernels").out
    rows = {line.split()[1]: line for line in out.splitlines() if line.strip()[:1].isdigit()}
    assert "cuda; capability 90; module no_such_extension" in rows["HopperKernel"]
    assert "approximate" in rows["VnniKernel"]
    assert "cpu; avx512f, avx512_vnni" in rows["VnniKernel"]
    assert "dist-vendor" in rows["VnniKernel"]
    assert rows["ReferenceMPLinearKernel"].endswith("any")
    assert out.index("HopperKernel") < out.index("ReferenceMPLinearKernel")
    assert out.rstrip().endswith("10 kernels")


def test_piped_output_is_plain_and_whole(cli, install):
    install("vendor", SPECS)
    out = cli("kernels").out
    assert "\x1b" not in out
    assert "…" not in out
    assert all(line == line.rstrip() for line in out.splitlines())


def test_a_target(cli, install):
    install("vendor", SPECS)
    out = cli("kernels", "--target", "cuda:sm_80", "--type", "mp").out
    assert "capability: needs compute capability 90, this is 80" in out
    assert "1 of 2 usable on cuda:sm_80" in out
    # What is installed here says nothing about another machine.
    out = cli("kernels", "--target", "cuda:sm_90", "--type", "mp").out
    assert "2 of 2 usable on cuda:sm_90" in out


def test_json(cli, install):
    install("vendor", SPECS)
    found = json.loads(cli("kernels", "--json", "--target", "cpu:avx2").out)
    vnni = next(kernel for kernel in found if kernel["kernel"] == "VnniKernel")
    assert vnni["platforms"] == ["cpu"]
    assert vnni["usable"] is False
    assert vnni["stage"] == "numerics"
    assert {"priority", "numerics", "evidence", "modules", "cpu_features", "entry"} <= set(vnni)


def test_an_unknown_type(cli):
    result = cli("kernels", "--type", "fp8block")
    assert result.code == 2
    assert "nearest: fp8_block" in result.err
