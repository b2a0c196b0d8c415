"""One replay from options to result: reads the workload, opens the manager, serves, sums up."""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from dynamo_llm import DType, KvbmError, aio
from dynamo_llm.cli.ceiling import Ceiling, ceiling
from dynamo_llm.cli.display import Live, doing, size
from dynamo_llm.cli.metrics import Metrics, summarise
from dynamo_llm.cli.prompts import Workload
from dynamo_llm.cli.server import Server, ServerOptions, ticking
from dynamo_llm.cli.sizing import available_memory, default_host_blocks, default_inner_dim, slab_stride
from dynamo_llm.cli.traces import read_trace
from dynamo_llm.cli.workload import ChatShape, chat_workload


class ReplayError(Exception):
    """A replay that cannot start or go on; `usage`: because of its options."""

    def __init__(self, message: str, usage: bool) -> None:
        super().__init__(message)
        self.usage = usage


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """The options of `kvbm replay` of the same names; None where the default depends on others."""

    host_blocks: int | None = None
    page_size: int | None = None
    num_layers: int = 2
    outer_dim: int = 2
    inner_dim: int | None = None
    dtype: str = "fp16"
    policy: str = "prefix"
    concurrency: int = 8
    speed: float | None = None
    allocate_timeout: float = 1.0
    no_bytes: bool = False
    limit: int | None = None
    seed: int = 1
    trace_block: int | None = None
    report: Path | None = None
    corrupt_block: int | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a replay."""

    summary: dict[str, Any]
    metrics: Metrics
    ceiling: Ceiling
    workload: Workload
    problems: list[str]
    """What must never be: each is a bug of the block manager."""


@dataclass(frozen=True, slots=True)
class _Geometry:
    """Options with their defaults settled."""

    page_size: int
    inner_dim: int
    host_blocks: int
    block_bytes: int


async def replay(trace: Path | None, options: ReplayOptions, console: Console) -> Result:
    """Runs one replay and shows its progress on `console`. TraceError, ReplayError."""
    if options.report is not None:
        try:
            options.report.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ReplayError(f"--report: {options.report}: {error.strerror}", usage=True) from None
    with doing(console, "reading the requests"):
        workload = load(trace, options)
        page_size = options.page_size or workload.block_tokens
        bound = ceiling(workload, page_size)
    if bound.prompt_blocks == 0:
        raise ReplayError(f"{workload.name}: no prompt fills a block of {page_size} tokens", usage=True)
    geometry = _settle(options, page_size, bound)
    with doing(console, f"opening a pool of {geometry.host_blocks:,} blocks"):
        manager = _open(options, geometry)
    server_options = ServerOptions(
        concurrency=options.concurrency,
        speed=options.speed,
        with_bytes=not options.no_bytes,
        allocate_timeout_s=options.allocate_timeout,
        corrupt_block=options.corrupt_block,
    )
    async with manager:
        server = Server(manager, workload, server_options)
        live = Live(
            console,
            server.metrics,
            bound,
            0 if options.no_bytes else geometry.block_bytes,
        )
        failure: BaseException | None = None
        try:
            with live:
                async with ticking(live.period_s, live.tick):
                    await server.run(live.restart)
        except* KvbmError as group:
            failure = _first(group)
        # Not raised in the clause above: what is raised there arrives in a group.
        if failure is not None:
            raise ReplayError(f"{type(failure).__name__}: {failure}", usage=False)
    metrics = server.metrics
    config = _config(workload, options, geometry)
    ceiling_hits = sum(bound.hits[answered.index] for answered in metrics.answered)
    summary = summarise(metrics, ceiling_hits, config)
    return Result(summary, metrics, bound, workload, _problems(metrics, ceiling_hits))


def _first(error: BaseException) -> BaseException:
    """The first real exception of a group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def load(trace: Path | None, options: ReplayOptions) -> Workload:
    """The requests to replay."""
    if trace is None:
        shape = ChatShape() if options.limit is None else ChatShape(requests=options.limit)
        return chat_workload(options.seed, shape)
    return read_trace(trace, options.trace_block, options.limit).limited(options.limit)


def _settle(options: ReplayOptions, page_size: int, bound: Ceiling) -> _Geometry:
    itemsize = _dtype(options).itemsize
    inner_dim = options.inner_dim or default_inner_dim(options.num_layers, options.outer_dim, page_size, itemsize)
    block_bytes = options.num_layers * options.outer_dim * page_size * inner_dim * itemsize
    available = available_memory()
    stride = slab_stride(block_bytes)
    host_blocks = options.host_blocks or default_host_blocks(
        bound, options.concurrency, None if options.no_bytes else stride, available
    )
    needed = host_blocks * stride
    if not options.no_bytes and available is not None and needed > available:
        raise ReplayError(
            f"{host_blocks:,} blocks of {size(stride)} need {size(needed)} of memory, but {size(available)} are"
            " available (fewer --host-blocks, or --no-bytes)",
            usage=True,
        )
    return _Geometry(page_size, inner_dim, host_blocks, block_bytes)


def _dtype(options: ReplayOptions) -> DType:
    dtype: DType = getattr(DType, options.dtype.upper())
    return dtype


def _open(options: ReplayOptions, geometry: _Geometry) -> aio.BlockManager:
    try:
        return aio.BlockManager(
            options.num_layers,
            geometry.page_size,
            geometry.inner_dim,
            _dtype(options),
            outer_dim=options.outer_dim,
            host_blocks=geometry.host_blocks,
            policy=options.policy,
            bytes=not options.no_bytes,
            track_tokens=False,
            name="replay",
        )
    except (KvbmError, ValueError, MemoryError) as error:
        raise ReplayError(f"cannot open the block manager: {error}", usage=True) from None


def _config(workload: Workload, options: ReplayOptions, geometry: _Geometry) -> dict[str, Any]:
    """What ran, for the summary and the report."""
    return {
        "command": shlex.join(["kvbm", *sys.argv[1:]]),
        "workload": workload.name,
        "kind": workload.kind,
        "requests": len(workload.requests),
        "seed": options.seed if workload.kind == "chat" else None,
        "host_blocks": geometry.host_blocks,
        "block_bytes": geometry.block_bytes,
        "page_size": geometry.page_size,
        "num_layers": options.num_layers,
        "outer_dim": options.outer_dim,
        "inner_dim": geometry.inner_dim,
        "dtype": options.dtype,
        "policy": options.policy,
        "bytes": not options.no_bytes,
        "concurrency": options.concurrency,
        "speed": options.speed,
        "allocate_timeout_s": options.allocate_timeout,
    }


def _problems(metrics: Metrics, ceiling_hits: int) -> list[str]:
    """Checks of a finished replay against what cannot be."""
    if metrics.interrupted:
        return []
    problems = []
    if metrics.hit_blocks > ceiling_hits:
        problems.append(f"{metrics.hit_blocks:,} hits are more than the {ceiling_hits:,} of an unbounded cache")
    host = metrics.native["pools"]["host"]
    if held := host["leased_blocks"] + host["mutable_blocks"]:
        problems.append(f"{held:,} blocks are still held after the last request")
    return problems
