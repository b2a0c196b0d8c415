"""Bad input: each argument of each call, by its own exception that names it."""

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dynamo_llm
from dynamo_llm import InvalidArgumentError, SequenceHashes, aio, hash_tokens
from kvbm_tools import free, host, plain

BIG = 2**70
NOT_INTS: list[Any] = [True, False, 1.0, "1", None, [1], b"1"]


def refused(call: Callable[[], Any], kind: type[BaseException], name: str) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert re.search(rf"(^|\W){name}", str(caught.value)), f"{caught.value!r} does not name {name}"


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
        ("policy", ["", "fifo"]),
        ("name", ["", "sixteen bytes...", "ä" * 8]),
    ],
)
def test_open_refuses_values(cls: Any, name: str, values: list[Any]) -> None:
    good = {"num_layers": 2, "page_size": 4, "inner_dim": 8, "host_blocks": 2}
    for value in values:
        refused(lambda value=value: cls(**{**good, name: value}), InvalidArgumentError, name)


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
        refused(lambda value=value: dynamo_llm.BlockManager(**{**good, name: value}), TypeError, name)


def test_open_refuses_calls() -> None:
    make: Any = dynamo_llm.BlockManager
    refused(lambda: make(1, 2), TypeError, "inner_dim")
    refused(lambda: make(1, 2, 3, None, 0, 2), TypeError, "positional")
    refused(lambda: make(1, 2, 3, wrong=4), TypeError, "wrong")
    refused(lambda: make(1, 2, 3, num_layers=4), TypeError, "num_layers")
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
    manager = plain(4)
    pool = host(manager)
    for owner in (manager, pool):
        allocate: Any = owner.allocate_blocks
        for value in (0, -1, 2**20 + 1, BIG, -BIG):
            refused(lambda value=value: allocate(value), InvalidArgumentError, "count")
        for value in NOT_INTS:
            refused(lambda value=value: allocate(value), TypeError, "count")
        for value in (-1, -0.001, math.nan, math.inf, -math.inf, 1.1e9, BIG, -BIG, 10**400):
            refused(lambda value=value: allocate(1, timeout=value), InvalidArgumentError, "timeout")
        for value in (True, "1", b"", [1]):
            refused(lambda value=value: allocate(1, timeout=value), TypeError, "timeout")
        refused(lambda: allocate(), TypeError, "count")
        refused(lambda: allocate(1, 2), TypeError, "positional")
        refused(lambda: allocate(1, tiemout=2), TypeError, "tiemout")
        refused(lambda: allocate(1, count=2), TypeError, "count")
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
        refused(lambda call=call: call(b"x" * 17), InvalidArgumentError, "hashes")
        refused(lambda call=call: call([good[0], b"short"]), InvalidArgumentError, r"hashes\[1\]: must be 16 bytes, not 5")
        refused(lambda call=call: call([good[0], "x" * 16]), TypeError, r"hashes\[1\]")
        refused(lambda call=call: call([1, 2]), TypeError, r"hashes\[0\]")
        refused(lambda call=call: call("x" * 16), TypeError, "hashes")
        refused(lambda call=call: call(5), TypeError, "hashes")
        for same in (good, bytes(good), list(good), tuple(good), bytearray(bytes(good)), memoryview(good)):
            assert len(call(same)) in (0, 2)
    refused(lambda: pool.contains([None]), TypeError, "hashes")  # type: ignore[list-item]


def test_register_refuses() -> None:
    manager = plain(8)
    pool = host(manager)
    blocks = manager.allocate_blocks(2)
    register: Any = pool.register_blocks
    refused(lambda: register(), TypeError, "blocks")
    for value in (None, 1, "x", blocks[0], {"a"}):
        refused(lambda value=value: register(value), TypeError, "blocks")
    refused(lambda: register([blocks[0], blocks[1][0]]), TypeError, r"blocks\[1\]")
    refused(lambda: register(blocks, range(7)), dynamo_llm.IncompleteBlockError, "tokens: 7 do not fill 2 blocks")
    refused(lambda: register(blocks, range(9)), InvalidArgumentError, "tokens: must be 8")
    refused(lambda: register(blocks, [0] * 7 + [-1]), InvalidArgumentError, r"tokens\[7\]: must be 0")
    refused(lambda: register(blocks, [0] * 7 + [2**32]), InvalidArgumentError, r"tokens\[7\]")
    refused(lambda: register(blocks, [0] * 7 + [BIG]), InvalidArgumentError, r"tokens\[7\]")
    refused(lambda: register(blocks, [0] * 7 + [True]), TypeError, r"tokens\[7\]")
    refused(lambda: register(blocks, [0] * 7 + [0.5]), TypeError, r"tokens\[7\]")
    for value in ("abcdefgh", b"abcdefgh", 5, np.zeros(8, np.float32), np.zeros((2, 4), np.int32)):
        refused(lambda value=value: register(blocks, value), TypeError, "tokens")
    refused(lambda: register(blocks, np.full(8, -1, np.int32)), InvalidArgumentError, "tokens")
    refused(lambda: register(blocks, np.full(8, 2**33, np.int64)), InvalidArgumentError, "tokens")
    hashes = hash_tokens(range(8), 4)
    refused(lambda: register(blocks, hashes=hashes[:1]), InvalidArgumentError, "hashes: must be 2")
    refused(lambda: register(blocks, range(8), hashes=hashes), InvalidArgumentError, "hashes")
    refused(lambda: register(blocks, salt="x", hashes=hashes), InvalidArgumentError, "salt")
    refused(lambda: register(blocks, range(8), salt=1.5), TypeError, "salt")
    refused(lambda: register(blocks, range(8), salt=-1), InvalidArgumentError, "salt")
    refused(lambda: register(blocks, range(8), salt=2**64), InvalidArgumentError, "salt")
    refused(lambda: register(blocks, range(8), parent=b"short"), InvalidArgumentError, "parent")
    refused(lambda: register(blocks, range(8), parent="x" * 16), TypeError, "parent")
    refused(lambda: register(blocks, priority=8), InvalidArgumentError, "priority")
    refused(lambda: register(blocks, priority=True), TypeError, "priority")
    refused(lambda: register(blocks, priority_ttl=-1), InvalidArgumentError, "priority_ttl")
    refused(lambda: register(blocks, keep_duplicates=1), TypeError, "keep_duplicates")
    refused(lambda: register(blocks, None, None, hashes), TypeError, "positional")
    assert [block.state for block in blocks] == ["partial", "partial"]
    assert len(register(blocks, np.arange(8, dtype=np.uint32), 7, priority=7, priority_ttl=0)) == 2


def test_hash_tokens_refuses() -> None:
    call: Any = hash_tokens
    refused(lambda: call([1]), TypeError, "page_size")
    for value in (0, -1, 65537):
        refused(lambda value=value: call([1], value), InvalidArgumentError, "page_size")
    refused(lambda: call([1], 4.0), TypeError, "page_size")
    refused(lambda: call([1], 4, "salt"), TypeError, "positional")
    refused(lambda: call("text", 4), TypeError, "tokens")


def test_closing_refuses() -> None:
    manager: Any = plain(1)
    for value in (-1, math.nan, math.inf):
        refused(lambda value=value: manager.close(value), InvalidArgumentError, "timeout")
    for value in (None, "1"):
        refused(lambda value=value: manager.close(value), TypeError, "timeout")
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
