"""Bad input: each argument of each call, by its own exception that names it."""

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kvbm_tools import free, host, plain

import dynamo_llm
from dynamo_llm import InvalidArgumentError, SequenceHashes, aio, hash_tokens

BIG = 2**70
NOT_INTS: list[Any] = [True, False, 1.0, "1", None, [1], b"1"]


def refused(kind: type[BaseException], name: str, call: Callable[..., Any], /, *args: Any, **options: Any) -> None:
    with pytest.raises(kind) as caught:
        call(*args, **options)
    assert re.search(rf"(^|\W){name}", str(caught.value)), f"{caught.value!r} does not name {name}"
    assert "<class" not in str(caught.value)


@pytest.mark.parametrize("cls", [dynamo_llm.BlockManager, aio.BlockManager], ids=["plain", "aio"])
@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("num_layers", [0, -1, 65537, BIG]),
        ("page_size", [0, -1, 65537, BIG]),
        ("inner_dim", [0, -1, 2**24 + 1, BIG]),
        ("outer_dim", [0, 3, -BIG]),
        ("device_id", [-1, 2**31, BIG]),
        ("host_blocks", [0, -1, 2**26 + 1, BIG]),
        ("alignment", [-1, 3, 2**22]),
        ("max_operations", [0, 15, 2**20 + 1]),
        ("numa_node", [-1, 1024]),
        ("touch_threads", [-1, 257]),
        ("layout", ["", "contiguousx"]),
        ("huge_pages", ["yes"]),
        ("policy", ["", "fifo", "lru\0"]),
        ("name", ["", "sixteen bytes...", "ä" * 8, "a\0b"]),
    ],
)
def test_open_refuses_values(cls: Any, name: str, values: list[Any]) -> None:
    good = {"num_layers": 2, "page_size": 4, "inner_dim": 8, "host_blocks": 2}
    for value in values:
        refused(InvalidArgumentError, name, cls, **{**good, name: value})


@pytest.mark.parametrize(
    ("name", "values"),
    [
        *((name, NOT_INTS) for name in ("num_layers", "page_size", "inner_dim", "outer_dim", "device_id")),
        ("host_blocks", NOT_INTS[:4]),
        ("dtype", ["fp16", 3, np.float16]),
        ("layout", [1, None, b"contiguous"]),
        ("policy", [1, b"lru"]),
        ("name", [1, b"x"]),
        ("bytes", [1, None, "yes"]),
        ("track_tokens", [0]),
        ("borrow", [1]),
    ],
)
def test_open_refuses_types(name: str, values: list[Any]) -> None:
    good = {"num_layers": 2, "page_size": 4, "inner_dim": 8, "host_blocks": 2}
    for value in values:
        refused(TypeError, name, dynamo_llm.BlockManager, **{**good, name: value})


def test_open_refuses_calls() -> None:
    make: Any = dynamo_llm.BlockManager
    refused(TypeError, "inner_dim", make, 1, 2)
    refused(TypeError, "positional", make, 1, 2, 3, None, 0, 2)
    refused(TypeError, "wrong", make, 1, 2, 3, wrong=4)
    refused(TypeError, "num_layers", make, 1, 2, 3, num_layers=4)
    manager = plain(2)
    with pytest.raises(RuntimeError, match="__init__ was called before"):
        manager.__init__(2, 4, 8)  # type: ignore[misc]
    assert free(manager) == 2


def test_open_without_the_memory() -> None:
    with pytest.raises((dynamo_llm.StorageError, InvalidArgumentError)):
        dynamo_llm.BlockManager(65536, 65536, 2**24, host_blocks=1)
    with pytest.raises(dynamo_llm.StorageError) as caught:
        dynamo_llm.BlockManager(64, 1024, 2**16, host_blocks=2**16)
    assert caught.value.code


