"""The asyncio face of the Python package, on asyncio's own loop and on uvloop.

py_await_alloc         await one block and release it; answered at submit, so that awaiting does not suspend
py_cross_thread_await  the same with BlockManager(borrow=False): every operation goes to the reactor's thread. Its
                       completion comes back through the port, or at submit where the reactor's thread was so quick
                       that the submit still saw the answer: on one processor, where its wake-up interrupts the
                       submitter. The conditions have the part of those, from untimed operations afterwards.
                       Its floor, measured in the same batches, is an echo thread in C: one eventfd written by the
                       loop's thread, one written back, add_reader, a future.
                       The same with both threads pinned: py_cross_thread_await_one_cpu, py_cross_thread_await_two_cpus.
                       Where the scheduler puts them changes either figure tenfold, so compare within a placement
py_await_gather_64     64 such operations at once, ns an operation
py_tasks_5000          5,000 concurrent tasks that await match, allocate and register and release: the 99.9th percentile
                       of one await; the conditions have the other percentiles and the rate
py_tasks_5000_cross    the same with borrow=False

On uvloop: py_await_alloc_uvloop, py_cross_thread_await_uvloop, py_cross_thread_await_one_cpu_uvloop,
py_cross_thread_await_two_cpus_uvloop, py_await_gather_64_uvloop, py_tasks_5000_uvloop, py_tasks_5000_cross_uvloop.
"""

import asyncio
import ctypes
import functools
import importlib.util
import os
import subprocess
import sys
import types
from collections.abc import Generator
from time import perf_counter_ns
from typing import Any

from common import ROOT, Summary, note, report, run_async, summarize

import dynamo_llm
from dynamo_llm import aio

TASKS = 5000
ROUNDS_A_TASK = 4
REPETITIONS = 7


def manager(blocks: int, **options: object) -> aio.BlockManager:
    return aio.BlockManager(
        num_layers=2,
        page_size=16,
        inner_dim=64,
        host_blocks=blocks,
        **options,  # type: ignore[arg-type]
    )


class Echo:
    """The echo thread, and a coroutine for one round trip to it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        library = ROOT / ".cache" / "bench" / "libecho.so"
        library.parent.mkdir(parents=True, exist_ok=True)
        source = ROOT / "bench" / "echo.c"
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-pthread", "-o", library, source], check=True)
        self.loop = loop
        self.to = os.eventfd(0, os.EFD_CLOEXEC)
        self.back = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.future: asyncio.Future[None] | None = None
        if ctypes.CDLL(str(library)).echo_start(self.to, self.back) != 0:
            sys.exit("echo_start failed")
        loop.add_reader(self.back, self.answered)

    def answered(self) -> None:
        os.eventfd_read(self.back)
        if self.future is not None:
            self.future.set_result(None)

    async def trips(self, iterations: int) -> int:
        start = perf_counter_ns()
        for _ in range(iterations):
            self.future = self.loop.create_future()
            os.eventfd_write(self.to, 1)
            await self.future
        return perf_counter_ns() - start

    def close(self) -> None:
        self.loop.remove_reader(self.back)
        os.eventfd_write(self.to, 1000)


async def finished_future(iterations: int) -> int:
    """The floor of an await."""
    future = asyncio.get_running_loop().create_future()
    future.set_result(None)
    start = perf_counter_ns()
    for _ in range(iterations):
        await future
    return perf_counter_ns() - start


async def await_alloc(blocks: aio.BlockManager, iterations: int) -> int:
    start = perf_counter_ns()
    for _ in range(iterations):
        (await blocks.allocate_blocks(1)).release()
    return perf_counter_ns() - start


async def await_gather(blocks: aio.BlockManager, iterations: int) -> int:
    start = perf_counter_ns()
    for _ in range(iterations // 64):
        for one in await asyncio.gather(*(blocks.allocate_blocks(1) for _ in range(64))):
            one.release()
    return perf_counter_ns() - start


@types.coroutine
def steps(operation: aio.Operation[Any]) -> Generator[Any, None, tuple[Any, int]]:
    """Awaits an operation; returns its result, and how often it suspended."""
    suspended = 0
    while True:
        try:
            future = operation.send(None)
        except StopIteration as end:
            return end.value, suspended
        suspended += 1
        yield future


async def answered_at_submit(blocks: aio.BlockManager, operations: int = 2000) -> float:
    """The part of operations that are answered without a suspension."""
    count = 0
    for _ in range(operations):
        one, suspended = await steps(blocks.allocate_blocks(1))
        one.release()
        count += suspended == 0
    return count / operations


async def bench_inline(suffix: str) -> None:
    async with manager(4096) as lent:
        results = await run_async(
            {
                "alloc": (functools.partial(await_alloc, lent), 500),
                "future": (finished_future, 2000),
            },
            batches=500,
        )
    report(
        "py_await_alloc" + suffix,
        "ns",
        results["alloc"],
        reference=("awaiting a finished future", results["future"].median),
        target_value=1500,
        loop=loop_name(),
    )


async def bench_cross(suffix: str, placement: str) -> None:
    """Threads inherit the processors that their maker may run on, so the other side is made first."""
    all_cpus = os.sched_getaffinity(0)
    first, last = {min(all_cpus)}, {max(all_cpus)}
    os.sched_setaffinity(0, {"free": all_cpus, "one_cpu": first, "two_cpus": last}[placement])
    echo = Echo(asyncio.get_running_loop())
    crossing = manager(4096, borrow=False)
    os.sched_setaffinity(0, all_cpus if placement == "free" else first)
    try:
        async with crossing:
            results = await run_async(
                {
                    "alloc": (functools.partial(await_alloc, crossing), 20),
                    "echo": (echo.trips, 20),
                },
                batches=500,
            )
            # Apart from the others: a reactor that has just run much waits longer for a busy processor.
            gather = await run_async({"gather": (functools.partial(await_gather, crossing), 128)}, batches=200)
            at_submit = await answered_at_submit(crossing)
    finally:
        echo.close()
        os.sched_setaffinity(0, all_cpus)
    name = "py_cross_thread_await" + ("" if placement == "free" else f"_{placement}") + suffix
    report(
        name,
        "ns",
        results["alloc"],
        reference=("a bare eventfd echo thread with add_reader", results["echo"].median),
        target_ratio=1.5,
        floor_spread=[round(results["echo"].p10), round(results["echo"].p90)],
        placement=placement.replace("_", " "),
        part_answered_at_submit=round(at_submit, 3),
        loop=loop_name(),
    )
    if placement == "free":
        report(
            "py_await_gather_64" + suffix,
            "ns",
            gather["gather"],
            reference=(name, results["alloc"].median),
            operations_in_flight=64,
            loop=loop_name(),
        )


def loop_name() -> str:
    return type(asyncio.get_running_loop()).__module__.partition(".")[0]


async def request(
    pool: aio.BlockPool, number: int, shared: dynamo_llm.SequenceHashes, own: list[bytes], latencies: list[int]
) -> None:
    """What one server request does: match its prefix, allocate the rest, register it, give everything back."""
    for turn in range(ROUNDS_A_TASK):
        start = perf_counter_ns()
        hits = await pool.match_sequence_hashes(shared)
        latencies.append(perf_counter_ns() - start)
        await asyncio.sleep(0)
        start = perf_counter_ns()
        fresh = await pool.allocate_blocks(2, timeout=None)
        latencies.append(perf_counter_ns() - start)
        await asyncio.sleep(0)
        start = perf_counter_ns()
        kept = await pool.register_blocks(fresh, hashes=own[2 * turn : 2 * turn + 2])
        latencies.append(perf_counter_ns() - start)
        await asyncio.sleep(0)
        kept.release()
        hits.release()


async def crowd(pool: aio.BlockPool, repetition: int, shared: dynamo_llm.SequenceHashes) -> tuple[list[int], int]:
    """One repetition: every await's latency, and the time of the whole."""
    latencies: list[int] = []
    first = (repetition * TASKS) << 32
    tasks = []
    for number in range(TASKS):
        own = [(first + (number << 32) + i + 1).to_bytes(16, "little") for i in range(2 * ROUNDS_A_TASK)]
        tasks.append(asyncio.ensure_future(request(pool, number, shared, own, latencies)))
    start = perf_counter_ns()
    await asyncio.gather(*tasks)
    return latencies, perf_counter_ns() - start


