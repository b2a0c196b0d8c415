"""Sizes chosen by default, and how figures are written."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from dynamo_llm.cli.ceiling import Ceiling
from dynamo_llm.cli.display import Live, duration, latency_rows, percent, size, tables
from dynamo_llm.cli.metrics import Answered, Latency, Metrics, summarise
from dynamo_llm.cli.sizing import POOL_BYTES_MAX, available_memory, default_host_blocks, default_inner_dim, slab_stride

BOUND = Ceiling(hits=(0, 10), blocks=(40, 60))


def test_blocks_are_32_kib_by_default() -> None:
    assert default_inner_dim(2, 2, 512, 2) == 8
    assert default_inner_dim(2, 2, 16, 2) == 256
    assert default_inner_dim(64, 2, 4096, 4) == 1


def test_pools_hold_the_working_set_as_far_as_memory_goes() -> None:
    assert [slab_stride(n) for n in (1, 4096, 4097)] == [4096, 4096, 8192]
    assert default_host_blocks(BOUND, 2, 1 << 15, 1 << 40) == 90 + 2 * 60
    assert default_host_blocks(BOUND, 2, 1 << 15, 40 << 15) == 10
    assert default_host_blocks(BOUND, 2, 1 << 15, 0) == 1
    assert default_host_blocks(BOUND, 1, POOL_BYTES_MAX // 3, None) == 3
    assert default_host_blocks(BOUND, 2, None, 0) == 210


def test_available_memory_is_the_smaller_of_machine_and_group(tmp_path: Path) -> None:
    assert available_memory(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal:  9 kB\nMemAvailable:  1000 kB\n")
    assert available_memory(tmp_path) == 1024000
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    assert available_memory(tmp_path) == 1024000
    (group / "memory.max").write_text("5000\n")
    (group / "memory.current").write_text("2000\n")
    assert available_memory(tmp_path) == 3000


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0 ns"),
        (999, "999 ns"),
        (1000, "1 us"),
        (12345, "12.3 us"),
        (999_499, "999 us"),
        (2_500_000, "2.5 ms"),
        (3e9, "3 s"),
    ],
)
def test_durations_have_a_unit_that_suits(ns: float, text: str) -> None:
    assert duration(ns) == text


def test_sizes_and_parts() -> None:
    assert [size(value) for value in (5, 2048, 3 << 20, 5 << 29, 3 << 40)] == [
        "5 B",
        "2.0 KiB",
        "3.0 MiB",
        "2.5 GiB",
        "3.0 TiB",
    ]
    assert percent(0.36641) == "36.6 %"


def test_percentiles_are_nearest_ranks() -> None:
    latency = Latency()
    assert set(latency.percentiles().values()) == {0}
    for value in range(1000, 0, -1):
        latency.add(value)
    assert latency.percentiles() == {"p50": 500, "p90": 900, "p99": 990, "p999": 999, "max": 1000}


def config(requests: int) -> dict[str, object]:
    return {
        "command": "kvbm replay",
        "workload": "test",
        "requests": requests,
        "host_blocks": 10,
        "block_bytes": 1024,
        "bytes": True,
        "concurrency": 8,
    }


def test_an_empty_summary_can_be_shown() -> None:
    summary = summarise(Metrics(interrupted=True), 0, config(2))
    assert summary["hit_rate"] == summary["ceiling_hit_rate"] == 0.0
    assert latency_rows(summary) == []
    console = Console(file=io.StringIO(), width=100)
    console.print(tables(summary))
    assert isinstance(console.file, io.StringIO)
    assert "(interrupted)" in console.file.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_compares_with_the_ceiling_so_far(terminal: bool) -> None:
    console = Console(file=io.StringIO(), width=140, force_terminal=terminal, color_system=None)
    metrics = Metrics()
    with Live(console, metrics, BOUND, 1024) as live:
        assert live.period_s == (0.1 if terminal else 5.0)
        metrics.requests, metrics.prompt_blocks, metrics.hit_blocks = 1, 60, 6
        metrics.answered.append(Answered(1, 0.0, 60, 6))
        live.tick()
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "hits 10.0 % of 16.7 %" in shown
    assert "0 failures" in shown
    assert ("1/2 requests" in shown) is not terminal
