"""What the Python benchmarks share: batches, medians and one JSON line a result (the form of bench/bench.h).

A figure is the median over many short batches; subjects that are compared are interleaved, batch by batch, so that both
see the same machine. Only JSON lines go to standard output.
"""

import functools
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Summary:
    """Median and spread of batches, in the unit of the result."""

    median: float
    p10: float
    p90: float
    batches: int
    per_batch: int

    def scaled(self, factor: float) -> "Summary":
        return Summary(self.median * factor, self.p10 * factor, self.p90 * factor, self.batches, self.per_batch)


def summarize(samples: list[float], per_batch: int) -> Summary:
    ordered = sorted(samples)
    tenth = len(ordered) // 10
    return Summary(statistics.median(ordered), ordered[tenth], ordered[-1 - tenth], len(ordered), per_batch)


# A subject runs `iterations` times and returns the nanoseconds that count.
Subject = Callable[[int], int]
AsyncSubject = Callable[[int], Awaitable[int]]


def run(subjects: dict[str, tuple[Subject, int]], batches: int) -> dict[str, Summary]:
    """All subjects in turn, `batches` times, after a tenth of that as warm-up: ns an iteration."""
    samples: dict[str, list[float]] = {name: [] for name in subjects}
    warm_up = batches // 10 + 1
    for batch in range(warm_up + batches):
        for name, (subject, iterations) in subjects.items():
            ns = subject(iterations)
            if batch >= warm_up:
                samples[name].append(ns / iterations)
    return {name: summarize(samples[name], iterations) for name, (_, iterations) in subjects.items()}


async def run_async(subjects: dict[str, tuple[AsyncSubject, int]], batches: int) -> dict[str, Summary]:
    """As run, on the running loop."""
    samples: dict[str, list[float]] = {name: [] for name in subjects}
    warm_up = batches // 10 + 1
    for batch in range(warm_up + batches):
        for name, (subject, iterations) in subjects.items():
            ns = await subject(iterations)
            if batch >= warm_up:
                samples[name].append(ns / iterations)
    return {name: summarize(samples[name], iterations) for name, (_, iterations) in subjects.items()}


def clock_overhead_ns() -> float:
    """What reading the clock twice costs, for figures that time single calls."""
    samples = []
    for _ in range(2000):
        start = perf_counter_ns()
        samples.append(perf_counter_ns() - start)
    return statistics.median(samples)


@functools.cache
def machine() -> dict[str, Any]:
    cpu = next(
        (line.split(": ", 1)[1] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    revision = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude", "*"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "compiler": f"CPython {platform.python_version()}",
        "revision": revision,
    }


def digits(value: float) -> float | int:
    """Four digits: more than the machine repeats."""
    return round(value) if abs(value) >= 1000 else float(f"{value:.4g}")


def report(
    name: str,
    unit: str,
    value: Summary,
    *,
    reference: tuple[str, float] | None = None,
    target_value: float | None = None,
    target_ratio: float | None = None,
    **conditions: Any,
) -> None:
    """Prints one result. Targets are upper limits: of the value, or of value / reference."""
    target = None
    if target_value is not None:
        target = {"value_max": target_value}
    elif target_ratio is not None:
        target = {"ratio_max": target_ratio}
    result = {
        "name": name,
        "unit": unit,
        "value": digits(value.median),
        "spread": [digits(value.p10), digits(value.p90)],
        "reference": {"name": reference[0], "value": digits(reference[1])} if reference else None,
        "ratio": float(f"{value.median / reference[1]:.4g}") if reference and reference[1] else None,
        "target": target,
        "conditions": {**machine(), "batches": value.batches, "per_batch": value.per_batch, **conditions},
    }
    print(json.dumps(result), flush=True)


def note(text: str) -> None:
    print(text, file=sys.stderr)
