"""The plain face: lists, blocks, registration, matching, statistics."""

import array
import gc
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from kvbm_tools import free, host, plain

import dynamo_llm
from dynamo_llm import DType, SequenceHashes, hash_tokens


def test_dropping_a_list_gives_its_blocks_back() -> None:
    manager = plain(8)
    blocks = manager.allocate_blocks(5)
    assert free(manager) == 3
    del blocks
    assert free(manager) == 8


def test_one_block_kept_keeps_only_itself() -> None:
    manager = plain(8)
    blocks = manager.allocate_blocks(5)
    kept = blocks[2]
    del blocks
    assert free(manager) == 7
    layer = kept[1]
    del kept
    assert free(manager) == 7, "a layer keeps its block"
    del layer
    assert free(manager) == 8


def test_a_list_is_a_sequence() -> None:
    manager = plain(20)
    blocks = manager.allocate_blocks(12)
    assert isinstance(blocks, Sequence)
    assert len(blocks) == 12
    assert blocks[0] is blocks[0] is blocks[-12]
    assert blocks[3:5][0] == blocks[3]
    assert blocks[3:5][0] is blocks[3]
    assert [block.block_id for block in blocks] == [block.block_id for block in reversed(blocks)][::-1]
    assert blocks[5] in blocks
    assert blocks.index(blocks[5]) == 5
    assert blocks.count(blocks[5]) == 1
    assert [b.block_id for b in blocks[::-3]] == [blocks[i].block_id for i in (11, 8, 5, 2)]
    first, *rest = blocks
    assert first == blocks[0]
    assert len(rest) == 11
    for bad in (12, -13, 2**70):
        with pytest.raises(IndexError):
            blocks[bad]
    with pytest.raises(TypeError, match="integers or slices"):
        blocks["0"]  # type: ignore[call-overload]
    del first, rest
    del blocks
    assert free(manager) == 20


def test_slices_share_blocks() -> None:
    manager = plain(8)
    blocks = manager.allocate_blocks(6)
    middle = blocks[2:4]
    both = middle + blocks[:1]
    del blocks
    assert free(manager) == 5
    assert [len(middle), len(both)] == [2, 3]
    middle.release()
    assert [block.state for block in both] == ["released", "released", "partial"]
    assert free(manager) == 7
    del both
    assert free(manager) == 8


def test_context_managers_release_whatever_refers_to_the_blocks() -> None:
    manager = plain(4)
    with manager.allocate_blocks(3) as blocks:
        block = blocks[1]
        assert free(manager) == 1
    assert free(manager) == 4
    assert block.state == "released"
    with pytest.raises(dynamo_llm.StaleBlockError):
        block.sequence_hash()
    assert len(blocks) == 3
    assert blocks[0].state == "released"
    blocks.release()
    with manager.allocate_blocks(1)[0] as one:
        assert one.state == "partial"
    assert free(manager) == 4


def test_block_and_layer_properties() -> None:
    manager = plain(2)
    block = manager.allocate_blocks(1)[0]
    assert len(block) == 2
    assert block.shape == (2, 2, 4, 8)
    assert block.strides == (64, 32, 8, 1)
    assert block.nbytes == manager.block_bytes == 256
    assert block.dtype is DType.FP16
    assert (block.tier, block.readonly, block.duplicate) == ("host", False, False)
    assert [layer.shape for layer in block] == [(2, 4, 8)] * 2
    assert block.to_list()[1].data_ptr - block[0].data_ptr == 128
    assert block[-1].data_ptr == block[1].data_ptr
    assert (block[0].strides, block[0].nbytes, block[0].readonly) == ((32, 8, 1), 128, False)
    with pytest.raises(IndexError):
        block[2]
    assert "Block" in repr(block)
    assert "Layer 0" in repr(block[0])


@pytest.mark.parametrize("layout", ["contiguous", "layer_block", "layer_outer"])
def test_layouts_place_every_element_apart(layout: str) -> None:
    manager = plain(3, layout=layout)
    blocks = manager.allocate_blocks(3)
    views = [np.from_dlpack(block) for block in blocks]
    for i, view in enumerate(views):
        view[...] = np.arange(i * 128, (i + 1) * 128, dtype=np.float16).reshape(view.shape)
    for i, block in enumerate(blocks):
        for layer in range(2):
            got = np.from_dlpack(block[layer])
            assert got.ravel().tolist() == list(range(i * 128 + layer * 64, i * 128 + (layer + 1) * 64))