def percentile(ordered: list[int], part: float) -> int:
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


async def bench_tasks(suffix: str, borrow: bool) -> None:
    shared = dynamo_llm.hash_tokens(range(16 * 32), 16)
    tails: list[float] = []
    middles: list[float] = []
    p99s: list[float] = []
    maxima: list[float] = []
    rates: list[float] = []
    # Room for every task at once, and eviction in the later repetitions.
    async with manager(20_000, borrow=borrow, bytes=False) as blocks:
        pool = blocks.get_host_pool()
        assert pool is not None
        prefix = await pool.register_blocks(await pool.allocate_blocks(32), hashes=shared)
        for repetition in range(REPETITIONS + 1):
            latencies, ns = await crowd(pool, repetition, shared)
            if repetition == 0:
                continue
            latencies.sort()
            middles.append(percentile(latencies, 0.5))
            p99s.append(percentile(latencies, 0.99))
            tails.append(percentile(latencies, 0.999))
            maxima.append(latencies[-1])
            rates.append(len(latencies) / ns * 1e9)
        prefix.release()
    operations = TASKS * ROUNDS_A_TASK * 3
    tail: Summary = summarize(tails, operations)
    middle, rate = summarize(middles, operations), summarize(rates, operations)
    report(
        "py_tasks_5000" + suffix,
        "ns",
        tail,
        reference=("target: 1 ms", 1_000_000) if borrow else None,
        target_value=1_000_000 if borrow else None,
        quantile="p99.9 of one await",
        p50_ns=round(middle.median),
        p99_ns=round(summarize(p99s, operations).median),
        max_ns=round(summarize(maxima, operations).median),
        awaits_per_s=round(rate.median),
        awaits_per_s_spread=[round(rate.p10), round(rate.p90)],
        tasks=TASKS,
        loop=loop_name(),
    )


async def bench(suffix: str) -> None:
    await bench_inline(suffix)
    for placement in ("free", "one_cpu", "two_cpus"):
        await bench_cross(suffix, placement)
    await bench_tasks(suffix, borrow=True)
    await bench_tasks("_cross" + suffix, borrow=False)


def main() -> None:
    asyncio.run(bench(""))
    if importlib.util.find_spec("uvloop") is None:
        note("uvloop is not installed: its variants are left out")
        return
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(bench("_uvloop"))


if __name__ == "__main__":
    main()
