"""The wheel in dist/ (./dev wheel): one abi3 file that needs nothing of the machine but glibc."""

import json
import os
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from tidy_tools import ROOT

# Libraries that every glibc system has.
SYSTEM = re.compile(r"(linux-vdso|libc|libm|libpthread|libdl|librt|libgcc_s|ld-linux-x86-64)\.so")

USE = """
import asyncio, json, dynamo_llm, dynamo_llm.aio
shape = dict(num_layers=2, page_size=4, inner_dim=8, host_blocks=8)
with dynamo_llm.BlockManager(**shape) as manager:
    blocks = len(manager.allocate_blocks(2))
async def main():
    async with dynamo_llm.aio.BlockManager(**shape) as manager:
        return len(await manager.allocate_blocks(2))
blocks += asyncio.run(main())
maps = sorted({line.split()[-1] for line in open("/proc/self/maps") if ".so" in line})
print(json.dumps({"blocks": blocks, "file": dynamo_llm.__file__, "maps": maps}))
"""


@pytest.fixture(scope="module")
def wheel() -> Path:
    wheels = list((ROOT / "dist").glob("*.whl"))
    assert len(wheels) == 1, f"dist/ holds {[path.name for path in wheels]}; run ./dev wheel"
    return wheels[0]


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an empty environment with nothing but the wheel in it."""
    folder = tmp_path_factory.mktemp("empty") / "venv"
    venv.EnvBuilder(with_pip=False, symlinks=True).create(folder)
    interpreter = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(interpreter), "--disable-pip-version-check"]
    # --no-index: it may need nothing else.
    subprocess.run([*pip, "install", "--quiet", "--no-index", str(wheel)], check=True)
    return interpreter


def test_wheel_is_abi3_and_manylinux(wheel: Path) -> None:
    assert re.fullmatch(r"dynamo_llm-[\d.]+-cp311-abi3-manylinux\w+\.whl", wheel.name)


def test_wheel_holds_the_package_and_its_libraries(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for wanted in ("dynamo_llm/__init__.py", "dynamo_llm/_kvbm.abi3.so", "dynamo_llm/py.typed"):
        assert wanted in names
    assert any(re.match(r"dynamo_llm\.libs/libuv", name) for name in names), names
    assert not [name for name in names if name.endswith((".c", ".h", ".o"))]


def test_wheel_runs_in_an_empty_environment(python: Path, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LD_"))}
    done = subprocess.run(
        [python, "-c", USE], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    inside = str(python.parent.parent)
    assert seen["blocks"] == 4
    assert seen["file"].startswith(inside)
    # Every library is its own, the interpreter's, or glibc's: this machine's libuv and libxxhash are not used.
    strangers = [
        name
        for name in seen["maps"]
        if not name.startswith((inside, sys.base_prefix + "/lib/python", sys.base_prefix + "/lib/libpython"))
        and not SYSTEM.match(Path(name).name)
        and re.search(r"libuv|libck|libxxhash|liburing|libkvbm", name)
    ]
    assert not strangers
    assert any("libuv" in name and name.startswith(inside) for name in seen["maps"]), seen["maps"]
