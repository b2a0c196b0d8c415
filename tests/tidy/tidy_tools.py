"""What the lint tests share: the checkout, its files, and tools that must be there."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def files(*suffixes: str) -> list[Path]:
    """Every file that is tracked or would be, with one of the suffixes, relative to the root."""
    listed = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    paths = sorted({Path(name) for name in listed.split("\0") if name})
    return [path for path in paths if (ROOT / path).is_file() and (not suffixes or path.suffix in suffixes)]


def tool(name: str) -> str:
    """The path of a program, from .venv or the system; a missing one fails the test."""
    in_venv = ROOT / ".venv" / "bin" / name
    found = str(in_venv) if in_venv.exists() else shutil.which(name)
    if found is None:
        pytest.fail(f"{name} is not installed; ./dev setup installs it")
    return found


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def demand(result: subprocess.CompletedProcess[str]) -> None:
    """The command succeeded; else its output is the failure."""
    if result.returncode != 0:
        pytest.fail(f"{' '.join(result.args[:4])} ...: status {result.returncode}\n{result.stdout}", pytrace=False)
