"""What a replay shows: a live line while it runs, and tables at its end."""

import io
import re
import time
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

from rich import box
from rich.box import Box
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from dynamo_llm.cli.ceiling import Ceiling
from dynamo_llm.cli.metrics import PERCENTILES, Metrics

LATENCIES = (
    ("match", "match, awaited"),
    ("native_match", "match, native"),
    ("allocate", "allocate, awaited"),
    ("native_allocate", "allocate, native"),
    ("wait", "allocate, in line"),
    ("register", "register, awaited"),
    ("hash", "make and hash the prompt"),
    ("request", "whole request"),
)
"""Rows of latency tables: prefix in the summary, and what it is called."""
PLAIN_PERIOD_S = 5.0
LIVE_PERIOD_S = 0.1


def count(value: float) -> str:
    return f"{value:,.0f}"


def percent(part: float) -> str:
    return f"{100 * part:.1f} %"


def size(value: float) -> str:
    """Bytes with a binary prefix."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:,.0f} {unit}" if unit == "B" else f"{value:,.1f} {unit}"
        value /= 1024
    return f"{value:,.1f} TiB"


def duration(ns: float) -> str:
    """Three digits or so, with a unit."""
    for unit, scale in (("ns", 1.0), ("us", 1e3), ("ms", 1e6)):
        if ns < 999.5 * scale:
            return f"{ns / scale:.0f} ns" if unit == "ns" else f"{ns / scale:.3g} {unit}"
    return f"{ns / 1e9:.3g} s"


def speed(amount: float, seconds: float) -> str:
    return f"{amount / seconds / 1e9:.2f} GB/s" if seconds > 0 else "-"


def doing(console: Console, what: str) -> AbstractContextManager[object]:
    """Says on a terminal what goes on, for as long as it does."""
    return console.status(what) if console.is_terminal else nullcontext()


class Live:
    """The progress of a replay on standard error: a line that changes on a terminal, else one every few seconds."""

    def __init__(self, console: Console, metrics: Metrics, ceiling: Ceiling, block_bytes: int) -> None:
        self._console = console
        self._metrics = metrics
        self._total = len(ceiling.hits)
        self._ceiling = ceiling
        self._ceiling_hits = 0
        self._counted = 0
        self._block_bytes = block_bytes
        self._began = time.perf_counter()
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    @property
    def period_s(self) -> float:
        """How often `tick` should be called."""
        return LIVE_PERIOD_S if self._console.is_terminal else PLAIN_PERIOD_S

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            wide = self._console.width >= 110
            line = Column(no_wrap=True, overflow="ellipsis")
            remaining = (TextColumn("left"), TimeRemainingColumn()) if wide else ()
            self._progress = Progress(
                BarColumn(24 if wide else 8),
                TextColumn("{task.completed:,}/{task.total:,}", table_column=Column(no_wrap=True)),
                TextColumn("{task.description}", table_column=line),
                TimeElapsedColumn(),
                *remaining,
                console=self._console,
                auto_refresh=False,
            )
            self._task = self._progress.add_task(self._line(), total=self._total)
            self._progress.start()
        return self

    def __exit__(self, t: type[BaseException] | None, v: BaseException | None, tb: TracebackType | None) -> None:
        if self._progress is not None:
            self._progress.stop()

    def restart(self) -> None:
        """Rates count from here."""
        self._began = time.perf_counter()

    def tick(self) -> None:
        """Shows the present state."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=self._metrics.requests, description=self._line())
            self._progress.refresh()
        else:
            line = f"{self._metrics.requests:,}/{self._total:,} requests, {self._line()}"
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _line(self) -> str:
        metrics = self._metrics
        # The ceiling of what was answered so far: that of the whole workload says little about its beginning.
        fresh = metrics.answered[self._counted :]
        self._counted += len(fresh)
        self._ceiling_hits += sum(self._ceiling.hits[answered.index] for answered in fresh)
        ceiling = self._ceiling_hits / max(metrics.prompt_blocks, 1)
        parts = [f"hits {percent(metrics.hit_rate)} of {percent(ceiling)}"]
        seconds = time.perf_counter() - self._began
        if self._block_bytes:
            moved = metrics.written_blocks * self._block_bytes + metrics.verified_bytes
            parts.append(speed(moved, seconds))
        parts.append(f"{metrics.requests / max(seconds, 1e-9):,.0f} req/s")
        failures = f"{metrics.verify_failures:,} failures"
        if metrics.verify_failures and self._progress is not None:
            failures = f"[bold red]{failures}[/]"
        parts.append(failures)
        return ", ".join(parts)


