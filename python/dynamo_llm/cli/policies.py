"""Eviction policies compared: each one at several capacities, against the best that any could do.

The block manager runs with bookkeeping alone, one request at a time, as `kvbm replay --no-bytes --concurrency 1` does.

The optimum is Belady's (1966) for a prefix cache: whoever must evict gives up the unleased block whose next use is
farthest away, of those the deepest. It holds to the rules that the policies hold to: what a request needs is leased all
at once and cached without choice. Whoever uses a block uses all blocks before it, so the next use of a parent is never
later than its child's: the optimum gives up children first, all it keeps can be found, and every hit counts. No policy
can have more, and none that does not know the future can have as many.
"""

import heapq
import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.ticker import FuncFormatter, PercentFormatter
from rich import box
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table

import dynamo_llm
from dynamo_llm.cli.ceiling import ceiling
from dynamo_llm.cli.display import count, doing
from dynamo_llm.cli.prompts import Workload, prompt_tokens

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dynamo_llm import BlockPool, SequenceHashes

POLICIES = ("prefix", "lru", "s3fifo")
SHARES = (0.01, 0.02, 0.05, 0.10, 0.20)
"""Default capacities, as parts of the distinct blocks."""
PAGE_NAME = "policies.html"
PLOT_NAME = "policies.svg"
DATA_NAME = "policies.json"


@dataclass(frozen=True, slots=True)
class Prompts:
    """A workload as keys: the sequence hashes of every prompt, and the same as numbers from 0."""

    hashes: "list[SequenceHashes]"
    numbers: list[list[int]]


def prompts(workload: Workload) -> Prompts:
    """Hashes every prompt once, in the workload's own block size."""
    page = workload.block_tokens
    known: dict[bytes, int] = {}
    every: list[SequenceHashes] = []
    numbers: list[list[int]] = []
    for request in workload.requests:
        tokens = prompt_tokens(request)[: request.pages(page) * page]
        hashes = dynamo_llm.hash_tokens(tokens.data, page, salt=workload.salts[request.space])
        every.append(hashes)
        numbers.append([known.setdefault(key, len(known)) for key in hashes])
    return Prompts(every, numbers)


def hits(workload: Workload, keys: Prompts, policy: str, capacity: int) -> int:
    """Blocks that a pool of `capacity` blocks finds, with this policy."""
    manager = dynamo_llm.BlockManager(
        1, workload.block_tokens, 8, host_blocks=capacity, policy=policy, bytes=False, track_tokens=False
    )
    with manager:
        pool = manager.get_host_pool()
        assert pool is not None
        return sum(_serve(pool, hashes, capacity) for hashes in keys.hashes)


def _serve(pool: "BlockPool", hashes: "SequenceHashes", capacity: int) -> int:
    """One request: what it hits. The end of its chain is released before its beginning."""
    held = pool.match_sequence_hashes(hashes)
    found = len(held)
    if fits := min(len(hashes) - found, capacity - found):
        fresh = pool.allocate_blocks(fits)
        parent = hashes[found - 1] if found else None
        fresh = pool.register_blocks(fresh, hashes=hashes[found : found + fits], parent=parent)
        fresh.release()
    held.release()
    return found


def optimum(numbers: Sequence[Sequence[int]], capacity: int) -> int:
    """Hits of the optimum (see above)."""
    uses: dict[int, list[int]] = {}
    for index in range(len(numbers) - 1, -1, -1):
        for key in numbers[index]:
            uses.setdefault(key, []).append(index)  # the next use is the last
    never = len(numbers)
    resident: dict[int, int] = {}
    """Key: its next use."""
    farthest: list[tuple[int, int, int]] = []
    total = 0
    for row in numbers:
        found = 0
        while found < len(row) and row[found] in resident:
            found += 1
        total += found
        kept = row[: max(found, min(len(row), capacity))]
        for key in kept:
            resident.pop(key, None)  # leased
        while len(resident) + len(kept) > capacity:
            use, _, key = heapq.heappop(farthest)
            if resident.get(key) == -use:
                del resident[key]
        for key in row:
            uses[key].pop()
        for depth, key in enumerate(kept):
            resident[key] = uses[key][-1] if uses[key] else never
            heapq.heappush(farthest, (-resident[key], -depth, key))
    return total


