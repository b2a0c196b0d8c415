"""The commands of `kvbm`, as click sees them."""

import asyncio
import json
import math
import os
import shlex
import sys
from pathlib import Path
from typing import Any, NoReturn

import click
from rich.console import Console

import dynamo_llm
from dynamo_llm.cli.replay import ReplayError, ReplayOptions, Result, replay
from dynamo_llm.cli.traces import TraceError

DTYPES = ("fp8_e4m3", "fp8_e5m2", "fp16", "bf16", "fp32", "int8", "u8")
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


class _Group(click.Group):
    """A group whose errors are one line each, and whose Ctrl-C is 130."""

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        name = kwargs.get("prog_name") or "kvbm"
        try:
            code = super().main(*args, **{**kwargs, "standalone_mode": False})
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.ctx.get_help() if error.ctx is not None else error.format_message(), err=True)
            code = EXIT_USAGE
        except click.ClickException as error:
            command = getattr(getattr(error, "ctx", None), "command_path", name)
            click.echo(f"{command}: {' '.join(error.format_message().split())}", err=True)
            code = error.exit_code
        except (click.Abort, KeyboardInterrupt):
            click.echo(f"{name}: interrupted", err=True)
            code = EXIT_INTERRUPTED
        except OSError as error:
            # Output has nowhere to go; keep the interpreter from complaining about it at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if not isinstance(error, BrokenPipeError):
                click.echo(f"{name}: {error.strerror or error}", err=True)
            code = EXIT_FAILED
        sys.exit(code or 0)