def facts(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """The results as (name, text), for the table and the report."""
    config = summary["config"]
    blocks = summary["prompt_blocks"]
    reached = summary["hit_blocks"] / summary["ceiling_hit_blocks"] if summary["ceiling_hit_blocks"] else 1.0
    reuse = f"{percent(summary['hit_rate'])} ({count(summary['hit_blocks'])} blocks)"
    bound = f"{percent(summary['ceiling_hit_rate'])} ({count(summary['ceiling_hit_blocks'])} blocks)"
    rows = [
        ("requests", f"{count(summary['requests'])} of {count(config['requests'])}"),
        ("tokens", f"{count(summary['prompt_tokens'])} prompt, {count(summary['output_tokens'])} output"),
        ("prompt blocks", f"{count(blocks)}, of them {count(summary['distinct_blocks'])} distinct"),
        ("pool", f"{count(config['host_blocks'])} blocks of {size(config['block_bytes'])}{_pool_bytes(config)}"),
        ("hit rate", reuse),
        ("unbounded ceiling", f"{bound}; reached {percent(reached)} of it"),
        ("prefill tokens saved", f"{count(summary['prefill_tokens_saved'])} ({_part(summary)})"),
        ("memory saved by reuse", f"{size(summary['saved_bytes'])} ({percent(summary['hit_rate'])})"),
        ("evictions", f"{count(summary['evicted_blocks'])} blocks"),
    ]
    if config["concurrency"] > 1 or summary["uncached_blocks"]:
        waited = f"{count(summary['waited_requests'])} requests waited for blocks"
        uncached = (
            f"{count(summary['uncached_blocks'])} blocks of {count(summary['uncached_requests'])} requests uncached"
        )
        calm = not summary["waited_requests"] and not summary["uncached_blocks"]
        pressure = "no request waited" if calm else f"{waited}, {uncached}"
        rows.append(("under pressure", f"{pressure}, {count(summary['duplicate_blocks'])} blocks computed twice"))
    if config["bytes"]:
        rows.append(
            ("verified", f"{size(summary['verified_bytes'])} in {count(summary['verified_blocks'])} hit blocks")
        )
    rows.append(("verification failures", count(summary["verify_failures"]) if config["bytes"] else "0 (no bytes)"))
    rates = f"{count(summary['requests_per_second'])} requests/s, {count(summary['prompt_tokens_per_second'])} tokens/s"
    rows.append(("throughput", f"{rates} in {summary['seconds']:.1f} s"))
    if config["bytes"]:
        written = speed(summary["written_bytes"], summary["fill_seconds"])
        verified = speed(summary["verified_bytes"], summary["verify_seconds"])
        rows.append(("bytes", f"written at {written}, verified at {verified}"))
    return rows


def _pool_bytes(config: dict[str, Any]) -> str:
    if not config["bytes"]:
        return ", without memory"
    return f", {size(config['host_blocks'] * config['block_bytes'])}"


def _part(summary: dict[str, Any]) -> str:
    return percent(summary["prefill_tokens_saved"] / summary["prompt_tokens"] if summary["prompt_tokens"] else 0.0)


def latency_rows(summary: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Rows of the latency table; those that never happened are left out."""
    rows = []
    for prefix, title in LATENCIES:
        values = [summary.get(f"{prefix}_{rank}_ns", 0) for rank in (*(name for name, _ in PERCENTILES), "max")]
        if any(values):
            rows.append((title, [duration(value) for value in values]))
    return rows


def tables(summary: dict[str, Any], style: Box = box.ROUNDED) -> RenderableType:
    """The result of a replay for a terminal."""
    title = f"kvbm replay: {summary['workload']}" + (" (interrupted)" if summary["interrupted"] else "")
    results = Table(title=title, title_style="bold", show_header=False, min_width=60, box=style)
    results.add_column(style="cyan", no_wrap=True)
    results.add_column()
    for name, text in facts(summary):
        emphasis = ""
        if name == "verification failures":
            emphasis = "bold red" if summary["verify_failures"] else "bold green"
        elif name == "hit rate":
            emphasis = "bold"
        results.add_row(name, Text(text, style=emphasis))
    latency = Table(title="latency", title_style="bold", box=style)
    latency.add_column("", style="cyan", no_wrap=True)
    for heading in ("p50", "p90", "p99", "p99.9", "max"):
        latency.add_column(heading, justify="right", no_wrap=True)
    for name, values in latency_rows(summary):
        latency.add_row(name, *values)
    return Group(results, latency)


def picture(summary: dict[str, Any], command: str) -> str:
    """An SVG of a terminal in which the command has just ended. Nothing in it is loaded from a network."""
    console = Console(record=True, width=100, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(f"[bold green]$[/] [bold]{escape(command)}[/]", highlight=False)
    done = summary["requests"] / max(summary["config"]["requests"], 1)
    moved = speed(summary["written_bytes"] + summary["verified_bytes"], summary["seconds"])
    line = Table.grid(padding=(0, 1))
    line.add_row(
        ProgressBar(total=1.0, completed=done, width=16),
        f"{count(summary['requests'])}/{count(summary['config']['requests'])}",
        f"hits {percent(summary['hit_rate'])} of {percent(summary['ceiling_hit_rate'])}, {moved},"
        f" {count(summary['requests_per_second'])} req/s, {count(summary['verify_failures'])} failures",
        f"[yellow]{timedelta(seconds=round(summary['seconds']))}[/]",
    )
    console.print(line, "")
    console.print(tables(summary, box.SIMPLE_HEAD))
    svg = console.export_svg(title="kvbm replay")
    return re.sub(r"@font-face\s*\{[^}]*\}\s*", "", svg)