def compare(workload: Workload, shares: Sequence[float], policies: Sequence[str], console: Console) -> dict[str, Any]:
    """Everything about one workload, as --json has it."""
    bound = ceiling(workload, workload.block_tokens)
    with doing(console, f"{workload.name}: hashing the prompts"):
        keys = prompts(workload)
    total = bound.prompt_blocks
    rows: list[dict[str, Any]] = []
    for share in shares:
        capacity = max(1, round(bound.distinct_blocks * share))
        with doing(console, f"{workload.name}: {count(capacity)} blocks"):
            rates = {name: hits(workload, keys, name, capacity) / total for name in policies}
            best = optimum(keys.numbers, capacity) / total
        rows.append({"share": share, "blocks": capacity, "hit_rates": rates, "optimum": best})
    return {
        "workload": workload.name,
        "requests": len(workload.requests),
        "block_tokens": workload.block_tokens,
        "prompt_blocks": total,
        "distinct_blocks": bound.distinct_blocks,
        "ceiling": bound.rate,
        "capacities": rows,
        "mean_hit_rates": {name: sum(row["hit_rates"][name] for row in rows) / len(rows) for name in policies},
    }


def problems(results: Sequence[dict[str, Any]]) -> list[str]:
    """What cannot be: a policy above the optimum, or the optimum above the ceiling."""
    found = []
    for result in results:
        for row in result["capacities"]:
            place = f"{result['workload']}, {count(row['blocks'])} blocks"
            found += [
                f"{place}: {name} hits more than the optimum"
                for name, rate in row["hit_rates"].items()
                if rate > row["optimum"]
            ]
            if row["optimum"] > result["ceiling"]:
                found.append(f"{place}: the optimum hits more than an unbounded cache")
    return found


def winner(results: Sequence[dict[str, Any]]) -> str:
    """The policy with the highest mean over all workloads, each of the same weight."""
    names: list[str] = list(results[0]["mean_hit_rates"])
    return max(names, key=lambda name: sum(result["mean_hit_rates"][name] for result in results))


def tables(results: Sequence[dict[str, Any]]) -> RenderableType:
    """The comparison for a terminal: hit rates in percent, the best policy of each row in bold."""
    shown: list[RenderableType] = []
    for result in results:
        names = list(result["mean_hit_rates"])
        title = f"kvbm policies: {escape(result['workload'])}"
        table = Table(title=title, title_style="bold", box=box.ROUNDED, min_width=60)
        table.add_column("blocks", justify="right", style="cyan")
        table.add_column("of all", justify="right", style="cyan")
        for name in [*names, "optimum", "unbounded"]:
            table.add_column(name, justify="right")
        for row in result["capacities"]:
            best = max(row["hit_rates"].values())
            cells = [_cell(row["hit_rates"][name], best) for name in names]
            bounds = [f"{100 * row['optimum']:.2f}", f"{100 * result['ceiling']:.2f}"]
            table.add_row(count(row["blocks"]), f"{100 * row['share']:g} %", *cells, *bounds)
        best = max(result["mean_hit_rates"].values())
        table.add_section()
        table.add_row("mean", "", *(_cell(result["mean_hit_rates"][name], best) for name in names), "", "")
        shown.append(table)
    return Group(*shown, f"highest mean: {winner(results)}")


def _cell(rate: float, best: float) -> str:
    text = f"{100 * rate:.2f}"
    return f"[bold green]{text}[/]" if rate >= best else text