class _Finite(click.FloatRange):
    """A range without "not a number", which compares with nothing and so passes every bound."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return float(number)


def _with_output(ctx: click.Context, param: click.Parameter, value: bool) -> bool:
    if value and sys.stdout is None:
        raise click.BadParameter("standard output is closed", ctx=ctx, param=param)
    return value


_json_option = click.option(
    "--json",
    "as_json",
    is_flag=True,
    callback=_with_output,
    help="Print one JSON object on standard output, and nothing else.",
)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(dynamo_llm.__version__, message="%(prog)s %(version)s")
def cli() -> None:
    """KVBM, a KV block manager for LLM inference."""


@cli.command("replay", short_help="Replay a request trace through a block manager, with real bytes.")
@click.argument("trace", type=click.Path(path_type=Path), required=False)
@click.option(
    "--host-blocks",
    type=click.IntRange(1, 1 << 26),
    metavar="N",
    help="Blocks of the host pool.  [default: all distinct"
    " blocks and those in flight, within 2 GiB and a quarter of the available memory]",
)
@click.option(
    "--page-size",
    type=click.IntRange(1, 1 << 16),
    metavar="N",
    help="Tokens a block.  [default: the trace's block size; 16 for the built-in workload]",
)
@click.option(
    "--num-layers", type=click.IntRange(1, 4096), metavar="N", default=2, show_default=True, help="Layers of a block."
)
@click.option(
    "--outer-dim",
    type=click.IntRange(1, 2),
    metavar="N",
    default=2,
    show_default=True,
    help="2: keys and values; 1: one of them (MLA).",
)
@click.option(
    "--inner-dim",
    type=click.IntRange(1, 1 << 20),
    metavar="N",
    help="Elements a token in each layer and outer index.  [default: what makes blocks of 32 KiB]",
)
@click.option(
    "--dtype",
    type=click.Choice(DTYPES, case_sensitive=False),
    metavar="TYPE",
    default="fp16",
    show_default=True,
    help=f"Element type: {', '.join(DTYPES)}.",
)
@click.option(
    "--policy",
    metavar="NAME",
    default="prefix",
    show_default=True,
    help="Eviction policy: prefix, lru or s3fifo.",
)
@click.option(
    "--concurrency",
    type=click.IntRange(1, 1 << 16),
    metavar="N",
    default=8,
    show_default=True,
    help="Requests in flight at once. With 1 they run strictly in order.",
)
@click.option(
    "--speed",
    type=_Finite(0, 1e9, min_open=True),
    metavar="FACTOR",
    help="Replay the trace's own times this many times"
    " faster, and hold blocks as long as requests took.  [default: no pauses]",
)
@click.option(
    "--allocate-timeout",
    type=_Finite(0, 3600),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a request waits in line for blocks before it is served uncached.",
)
@click.option("--no-bytes", is_flag=True, help="Bookkeeping only: no memory behind the blocks, nothing to verify.")
@click.option(
    "--limit",
    type=click.IntRange(1, 1 << 17),
    metavar="N",
    help="Stop after N requests. The built-in workload makes as many.  [default: all; 2000 built in]",
)
@click.option(
    "--seed", type=click.IntRange(0), metavar="N", default=1, show_default=True, help="Of the built-in workload."
)
@click.option(
    "--trace-block",
    type=click.IntRange(1, 1 << 20),
    metavar="TOKENS",
    help="Tokens of one hash id in JSONL traces.  [default: 512]",
)
@click.option(
    "--report",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write report.html, with plots, and summary.json there.",
)
@click.option(
    "--svg",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write what the terminal shows at the end as a picture.",
)
@_json_option
@click.option("--corrupt-block", type=click.IntRange(0), metavar="N", hidden=True)
def replay_command(trace: Path | None, as_json: bool, svg: Path | None, **options: Any) -> int:
    """Replay the requests of TRACE through a block manager, as an asyncio inference server would.

    For each request: hash the prompt, match and lease its cached prefix, allocate blocks for the rest, write bytes
    into them that are a function of their keys, register them, hold everything while the request runs, verify every
    byte of every hit, release.

    TRACE is a JSONL file (a request a line: timestamp, input_length, output_length, hash_ids), an agentic JSON file
    (a conversation: block_size, requests), or a directory of such files. Without TRACE a chat workload is made from
    --seed: shared system prompts, growing histories, pauses.

    \b
    Examples:
      kvbm replay
      kvbm replay conversation.jsonl --report report
      kvbm replay conversation.jsonl --concurrency 1 --no-bytes --json
      kvbm replay agentic/ --host-blocks 4096 --concurrency 32 --speed 100

    Exit status: 0 all went well; 1 a wrong byte, more hits than can be, or a failed operation; 2 a bad option or trace;
    130 interrupted (what was done until then is summed up).
    """
    errors = Console(stderr=True)
    try:
        result = asyncio.run(replay(trace, ReplayOptions(**options), errors))
    except TraceError as error:
        raise _Refused(str(error)) from None
    except ReplayError as error:
        if error.usage:
            raise _Refused(str(error)) from None
        raise click.ClickException(str(error)) from None
    return _show(result, errors, as_json, svg, options["report"])


@cli.command("policies", short_help="Compare the eviction policies on request traces.")
@click.argument("traces", type=click.Path(path_type=Path), nargs=-1)
@click.option(
    "--policy",
    "policies",
    multiple=True,
    metavar="NAME",
    help="Compare this one; may be given several times.  [default: all]",
)
@click.option(
    "--share",
    "shares",
    type=_Finite(0, 1, min_open=True),
    multiple=True,
    metavar="PART",
    help="A capacity as a part of the distinct blocks; may be given several times.  [default: .01 .02 .05 .1 .2]",
)
@click.option(
    "--limit",
    type=click.IntRange(1, 1 << 17),
    metavar="N",
    help="Requests of each trace. The built-in workload makes as many.  [default: all; 2000 built in]",
)
@click.option(
    "--seed", type=click.IntRange(0), metavar="N", default=1, show_default=True, help="Of the built-in workload."
)
@click.option(
    "--report",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write policies.html, policies.svg and policies.json there.",
)
@_json_option
def policies_command(
    traces: tuple[Path, ...], shares: tuple[float, ...], policies: tuple[str, ...], as_json: bool, **options: Any
) -> int:
    """Hit rates of the eviction policies at several capacities, for each of TRACES.

    Requests are served one at a time, with bookkeeping alone. Beside the policies stand the optimum, which knows the
    future and evicts what is used farthest in it (Belady), and the unbounded cache, which evicts nothing.

    TRACES are what `kvbm replay` takes; without any a chat workload is made from --seed.

    \b
    Examples:
      kvbm policies
      kvbm policies conversation.jsonl agentic/ --report report
      kvbm policies conversation.jsonl --share 0.05 --policy lru --policy prefix --json

    Exit status: 0; 1 a policy hits more than can be; 2 a bad option or trace.
    """
    from dynamo_llm.cli.policies import POLICIES, SHARES, compare, document, problems, tables, write_report
    from dynamo_llm.cli.replay import load

    errors = Console(stderr=True)
    load_options = ReplayOptions(limit=options["limit"], seed=options["seed"])
    try:
        workloads = [load(trace, load_options) for trace in traces or (None,)]
        results = [compare(w, sorted(set(shares or SHARES)), policies or POLICIES, errors) for w in workloads]
    except (TraceError, ValueError) as error:
        raise _Refused(str(error)) from None
    (errors if as_json else Console()).print(tables(results))
    if as_json:
        click.echo(json.dumps(document(results)))
    if options["report"] is not None:
        try:
            click.echo(f"report: {write_report(options['report'], results)}", err=True)
        except OSError as error:
            raise _Refused(f"--report: {options['report']}: {error.strerror}") from None
    for line in (found := problems(results)):
        click.echo(f"kvbm policies: {line}", err=True)
    return EXIT_FAILED if found else 0


class _Refused(click.ClickException):
    """A bad option or trace."""

    exit_code = EXIT_USAGE


def _show(result: Result, errors: Console, as_json: bool, svg: Path | None, report: Path | None) -> int:
    """Prints and writes the result; returns the exit status."""
    from dynamo_llm.cli.display import tables

    summary = result.summary
    console = errors if as_json else Console()
    console.print(tables(summary))
    if as_json:
        click.echo(json.dumps(summary))
    if svg is not None:
        _write_svg(svg, summary)
    if report is not None:
        from dynamo_llm.cli.report import write_report

        click.echo(f"report: {write_report(report, result)}", err=True)
    for line in result.metrics.failures:
        click.echo(f"kvbm replay: verification failed: {line}", err=True)
    if len(result.metrics.failures) < result.metrics.verify_failures:
        click.echo(f"kvbm replay: {result.metrics.verify_failures:,} blocks failed in all", err=True)
    for line in result.problems:
        click.echo(f"kvbm replay: {line}", err=True)
    if result.metrics.verify_failures or result.problems:
        return EXIT_FAILED
    return EXIT_INTERRUPTED if result.metrics.interrupted else 0


def _write_svg(path: Path, summary: dict[str, Any]) -> None:
    from dynamo_llm.cli.display import picture

    words = list(sys.argv[1:])
    if "--svg" in words:
        del words[words.index("--svg") : words.index("--svg") + 2]
    try:
        path.write_text(picture(summary, shlex.join(["kvbm", *words])), encoding="utf-8")
    except OSError as error:
        raise _Refused(f"--svg: {path}: {error.strerror}") from None
