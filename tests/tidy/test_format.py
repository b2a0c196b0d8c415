"""Style: what `./dev fmt` would change is a failure."""

from tidy_tools import demand, files, run, tool


def test_c_is_formatted() -> None:
    sources = files(".c", ".h")
    demand(run(tool("clang-format-14"), "--dry-run", "-Werror", *sources))


def test_python_is_formatted() -> None:
    demand(run(tool("ruff"), "format", "--check", "."))


def test_shell_parses() -> None:
    for script in ("dev", ".ci/run"):
        demand(run(tool("bash"), "-n", script))