def test_allocate_refuses() -> None:
    value: Any
    manager = plain(4)
    pool = host(manager)
    for owner in (manager, pool):
        allocate: Any = owner.allocate_blocks
        for value in (0, -1, 2**20 + 1, BIG, -BIG):
            refused(InvalidArgumentError, "count", allocate, value)
        for value in NOT_INTS:
            refused(TypeError, "count", allocate, value)
        for value in (-1, -0.001, math.nan, math.inf, -math.inf, 1.1e9, BIG, -BIG, 10**400):
            refused(InvalidArgumentError, "timeout", allocate, 1, timeout=value)
        for value in (True, "1", b"", [1]):
            refused(TypeError, "timeout", allocate, 1, timeout=value)
        refused(TypeError, "count", allocate)
        refused(TypeError, "positional", allocate, 1, 2)
        refused(TypeError, "tiemout", allocate, 1, tiemout=2)
        refused(TypeError, "count", allocate, 1, count=2)
        assert len(allocate(np.int64(2))) == 2
        assert len(allocate(count=2, timeout=np.float64(0))) == 2
        assert len(allocate(1, timeout=1e-12)) == 1
    assert free(manager) == 4


def test_hashes_refused() -> None:
    manager = plain(4)
    pool = host(manager)
    good = hash_tokens(range(8), 4)
    calls: list[Callable[[Any], Any]] = [pool.match_sequence_hashes, pool.contains, SequenceHashes]
    for call in calls:
        refused(InvalidArgumentError, "hashes", call, b"x" * 17)
        refused(InvalidArgumentError, r"hashes\[1\]: must be 16 bytes, not 5", call, [good[0], b"short"])
        refused(TypeError, r"hashes\[1\]", call, [good[0], "x" * 16])
        refused(TypeError, r"hashes\[0\]", call, [1, 2])
        refused(TypeError, "hashes", call, "x" * 16)
        refused(TypeError, "hashes", call, 5)
        refused(InvalidArgumentError, "hashes: must be a C-contig", call, np.zeros((4, 16), np.uint8)[::2])
        refused(InvalidArgumentError, r"hashes\[1\]: must be a C-contig", call, [good[0], memoryview(bytes(32))[::2]])
        for same in (good, bytes(good), list(good), tuple(good), bytearray(bytes(good)), memoryview(good)):
            assert len(call(same)) in (0, 2)
    refused(TypeError, "hashes", pool.contains, [None])


def test_register_refuses() -> None:
    value: Any
    manager = plain(8)
    pool = host(manager)
    blocks = manager.allocate_blocks(2)
    register: Any = pool.register_blocks
    refused(TypeError, "blocks", register)
    for value in (None, 1, "x", blocks[0], {"a"}):
        refused(TypeError, "blocks", register, value)
    refused(TypeError, r"blocks\[1\]", register, [blocks[0], blocks[1][0]])
    refused(dynamo_llm.IncompleteBlockError, "tokens: 7 do not fill 2 blocks", register, blocks, range(7))
    refused(InvalidArgumentError, "tokens: must be 8", register, blocks, range(9))
    refused(InvalidArgumentError, r"tokens\[7\]: must be 0", register, blocks, [0] * 7 + [-1])
    refused(InvalidArgumentError, r"tokens\[7\]", register, blocks, [0] * 7 + [2**32])
    refused(InvalidArgumentError, r"tokens\[7\]", register, blocks, [0] * 7 + [BIG])
    refused(TypeError, r"tokens\[7\]", register, blocks, [0] * 7 + [True])
    refused(TypeError, r"tokens\[7\]", register, blocks, [0] * 7 + [0.5])
    for value in ("abcdefgh", b"abcdefgh", 5, np.zeros(8, np.float32), np.zeros((2, 4), np.int32)):
        refused(TypeError, "tokens", register, blocks, value)
    refused(InvalidArgumentError, "tokens", register, blocks, np.full(8, -1, np.int32))
    refused(InvalidArgumentError, "tokens", register, blocks, np.full(8, 2**33, np.int64))
    refused(InvalidArgumentError, "tokens: must be a C-contig", register, blocks, np.zeros(16, np.int32)[::2])
    hashes = hash_tokens(range(8), 4)
    refused(InvalidArgumentError, "hashes: must be 2", register, blocks, hashes=hashes[:1])
    refused(InvalidArgumentError, "hashes", register, blocks, range(8), hashes=hashes)
    refused(InvalidArgumentError, "salt", register, blocks, salt="x", hashes=hashes)
    refused(TypeError, "salt", register, blocks, range(8), salt=1.5)
    refused(InvalidArgumentError, "salt", register, blocks, range(8), salt=-1)
    refused(InvalidArgumentError, "salt", register, blocks, range(8), salt=2**64)
    refused(InvalidArgumentError, "parent", register, blocks, range(8), parent=b"short")
    refused(TypeError, "parent", register, blocks, range(8), parent="x" * 16)
    refused(InvalidArgumentError, "priority", register, blocks, priority=8)
    refused(TypeError, "priority", register, blocks, priority=True)
    refused(InvalidArgumentError, "priority_ttl", register, blocks, priority_ttl=-1)
    refused(TypeError, "keep_duplicates", register, blocks, keep_duplicates=1)
    refused(TypeError, "positional", register, blocks, None, None, hashes)
    assert [block.state for block in blocks] == ["partial", "partial"]
    assert len(register(blocks, np.arange(8, dtype=np.uint32), 7, priority=7, priority_ttl=0)) == 2