def test_register_and_match() -> None:
    manager = plain(8)
    pool = host(manager)
    blocks = manager.allocate_blocks(3)
    view = np.from_dlpack(blocks[1])
    view[...] = 7
    tokens = list(range(12))
    registered = pool.register_blocks(blocks, tokens, salt="tenant")
    hashes = hash_tokens(tokens, 4, salt="tenant")
    assert registered.sequence_hashes() == hashes
    assert [block.sequence_hash() for block in registered] == list(hashes)
    assert {block.state for block in blocks} == {"released"}
    assert registered[1].readonly
    with pytest.raises(dynamo_llm.StaleBlockError, match="registered"):
        blocks[0].append_tokens([1])
    del registered, view, blocks
    assert free(manager) == 8
    assert pool.contains(list(hashes)) == [True] * 3
    matched = pool.match_sequence_hashes(hashes)
    assert len(matched) == 3
    assert np.from_dlpack(matched[1]).min() == 7
    assert free(manager) == 5
    assert len(pool.match_sequence_hashes([hashes[1], b"x" * 16, hashes[2]])) == 1
    assert len(pool.match_sequence_hashes([b"x" * 16, hashes[0]])) == 0
    assert len(pool.match_sequence_hashes([])) == 0
    assert pool.contains([hashes[2], b"x" * 16]) == [True, False]
    assert pool.contains([]) == []
    assert hash_tokens(tokens, 4) != hashes


def test_own_tokens_and_anonymous_registration() -> None:
    manager = plain(8)
    pool = host(manager)
    blocks = manager.allocate_blocks(2)
    blocks[0].append_tokens([1, 2])
    assert blocks[0].tokens == [1, 2]
    assert blocks[0].state == "partial"
    with pytest.raises(dynamo_llm.IncompleteBlockError, match=r"blocks\[0\] has 2 tokens of 4"):
        pool.register_blocks(blocks)
    blocks[0].append_tokens(array.array("I", [3, 4]))
    assert str(blocks[0].state) == "complete"
    with pytest.raises(dynamo_llm.IncompleteBlockError, match="have no tokens"):
        pool.register_blocks(blocks)
    with pytest.raises(dynamo_llm.InvalidArgumentError, match="do not fit"):
        blocks[0].append_tokens([5])
    blocks[1].set_tokens(np.arange(5, 9, dtype=np.uint32))  # type: ignore[arg-type]
    parent = b"p" * 16
    registered = pool.register_blocks(blocks, parent=parent)
    assert registered.sequence_hashes() == hash_tokens(range(1, 9), 4, parent=parent)
    one, two = pool.register_blocks(manager.allocate_blocks(2))
    assert one.sequence_hash() != two.sequence_hash()
    assert len(pool.match_sequence_hashes([one.sequence_hash(), two.sequence_hash()])) == 2
    with pytest.raises(dynamo_llm.InvalidArgumentError, match="salt: needs tokens"):
        pool.register_blocks(manager.allocate_blocks(1), salt=b"s")
    assert len(pool.register_blocks([])) == 0


def test_duplicates_give_the_primary() -> None:
    manager = plain(8)
    pool = host(manager)
    tokens = list(range(8))
    first = pool.register_blocks(manager.allocate_blocks(2), tokens)
    ids = [block.block_id for block in first]
    second = pool.register_blocks(manager.allocate_blocks(2), tokens)
    assert [block.block_id for block in second] == ids
    assert [block.duplicate for block in second] == [True, True]
    assert second[0] == first[0]
    assert hash(second[0]) == hash(first[0])
    assert free(manager) == 6
    kept = pool.register_blocks(manager.allocate_blocks(2), tokens, keep_duplicates=True)
    assert all(block.duplicate for block in kept)
    assert not {block.block_id for block in kept} & set(ids)
    assert free(manager) == 4


def test_a_tensor_of_a_duplicate_stays_valid() -> None:
    manager = plain(3)
    pool = host(manager)
    tokens = list(range(4))
    first = pool.register_blocks(manager.allocate_blocks(1), tokens)
    again = manager.allocate_blocks(1)
    tensor = np.from_dlpack(again[0])
    tensor[...] = 9
    second = pool.register_blocks(again, tokens)
    assert second[0] == first[0]
    assert second[0].duplicate
    assert free(manager) == 1, "the duplicate is not given out while its tensor lives"
    rest = manager.allocate_blocks(1)
    np.from_dlpack(rest[0])[...] = 1
    assert tensor.min() == 9
    del tensor
    assert free(manager) == 1
    del first, second, rest
    assert free(manager) == 3


def test_a_tensor_keeps_a_registered_block_from_eviction() -> None:
    manager = plain(2)
    pool = host(manager)
    blocks = manager.allocate_blocks(1)
    tensor = np.from_dlpack(blocks[0])
    tensor[...] = 3
    del blocks
    assert free(manager) == 1
    del tensor
    assert free(manager) == 2
    blocks = manager.allocate_blocks(1)
    tensor = np.from_dlpack(blocks[0])
    pool.register_blocks(blocks, [1, 2, 3, 4])
    assert free(manager) == 1
    with pytest.raises(dynamo_llm.OutOfBlocksError):
        manager.allocate_blocks(2)
    del tensor
    assert free(manager) == 2