def write_report(directory: Path, results: Sequence[dict[str, Any]]) -> Path:
    """Writes policies.html, policies.svg and policies.json into a directory; returns the page's path."""
    directory.mkdir(parents=True, exist_ok=True)
    plot = picture(results)
    (directory / PLOT_NAME).write_text(plot, encoding="utf-8")
    (directory / DATA_NAME).write_text(json.dumps(document(results), indent=2) + "\n", encoding="utf-8")
    page = directory / PAGE_NAME
    page.write_text(_page(results, plot), encoding="utf-8")
    return page


def document(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The object of --json."""
    return {"traces": list(results), "highest_mean": winner(results)}


def _page(results: Sequence[dict[str, Any]], plot: str) -> str:
    from dynamo_llm.cli.report import STYLE

    body = []
    for result in results:
        names = list(result["mean_hit_rates"])
        head = "".join(f"<th>{name}</th>" for name in ("blocks", "of all", *names, "optimum", "unbounded"))
        rows = ""
        for row in result["capacities"]:
            cells = [count(row["blocks"]), f"{100 * row['share']:g} %"]
            cells += [f"{100 * row['hit_rates'][name]:.2f}" for name in names]
            cells += [f"{100 * row['optimum']:.2f}", f"{100 * result['ceiling']:.2f}"]
            rows += f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
        body.append(
            f"<h2>{html.escape(result['workload'])}</h2><p>{count(result['requests'])} requests,"
            f" {count(result['prompt_blocks'])} prompt blocks of {result['block_tokens']} tokens,"
            f" {count(result['distinct_blocks'])} distinct; hit rates in percent.</p>"
            f"<table class=latency><thead><tr>{head}</tr></thead>{rows}</table>"
        )
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>kvbm policies</title>"
        '<meta name=viewport content="width=device-width,initial-scale=1">'
        f"<style>{STYLE}</style><main><header><h1>kvbm policies</h1>"
        f'<p class="verdict good">highest mean: {winner(results)}</p></header>'
        f"<figure><figcaption><b>Hit rate by capacity</b> blocks found in the cache; one request at a time"
        f"</figcaption>{plot}</figure>{''.join(body)}"
        f"<footer>KVBM. The numbers of this page are in {DATA_NAME} beside it.</footer></main></html>\n"
    )


def picture(results: Sequence[dict[str, Any]]) -> str:
    """The plot, one panel a workload, as an SVG document."""
    from dynamo_llm.cli.report import vector

    plot = vector(_draw(results), "policies")
    return plot.replace("<svg ", '<svg style="background:#fff" ', 1)


def _draw(results: Sequence[dict[str, Any]]) -> "Figure":
    from dynamo_llm.cli.report import BLUE, GREEN, GREY, INK, ORANGE, RED, panels

    colors = dict(zip(POLICIES, (BLUE, ORANGE, GREEN), strict=True))
    figure, axes = panels(len(results), 3.8)
    for ax, result in zip(axes, results, strict=True):
        shares = [row["share"] for row in result["capacities"]]
        ax.axhline(result["ceiling"], color=INK, lw=1.2, ls="--", label="unbounded")
        optimum_rates = [row["optimum"] for row in result["capacities"]]
        ax.plot(shares, optimum_rates, color=GREY, lw=1.6, ls=":", marker=".", label="optimum")
        for name in result["mean_hit_rates"]:
            rates = [row["hit_rates"][name] for row in result["capacities"]]
            ax.plot(shares, rates, color=colors.get(name, RED), lw=2.0, marker="o", ms=4, label=name)
        ax.set_xscale("log")
        ax.set_xticks(shares)
        ax.minorticks_off()
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
        ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        ax.set_ylim(0, result["ceiling"] * 1.1)
        ax.set_xlabel("capacity, of the distinct blocks", color="#616e7c", fontsize=9)
        ax.set_title(result["workload"], fontsize=10, color=INK)
    axes[0].legend(frameon=False, fontsize=9, loc="lower right")
    return figure
