"""What the tests of the two faces share: small managers, and coroutines run on each kind of event loop."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest
import uvloop

import dynamo_llm
from dynamo_llm import aio

T = TypeVar("T")

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}
each_loop = pytest.mark.parametrize("kind", list(LOOPS))


def run(kind: str, main: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=LOOPS[kind]) as runner:
        return runner.run(main)


def plain(host_blocks: int = 16, **options: Any) -> dynamo_llm.BlockManager:
    """Blocks of 2 layers, 2 outer, 4 tokens, 8 elements."""
    return dynamo_llm.BlockManager(2, 4, 8, host_blocks=host_blocks, **options)


def asynchronous(host_blocks: int = 16, **options: Any) -> aio.BlockManager:
    return aio.BlockManager(2, 4, 8, host_blocks=host_blocks, **options)


def host(manager: dynamo_llm.BlockManager) -> dynamo_llm.BlockPool:
    pool = manager.get_host_pool()
    assert pool is not None
    return pool


def ahost(manager: aio.BlockManager) -> aio.BlockPool:
    pool = manager.get_host_pool()
    assert pool is not None
    return pool


def free(manager: dynamo_llm.BlockManager | aio.BlockManager) -> int:
    pool = manager.get_host_pool()
    assert pool is not None
    return pool.available_blocks()


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Native threads settle what they settle a moment later."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.001)
