"""Builds the C extension with Bazel, from the checkout that this folder lies in; the rest is in pyproject.toml."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent.parent


class BazelBuildExt(build_ext):
    """Has `./dev extension` build //python:_kvbm and put it where setuptools wants it."""

    def build_extension(self, ext: Extension) -> None:
        if not (ROOT / "WORKSPACE").exists():
            raise SystemExit(f"dynamo-llm is built by Bazel from a whole checkout, but {ROOT} has no WORKSPACE")
        environment = dict(os.environ)
        # The interpreter that builds gives the headers. In pip's isolated environment its packages are not where a
        # subprocess would look, so the folder of dlpack.h goes along.
        environment["KVBM_EXTENSION_PYTHON"] = sys.executable
        spec = importlib.util.find_spec("tvm_ffi")
        if spec is not None and spec.submodule_search_locations:
            environment["KVBM_DLPACK_INCLUDE"] = str(Path(spec.submodule_search_locations[0], "include"))
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        subprocess.run([str(ROOT / "dev"), "extension", str(target)], check=True, env=environment)


setup(
    ext_modules=[Extension("dynamo_llm._kvbm", sources=[], py_limited_api=True)],
    cmdclass={"build_ext": BazelBuildExt},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
