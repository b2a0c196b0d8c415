"""The linked forms of the C library, as ./dev build leaves them."""

from pathlib import Path

import pytest
from test_tree import declared_functions
from tidy_tools import ROOT, run, tool

BUILT = ROOT / ".cache" / "bin" / "actors"


def symbols(*arguments: str) -> set[str]:
    lines = run(tool("nm"), "--defined-only", "--format=posix", *arguments).stdout.splitlines()
    return {line.split()[0] for line in lines if len(line.split()) > 2 and line.split()[1] in "TDBR"}


@pytest.mark.parametrize(("name", "flags"), [("libkvbm.so", ["--dynamic"]), ("libkvbm.a", [])])
def test_library_has_every_public_function(name: str, flags: list[str]) -> None:
    found = symbols(*flags, str(BUILT / name))
    missing = set(declared_functions(Path("actors/kvbm.h"))) - found
    assert not missing, f"{name} lacks {sorted(missing)}"


def test_shared_library_exports_nothing_private() -> None:
    exported = symbols("--dynamic", str(BUILT / "libkvbm.so"))
    assert not {name for name in exported if not name.startswith("kvbm_") or name.startswith("kvbm__")}
