"""The asyncio server workload: concurrent requests that share one block manager.

A request's life: its turn comes (a semaphore of `concurrency`), its prompt is hashed, the longest resident prefix is
matched and leased, blocks for the rest are allocated, filled and registered, everything is held while the request runs,
every byte of every hit is checked, everything is released. Hits are checked at the end of the hold: a block that was
wrong when it was matched is wrong then too, and a block that was reused under a lease is found as well.

No deadlock: a request that must wait for blocks holds none meanwhile. It gives its hits back, waits in line until the
timeout, and matches again; what it got then need not be what it lacks now, so it returns what is too much, and what is
still lacking (or everything, after a timeout) it serves without caching, counted. It never waits twice. Each wait
has an end, requests in turn that hold blocks wait for none, hence all are answered.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import perf_counter, perf_counter_ns
from typing import TYPE_CHECKING

from dynamo_llm import OperationTimeoutError, OutOfBlocksError, hash_tokens
from dynamo_llm.cli.fill import Codec, Mismatch, block_memory
from dynamo_llm.cli.metrics import Answered, Metrics, Occupancy
from dynamo_llm.cli.prompts import Request, Workload, prompt_tokens

if TYPE_CHECKING:
    from dynamo_llm import Block, BlockList, SequenceHashes, aio

CHUNK_BYTES = 4 << 20
"""Bytes filled or checked between two turns of the event loop: about a millisecond."""
FAILURES_SHOWN = 10
BACKLOG = 4096
"""Requests that may wait for their turn when the replay runs as fast as it can; more are not created yet."""
OCCUPANCY_SAMPLES = 600


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How to serve a workload."""

    concurrency: int
    speed: float | None
    """Trace seconds a second; None: as fast as possible, and a request's hold is one turn of the loop."""
    with_bytes: bool
    allocate_timeout_s: float
    corrupt_block: int | None = None
    """For tests of the check itself: flips one bit of the n-th block that is filled."""


@dataclass(slots=True)
class _Held:
    """What one request holds; released from the end of its chain, so that it is evicted before the beginning."""

    hits: "BlockList | None" = None
    fresh: "BlockList | None" = None

    def release(self) -> None:
        for blocks in (self.fresh, self.hits):
            if blocks is not None:
                blocks.release()
        self.hits = self.fresh = None


