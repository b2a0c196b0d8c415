"""Tensors out and in: versions, read-only memory, copies, lifetimes, every dtype with torch."""

import ctypes
import gc
import itertools
import threading
from typing import Any

import numpy as np
import pytest
import torch
from kvbm_tools import asynchronous, free, host, plain, run, wait_until

import dynamo_llm
from dynamo_llm import DType

TORCH = {
    DType.FP8_E4M3: torch.float8_e4m3fn,
    DType.FP8_E5M2: torch.float8_e5m2,
    DType.FP16: torch.float16,
    DType.BF16: torch.bfloat16,
    DType.FP32: torch.float32,
    DType.INT8: torch.int8,
    DType.U8: torch.uint8,
}


def capsule_name(capsule: Any) -> str:
    get = ctypes.pythonapi.PyCapsule_GetName
    get.restype, get.argtypes = ctypes.c_char_p, [ctypes.py_object]
    name: bytes = get(capsule)
    return name.decode()


def registered_block(manager: dynamo_llm.BlockManager) -> dynamo_llm.Block:
    return host(manager).register_blocks(manager.allocate_blocks(1))[0]


@pytest.mark.parametrize("dtype", list(TORCH), ids=repr)
def test_every_dtype_to_torch_and_back(dtype: DType) -> None:
    manager = plain(2, dtype=dtype)
    one, two = manager.allocate_blocks(2)
    tensor = torch.from_dlpack(one)
    assert (tensor.dtype, tensor.shape) == (TORCH[dtype], (2, 2, 4, 8))
    raw = tensor.view(torch.uint8)
    raw.copy_(torch.arange(raw.numel(), dtype=torch.int64).reshape(raw.shape) % 101)
    two.copy_from(tensor)
    assert torch.equal(torch.from_dlpack(two).view(torch.uint8), raw)
    assert torch.from_dlpack(one[1]).data_ptr() == one[1].data_ptr == tensor[1].data_ptr()
    legacy = torch.from_dlpack(one[0].__dlpack__())
    assert torch.equal(legacy.view(torch.uint8), raw[0])


@pytest.mark.parametrize("dtype", [DType.FP16, DType.FP32, DType.INT8, DType.U8], ids=repr)
def test_numpy_shares_memory(dtype: DType) -> None:
    manager = plain(1, dtype=dtype)
    block = manager.allocate_blocks(1)[0]
    array = np.from_dlpack(block)
    array[...] = 5
    assert np.from_dlpack(block[1]).min() == 5
    assert array.ctypes.data == block[0].data_ptr


@pytest.mark.parametrize("dtype", [DType.BF16, DType.FP8_E4M3], ids=repr)
def test_numpy_says_what_it_does_not_know(dtype: DType) -> None:
    block = plain(1, dtype=dtype).allocate_blocks(1)[0]
    with pytest.raises((BufferError, RuntimeError)):
        np.from_dlpack(block)


def test_versions_and_the_read_only_flag() -> None:
    manager = plain(2)
    mutable = manager.allocate_blocks(1)[0]
    assert capsule_name(mutable.__dlpack__()) == "dltensor"
    assert capsule_name(mutable.__dlpack__(max_version=(0, 8))) == "dltensor"
    assert capsule_name(mutable.__dlpack__(max_version=(1, 0))) == "dltensor_versioned"
    assert capsule_name(mutable[0].__dlpack__(None, (2, 1), (1, 0), False)) == "dltensor_versioned"
    assert np.from_dlpack(mutable).flags.writeable
    block = registered_block(manager)
    array = np.from_dlpack(block)
    assert not array.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        array[...] = 1
    for view in (block, block[0]):
        with pytest.raises(BufferError, match=r"max_version=\(1, 0\)"):
            view.__dlpack__()
    assert capsule_name(block.__dlpack__(copy=True)) == "dltensor"


def test_copies() -> None:
    manager = plain(2, layout="layer_outer")
    block = manager.allocate_blocks(1)[0]
    array = np.from_dlpack(block)
    array[...] = np.arange(array.size).reshape(array.shape)
    copy = np.from_dlpack(block, copy=True)
    assert copy.flags.writeable
    assert copy.flags.c_contiguous
    assert copy.ctypes.data % 256 == 0
    array[...] = 0
    assert copy.ravel().tolist() == list(range(copy.size))
    one_layer = np.from_dlpack(block[1], copy=True)
    one_layer[...] = 1
    assert array.max() == 0
    assert np.from_dlpack(block, copy=False).ctypes.data == array.ctypes.data
    del block, array
    assert free(manager) == 2, "a copy keeps nothing"


