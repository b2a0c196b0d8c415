"""10^5 iterations of everything leave no block, no object and no memory behind."""

import asyncio
import gc
import os
import sys
import tracemalloc
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest
from kvbm_tools import ahost, asynchronous, each_loop, free, host, plain, run

import dynamo_llm
from dynamo_llm import aio, hash_tokens

ITERATIONS = 100_000
PAGE = os.sysconf("SC_PAGE_SIZE")


def rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def measure(step: Callable[[], None], iterations: int) -> None:
    """Runs a step, and compares what there is after a warm-up with what there is at the end."""
    for _ in range(iterations // 10):
        step()
    gc.collect()
    objects, rss = len(gc.get_objects()), rss_bytes()
    tracemalloc.start()
    for _ in range(iterations // 100):
        step()
    gc.collect()
    traced, _ = tracemalloc.get_traced_memory()
    for _ in range(iterations // 100):
        step()
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - traced
    tracemalloc.stop()
    for _ in range(iterations):
        step()
    gc.collect()
    assert grown < 20_000, f"{grown} traced bytes more after {iterations // 100} iterations"
    assert len(gc.get_objects()) - objects < 50
    assert rss_bytes() - rss < 8 << 20


def test_allocating_and_dropping() -> None:
    manager = plain(16)
    types = [dynamo_llm.BlockList, dynamo_llm.Block, dynamo_llm.Layer, dynamo_llm.BlockManager]
    gc.collect()
    counts = [sys.getrefcount(each) for each in types]

    def step() -> None:
        blocks = manager.allocate_blocks(3)
        layer = blocks[1][0]
        part = blocks[1:] + blocks[:1]
        assert layer.shape == part[0][0].shape

    measure(step, ITERATIONS)
    assert free(manager) == 16
    # A few more or less: what earlier tests and their tools hold comes and goes.
    now = [sys.getrefcount(each) for each in types]
    assert all(n - count < 20 for n, count in zip(now, counts, strict=True)), (counts, now)


def test_registering_and_matching() -> None:
    manager = plain(16)
    pool = host(manager)
    tokens = list(range(8))
    hashes = hash_tokens(tokens, 4)

    def step() -> None:
        registered = pool.register_blocks(manager.allocate_blocks(2), tokens)
        assert len(pool.match_sequence_hashes(hashes)) == len(registered)
        pool.register_blocks(manager.allocate_blocks(1))
        assert pool.contains(list(hashes)) == [True, True]
        registered.sequence_hashes()

    measure(step, ITERATIONS // 4)
    assert free(manager) == 16


def test_tensors() -> None:
    manager = plain(4)
    source = np.ones((2, 2, 4, 8), np.float16)

    def step() -> None:
        block = manager.allocate_blocks(1)[0]
        block.copy_from(source)
        np.from_dlpack(block)
        np.from_dlpack(block[1], copy=True)
        block.__dlpack__()

    measure(step, ITERATIONS // 4)
    assert free(manager) == 4


def test_errors() -> None:
    manager = plain(2)
    pool = host(manager)
    stale = manager.allocate_blocks(1)
    stale.release()

    def step() -> None:
        for call in (
            lambda: manager.allocate_blocks(3),
            lambda: manager.allocate_blocks(-1),
            lambda: pool.match_sequence_hashes([b"x"]),
            lambda: pool.register_blocks(stale),
            lambda: pool.register_blocks(stale, [1, 2, 3, 4]),
            lambda: stale[0].__dlpack__(),
            lambda: stale[0].copy_from(1),
        ):
            with pytest.raises((dynamo_llm.BlockManagerError, TypeError)):
                call()

    measure(step, ITERATIONS // 50)
    assert free(manager) == 2


@each_loop
@pytest.mark.parametrize("borrow", [True, False])
def test_awaiting(kind: str, borrow: bool) -> None:
    async def main() -> None:
        async with asynchronous(16, borrow=borrow) as manager:
            pool = ahost(manager)

            async def step() -> None:
                blocks = await manager.allocate_blocks(2, timeout=None)
                await pool.match_sequence_hashes((await pool.register_blocks(blocks)).sequence_hashes())
                waiting = asyncio.ensure_future(manager.allocate_blocks(16, timeout=None))
                held = await manager.allocate_blocks(1, timeout=None)
                held.release()
                waiting.cancel()
                try:
                    await waiting
                except asyncio.CancelledError:
                    pass

            await measure_async(step, 4000)
            await asyncio.sleep(0.05)
            assert free(manager) == 16

    run(kind, main())


async def measure_async(step: Callable[[], Awaitable[None]], iterations: int) -> None:
    for _ in range(iterations // 10):
        await step()
    gc.collect()
    objects, rss = len(gc.get_objects()), rss_bytes()
    for _ in range(iterations):
        await step()
    gc.collect()
    assert len(gc.get_objects()) - objects < 50
    assert rss_bytes() - rss < 8 << 20


def test_a_hundred_thousand_awaits() -> None:
    async def main() -> None:
        async with asynchronous(16) as manager:

            async def step() -> None:
                await manager.allocate_blocks(1)

            await step()
            count = sys.getrefcount(aio.Operation)
            await measure_async(step, ITERATIONS)
            assert abs(sys.getrefcount(aio.Operation) - count) < 5
            assert free(manager) == 16

    asyncio.run(main())


def test_managers_and_loops() -> None:
    async def once() -> None:
        async with asynchronous(4) as manager:
            await manager.allocate_blocks(1)

    def step() -> None:
        asyncio.run(once())
        with plain(4) as manager:
            manager.allocate_blocks(2)

    for _ in range(30):
        step()
    gc.collect()
    files, rss = len(os.listdir("/proc/self/fd")), rss_bytes()
    threads = len(os.listdir("/proc/self/task"))
    for _ in range(150):
        step()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == files
    assert len(os.listdir("/proc/self/task")) == threads
    assert rss_bytes() - rss < 16 << 20