def test_eviction_forgets_the_oldest() -> None:
    manager = plain(4)
    pool = host(manager)
    hashes = [pool.register_blocks(manager.allocate_blocks(1), [i] * 4).sequence_hashes()[0] for i in range(4)]
    blocks = manager.allocate_blocks(2)
    assert pool.contains(hashes) == [False, False, True, True]
    del blocks
    assert pool.stats()["evicted_count"] == 2


def test_out_of_blocks_says_the_numbers() -> None:
    manager = plain(4)
    held = manager.allocate_blocks(3)
    with pytest.raises(dynamo_llm.OutOfBlocksError, match="2 blocks requested, 1 available of 4") as caught:
        manager.allocate_blocks(2)
    assert (caught.value.requested, caught.value.available, caught.value.code) == (2, 1, "KVBM_ENOBLOCKS")
    assert isinstance(caught.value, dynamo_llm.BlockManagerError)
    with pytest.raises(dynamo_llm.OutOfBlocksError):
        manager.allocate_blocks(5, timeout=None)
    with pytest.raises(dynamo_llm.OperationTimeoutError) as timed_out:
        manager.allocate_blocks(2, timeout=0.02)
    assert isinstance(timed_out.value, TimeoutError)
    del held
    assert free(manager) == 4


def test_closing() -> None:
    with plain(4) as manager:
        pool = host(manager)
        blocks = manager.allocate_blocks(2)
        view = np.from_dlpack(blocks[0])
        view[...] = 4
    held = [blocks]
    assert manager.closed
    manager.close()
    for call in (
        lambda: manager.allocate_blocks(1),
        lambda: pool.match_sequence_hashes([b"x" * 16]),
        lambda: pool.match_sequence_hashes([]),
        lambda: pool.contains([b"x" * 16]),
        lambda: pool.register_blocks(held[0]),
    ):
        with pytest.raises(dynamo_llm.ClosedError):
            call()
    assert np.from_dlpack(blocks[0]).max() == 4
    blocks.release()
    held.clear()
    del blocks
    assert view.min() == 4


def test_blocks_outlive_their_manager() -> None:
    blocks = plain(4).allocate_blocks(2)
    gc.collect()
    view = np.from_dlpack(blocks[0])
    view[...] = 1
    assert blocks[0].state == "partial"
    del blocks
    assert view.sum() == view.size


def test_wrong_manager() -> None:
    one, two = plain(2), plain(2)
    with pytest.raises(dynamo_llm.WrongManagerError, match=r"blocks\[0\]"):
        host(one).register_blocks(two.allocate_blocks(1))
    with pytest.raises(dynamo_llm.WrongManagerError):
        one.allocate_blocks(1) + two.allocate_blocks(1)


def test_registering_what_cannot_be_registered_changes_nothing() -> None:
    manager = plain(8)
    pool = host(manager)
    blocks = manager.allocate_blocks(3)
    registered = pool.register_blocks(manager.allocate_blocks(1))
    blocks[1].release()
    with pytest.raises(dynamo_llm.StaleBlockError, match=r"blocks\[1\]"):
        pool.register_blocks(blocks)
    with pytest.raises(dynamo_llm.InvalidArgumentError, match=r"blocks\[2\]: is blocks\[0\] once more"):
        pool.register_blocks([blocks[0], blocks[2], blocks[0]])
    with pytest.raises(dynamo_llm.ImmutableBlockError, match="immutable"):
        pool.register_blocks([blocks[0], registered[0]])
    assert [block.state for block in blocks] == ["partial", "released", "partial"]
    again = pool.register_blocks([blocks[2], blocks[0]])
    with pytest.raises(dynamo_llm.StaleBlockError):
        pool.register_blocks([blocks[0]])
    assert len(again) == 2
    with pytest.raises(dynamo_llm.BlockStateError):
        manager.allocate_blocks(1)[0].sequence_hash()
    with pytest.raises(dynamo_llm.BlockStateError):
        manager.allocate_blocks(1).sequence_hashes()


def test_priorities_outlast_others() -> None:
    manager = plain(3)
    pool = host(manager)
    keep = pool.register_blocks(manager.allocate_blocks(1), [1] * 4, priority=7).sequence_hashes()
    other = [pool.register_blocks(manager.allocate_blocks(1), [i] * 4).sequence_hashes()[0] for i in (2, 3)]
    held = manager.allocate_blocks(2)
    assert pool.contains([keep[0], *other]) == [True, False, False]
    del held