def test_arguments_of_dlpack() -> None:
    block = plain(1).allocate_blocks(1)[0]
    assert block.__dlpack_device__() == (1, 0) == block[0].__dlpack_device__()
    with pytest.raises(BufferError, match="stream: must be None"):
        block.__dlpack__(stream=1)
    with pytest.raises(BufferError, match=r"dl_device: .* not \(2, 0\)"):
        block.__dlpack__(dl_device=(2, 0))
    bad: dict[str, Any]
    for bad in ({"max_version": 1}, {"max_version": (1,)}, {"max_version": ("1", "0")}, {"dl_device": [1, 0]}):
        with pytest.raises(TypeError, match=next(iter(bad))):
            block.__dlpack__(**bad)
    with pytest.raises(TypeError, match="copy"):
        block.__dlpack__(copy=1)  # type: ignore[arg-type]
    with pytest.raises(dynamo_llm.InvalidArgumentError, match="max_version"):
        block.__dlpack__(max_version=(-1, 0))
    block.release()
    with pytest.raises(dynamo_llm.StaleBlockError):
        block.__dlpack__()


def test_capsules_that_nobody_takes_are_freed() -> None:
    manager = plain(1)
    options: dict[str, Any]
    for options in ({}, {"max_version": (1, 0)}, {"copy": True}):
        capsule = manager.allocate_blocks(1)[0].__dlpack__(**options)
        assert free(manager) == (1 if "copy" in options else 0)
        del capsule
        assert free(manager) == 1


def test_a_tensor_outlives_block_list_manager_and_loop() -> None:
    async def main() -> tuple[Any, Any]:
        manager = asynchronous(4)
        blocks = await manager.allocate_blocks(2)
        array = np.from_dlpack(blocks[0])
        array[...] = 3
        tensor = torch.from_dlpack(blocks[1][0])
        tensor.fill_(4)
        return array, tensor

    array, tensor = run("asyncio", main())
    gc.collect()
    assert array.min() == array.max() == 3
    assert tensor.min() == tensor.max() == 4
    array[...] = 1
    part = array[0, 1]
    del array, tensor
    assert part.sum() == part.size


def test_tensors_are_dropped_on_any_thread() -> None:
    manager = plain(64)
    for _ in range(20):
        tensors = [torch.from_dlpack(block) for block in manager.allocate_blocks(64)]
        threads = [threading.Thread(target=tensors[i::4].clear) for i in range(4)]
        parts = [tensors[i::4] for i in range(4)]
        tensors.clear()
        threads = [threading.Thread(target=part.clear) for part in parts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wait_until(lambda: free(manager) == 64)


def test_released_blocks_wait_for_their_tensors() -> None:
    manager = plain(2)
    with manager.allocate_blocks(2) as blocks:
        array = np.from_dlpack(blocks[1])
        array[...] = 8
    assert free(manager) == 1
    other = manager.allocate_blocks(1)
    np.from_dlpack(other[0])[...] = 0
    assert array.min() == 8
    del array
    assert free(manager) == 1


@pytest.mark.parametrize("layout", ["contiguous", "layer_block", "layer_outer"])
def test_copy_from_any_strides(layout: str) -> None:
    manager = plain(2, layout=layout)
    block = manager.allocate_blocks(2)[1]
    values = np.arange(128, dtype=np.float16).reshape(2, 2, 4, 8)
    sources = [
        values,
        np.asfortranarray(values),
        np.ascontiguousarray(values[::-1, ::-1, ::-1, ::-1])[::-1, ::-1, ::-1, ::-1],
        np.repeat(values, 2, axis=3)[..., ::2],
        values.transpose(1, 0, 2, 3).copy().transpose(1, 0, 2, 3),
        torch.from_numpy(values.copy()).permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0),
    ]
    for source in sources:
        np.from_dlpack(block)[...] = 0
        block.copy_from(source)
        assert np.array_equal(np.from_dlpack(block), values)
        block[1].copy_from(source[0])
        assert np.array_equal(np.from_dlpack(block[1]), values[0])
    block.copy_from(torch.zeros(1, 1, 1, 8, dtype=torch.float16).expand(2, 2, 4, 8))
    assert np.from_dlpack(block).max() == 0
    block.copy_from(block)
    block[0].copy_from(values[1].__dlpack__())
    assert np.array_equal(np.from_dlpack(block[0]), values[1])


