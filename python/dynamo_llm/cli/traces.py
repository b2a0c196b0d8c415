"""Readers of request traces.

Two forms (docs/core/replay.md describes them):

JSONL     a line a request: `timestamp` in ms, `input_length`, `output_length` in tokens, `hash_ids`: one id for each
          block of the prompt, the last, partial one included.
agentic   a JSON file a conversation: `block_size`, `requests[]` with `t` in s, `in`, `out`, `hash_ids` for whole
          blocks. An entry with `requests` of its own is a sub-agent: it starts at its own `t`, its requests count from
          there, and its ids are those of the file.

Ids are local to a file: each file is a space with a salt of its own. A file that says `"hash_id_scope": "global"`
shares one space with the others that do.

Everything that is wrong with a file is a TraceError: one line that names the file, the place and what is allowed.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dynamo_llm.cli.prompts import Request, Workload

JSONL_BLOCK_TOKENS = 512
SECONDS_A_TOKEN = 0.02
"""Assumed time to generate one token, where a trace does not say how long a request took."""
_TOKENS_MAX = 1 << 32
_ID_MAX = (1 << 63) - 1
_TIME_S_MAX = 1e10
_GLOBAL = "global"


class TraceError(ValueError):
    """A trace that cannot be read: one line, with file and place."""


@dataclass(frozen=True, slots=True)
class _Trace:
    """One file, before spaces and order are settled."""

    path: Path
    kind: str
    block_tokens: int
    scope: str
    requests: list[Request]


def read_trace(path: Path, block_tokens: int | None = None, limit: int | None = None) -> Workload:
    """Reads a file, or every .json and .jsonl file of a directory.

    `block_tokens`: tokens a hash id stands for in JSONL files (512). `limit`: read no more requests than that where the
    order of the file is the order of arrival.
    """
    if path.is_dir():
        paths = sorted(p for p in path.iterdir() if p.suffix in (".json", ".jsonl") and p.is_file())
        if not paths:
            raise TraceError(f"{path}: no .json or .jsonl file in this directory")
        traces = [_read_file(p, block_tokens, None) for p in paths]
    else:
        traces = [_read_file(path, block_tokens, limit)]
    sizes = {trace.block_tokens for trace in traces}
    if len(sizes) > 1:
        example = ", ".join(f"{t.path.name} {t.block_tokens}" for t in (traces[0], traces[-1]))
        raise TraceError(f"{path}: files with different block sizes ({example}, ...) cannot be replayed together")
    return _merge(path, traces)


def _merge(path: Path, traces: list[_Trace]) -> Workload:
    """All files' requests in the order of arrival, `after` renumbered, each file in the space it belongs to."""
    salts: list[str | None] = []
    spaces: dict[str, int] = {}
    requests: list[Request] = []
    for trace in traces:
        salt = _GLOBAL if trace.scope == _GLOBAL else f"file:{trace.path.name}"
        if salt not in spaces:
            spaces[salt] = len(salts)
            # A single JSONL file is one tenant's traffic: it needs no salt.
            salts.append(None if len(traces) == 1 and trace.kind == "jsonl" else salt)
        first = len(requests)
        for request in trace.requests:
            after = None if request.after is None else request.after + first
            requests.append(replace(request, space=spaces[salt], after=after))
    order = sorted(range(len(requests)), key=lambda i: requests[i].arrival_s)
    start_s = requests[order[0]].arrival_s
    place = {old: new for new, old in enumerate(order)}
    merged = []
    for new, old in enumerate(order):
        request = requests[old]
        after = None if request.after is None else place[request.after]
        if after is not None and after > new:
            after = None  # the file's times contradict its order
        merged.append(replace(request, arrival_s=request.arrival_s - start_s, after=after))
    kinds = {trace.kind for trace in traces}
    kind = kinds.pop() if len(kinds) == 1 else "mixed"
    return Workload(path.name or str(path), kind, traces[0].block_tokens, tuple(salts), merged)


def _read_file(path: Path, block_tokens: int | None, limit: int | None) -> _Trace:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise TraceError(f"{path}: not UTF-8 text (byte {error.start})") from None
    trace = _read_agentic(path, text) if path.suffix == ".json" else _read_jsonl(path, text, block_tokens, limit)
    if not trace.requests:
        raise TraceError(f"{path}: no requests in this file")
    return trace


