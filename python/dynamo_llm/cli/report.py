"""The report of a replay: one HTML file with everything inside, and the summary as JSON beside it."""

import html
import io
import json
import re
from array import array
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from dynamo_llm.cli.display import count, duration, facts, latency_rows, percent, size
from dynamo_llm.cli.replay import Result

Floats = npt.NDArray[np.float64]

REPORT_NAME = "report.html"
SUMMARY_NAME = "summary.json"
WINDOWS = 60
"""Points of the windowed hit rate."""
BLUE, GREEN, ORANGE, RED, GREY, INK = "#2f6fde", "#1a9e75", "#e08a1e", "#d43d51", "#9aa5b1", "#1f2933"
LATENCY_STYLE = {
    "match": ("match", BLUE),
    "allocate": ("allocate", GREEN),
    "wait": ("allocate, in line", RED),
    "register": ("register", ORANGE),
    "request": ("whole request", GREY),
}
CURVE_POINTS = 600


def write_report(directory: Path, result: Result) -> Path:
    """Writes report.html and summary.json into an existing directory; returns the page's path."""
    (directory / SUMMARY_NAME).write_text(json.dumps(result.summary, indent=2) + "\n", encoding="utf-8")
    page = directory / REPORT_NAME
    page.write_text(_page(result), encoding="utf-8")
    return page


def _page(result: Result) -> str:
    summary = result.summary
    failed = bool(summary["verify_failures"] or result.problems)
    verdict = "verification failed" if failed else "interrupted" if summary["interrupted"] else "every hit verified"
    if not summary["config"]["bytes"] and not failed:
        verdict = "interrupted" if summary["interrupted"] else "bookkeeping only"
    plots = "".join(
        f"<figure><figcaption><b>{title}</b> {text}</figcaption>{vector(draw(result), f'p{i}')}</figure>"
        for i, (title, text, draw) in enumerate(_plots(result))
    )
    problems = "".join(f"<p class=bad>{html.escape(line)}</p>" for line in [*result.problems, *result.metrics.failures])
    name = html.escape(summary["workload"])
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>kvbm replay: {name}</title>"
        '<meta name=viewport content="width=device-width,initial-scale=1">'
        f"<style>{STYLE}</style><main>"
        f"<header><h1>kvbm replay <span>{name}</span></h1>"
        f'<p class="verdict {"bad" if failed else "good"}">{verdict}</p></header>'
        f"<p class=command><code>{html.escape(summary['config']['command'])}</code></p>{problems}"
        f"<section class=cards>{_cards(summary)}</section>{plots}"
        f"<section class=tables><div><h2>Results</h2>{_table(facts(summary))}</div>"
        f"<div><h2>Configuration</h2>{_table(_configuration(summary))}</div></section>"
        f"<h2>Latency</h2>{_latency_table(summary)}"
        f"<footer>KVBM. The numbers of this page are in {SUMMARY_NAME} beside it.</footer></main></html>\n"
    )


STYLE = """
:root{color-scheme:light}*{box-sizing:border-box}
body{margin:0;background:#f5f7fa;color:#1f2933;font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1080px;margin:0 auto;padding:28px 20px}
header{display:flex;justify-content:space-between;align-items:center;gap:16px;flex-wrap:wrap}
h1{font-size:26px;margin:0}h1 span{color:#7b8794;font-weight:400}h2{font-size:17px;margin:26px 0 8px}
.verdict{margin:0;padding:4px 14px;border-radius:99px;font-weight:600;color:#fff}
.verdict.good{background:#1a9e75}.verdict.bad{background:#d43d51}
p.bad{color:#d43d51;font-family:ui-monospace,monospace;font-size:13px;overflow-wrap:anywhere}
.command code{display:block;background:#1f2933;color:#e4e7eb;border-radius:8px;padding:9px 14px;overflow-x:auto;
font:13px ui-monospace,SFMono-Regular,Menlo,monospace}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(180px,1fr));gap:14px;margin:18px 0}
.card,figure,table{background:#fff;border:1px solid #e4e7eb;border-radius:10px}
.card{padding:12px 16px}.card b{display:block;font-size:24px;line-height:1.25}.card small{color:#616e7c}
.card i{font-style:normal;color:#7b8794;font-size:12px;text-transform:uppercase;letter-spacing:.04em}
figure{margin:0 0 16px;padding:14px 18px 6px}figcaption{font-size:13px;color:#616e7c}
figcaption b{display:block;font-size:16px;color:#1f2933}figure svg{width:100%;height:auto;display:block}
.tables{display:grid;grid-template-columns:minmax(0,3fr) minmax(0,2fr);gap:20px}
@media(max-width:800px){.tables{grid-template-columns:1fr}}
table{width:100%;border-collapse:separate;border-spacing:0;overflow:hidden;font-size:14px}
td,th{padding:6px 12px;border-top:1px solid #eef1f4;text-align:left;vertical-align:top}
tr:first-child td,thead th{border-top:0}td:first-child{color:#616e7c;white-space:nowrap}
.latency td:not(:first-child),.latency th:not(:first-child){text-align:right;font-variant-numeric:tabular-nums}
footer{color:#7b8794;font-size:13px;margin:24px 0 0}
"""


