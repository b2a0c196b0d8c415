"""What a replay counts, and the summary made of it."""

import math
from array import array
from dataclasses import dataclass, field
from typing import Any

PERCENTILES = (("p50", 0.50), ("p90", 0.90), ("p99", 0.99), ("p999", 0.999))
TIMED = ("hash", "match", "allocate", "wait", "register", "request")
"""Latencies measured around each step. "allocate": answered without waiting for other requests; "wait": the others."""
NATIVE = {"match": "match", "allocate": "allocate", "registering": "register"}
"""Latencies of manager.stats() and what they are called in the summary."""


class Latency:
    """All samples of one latency, in ns."""

    def __init__(self) -> None:
        self.samples = array("q")

    def add(self, ns: int) -> None:
        self.samples.append(ns)

    def percentiles(self) -> dict[str, int]:
        """Nearest-rank percentiles and the maximum; zeros without samples."""
        ordered = sorted(self.samples)
        if not ordered:
            return {name: 0 for name, _ in PERCENTILES} | {"max": 0}
        ranks = {name: ordered[max(0, math.ceil(q * len(ordered)) - 1)] for name, q in PERCENTILES}
        return ranks | {"max": ordered[-1]}


@dataclass(frozen=True, slots=True)
class Occupancy:
    """The pool at one moment; `at_s` is trace time."""

    at_s: float
    free: int
    cached: int
    leased: int
    mutable: int


@dataclass(frozen=True, slots=True)
class Answered:
    """One finished request."""

    index: int
    arrival_s: float
    blocks: int
    hits: int


@dataclass(slots=True)
class Metrics:
    """Counters of one replay; only finished requests count."""

    requests: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    prompt_blocks: int = 0
    hit_blocks: int = 0
    hit_tokens: int = 0
    written_blocks: int = 0
    duplicate_blocks: int = 0
    """Blocks that another request had registered between this one's match and its registration."""
    uncached_requests: int = 0
    """Requests of which some blocks were not cached, for no room came in time or there never is so much."""
    uncached_blocks: int = 0
    waited_requests: int = 0
    verified_bytes: int = 0
    verified_blocks: int = 0
    verify_failures: int = 0
    """Blocks with a wrong byte."""
    failures: list[str] = field(default_factory=list)
    """The first of them, described."""
    seconds: float = 0.0
    fill_ns: int = 0
    verify_ns: int = 0
    interrupted: bool = False
    latency: dict[str, Latency] = field(default_factory=lambda: {name: Latency() for name in TIMED})
    answered: list[Answered] = field(default_factory=list)
    occupancy: list[Occupancy] = field(default_factory=list)
    native: dict[str, Any] = field(default_factory=dict)
    """manager.stats() at the end."""

    @property
    def hit_rate(self) -> float:
        return self.hit_blocks / self.prompt_blocks if self.prompt_blocks else 0.0

    @property
    def evicted_blocks(self) -> int:
        return int(self.native.get("pools", {}).get("host", {}).get("evicted_count", 0))


def summarise(metrics: Metrics, ceiling_hits: int, config: dict[str, Any]) -> dict[str, Any]:
    """The summary object of --json and summary.json. `ceiling_hits`: of the requests that were finished."""
    block_bytes = int(config["block_bytes"])
    with_bytes = bool(config["bytes"])
    blocks = metrics.prompt_blocks
    seconds = max(metrics.seconds, 1e-9)
    summary: dict[str, Any] = {
        "workload": config["workload"],
        "requests": metrics.requests,
        "prompt_tokens": metrics.prompt_tokens,
        "output_tokens": metrics.output_tokens,
        "prompt_blocks": blocks,
        "hit_blocks": metrics.hit_blocks,
        "hit_rate": metrics.hit_rate,
        "ceiling_hit_blocks": ceiling_hits,
        "ceiling_hit_rate": ceiling_hits / blocks if blocks else 0.0,
        "distinct_blocks": blocks - ceiling_hits,
        "prefill_tokens_saved": metrics.hit_tokens,
        "saved_bytes": metrics.hit_blocks * block_bytes,
        "written_blocks": metrics.written_blocks,
        "evicted_blocks": metrics.evicted_blocks,
        "duplicate_blocks": metrics.duplicate_blocks,
        "waited_requests": metrics.waited_requests,
        "uncached_requests": metrics.uncached_requests,
        "uncached_blocks": metrics.uncached_blocks,
        "verified_blocks": metrics.verified_blocks,
        "verified_bytes": metrics.verified_bytes,
        "verify_failures": metrics.verify_failures,
        "interrupted": metrics.interrupted,
        "seconds": metrics.seconds,
        "requests_per_second": metrics.requests / seconds,
        "prompt_tokens_per_second": metrics.prompt_tokens / seconds,
        "written_bytes": metrics.written_blocks * block_bytes if with_bytes else 0,
        "fill_seconds": metrics.fill_ns / 1e9,
        "verify_seconds": metrics.verify_ns / 1e9,
    }
    for name, latency in metrics.latency.items():
        summary |= {f"{name}_{rank}_ns": value for rank, value in latency.percentiles().items()}
    for field_name, name in NATIVE.items():
        native = metrics.native.get(field_name, {})
        for rank in ("p50", "p90", "p99", "p999", "max"):
            if (value := native.get(f"{rank}_ns")) is not None:
                summary[f"native_{name}_{rank}_ns"] = int(value)
    summary["config"] = config
    return summary