@pytest.mark.parametrize("layout", ["contiguous", "layer_block", "layer_outer"])
def test_copy_from_other_elements_of_itself(layout: str) -> None:
    manager = plain(2, layout=layout)
    block = manager.allocate_blocks(2)[1]
    memory = np.from_dlpack(block)
    values = np.arange(128, dtype=np.float16).reshape(2, 2, 4, 8)
    for axes in itertools.product([1, -1], repeat=4):
        view = memory[tuple(slice(None, None, step) for step in axes)]
        memory[...] = values
        block.copy_from(view)
        assert np.array_equal(memory, values[tuple(slice(None, None, step) for step in axes)]), axes
    memory[...] = values
    block.copy_from(memory.transpose(1, 0, 2, 3))
    assert np.array_equal(memory, values.transpose(1, 0, 2, 3))
    memory[...] = values
    block[1].copy_from(memory[:, 1])
    assert np.array_equal(memory[1], values[:, 1])
    if layout == "contiguous":
        memory[...] = values
        block[1].copy_from(memory.reshape(4, 4, 8)[1:3])
        assert np.array_equal(memory[1], values.reshape(4, 4, 8)[1:3])


@pytest.mark.parametrize("layout", ["contiguous", "layer_block", "layer_outer"])
def test_copy_from_another_block(layout: str) -> None:
    manager = plain(3, layout=layout)
    blocks = manager.allocate_blocks(3)
    values = np.arange(128, dtype=np.float16).reshape(2, 2, 4, 8)
    for target, source in itertools.permutations(blocks, 2):
        for block in blocks:
            np.from_dlpack(block)[...] = block.block_id
        np.from_dlpack(source)[...] = values
        target.copy_from(source)
        target[0].copy_from(source[1])
        assert np.array_equal(np.from_dlpack(source), values)
        assert np.array_equal(np.from_dlpack(target[0]), values[1])
        assert np.array_equal(np.from_dlpack(target[1]), values[1])


def test_copy_from_refuses() -> None:
    manager = plain(3)
    block = manager.allocate_blocks(1)[0]
    with pytest.raises(dynamo_llm.InvalidArgumentError, match=r"shape \(2, 2, 4, 8\), not \(2, 4, 8\)"):
        block.copy_from(np.zeros((2, 4, 8), np.float16))
    with pytest.raises(dynamo_llm.InvalidArgumentError, match="dtype fp16"):
        block.copy_from(np.zeros((2, 2, 4, 8), np.float32))
    with pytest.raises(TypeError, match="__dlpack__"):
        block.copy_from([1, 2, 3])
    used = np.zeros((2, 2, 4, 8), np.float16).__dlpack__()
    block.copy_from(used)
    with pytest.raises((BufferError, TypeError)):
        block.copy_from(used)
    immutable = registered_block(manager)
    with pytest.raises(dynamo_llm.ImmutableBlockError):
        immutable.copy_from(np.zeros((2, 2, 4, 8), np.float16))
    block.release()
    with pytest.raises(dynamo_llm.StaleBlockError):
        block.copy_from(np.zeros((2, 2, 4, 8), np.float16))

    class Elsewhere:
        def __dlpack_device__(self) -> tuple[int, int]:
            return (2, 0)

        def __dlpack__(self, **_: Any) -> Any:
            raise AssertionError

    with pytest.raises(BufferError, match="on the CPU"):
        manager.allocate_blocks(1)[0].copy_from(Elsewhere())


def test_copy_from_a_producer_of_the_old_protocol() -> None:
    class Old:
        def __init__(self, array: Any) -> None:
            self.array = array

        def __dlpack_device__(self) -> tuple[int, int]:
            return (1, 0)

        def __dlpack__(self, stream: Any = None) -> Any:
            return self.array.__dlpack__()

    block = plain(1).allocate_blocks(1)[0]
    block.copy_from(Old(np.full((2, 2, 4, 8), 6, np.float16)))
    assert np.from_dlpack(block).min() == 6


def test_large_copies_let_other_threads_run() -> None:
    manager = dynamo_llm.BlockManager(4, 16, 4096, host_blocks=1)
    block = manager.allocate_blocks(1)[0]
    source = np.ones(block.shape, np.float16)
    block.copy_from(source)
    assert np.from_dlpack(block).min() == 1
