"""help() is readable, signatures are right, and the stub says what the extension has."""

import inspect
import pydoc
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import dynamo_llm
from dynamo_llm import _kvbm, aio

ROOT = Path(__file__).parent.parent.parent
CLASSES = [
    _kvbm.BlockManager,
    _kvbm.AsyncBlockManager,
    _kvbm.BlockPool,
    _kvbm.AsyncBlockPool,
    _kvbm.BlockList,
    _kvbm.Block,
    _kvbm.Layer,
    _kvbm.Operation,
    _kvbm.SequenceHashes,
    _kvbm.DType,
]
SLOTS = {"__new__", "__reduce__", "__repr__", "__hash__", "__call__", "__class_getitem__", "__buffer__"}


def members() -> Iterator[Any]:
    for cls in CLASSES:
        for name, member in vars(cls).items():
            documented = callable(member) or inspect.isdatadescriptor(member)
            if documented and name not in SLOTS and (not name.startswith("_") or name.endswith("pack__")):
                yield pytest.param(member, id=f"{cls.__module__}.{cls.__name__}.{name}")


@pytest.mark.parametrize("member", list(members()))
def test_everything_has_a_docstring(member: Any) -> None:
    assert isinstance(member, _kvbm.DType) or (inspect.getdoc(member) or "").strip()


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: f"{cls.__module__}.{cls.__name__}")
def test_help_is_readable(cls: Any) -> None:
    text = pydoc.render_doc(cls, renderer=pydoc.plaintext)  # type: ignore[attr-defined]
    assert inspect.getdoc(cls)
    assert f"class {cls.__name__}" in text
    assert max(len(line) for line in text.splitlines()) < 340  # the constructors' signatures
    for name, member in vars(cls).items():
        if callable(member) and not name.startswith("_"):
            assert inspect.signature(member) is not None


def test_signatures() -> None:
    assert str(inspect.signature(_kvbm.BlockPool.allocate_blocks)) == "(self, /, count, *, timeout=0.0)"
    assert str(inspect.signature(dynamo_llm.hash_tokens)) == "(tokens, page_size, *, salt=None, parent=None)"
    assert str(inspect.signature(_kvbm.Block.__dlpack__)) == (
        "(self, /, stream=None, max_version=None, dl_device=None, copy=None)"
    )
    for face in (dynamo_llm.BlockManager, aio.BlockManager):
        parameters = inspect.signature(face).parameters
        assert list(parameters)[:5] == ["num_layers", "page_size", "inner_dim", "dtype", "device_id"]
        assert parameters["device_id"].default == 0
        assert all(p.kind is p.KEYWORD_ONLY for p in list(parameters.values())[5:])


def test_the_faces_take_the_same_arguments() -> None:
    assert str(inspect.signature(dynamo_llm.BlockManager)) == str(inspect.signature(aio.BlockManager))
    for name in ("allocate_blocks", "register_blocks", "match_sequence_hashes", "contains"):
        plain, later = getattr(dynamo_llm.BlockPool, name), getattr(aio.BlockPool, name)
        assert inspect.signature(plain) == inspect.signature(later)


def test_names_are_those_of_the_package() -> None:
    assert repr(dynamo_llm.BlockManager) == "<class 'dynamo_llm.BlockManager'>"
    assert repr(dynamo_llm.OutOfBlocksError) == "<class 'dynamo_llm.OutOfBlocksError'>"
    for name in dynamo_llm.__all__:
        assert hasattr(dynamo_llm, name)
    for name in aio.__all__:
        assert hasattr(aio, name)
    assert issubclass(dynamo_llm.InvalidArgumentError, ValueError)
    assert issubclass(dynamo_llm.OperationTimeoutError, TimeoutError)
    assert not issubclass(dynamo_llm.StorageError, dynamo_llm.BlockManagerError)


def test_the_stub_agrees() -> None:
    command = [sys.executable, "-m", "mypy.stubtest", "--mypy-config-file", ".mypy.ini", "dynamo_llm._kvbm"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_nothing_is_imported_for_nothing() -> None:
    code = "import dynamo_llm, sys; print([m for m in ('torch', 'numpy', 'asyncio', 'logging') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout
    assert out == "[]\n"
