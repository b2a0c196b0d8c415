"""The server workload against a real block manager: hits to the block, bytes, pressure, cancellation."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo_llm import DType, aio
from dynamo_llm.cli.ceiling import Ceiling, ceiling
from dynamo_llm.cli.metrics import Metrics
from dynamo_llm.cli.prompts import Request, Workload
from dynamo_llm.cli.server import Server, ServerOptions
from dynamo_llm.cli.traces import read_trace
from dynamo_llm.cli.workload import ChatShape, chat_workload

TRACES = Path(__file__).parents[3] / "shared" / "traces"
needs_traces = pytest.mark.skipif(not TRACES.exists(), reason="the real traces are not beside this checkout")

OPTIONS = ServerOptions(concurrency=1, speed=None, with_bytes=True, allocate_timeout_s=1.0)
CHAT = chat_workload(11, ChatShape(requests=80, context_tokens_max=2048))


def open_manager(
    blocks: int, page: int = 16, inner_dim: int = 8, dtype: DType = DType.FP16, **more: Any
) -> aio.BlockManager:
    return aio.BlockManager(2, page, inner_dim, dtype, host_blocks=blocks, track_tokens=False, **more)


async def serve(workload: Workload, manager: aio.BlockManager, **options: Any) -> Metrics:
    """Replays and checks what holds for every replay that was not cut short."""
    server = Server(manager, workload, replace(OPTIONS, **options))
    metrics = await server.run()
    host = metrics.native["pools"]["host"]
    assert host["leased_blocks"] == host["mutable_blocks"] == 0
    assert metrics.requests == len(workload.requests)
    assert metrics.hit_blocks <= ceiling(workload, manager.page_size).hit_blocks
    assert metrics.prompt_blocks == metrics.hit_blocks + metrics.written_blocks + metrics.uncached_blocks
    if server.options.with_bytes:
        assert metrics.verified_bytes == metrics.hit_blocks * manager.block_bytes
    return metrics


def enough(bound: Ceiling) -> int:
    return bound.distinct_blocks + max(bound.blocks)


@pytest.mark.parametrize("page", [16, 5, 64])
async def test_one_at_a_time_hits_equal_the_ceiling_of_every_request(page: int) -> None:
    bound = ceiling(CHAT, page)
    async with open_manager(enough(bound), page) as manager:
        metrics = await serve(CHAT, manager)
        assert metrics.evicted_blocks == metrics.uncached_blocks == metrics.duplicate_blocks == 0
    assert [answered.index for answered in metrics.answered] == list(range(80))
    assert [answered.hits for answered in metrics.answered] == list(bound.hits)
    assert metrics.verify_failures == 0


segments = st.lists(st.integers(0, 3), min_size=1, max_size=5).map(tuple)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(segments, st.integers(0, 1)), min_size=1, max_size=15), st.integers(1, 4))
def test_any_workload_hits_what_the_ceiling_says(prompts: list[tuple[tuple[int, ...], int]], concurrency: int) -> None:
    requests = [Request(0.0, space, ids, 8, 8 * len(ids), 1, 0.0) for ids, space in prompts]
    workload = Workload("test", "chat", 8, ("one", "two"), requests)
    bound = ceiling(workload, 8)

    async def run() -> None:
        async with open_manager(200, 8, touch_threads=1) as manager:
            metrics = await serve(workload, manager, concurrency=concurrency)
            assert metrics.verify_failures == 0
            if concurrency == 1:
                assert [answered.hits for answered in metrics.answered] == list(bound.hits)

    asyncio.run(run())


@pytest.mark.parametrize("concurrency", [2, 8, 64])
async def test_many_at_once_stay_below_the_ceiling_and_verify(concurrency: int) -> None:
    bound = ceiling(CHAT, 16)
    async with open_manager(bound.distinct_blocks + concurrency * max(bound.blocks)) as manager:
        metrics = await serve(CHAT, manager, concurrency=concurrency)
    assert metrics.verify_failures == 0
    assert metrics.uncached_blocks == 0
    # Turns of a conversation follow each other, so most of the reuse is there at any concurrency.
    assert metrics.hit_blocks > 0.5 * bound.hit_blocks


@pytest.mark.parametrize("concurrency", [1, 4])
async def test_small_pools_evict_and_what_they_still_have_is_right(concurrency: int) -> None:
    bound = ceiling(CHAT, 16)
    async with open_manager(bound.distinct_blocks // 3) as manager:
        metrics = await serve(CHAT, manager, concurrency=concurrency)
        assert manager.stats()["pools"]["host"]["capacity_blocks"] == bound.distinct_blocks // 3
    assert metrics.evicted_blocks > 0
    assert 0 < metrics.hit_blocks < bound.hit_blocks
    assert metrics.verify_failures == 0


async def test_a_pool_smaller_than_a_prompt_caches_what_fits() -> None:
    request = Request(0.0, 0, tuple(range(10)), 16, 160, 1, 0.0)
    workload = Workload("test", "chat", 16, (None,), [request, request])
    async with open_manager(4) as manager:
        metrics = await serve(workload, manager)
    assert (metrics.written_blocks, metrics.hit_blocks, metrics.uncached_blocks) == (4, 4, 12)
    assert metrics.uncached_requests == 2
    assert metrics.waited_requests == metrics.verify_failures == 0


@pytest.mark.parametrize("timeout_s", [0.0, 0.05])
async def test_crowded_pools_answer_every_request(timeout_s: float) -> None:
    requests = [Request(0.0, 0, (i % 3, *range(100 * i, 100 * i + 5)), 16, 96, 1, 0.02) for i in range(1, 41)]
    workload = Workload("test", "chat", 16, (None,), requests)
    async with open_manager(16) as manager:
        # Each holds 6 of 16 blocks for 20 ms: at most two at a time, and forty want to.
        metrics = await serve(workload, manager, concurrency=40, speed=1.0, allocate_timeout_s=timeout_s)
    assert metrics.waited_requests > 0
    assert metrics.uncached_requests > 0
    assert metrics.verify_failures == 0


async def test_waiting_in_line_gets_blocks_when_others_finish() -> None:
    requests = [Request(0.0, 0, tuple(range(10 * i, 10 * i + 6)), 16, 96, 1, 0.01) for i in range(12)]
    workload = Workload("test", "chat", 16, (None,), requests)
    async with open_manager(8) as manager:
        metrics = await serve(workload, manager, concurrency=12, speed=1.0, allocate_timeout_s=20.0)
    assert metrics.waited_requests > 0
    assert metrics.uncached_blocks == 0


@pytest.mark.parametrize("dtype", ["FP8_E4M3", "FP8_E5M2", "FP16", "BF16", "FP32", "INT8", "U8"])
@pytest.mark.parametrize("inner_dim", [8, 3])
async def test_every_element_type_is_filled_and_verified(dtype: str, inner_dim: int) -> None:
    workload = chat_workload(4, ChatShape(requests=12, context_tokens_max=1024))
    bound = ceiling(workload, 5)
    async with open_manager(enough(bound), 5, inner_dim, getattr(DType, dtype)) as manager:
        metrics = await serve(workload, manager)
    assert metrics.hit_blocks == bound.hit_blocks > 0
    assert metrics.verify_failures == 0


@pytest.mark.parametrize("dtype", [DType.FP16, DType.BF16])
async def test_a_flipped_bit_is_a_verification_failure(dtype: DType) -> None:
    bound = ceiling(CHAT, 16)
    async with open_manager(enough(bound), dtype=dtype) as manager:
        metrics = await serve(CHAT, manager, corrupt_block=0)
    assert metrics.verify_failures > 0
    assert len(metrics.failures) == min(10, metrics.verify_failures)
    assert " key " in metrics.failures[0]
    assert " in block " in metrics.failures[0]
    assert " 1 wrong bytes, the first at offset " in metrics.failures[0]


async def test_without_bytes_the_bookkeeping_is_the_same() -> None:
    bound = ceiling(CHAT, 16)
    async with open_manager(enough(bound), bytes=False) as manager:
        metrics = await serve(CHAT, manager, with_bytes=False)
    assert metrics.hit_blocks == bound.hit_blocks
    assert metrics.verified_bytes == metrics.verify_failures == 0


async def test_equal_tokens_under_different_salts_are_no_hits() -> None:
    requests = [Request(0.0, space, (1, 2, 3), 16, 48, 1, 0.0) for space in (0, 1, 0, 1)]
    workload = Workload("test", "agentic", 16, ("file:a", "file:b"), requests)
    async with open_manager(100) as manager:
        metrics = await serve(workload, manager)
    assert [answered.hits for answered in metrics.answered] == [0, 0, 3, 3]


async def test_speed_keeps_the_traces_times() -> None:
    requests = [Request(10.0 * i, 0, (i,), 16, 16, 1, 1.0) for i in range(3)]
    workload = Workload("test", "chat", 16, (None,), requests)
    async with open_manager(10) as manager:
        metrics = await serve(workload, manager, concurrency=4, speed=100.0)
    assert 0.2 <= metrics.seconds < 2.0


async def test_cancelling_ends_with_what_was_done() -> None:
    requests = [Request(0.05 * i, 0, (i, i + 1), 16, 32, 1, 0.2) for i in range(200)]
    workload = Workload("test", "chat", 16, (None,), requests)
    async with open_manager(1000) as manager:
        task = asyncio.create_task(Server(manager, workload, replace(OPTIONS, concurrency=8, speed=1.0)).run())
        await asyncio.sleep(0.7)
        task.cancel()
        metrics = await task
        assert metrics.interrupted
        assert 0 < metrics.requests < 200
        for _ in range(100):
            host = manager.stats()["pools"]["host"]
            if host["leased_blocks"] + host["mutable_blocks"] == 0:
                break
            await asyncio.sleep(0.02)
        assert host["leased_blocks"] == host["mutable_blocks"] == 0


async def test_latencies_and_occupancy_are_recorded() -> None:
    bound = ceiling(CHAT, 16)
    async with open_manager(enough(bound)) as manager:
        metrics = await serve(CHAT, manager, concurrency=4)
    assert len(metrics.latency["request"].samples) == len(metrics.latency["match"].samples) == 80
    assert 0 < len(metrics.latency["allocate"].samples) <= 80
    assert all(o.free + o.cached + o.leased + o.mutable == enough(bound) for o in metrics.occupancy)


@needs_traces
async def test_the_conversation_trace_hits_the_ceiling_to_the_block() -> None:
    workload = read_trace(TRACES / "conversation.jsonl")
    async with open_manager(183_100, 512, 8, bytes=False) as manager:
        metrics = await serve(workload, manager, with_bytes=False)
    assert (metrics.requests, metrics.hit_blocks, metrics.prompt_blocks) == (12031, 105_710, 288_500)
    assert metrics.written_blocks == 182_790


@needs_traces
async def test_the_agentic_traces_hit_the_ceiling_to_the_block() -> None:
    workload = read_trace(TRACES / "agentic")
    async with open_manager(30_000, 64, 8, bytes=False) as manager:
        metrics = await serve(workload, manager, with_bytes=False)
    assert (metrics.hit_blocks, metrics.prompt_blocks) == (269_325, 287_802)