def test_hash_tokens_refuses() -> None:
    call: Any = hash_tokens
    refused(TypeError, "page_size", call, [1])
    for value in (0, -1, 65537):
        refused(InvalidArgumentError, "page_size", call, [1], value)
    refused(TypeError, "page_size", call, [1], 4.0)
    refused(TypeError, "positional", call, [1], 4, "salt")
    refused(TypeError, "tokens", call, "text", 4)
    assert call(range(4), np.int32(4), salt=np.int64(7)) == call(range(4), 4, salt=7)
    refused(TypeError, "salt", call, [1], 4, salt=True)
    refused(InvalidArgumentError, "name", dynamo_llm.DType, "fp16\0")


def test_closing_refuses() -> None:
    value: Any
    manager: Any = plain(1)
    for value in (-1, math.nan, math.inf):
        refused(InvalidArgumentError, "timeout", manager.close, value)
    for value in (None, "1"):
        refused(TypeError, "timeout", manager.close, value)
    assert not manager.closed


def test_types_that_only_the_package_makes() -> None:
    for name in ("Block", "BlockList", "Layer", "BlockPool", "Operation"):
        with pytest.raises(TypeError, match="cannot create"):
            getattr(dynamo_llm, name)()
        with pytest.raises(TypeError):
            type("Mine", (getattr(dynamo_llm, name),), {})


ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-3, 40),
    st.floats(),
    st.text(max_size=4),
    st.binary(max_size=40),
    st.lists(st.one_of(st.integers(-2, 2**33), st.binary(min_size=15, max_size=17), st.none()), max_size=9),
    st.builds(lambda n: np.arange(n, dtype=np.uint32), st.integers(0, 12)),
    st.builds(lambda n: hash_tokens(range(4 * n), 4), st.integers(0, 4)),
)


@settings(max_examples=400, deadline=None)
@given(
    call=st.sampled_from(["allocate_blocks", "register_blocks", "match_sequence_hashes", "contains"]),
    args=st.lists(ANYTHING, max_size=3),
    options=st.dictionaries(
        st.sampled_from(
            ["count", "timeout", "blocks", "tokens", "salt", "hashes", "parent", "priority", "priority_ttl", "x"]
        ),
        ANYTHING,
        max_size=3,
    ),
    with_blocks=st.booleans(),
)
def test_anything_is_answered_by_a_result_or_a_named_exception(
    call: str, args: list[Any], options: dict[str, Any], with_blocks: bool
) -> None:
    if isinstance(options.get("timeout"), float | int | None) and "timeout" in options:
        options["timeout"] = 0.001 if options["timeout"] is None else options["timeout"]
        if isinstance(options["timeout"], float | int) and 0.01 < options["timeout"] <= 1e9:
            options["timeout"] = 0.001
    blocks = MANAGER.allocate_blocks(2)
    if with_blocks and call == "register_blocks":
        args = [blocks, *args]
    try:
        result = getattr(host(MANAGER), call)(*args, **options)
    except (TypeError, dynamo_llm.BlockManagerError):
        result = None
    del result, blocks
    args.clear()
    assert free(MANAGER) == 16


MANAGER = plain(16)