def _read_jsonl(path: Path, text: str, block_tokens: int | None, limit: int | None) -> _Trace:
    block = block_tokens or JSONL_BLOCK_TOKENS
    requests: list[Request] = []
    for number, line in enumerate(text.split("\n"), 1):
        if limit is not None and len(requests) >= limit:
            break
        if not line.strip():
            continue
        place = f"{path}:{number}"
        fields = _Fields(_parse(line, place), place)
        output = fields.count("output_length", 0)
        requests.append(
            Request(
                arrival_s=fields.time("timestamp") / 1000.0,
                space=0,
                segment_ids=(ids := fields.ids("hash_ids")),
                segment_tokens=block,
                input_tokens=(length := fields.count("input_length", 1)),
                output_tokens=output,
                duration_s=output * SECONDS_A_TOKEN,
            )
        )
        if not length // block <= len(ids) <= -(-length // block):
            raise TraceError(
                f"{place}: {len(ids)} hash_ids cannot be the {block}-token blocks of {length} tokens of input_length"
                " (--trace-block sets the block size)"
            )
    return _Trace(path, "jsonl", block, "local", requests)


def _read_agentic(path: Path, text: str) -> _Trace:
    document = _Fields(_parse(text, str(path)), str(path))
    block = document.count("block_size", 1, 1 << 20)
    scope = document.text("hash_id_scope", "local")
    if scope not in ("local", _GLOBAL):
        raise TraceError(f'{path}: hash_id_scope must be "local" or "global", not {json.dumps(scope)}')
    requests: list[Request] = []
    _read_agent(document, str(path), block, 0.0, None, requests, 0)
    return _Trace(path, "agentic", block, scope, requests)


def _read_agent(
    agent: "_Fields", place: str, block: int, start_s: float, parent: int | None, out: list[Request], depth: int
) -> None:
    """Appends the requests of an agent and of its sub-agents. Each waits for the answer of the agent's previous one."""
    if depth > 32:
        raise TraceError(f"{place}: sub-agents nested deeper than 32")
    previous = parent
    for position, entry in enumerate(agent.entries("requests")):
        where = f"{place}: {'' if depth == 0 else 'sub-agent '}requests[{position}]"
        fields = _Fields(entry, where)
        time_s = start_s + fields.time("t")
        if "requests" in fields.values:
            _read_agent(fields, where, block, time_s, previous, out, depth + 1)
            continue
        ids = fields.ids("hash_ids")
        length = fields.count("in", 0)
        output = fields.count("out", 0)
        if len(ids) > -(-length // block):
            raise TraceError(f"{where}: {len(ids)} hash_ids are more than the {block}-token blocks of {length} tokens")
        took_s = fields.time("api_time") if fields.values.get("api_time") is not None else output * SECONDS_A_TOKEN
        out.append(Request(time_s, 0, ids, block, length, output, took_s, previous))
        previous = len(out) - 1


def _parse(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"{place}:{error.lineno}" if "\n" in text else place
        raise TraceError(f"{where}: not JSON: {error.msg} (column {error.colno})") from None
    except (RecursionError, ValueError) as error:
        raise TraceError(f"{place}: not JSON: {error or 'nested too deeply'}") from None


class _Fields:
    """A JSON object with a place; every getter says what it wanted."""

    def __init__(self, values: Any, place: str) -> None:
        if not isinstance(values, dict):
            raise TraceError(f"{place}: must be an object, not {_name(values)}")
        self.values: dict[str, Any] = values
        self._place = place

    def _get(self, name: str) -> Any:
        if name not in self.values:
            raise TraceError(f"{self._place}: {name} is missing")
        return self.values[name]

    def count(self, name: str, low: int, high: int = _TOKENS_MAX) -> int:
        value = self._get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise TraceError(f"{self._place}: {name} must be an integer from {low} to {high}, not {_name(value)}")
        return value

    def time(self, name: str) -> float:
        value = self._get(name)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise TraceError(f"{self._place}: {name} must be a number, not {_name(value)}")
        if not (math.isfinite(value) and 0 <= value <= _TIME_S_MAX * 1000):
            raise TraceError(f"{self._place}: {name} must be a time that is finite and not negative, not {value}")
        return float(value)

    def text(self, name: str, default: str) -> str:
        value = self.values.get(name, default)
        if not isinstance(value, str):
            raise TraceError(f"{self._place}: {name} must be a string, not {_name(value)}")
        return value

    def entries(self, name: str) -> Iterator[Any]:
        value = self._get(name)
        if not isinstance(value, list):
            raise TraceError(f"{self._place}: {name} must be a list, not {_name(value)}")
        return iter(value)

    def ids(self, name: str) -> tuple[int, ...]:
        ids = tuple(self.entries(name))
        for position, value in enumerate(ids):
            if type(value) is not int or not 0 <= value <= _ID_MAX:
                raise TraceError(
                    f"{self._place}: {name}[{position}] must be an integer from 0 to 2^63 - 1, not {_name(value)}"
                )
        return ids


def _name(value: Any) -> str:
    """A JSON value for an error: itself when short, else its type."""
    text = json.dumps(value)
    if len(text) <= 40:
        return text
    names: dict[type, str] = {dict: "an object", list: "a list", str: "a long string"}
    return names.get(type(value), f"a long {type(value).__name__}")
