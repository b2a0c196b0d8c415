"""Style: what `./dev fmt` would change is a failure."""

import re

from tidy_tools import ROOT, demand, files, run, tool


def test_c_is_formatted() -> None:
    sources = files(".c", ".h")
    demand(run(tool("clang-format-14"), "--dry-run", "-Werror", *sources))


def test_python_is_formatted() -> None:
    demand(run(tool("ruff"), "format", "--check", "."))


def test_shell_is_sound() -> None:
    demand(run(tool("shellcheck"), "dev", ".ci/run"))


def test_every_command_is_in_the_help() -> None:
    text = run("./dev", "help").stdout
    script = (ROOT / "dev").read_text()
    commands = {name.replace("_", "-") for name in re.findall(r"^cmd_(\w+)\(\)", script, re.MULTILINE)}
    # Called by setup.py only.
    missing = {name for name in commands - {"extension"} if not re.search(rf"^  {name}\b", text, re.MULTILINE)}
    assert not missing, missing