def _cards(summary: dict[str, Any]) -> str:
    failures = summary["verify_failures"]
    ceiling = percent(summary["ceiling_hit_rate"])
    cards = [
        ("hit rate", percent(summary["hit_rate"]), f"of an unbounded cache's {ceiling}"),
        ("prefill saved", f"{summary['prefill_tokens_saved'] / 1e6:,.1f} M", f"tokens; {size(summary['saved_bytes'])}"),
        ("allocate, p99", duration(summary["allocate_p99_ns"]), f"median {duration(summary['allocate_p50_ns'])}"),
        ("match, p99", duration(summary["match_p99_ns"]), f"median {duration(summary['match_p50_ns'])}"),
        ("failures", count(failures), f"{size(summary['verified_bytes'])} verified"),
    ]
    return "".join(
        f"<div class=card><i>{title}</i><b>{value}</b><small>{note}</small></div>" for title, value, note in cards
    )


def _table(rows: Iterable[tuple[str, str]]) -> str:
    body = "".join(f"<tr><td>{html.escape(name)}</td><td>{html.escape(text)}</td></tr>" for name, text in rows)
    return f"<table>{body}</table>"


def _latency_table(summary: dict[str, Any]) -> str:
    head = "".join(f"<th>{name}</th>" for name in ("", "p50", "p90", "p99", "p99.9", "max"))
    body = "".join(
        f"<tr><td>{name}</td>{''.join(f'<td>{value}</td>' for value in values)}</tr>"
        for name, values in latency_rows(summary)
    )
    return f"<table class=latency><thead><tr>{head}</tr></thead>{body}</table>"


def _configuration(summary: dict[str, Any]) -> list[tuple[str, str]]:
    config = summary["config"]
    shape = (
        f"{config['num_layers']} layers x {config['outer_dim']} x {config['page_size']} tokens x {config['inner_dim']}"
    )
    rows = [
        ("workload", f"{config['workload']} ({config['kind']})"),
        ("block", f"{size(config['block_bytes'])}: {shape} {config['dtype']}"),
        ("bytes", "written and verified" if config["bytes"] else "none, bookkeeping only"),
        ("host blocks", count(config["host_blocks"])),
        ("policy", config["policy"]),
        ("concurrency", count(config["concurrency"])),
        ("speed", "as fast as possible" if config["speed"] is None else f"{config['speed']:g} x trace time"),
        ("allocate timeout", f"{config['allocate_timeout_s']:g} s"),
    ]
    if config["seed"] is not None:
        rows.append(("seed", str(config["seed"])))
    return rows


Drawing = Callable[[Result], Figure]


def _plots(result: Result) -> list[tuple[str, str, Drawing]]:
    if not result.metrics.answered:
        return []
    return [
        (
            "Hit rate over time",
            "prompt blocks found in the cache, since the start and in windows; the ceiling is an unbounded cache",
            _draw_hit_rate,
        ),
        ("Occupancy over time", "blocks of the pool by state", _draw_occupancy),
        (
            "Latency",
            "of the awaited operations: part of all that took no longer (left), and how many took how long (right)",
            _draw_latency,
        ),
    ]


def vector(figure: Figure, prefix: str) -> str:
    """The figure as an inline element; ids get a prefix, for those of several figures would meet in one page."""
    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "path", "svg.hashsalt": prefix}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', text)
    return re.sub(r'(url\(#|href="#)', rf"\1{prefix}-", text)


