"""Every example of the specification (spec/*.md, word for word) that needs neither a GPU nor vLLM, as written."""

import ast
import inspect
import re
import typing
from pathlib import Path
from typing import Any

import pytest
from kvbm_tools import free

import dynamo_llm

SPEC = Path(__file__).parent / "spec"


def blocks(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (SPEC / name).read_text(), re.DOTALL)


API = blocks("python_api_overview.md")
OVERVIEW = blocks("kv_block_manager_overview.md")


def example(start: str) -> str:
    """The one example that contains a text."""
    found = [code for code in API if start in code]
    assert len(found) == 1, f"{start!r}: {len(found)} examples"
    return found[0]


def as_written(code: str) -> str:
    """NumPy takes the producer, not a capsule: the one exception that the design names."""
    return re.sub(r"np\.from_dlpack\((\w+)\.__dlpack__\(\)\)", r"np.from_dlpack(\1)", code)


def execute(code: str, names: dict[str, Any]) -> dict[str, Any]:
    exec(compile(as_written(code), "example", "exec"), names)
    return names


@pytest.fixture(scope="module")
def basics() -> dict[str, Any]:
    """The names that the first examples leave behind, which later ones use."""
    names: dict[str, Any] = {}
    execute(example("# Create a block manager with basic configuration"), names)
    execute(example("# Allocate blocks for inference\nblocks = block_manager.allocate_blocks(4)\n\n# Blocks"), names)
    return names


def test_overview_quick_start(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(OVERVIEW) == 1
    names = execute(OVERVIEW[0], {})
    assert len(names["blocks"]) == 4
    assert names["layer_data"].shape == (2, 16, 4096)


def test_creating_and_allocating(basics: dict[str, Any]) -> None:
    assert len(basics["blocks"]) == 4
    assert basics["layer"].shape == (2, 16, 4096)
    assert basics["block_manager"].dtype is dynamo_llm.DType.FP16


def test_working_with_block_data(basics: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    execute(example("# Get a block and access its data"), basics)
    assert capsys.readouterr().out.splitlines() == [
        "Tensor shape: torch.Size([2, 16, 4096])",
        "Tensor dtype: torch.float16",
        "Array shape: (2, 16, 4096)",
    ]
    basics["tensor"][0, 0, 0] = 5.0
    assert basics["array"][0, 0, 0] == 5.0


@pytest.mark.parametrize("name", ["BlockManager", "Block", "Layer"])
def test_core_classes_have_the_methods_shown(name: str) -> None:
    source = next(code for code in API if code.startswith(f"class {name}:"))
    definition = ast.parse(source).body[0]
    assert isinstance(definition, ast.ClassDef)
    real = getattr(dynamo_llm, name)
    for item in definition.body:
        assert isinstance(item, ast.FunctionDef)
        if item.decorator_list:
            assert inspect.isdatadescriptor(inspect.getattr_static(real, item.name))
            continue
        shown = [argument.arg for argument in item.args.args[1:]]
        function = real if item.name == "__init__" else getattr(real, item.name)
        parameters = [p for p in inspect.signature(function).parameters.values() if p.name != "self"]
        names = [p.name for p in parameters]
        if item.name == "__getitem__":  # a slot: CPython names its parameter
            assert len(names) == len(shown)
        else:
            assert names[: len(shown)] == shown
        assert all(p.default is not p.empty or p.kind is p.KEYWORD_ONLY for p in parameters[len(shown) :])


def test_block_pool_management(basics: dict[str, Any]) -> None:
    execute(example("# Access different storage pools"), basics)
    assert basics["device_pool"] is None or basics["device_pool"].total_blocks() > 0
    assert basics["host_pool"].total_blocks() > 0


@pytest.fixture
def pooled(basics: dict[str, Any]) -> dict[str, Any]:
    """As on a machine whose blocks live in the host pool."""
    pool = basics["block_manager"].get_host_pool()
    return {**basics, "device_pool": pool, "device_blocks": pool.allocate_blocks(2)}


def test_registration_and_matching(pooled: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    execute(example("# Register blocks after computation"), pooled)
    assert capsys.readouterr().out == "All blocks found in cache!\n"
    assert [len(value) for value in pooled["sequence_hashes"]] == [16, 16]


def test_memory_management(pooled: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    execute(example("# Check memory usage"), pooled)
    total = pooled["total_blocks"]
    assert capsys.readouterr().out == (
        f"Device memory usage: {pooled['usage']:.2%}\nUsed blocks: {pooled['used_blocks']}/{total}\n"
    )
    assert pooled["used_blocks"] == total - pooled["device_pool"].available_blocks()


def test_pytorch_integration() -> None:
    names = execute(example("result = torch.softmax(tensor, dim=-1)"), {})
    assert names["result"].shape == (2, 16, 4096)


def test_numpy_integration(basics: dict[str, Any]) -> None:
    import numpy as np

    names = {"block": basics["blocks"][1]}
    array = np.from_dlpack(names["block"][0])
    array[...] = 0
    array[0, 0, :64] = 1  # little, since float16 sums overflow early
    execute(example("mean = np.mean(array)"), names)
    assert names["normalized"].shape == (2, 16, 4096)


def test_error_handling(capsys: pytest.CaptureFixture[str]) -> None:
    names = execute(example("# May fail if not enough memory"), {})
    out = capsys.readouterr().out
    assert names["block_manager"].get_host_pool().total_blocks() >= 1000 or out.startswith("Block manager error: ")


def test_memory_efficiency(basics: dict[str, Any]) -> None:
    manager = basics["block_manager"]
    before = free(manager)
    names = execute(example("def process_blocks(block_manager, count):"), {})
    names["monitor_memory"](manager)
    names["process_blocks"](manager, 3)
    assert free(manager) == before


def test_batch_processing(basics: dict[str, Any]) -> None:
    manager = basics["block_manager"]
    before = free(manager)
    names = execute(example("def process_batch(block_manager, batch_size):"), {"process_block": len})
    assert names["process_batch"](manager, 3) == [32, 32, 32]
    assert free(manager) == before


def test_type_hints(basics: dict[str, Any]) -> None:
    import torch

    names = execute(example("def process_layers(block: dynamo_llm.Block)"), {"torch": torch})
    assert len(names["process_layers"](basics["blocks"][0])) == 32
    assert len(names["allocate_with_fallback"](basics["block_manager"], 2)) == 2
    assert typing.get_type_hints(names["process_layers"])["block"] is dynamo_llm.Block


def test_every_example_is_accounted_for() -> None:
    """Those above, and CuPy and vLLM, which need what a machine may not have."""
    absent = [code for code in API if "import cupy" in code or "dynamo_llm.vllm" in code]
    assert len(absent) == 2
    assert len(API) == 17, [code.splitlines()[0] for code in API]
