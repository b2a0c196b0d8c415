"""The shape of the tree: what lies where, who includes whom, what things are called."""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from tidy_tools import ROOT, files

TOP_LEVEL = {
    "WORKSPACE",
    "BUILD",
    "runtime",
    "actors",
    "storage",
    "python",
    "tests",
    "bench",
    "docs",
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
    "dev",
}

# A folder may include from those named, and from itself. Tests, benchmarks and examples may include everything.
ARROWS = {
    "runtime": set(),
    "storage": {"runtime"},
    "actors": {"storage", "runtime"},
    "python": {"actors", "storage", "runtime"},
}
USERS = {"tests", "bench", "docs"}
EXTERNAL = {
    "ck": re.compile(r"ck_\w+\.h"),
    "uv": re.compile(r"uv(/.*)?\.h"),
    "Python": re.compile(r"Python\.h"),
    "check": re.compile(r"check\.h"),
}
# Who may include an external library.
EXTERNAL_USERS = {
    "ck": {"runtime"},
    "uv": {"runtime", "storage"} | USERS,
    "Python": {"python"},
    "check": {"tests"},
}
INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.MULTILINE)


def include_edges() -> dict[tuple[str, str], list[str]]:
    """(folder, folder or external library) -> the includes that make the edge."""
    edges = defaultdict(list)
    for path in files(".c", ".h"):
        for name in INCLUDE.findall((ROOT / path).read_text()):
            target = name.split("/")[0] if "/" in name else None
            if target not in ARROWS and target not in USERS:
                target = next((lib for lib, pattern in EXTERNAL.items() if pattern.fullmatch(name)), None)
            if target is None and (ROOT / path.parent / name).exists():
                target = path.parts[0]
            if target is not None and target != path.parts[0]:
                edges[path.parts[0], target].append(f"{path} includes {name}")
    return dict(edges)


def test_includes_go_one_way(capsys: pytest.CaptureFixture[str]) -> None:
    edges = include_edges()
    with capsys.disabled():
        print("\ninclude graph (count of includes):")
        for (source, target), reasons in sorted(edges.items()):
            print(f"  {source:8} -> {target:8} {len(reasons):4}")
    wrong = []
    for (source, target), reasons in edges.items():
        if target in EXTERNAL_USERS:
            allowed = source in EXTERNAL_USERS[target]
        else:
            allowed = source in USERS or target in ARROWS.get(source, set())
        if not allowed:
            wrong += reasons
    assert not wrong, "wrong arrows:\n" + "\n".join(wrong)


def test_own_includes_are_written_from_the_root() -> None:
    relative = [
        f"{path}: {name}"
        for path in files(".c", ".h")
        for name in INCLUDE.findall((ROOT / path).read_text())
        if "/" not in name and (ROOT / path.parent / name).exists()
    ]
    assert not relative, "\n".join(relative)


def test_top_level_holds_nothing_else() -> None:
    top = {path.parts[0] for path in files()}
    extra = {name for name in top - TOP_LEVEL if not name.startswith(".")}
    assert not extra, f"not at home at the top level: {sorted(extra)}"


def lines(*suffixes: str) -> Iterator[tuple[str, str]]:
    """(file:line, text) of every line of the text files with one of the suffixes."""
    for path in files(*suffixes):
        content = (ROOT / path).read_bytes()
        if b"\0" not in content:
            for number, line in enumerate(content.decode(errors="replace").splitlines(), 1):
                yield f"{path}:{number}", line


def test_nothing_is_left_to_do() -> None:
    words = re.compile(r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "X" * 3]) + r")\b")
    kinds = (".c", ".h", ".py", ".pyi", ".md", ".bzl", "")
    marks = [f"{place}: {line.strip()}" for place, line in lines(*kinds) if words.search(line)]
    assert not marks, "\n".join(marks)


def test_no_path_of_one_machine() -> None:
    home = re.compile(r"(?<![\w.])/(" + "|".join(["wo" + "rk", "ro" + "ot", "ho" + "me"]) + r")/\w")
    kinds = (".c", ".h", ".py", ".pyi", ".md", ".bzl", ".toml", ".ini", ".txt", "")
    marks = [f"{place}: {line.strip()}" for place, line in lines(*kinds) if home.search(line)]
    assert not marks, "\n".join(marks)


def declared_functions(header: Path) -> list[str]:
    """Names of the functions that a header declares."""
    text = re.sub(r"/\*.*?\*/|//[^\n]*", "", (ROOT / header).read_text(), flags=re.DOTALL)
    text = re.sub(r"^\s*#.*(\\\n.*)*", "", text, flags=re.MULTILINE)
    return re.findall(r"^(?!typedef)[A-Za-z_][\w \t*]*?[ *](\w+)\s*\([^;{]*?\)\s*;", text, re.MULTILINE | re.DOTALL)


# kvbm_<noun>_<verb>. The operations themselves act on the manager and drop its name: kvbm_allocate_mt.
NOUNS = "block|key|keys|manager|pool|port|op|error|version|group|layout|dtype|log|options|stats"
OPERATIONS = "allocate|register|match|query|cancel|wait|release"
PUBLIC_NAME = re.compile(rf"kvbm_(({NOUNS})(_[a-z0-9]+)*?|({OPERATIONS}))(_mt)?")


def test_public_functions_are_named_by_the_rule() -> None:
    names = declared_functions(Path("actors/kvbm.h"))
    assert len(names) > 10, f"kvbm.h declares only {names}"
    wrong = [name for name in names if not PUBLIC_NAME.fullmatch(name)]
    assert not wrong, f"not kvbm_<noun>_<verb>[_mt]: {wrong}"


def test_version_is_one() -> None:
    import tomllib

    version = tomllib.loads((ROOT / "python/pyproject.toml").read_text())["project"]["version"]
    assert f'"{version}"' in (ROOT / "actors/kvbm.h").read_text(), f"kvbm.h does not say {version}"