class Server:
    """Replays one workload through one manager. `metrics` may be read while it runs."""

    def __init__(self, manager: "aio.BlockManager", workload: Workload, options: ServerOptions) -> None:
        self.manager = manager
        self.workload = workload
        self.options = options
        self.metrics = Metrics()
        pool = self.manager.get_host_pool()
        if pool is None:
            raise ValueError("the manager has no host pool")
        self._pool = pool
        self._capacity = pool.total_blocks()
        self._codec = Codec(self.manager.block_bytes) if self.options.with_bytes else None
        self._gate = asyncio.Semaphore(self.options.concurrency)
        self._backlog = asyncio.Semaphore(BACKLOG + self.options.concurrency)
        self._done: dict[int, asyncio.Event] = {}
        self._filled = itertools.count()
        self._sample_every = max(1, len(self.workload.requests) // OCCUPANCY_SAMPLES)

    async def run(self, started: Callable[[], None] | None = None) -> Metrics:
        """Serves all requests. Cancelled, it ends early with the metrics so far and `interrupted` set."""
        self._start = perf_counter()
        if started is not None:
            started()
        try:
            async with asyncio.TaskGroup() as group:
                await self._dispatch(group)
        except asyncio.CancelledError:
            self.metrics.interrupted = True
            if (task := asyncio.current_task()) is not None:
                task.uncancel()
        finally:
            self.metrics.seconds = perf_counter() - self._start
        self._sample(max((answered.arrival_s for answered in self.metrics.answered), default=0.0))
        self.metrics.native = self.manager.stats()
        return self.metrics

    async def _dispatch(self, group: asyncio.TaskGroup) -> None:
        """Sends the requests in order, each at its time or as soon as the backlog has room."""
        followed = {request.after for request in self.workload.requests if request.after is not None}
        for index, request in enumerate(self.workload.requests):
            if self.options.speed is not None:
                delay = self._start + request.arrival_s / self.options.speed - perf_counter()
                if delay > 0:
                    await asyncio.sleep(delay)
            await self._backlog.acquire()
            if index in followed:
                self._done[index] = asyncio.Event()
            group.create_task(self._answer(index, request))

    async def _answer(self, index: int, request: Request) -> None:
        """One request, from its arrival to its answer."""
        try:
            # With one request at a time the order of the workload does the same, and must not be disturbed.
            previous = None if request.after is None else self._done.get(request.after)
            if previous is not None and self.options.concurrency > 1:
                await previous.wait()
            async with self._gate:
                begin = perf_counter_ns()
                await self._serve(index, request)
                self.metrics.latency["request"].add(perf_counter_ns() - begin)
        finally:
            self._backlog.release()
            if (done := self._done.get(index)) is not None:
                done.set()

    async def _serve(self, index: int, request: Request) -> None:
        metrics = self.metrics
        page = self.manager.page_size
        pages = request.pages(page)
        with_hashes = perf_counter_ns()
        tokens = prompt_tokens(request)[: pages * page]
        salt = self.workload.salts[request.space]
        hashes = hash_tokens(tokens.data, page, salt=salt)
        metrics.latency["hash"].add(perf_counter_ns() - with_hashes)
        held = _Held()
        try:
            held.hits = await self._match(hashes)
            uncached = await self._allocate(held, hashes)
            hits = len(held.hits)
            written = duplicates = 0
            if held.fresh is not None and len(held.fresh):
                written = len(held.fresh)
                duplicates = await self._publish(
                    held, hashes[hits : hits + written], hashes[hits - 1] if hits else None
                )
            if index % self._sample_every == 0:
                self._sample(request.arrival_s)
            await self._hold(request)
            await self._check(held.hits, hashes, index)
        finally:
            held.release()
        metrics.requests += 1
        metrics.prompt_tokens += request.input_tokens
        metrics.output_tokens += request.output_tokens
        metrics.prompt_blocks += pages
        metrics.hit_blocks += hits
        metrics.hit_tokens += min(hits * page, request.input_tokens)
        metrics.written_blocks += written
        metrics.duplicate_blocks += duplicates
        metrics.uncached_blocks += uncached
        metrics.uncached_requests += uncached > 0
        metrics.answered.append(Answered(index, request.arrival_s, pages, hits))

    async def _match(self, hashes: "SequenceHashes") -> "BlockList":
        begin = perf_counter_ns()
        hits = await self._pool.match_sequence_hashes(hashes)
        self.metrics.latency["match"].add(perf_counter_ns() - begin)
        return hits

    async def _allocate(self, held: _Held, hashes: "SequenceHashes") -> int:
        """Takes blocks for what was not hit into `held.fresh`; returns how many blocks of the prompt stay uncached.

        May match again, so `held.hits` may be another list afterwards.
        """
        assert held.hits is not None
        lacking = len(hashes) - len(held.hits)
        fits = min(lacking, self._capacity - len(held.hits))
        if fits == 0:
            return lacking
        begin = perf_counter_ns()
        try:
            held.fresh = await self._pool.allocate_blocks(fits)
        except OutOfBlocksError:
            pass
        else:
            self.metrics.latency["allocate"].add(perf_counter_ns() - begin)
            return lacking - fits
        # Short: other requests hold the pool. Wait for them with empty hands.
        held.release()
        self.metrics.waited_requests += 1
        begin = perf_counter_ns()
        try:
            held.fresh = await self._pool.allocate_blocks(fits, timeout=self.options.allocate_timeout_s)
        except (OutOfBlocksError, OperationTimeoutError):
            pass
        self.metrics.latency["wait"].add(perf_counter_ns() - begin)
        held.hits = await self._match(hashes)
        lacking = len(hashes) - len(held.hits)
        if held.fresh is not None and len(held.fresh) > lacking:
            fresh, held.fresh = held.fresh, held.fresh[:lacking]
            fresh[lacking:].release()
        return lacking - (0 if held.fresh is None else len(held.fresh))

    async def _publish(self, held: _Held, hashes: "SequenceHashes", parent: bytes | None) -> int:
        """Fills the new blocks and registers them; returns how many had been registered by others meanwhile."""
        assert held.fresh is not None
        if self._codec is not None:
            async for part, first in self._chunks(held.fresh):
                begin = perf_counter_ns()
                for block, key in zip(part, hashes[first : first + len(part)], strict=True):
                    self._fill(self._codec, block, key)
                self.metrics.fill_ns += perf_counter_ns() - begin
        begin = perf_counter_ns()
        held.fresh = await self._pool.register_blocks(held.fresh, hashes=hashes, parent=parent)
        self.metrics.latency["register"].add(perf_counter_ns() - begin)
        return sum(1 for block in held.fresh if block.duplicate)

    def _fill(self, codec: Codec, block: "Block", key: bytes) -> None:
        memory = block_memory(block)
        codec.write(memory, key)
        if self.options.corrupt_block is not None and next(self._filled) == self.options.corrupt_block:
            piece = memory[len(memory) // 2]
            piece[piece.size // 3] ^= 0x10

    async def _hold(self, request: Request) -> None:
        """The time in which the model would run."""
        await asyncio.sleep(0 if self.options.speed is None else request.duration_s / self.options.speed)

    async def _check(self, hits: "BlockList", hashes: "SequenceHashes", index: int) -> None:
        """Every byte of every hit against the keys that this request computed."""
        if self._codec is None:
            return
        async for part, first in self._chunks(hits):
            begin = perf_counter_ns()
            for block, key in zip(part, hashes[first : first + len(part)], strict=True):
                mismatch = self._codec.check(block_memory(block), key)
                if mismatch is not None:
                    self._failed(index, block, key, mismatch)
            self.metrics.verified_blocks += len(part)
            self.metrics.verified_bytes += len(part) * self._codec.block_bytes
            self.metrics.verify_ns += perf_counter_ns() - begin

    def _failed(self, index: int, block: "Block", key: bytes, mismatch: Mismatch) -> None:
        self.metrics.verify_failures += 1
        if len(self.metrics.failures) < FAILURES_SHOWN:
            self.metrics.failures.append(
                f"request {index}: key {key.hex()} in block {block.block_id}: {mismatch.wrong_bytes} wrong bytes,"
                f" the first at offset {mismatch.offset}: expected {mismatch.expected.hex()},"
                f" found {mismatch.found.hex()}"
            )

    async def _chunks(self, blocks: "BlockList") -> AsyncIterator[tuple["Sequence[Block]", int]]:
        """The list in parts of at most CHUNK_BYTES, with a turn of the event loop between two."""
        count = max(1, CHUNK_BYTES // max(1, self.manager.block_bytes))
        for first in range(0, len(blocks), count):
            if first:
                await asyncio.sleep(0)
            yield blocks[first : first + count], first

    def _sample(self, at_s: float) -> None:
        stats = self._pool.stats()
        self.metrics.occupancy.append(
            Occupancy(
                at_s,
                stats["free_blocks"],
                stats["cached_blocks"],
                stats["leased_blocks"],
                stats["mutable_blocks"],
            )
        )


@asynccontextmanager
async def ticking(period_s: float, tick: Callable[[], None]) -> AsyncIterator[None]:
    """Calls `tick` every `period_s` while the body runs, and once at its end."""

    async def run() -> None:
        while True:
            await asyncio.sleep(period_s)
            tick()

    task = asyncio.create_task(run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        tick()
