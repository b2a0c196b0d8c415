"""clang-tidy over every C source, ruff and mypy over the Python ones."""

import concurrent.futures
import hashlib
import os
import subprocess
import sysconfig
from pathlib import Path

import pytest
from tidy_tools import ROOT, demand, files, run, tool

SOURCES = files(".c")
RESULTS = ROOT / ".cache" / "clang-tidy"


def flags(source: Path) -> list[str]:
    """What the build gives the compiler (runtime/deps/kvbm.bzl)."""
    common = ["-std=c11", "-D_GNU_SOURCE", "-I."]
    if source.is_relative_to("python/native"):
        import tvm_ffi

        dlpack = Path(tvm_ffi.__file__).parent / "include"
        common += ["-DPy_LIMITED_API=0x030B0000", f"-isystem{sysconfig.get_path('include')}", f"-isystem{dlpack}"]
    return common


@pytest.fixture(scope="session")
def verdicts() -> dict[Path, str]:
    """clang-tidy's complaints for each source, "" for none. Clean results are kept until any input changes."""
    clang_tidy = tool("clang-tidy-14")
    shared = hashlib.sha256()
    for path in [Path(".clang-tidy"), *files(".h")]:
        shared.update(path.as_posix().encode() + b"\0" + (ROOT / path).read_bytes())

    def check(source: Path) -> str:
        digest = shared.copy()
        digest.update(repr(flags(source)).encode() + source.as_posix().encode() + (ROOT / source).read_bytes())
        mark = RESULTS / digest.hexdigest()
        if mark.exists():
            return ""
        result = run(clang_tidy, "--quiet", source, "--", *flags(source))
        if result.returncode == 0:
            mark.touch()
            return ""
        return result.stdout

    RESULTS.mkdir(parents=True, exist_ok=True)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(SOURCES, pool.map(check, SOURCES), strict=True))


# The first test that runs waits for all files, so the limit of one test does not fit.
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_clang_tidy(source: Path, verdicts: dict[Path, str]) -> None:
    if verdicts[source]:
        pytest.fail(verdicts[source], pytrace=False)


def test_ruff() -> None:
    demand(run(tool("ruff"), "check", "--quiet", "."))


def test_mypy_strict() -> None:
    folders = [folder for folder in ("python/dynamo_llm", "tests/python") if list((ROOT / folder).glob("**/*.py*"))]
    assert folders, "there is no Python to check"
    demand(run(tool("mypy"), "--strict", *folders))


def test_types_are_found_in_the_installed_package(tmp_path: Path) -> None:
    page = (ROOT / "docs/python/overview.md").read_text()
    section = page.split("## Type hints and IDE support")[1].split("\n## ")[0]
    example = section.split("```python\n")[1].split("```")[0]
    # The example stands after others that import torch and open a manager; its last line uses them.
    functions = example[: example.index("\nprocess_layers(")].replace("import dynamo_llm", "import dynamo_llm, torch")
    program = tmp_path / "program.py"
    program.write_text(functions)
    settings = tmp_path / "mypy.ini"
    settings.write_text("[mypy]\nstrict = True\n[mypy-torch.*]\nfollow_imports = skip\n")
    cache = ROOT / ".cache/mypy-program"
    # From a folder of a user's own, so that nothing but the installation leads to the package.
    done = subprocess.run(
        [tool("mypy"), "--config-file", str(settings), "--cache-dir", str(cache), program.name],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    demand(done)


def test_stubs_say_what_the_extension_has() -> None:
    if not (ROOT / "python/dynamo_llm/_kvbm.pyi").exists():
        pytest.fail("python/dynamo_llm/_kvbm.pyi is missing")
    demand(run(tool("stubtest"), "--mypy-config-file", ".mypy.ini", "dynamo_llm._kvbm"))
