"""Finds Python.h and dlpack.h by asking an interpreter, so that no path is written down.

The interpreter is $KVBM_EXTENSION_PYTHON, else the checkout's .venv, else python3 of the path. dlpack.h comes from the package
apache-tvm-ffi, whose wheel carries a current one (Debian's libdlpack-dev is too old): as that interpreter has it
installed, or from the folder $KVBM_DLPACK_INCLUDE.
"""

_QUERY = """
import importlib.util, os, sysconfig
include = sysconfig.get_path("include")
spec = importlib.util.find_spec("tvm_ffi")
dlpack = os.path.join(list(spec.submodule_search_locations)[0], "include") if spec else ""
dlpack = os.environ.get("KVBM_DLPACK_INCLUDE") or dlpack
print(include if os.path.exists(os.path.join(include, "Python.h")) else "")
print(dlpack if os.path.exists(os.path.join(dlpack, "dlpack", "dlpack.h")) else "")
"""

_BUILD = """
package(default_visibility = ["//visibility:public"])

cc_library(
    name = "python",
    hdrs = glob(["python/**/*.h"]),
    includes = ["python"],
)

cc_library(
    name = "dlpack",
    hdrs = glob(["dlpack_include/dlpack/*.h"]),
    includes = ["dlpack_include"],
)
"""

def _python_dev_impl(ctx):
    python = ctx.os.environ.get("KVBM_EXTENSION_PYTHON", "")
    if not python:
        venv_python = ctx.path(Label("//:WORKSPACE")).dirname.get_child(".venv").get_child("bin").get_child("python")
        python = str(venv_python) if venv_python.exists else str(ctx.which("python3"))
    result = ctx.execute([python, "-c", _QUERY])
    if result.return_code != 0:
        fail("%s could not be asked for its headers:\n%s" % (python, result.stderr))
    lines = result.stdout.split("\n")
    if not lines[0]:
        fail("%s has no Python.h; install its development headers (Debian: python3-dev)" % python)
    if not lines[1]:
        fail("%s has no dlpack.h; install the Python package apache-tvm-ffi for it (./dev setup does)" % python)
    ctx.symlink(lines[0], "python")
    ctx.symlink(lines[1] + "/dlpack", "dlpack_include/dlpack")
    ctx.file("BUILD", _BUILD)

python_dev_repository = repository_rule(
    implementation = _python_dev_impl,
    environ = ["KVBM_DLPACK_INCLUDE", "KVBM_EXTENSION_PYTHON"],
    local = True,
    doc = "@python_dev//:python and @python_dev//:dlpack.",
)
