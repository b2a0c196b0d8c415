"""The command line `kvbm`.

Only `main` lives here, and it imports click, rich, numpy and matplotlib no earlier than it needs them: the package
itself depends on nothing, and a `kvbm` without the extra `dynamo-llm[cli]` says how to get it instead of failing in an
import.
"""

import importlib.util
import sys
from typing import NoReturn

__all__ = ["main"]

_EXTRAS = ("click", "matplotlib", "numpy", "rich")


def main() -> NoReturn:
    """Runs the command line on `sys.argv` and exits."""
    missing = [name for name in _EXTRAS if importlib.util.find_spec(name) is None]
    if missing:
        names = ", ".join(missing)
        sys.stderr.write(f"kvbm: not installed: {names}; the command line needs: pip install 'dynamo-llm[cli]'\n")
        raise SystemExit(2)
    try:
        from dynamo_llm.cli.app import cli
    except KeyboardInterrupt:
        sys.stderr.write("kvbm: interrupted\n")
        raise SystemExit(130) from None

    cli.main(prog_name="kvbm")
    raise SystemExit(0)