def test_hash_tokens_reads_every_kind_of_input() -> None:
    tokens = list(range(1000, 1019))
    hashes = hash_tokens(tokens, 4)
    assert len(hashes) == 4
    inputs: list[Any] = [
        tuple(tokens),
        array.array("I", tokens),
        array.array("i", tokens),
        array.array("q", tokens),
        np.array(tokens, np.int32),
        np.array(tokens, np.uint32),
        np.array(tokens, np.int64),
        np.array(tokens, np.uint64),
        range(1000, 1019),
        [np.int64(token) for token in tokens],
        memoryview(array.array("I", tokens)),
        *(np.frombuffer(b"?" + np.array(tokens, kind).tobytes(), kind, offset=1) for kind in (np.int32, np.int64)),
    ]
    assert all(hash_tokens(each, 4) == hashes for each in inputs)
    assert hash_tokens(tokens[8:], 4, parent=hashes[1]) == hashes[2:4]
    salts = [None, b"", b"a", "ä", 0, 1, 2**64 - 1]
    assert len({hash_tokens(tokens, 4, salt=salt) for salt in salts[1:]} | {hashes}) == len(salts) - 1
    assert hash_tokens(tokens, 4, salt=b"a") == hash_tokens(tokens, 4, salt="a")
    assert len(hash_tokens([], 4)) == 0


def test_sequence_hashes() -> None:
    hashes = hash_tokens(range(40), 4)
    assert len(hashes) == 10
    assert isinstance(hashes, Sequence)
    assert SequenceHashes(list(hashes)) == SequenceHashes(bytes(hashes)) == SequenceHashes(hashes) == hashes
    assert hash(SequenceHashes(list(hashes))) == hash(hashes)
    assert hashes[2:5] == SequenceHashes(list(hashes)[2:5])
    assert list(hashes[::-2]) == list(hashes)[::-2]
    assert pickle.loads(pickle.dumps(hashes)) == hashes
    assert bytes(hashes[1:3]) == hashes[1] + hashes[2]
    assert memoryview(hashes).readonly
    assert hashes.index(hashes[3]) == 3
    assert (hashes.count(hashes[3]), hashes.count(b"x")) == (1, 0)
    assert hashes[0] in hashes
    assert b"x" * 16 not in hashes
    assert hashes != hashes[:9]
    assert hashes != list(hashes)
    assert repr(SequenceHashes()) == "SequenceHashes()"
    assert hashes[-1].hex() in repr(hashes)
    with pytest.raises(IndexError):
        hashes[10]
    with pytest.raises(ValueError, match="not in"):
        hashes.index(b"x" * 16)


def test_dtypes() -> None:
    names = {"fp8_e4m3": 1, "fp8_e5m2": 1, "fp16": 2, "bf16": 2, "fp32": 4, "int8": 1, "u8": 1}
    for name, size in names.items():
        dtype = DType(name)
        assert dtype is getattr(DType, name.upper())
        assert DType(name) is dtype
        assert pickle.loads(pickle.dumps(dtype)) is dtype
        assert (dtype.name, dtype.itemsize) == (name, size)
        assert repr(dtype) == f"DType.{name.upper()}"
    with pytest.raises(dynamo_llm.InvalidArgumentError, match="fp16"):
        DType("float16")


def test_statistics() -> None:
    manager = plain(4, name="stats")
    pool = host(manager)
    held = manager.allocate_blocks(1)
    assert pool.stats()["mutable_blocks"] == 1
    stats = manager.stats()
    assert stats["pools"]["host"]["capacity_blocks"] == pool.total_blocks() == 4
    assert stats["operations_max"] == 16384
    assert stats["allocate"].keys() == {"count", "mean_ns", "p50_ns", "p90_ns", "p99_ns", "p999_ns", "max_ns"}
    assert pool.usage() == 0.25
    assert pool.block_bytes == 256
    assert (manager.num_layers, manager.outer_dim, manager.page_size, manager.inner_dim) == (2, 2, 4, 8)
    assert "stats" in repr(manager)
    assert manager.get_device_pool() is None
    del held


def test_subclasses_and_cycles() -> None:
    class Mine(dynamo_llm.BlockManager):
        def __init__(self, count: int) -> None:
            super().__init__(1, 4, 8, host_blocks=count)
            self.blocks = self.allocate_blocks(1)
            self.pool = self.get_host_pool()

    import weakref

    mine = Mine(3)
    gone = weakref.ref(mine)
    assert free(mine) == 2
    del mine
    gc.collect()
    assert gone() is None

    class Bad(dynamo_llm.BlockManager):
        def __init__(self) -> None:
            pass

    with pytest.raises(RuntimeError, match="__init__"):
        Bad().allocate_blocks(1)


def test_bookkeeping_only() -> None:
    manager = plain(4, bytes=False)
    block = manager.allocate_blocks(1)[0]
    with pytest.raises(dynamo_llm.BlockManagerError, match="no bytes"):
        np.from_dlpack(block)
    assert len(host(manager).register_blocks([block], [1, 2, 3, 4])) == 1
