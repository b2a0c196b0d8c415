"""Random programs of the plain face against a model of who holds which block and which hashes are resident."""

from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule
from kvbm_tools import host, plain

import dynamo_llm
from dynamo_llm import hash_tokens

CAPACITY = 12


class Bookkeeping(RuleBasedStateMachine):
    """The model: for each held list its block ids; for each resident hash its block; LRU is left to the C tests."""

    lists = Bundle("lists")
    tensors = Bundle("tensors")

    def __init__(self) -> None:
        super().__init__()
        self.manager = plain(CAPACITY)
        self.pool = host(self.manager)
        self.holds: dict[int, int] = {}  # block id -> holders that we know of
        self.registered: dict[bytes, int] = {}  # leased now, by hash

    def hold(self, blocks: dynamo_llm.BlockList) -> dict[str, Any]:
        ids = [block.block_id for block in blocks]
        for each in ids:
            self.holds[each] = self.holds.get(each, 0) + 1
        return {"blocks": blocks, "ids": ids, "hashes": None}

    def drop(self, ids: list[int]) -> None:
        for each in ids:
            self.holds[each] -= 1
            if self.holds[each] == 0:
                del self.holds[each]

    @rule(target=lists, count=st.integers(1, 5))
    def allocate(self, count: int) -> dict[str, Any]:
        room = CAPACITY - len(self.holds)
        try:
            blocks = self.manager.allocate_blocks(count)
        except dynamo_llm.OutOfBlocksError as error:
            assert count > room
            assert (error.requested, error.available) == (count, room)  # noqa: PT017
            return {"blocks": None, "ids": [], "hashes": None}
        assert count <= room
        assert not {block.block_id for block in blocks} & set(self.holds)
        for block in blocks:
            np.from_dlpack(block)[...] = block.block_id
        return self.hold(blocks)

    @rule(target=lists, held=consumes(lists), seed=st.integers(0, 3))
    def register(self, held: dict[str, Any], seed: int) -> dict[str, Any]:
        if held["blocks"] is None or held["hashes"] is not None:
            return held
        tokens = [seed] * 4 * len(held["ids"])
        hashes = list(hash_tokens(tokens, 4))
        registered = self.pool.register_blocks(held["blocks"], tokens)
        assert list(registered.sequence_hashes()) == hashes
        assert {block.state for block in held["blocks"]} <= {"released"}
        result = self.hold(registered)
        self.drop(held["ids"])
        result["hashes"] = hashes
        for block, old in zip(registered, held["ids"], strict=True):
            assert block.duplicate == (block.block_id != old)
            assert np.from_dlpack(block).flags.writeable is False
        return result

    @rule(target=lists, seed=st.integers(0, 3), count=st.integers(0, 6))
    def match(self, seed: int, count: int) -> dict[str, Any]:
        hashes = hash_tokens([seed] * 4 * count, 4)
        resident = self.pool.contains(hashes)
        prefix = [*resident, False].index(False)
        blocks = self.pool.match_sequence_hashes(hashes)
        assert len(blocks) == prefix
        assert [block.sequence_hash() for block in blocks] == list(hashes)[:prefix]
        result = self.hold(blocks)
        result["hashes"] = list(hashes)[:prefix]
        return result

    @rule(held=consumes(lists))
    def drop_list(self, held: dict[str, Any]) -> None:
        self.drop(held["ids"])
        held["blocks"] = None

    @rule(held=consumes(lists))
    def release_list(self, held: dict[str, Any]) -> None:
        if held["blocks"] is not None:
            held["blocks"].release()
            assert {block.state for block in held["blocks"]} <= {"released"}
        self.drop(held["ids"])

    @rule(target=lists, held=consumes(lists), cut=st.integers(0, 5))
    def keep_part(self, held: dict[str, Any], cut: int) -> dict[str, Any]:
        if held["blocks"] is None:
            return held
        part = held["blocks"][:cut]
        self.drop(held["ids"][cut:])
        held["blocks"] = None
        hashes = None if held["hashes"] is None else held["hashes"][:cut]
        return {"blocks": part, "ids": held["ids"][:cut], "hashes": hashes}

    @rule(target=tensors, held=lists)
    def export(self, held: dict[str, Any]) -> tuple[Any, list[int], Any]:
        if held["blocks"] is None or not held["ids"] or held["blocks"][0].state == "released":
            return None, [], None
        array = np.from_dlpack(held["blocks"][0])
        self.holds[held["ids"][0]] += 1
        return array, held["ids"][:1], array.flat[0]

    @rule(tensor=consumes(tensors))
    def look_at_tensor(self, tensor: tuple[Any, list[int], Any]) -> None:
        array, _, value = tensor
        if array is not None:
            assert array.min() == array.max() == value, "its block was not given to anybody else"

    @invariant()
    def no_block_is_lost_or_held_twice(self) -> None:
        assert self.pool.available_blocks() == CAPACITY - len(self.holds)

    def teardown(self) -> None:
        self.manager.close()


Bookkeeping.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestBookkeeping = Bookkeeping.TestCase