def panels(columns: int, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of some panels side by side, in the report's style."""
    figure = Figure(figsize=(10.4, height), layout="constrained")
    axes = [figure.add_subplot(1, columns, i + 1) for i in range(columns)]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color("#cbd2d9")
        ax.tick_params(colors="#616e7c", labelsize=9)
        ax.grid(axis="y", color="#eef1f4")
        ax.set_axisbelow(True)
    return figure, axes


def _time_axis(ax: Axes, times_s: Floats) -> Floats:
    """Labels the axis in a unit that suits; returns the times in it."""
    span = float(times_s.max(initial=0.0))
    unit, scale = ("hours", 3600.0) if span > 3 * 3600 else ("minutes", 60.0) if span > 180 else ("seconds", 1.0)
    ax.set_xlabel(f"trace time, {unit}", color="#616e7c", fontsize=9)
    return times_s / scale


def _draw_hit_rate(result: Result) -> Figure:
    answered = sorted(result.metrics.answered, key=lambda a: (a.arrival_s, a.index))
    blocks = np.array([a.blocks for a in answered], dtype=np.float64)
    hits = np.array([a.hits for a in answered], dtype=np.float64)
    bound = np.array([result.ceiling.hits[a.index] for a in answered], dtype=np.float64)
    figure, (ax,) = panels(1, 3.6)
    times = _time_axis(ax, np.array([a.arrival_s for a in answered]))
    total = np.maximum(np.cumsum(blocks), 1)
    edges = np.unique(np.linspace(0, len(answered), min(WINDOWS, len(answered)) + 1).astype(int))
    middle = times[(edges[:-1] + edges[1:]) // 2]

    def windowed(values: Floats) -> Floats:
        rates: Floats = np.add.reduceat(values, edges[:-1]) / np.maximum(np.add.reduceat(blocks, edges[:-1]), 1)
        return rates

    ax.plot(middle, windowed(bound), color=GREY, lw=1.0, ls=":", label="ceiling, windowed")
    ax.plot(middle, windowed(hits), color=BLUE, lw=1.2, alpha=0.55, label="hit rate, windowed")
    ax.plot(times, np.cumsum(bound) / total, color=INK, lw=1.4, ls="--", label="ceiling")
    ax.plot(times, np.cumsum(hits) / total, color=BLUE, lw=2.2, label="hit rate")
    highest = float(max(windowed(bound).max(), (np.cumsum(bound) / total).max()))
    ax.set_ylim(0, min(1.12, max(0.1, highest * 1.25)))
    ax.margins(x=0.01)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    ax.legend(frameon=False, fontsize=9, ncols=4, loc="upper left")
    return figure


def _draw_occupancy(result: Result) -> Figure:
    samples = sorted(result.metrics.occupancy, key=lambda o: o.at_s)
    figure, (ax,) = panels(1, 3.2)
    times = _time_axis(ax, np.array([o.at_s for o in samples]))
    rows = [
        np.array([getattr(o, name) for o in samples], dtype=np.float64)
        for name in ("leased", "mutable", "cached", "free")
    ]
    labels = ["leased", "being filled", "cached, evictable", "free"]
    ax.stackplot(times, *rows, labels=labels, colors=[RED, ORANGE, BLUE, "#d5dbe1"], alpha=0.85, lw=0)
    ax.margins(x=0.01)
    ax.set_ylim(0, result.summary["config"]["host_blocks"])
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    ax.legend(frameon=True, framealpha=0.85, edgecolor="none", fontsize=9, ncols=4, loc="upper left")
    return figure


def _draw_latency(result: Result) -> Figure:
    figure, (cdf, histogram) = panels(2, 3.6)
    samples = {
        name: np.sort(_positive(result.metrics.latency[name].samples))
        for name in LATENCY_STYLE
        if result.metrics.latency[name].samples
    }
    everything = np.concatenate([*samples.values(), np.array([1.0, 10.0])])
    bins = np.logspace(np.floor(np.log10(everything.min())), np.ceil(np.log10(everything.max())), 81)
    for name, values in samples.items():
        label, color = LATENCY_STYLE[name]
        quantiles = np.linspace(0, 1, min(CURVE_POINTS, len(values)) + 1)[1:]
        cdf.plot(np.quantile(values, quantiles), quantiles, color=color, lw=1.8, label=label)
        histogram.hist(values, bins=list(bins), histtype="stepfilled", color=color, alpha=0.35)
        histogram.hist(values, bins=list(bins), histtype="step", color=color, lw=1.2, label=label)
    for ax in (cdf, histogram):
        ax.set_xscale("log")
        ax.set_xlim(max(100.0, float(np.quantile(everything[2:], 0.0)) / 2), float(everything.max()) * 1.5)
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: duration(value)))
        ax.grid(axis="x", color="#eef1f4")
    cdf.set_ylim(0, 1.02)
    cdf.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    histogram.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    cdf.legend(frameon=False, fontsize=9, loc="lower right")
    return figure


def _positive(samples: "array[int]") -> Floats:
    """Samples for a logarithmic axis."""
    return np.maximum(np.array(samples, dtype=np.float64), 1.0)
