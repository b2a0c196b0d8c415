"""Trace readers: both forms, directories, and what bad input gets."""

import json
from pathlib import Path
from typing import Any

import pytest

from dynamo_llm.cli.ceiling import ceiling
from dynamo_llm.cli.prompts import Workload, prompt_tokens
from dynamo_llm.cli.traces import TraceError, read_trace

TRACES = Path(__file__).parents[3] / "shared" / "traces"
needs_traces = pytest.mark.skipif(not TRACES.exists(), reason="the real traces are not beside this checkout")


def jsonl(path: Path, *lines: Any) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def line(at_ms: float, tokens: int, ids: list[int], output: int = 7) -> dict[str, Any]:
    return {"timestamp": at_ms, "input_length": tokens, "output_length": output, "hash_ids": ids}


def agentic(path: Path, requests: list[Any], **more: Any) -> Path:
    path.write_text(json.dumps({"block_size": 64, "requests": requests} | more))
    return path


def turn(at_s: float, ids: list[int], **more: Any) -> dict[str, Any]:
    return {"t": at_s, "in": 64 * len(ids) + 5, "out": 3, "hash_ids": ids} | more


def test_jsonl_counts_the_partial_last_block(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", line(1000, 1030, [5, 6, 7]), "", line(2500, 512, [5]))
    workload = read_trace(path)
    first, second = workload.requests
    assert (workload.kind, workload.block_tokens, workload.salts) == ("jsonl", 512, (None,))
    assert (first.pages(512), second.pages(512)) == (3, 1)
    assert (first.arrival_s, second.arrival_s) == (0.0, 1.5)
    assert (first.input_tokens, first.output_tokens, first.after) == (1030, 7, None)
    assert len(prompt_tokens(first)) == 3 * 512


def test_equal_ids_are_equal_tokens_and_others_differ(tmp_path: Path) -> None:
    workload = read_trace(jsonl(tmp_path / "a.jsonl", line(0, 1024, [5, 6]), line(1, 1024, [6, 5])))
    first, second = (prompt_tokens(request) for request in workload.requests)
    assert first.dtype == "uint32"
    assert first.max() < 131072
    assert (first[:512] == second[512:]).all()
    assert (first[512:] == second[:512]).all()
    assert (first[:512] != second[:512]).mean() > 0.99


def test_jsonl_arrives_in_time_order_and_respects_the_limit(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", line(30, 10, [1]), line(10, 10, [2]), line(20, 10, [3]), "not read")
    assert [r.segment_ids for r in read_trace(path, limit=3).requests] == [(2,), (3,), (1,)]


def test_trace_block_changes_the_tokens_of_an_id(tmp_path: Path) -> None:
    workload = read_trace(jsonl(tmp_path / "a.jsonl", line(0, 33, [1, 2, 3])), block_tokens=16)
    assert workload.block_tokens == 16
    assert workload.requests[0].pages(16) == 3


def test_sub_agents_start_at_their_own_time_and_share_the_files_ids(tmp_path: Path) -> None:
    inner = {"t": 2.0, "requests": [turn(0.0, [9])]}
    agent = {
        "t": 10.0,
        "agent_id": "a",
        "requests": [turn(0.0, [1, 7]), inner, turn(4.0, [1, 7, 8])],
    }
    path = agentic(tmp_path / "a.json", [turn(0.0, [1]), agent, turn(11.0, [1, 2])])
    workload = read_trace(path)
    assert [(r.arrival_s, r.segment_ids) for r in workload.requests] == [
        (0.0, (1,)),
        (10.0, (1, 7)),
        (11.0, (1, 2)),
        (12.0, (9,)),
        (14.0, (1, 7, 8)),
    ]
    # Each waits for its own agent's previous one; a sub-agent's first for the request that started it.
    assert [r.after for r in workload.requests] == [None, 0, 0, 1, 1]
    assert {r.space for r in workload.requests} == {0}
    assert workload.salts == ("file:a.json",)
    assert ceiling(workload, 64).hits == (0, 1, 1, 0, 2)


def test_agentic_prompts_count_whole_blocks_only(tmp_path: Path) -> None:
    workload = read_trace(agentic(tmp_path / "a.json", [turn(0.0, [1, 2], api_time=1.25), turn(1.0, [])]))
    assert [r.pages(64) for r in workload.requests] == [2, 0]
    assert [r.duration_s for r in workload.requests] == [1.25, pytest.approx(0.06)]


def test_ids_of_two_files_have_nothing_in_common(tmp_path: Path) -> None:
    for name in ("a.json", "b.json"):
        agentic(tmp_path / name, [turn(0.0, [1, 2]), turn(2.0, [1, 2, 3])])
    workload = read_trace(tmp_path)
    assert [r.space for r in workload.requests] == [0, 1, 0, 1]
    assert len(set(workload.salts)) == 2
    assert None not in workload.salts
    assert ceiling(workload, 64).hit_blocks == 4


def test_global_ids_are_shared_between_files(tmp_path: Path) -> None:
    for name in ("a.json", "b.json"):
        agentic(tmp_path / name, [turn(0.0, [1, 2])], hash_id_scope="global")
    workload = read_trace(tmp_path)
    assert len(workload.salts) == 1
    assert ceiling(workload, 64).hit_blocks == 2


def test_a_request_never_follows_a_later_one(tmp_path: Path) -> None:
    workload = read_trace(agentic(tmp_path / "a.json", [turn(5.0, [1]), turn(1.0, [2]), turn(7.0, [3])]))
    for index, request in enumerate(workload.requests):
        assert request.after is None or request.after < index


def test_limited_keeps_the_first(tmp_path: Path) -> None:
    workload = read_trace(agentic(tmp_path / "a.json", [turn(float(i), [i]) for i in range(5)]))
    assert workload.limited(None) is workload
    assert workload.limited(9) is workload
    assert [r.segment_ids for r in workload.limited(2).requests] == [(0,), (1,)]


GOOD = line(0, 512, [1])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{", ":2: not JSON: "),
        ("[1]", ":2: must be an object, not [1]"),
        ("NaN", ":2: must be an object"),
        ({k: v for k, v in GOOD.items() if k != "hash_ids"}, ":2: hash_ids is missing"),
        (GOOD | {"timestamp": "0"}, ':2: timestamp must be a number, not "0"'),
        (GOOD | {"timestamp": -1}, ":2: timestamp must be a time that is finite and not negative, not -1"),
        (GOOD | {"timestamp": float("nan")}, ":2: timestamp must be a time that is finite"),
        (GOOD | {"input_length": 1.5}, ":2: input_length must be an integer from 1 to"),
        (GOOD | {"input_length": True}, ":2: input_length must be an integer from 1 to 4294967296, not true"),
        (GOOD | {"input_length": 0}, ":2: input_length must be an integer from 1"),
        (GOOD | {"output_length": -3}, ":2: output_length must be an integer from 0"),
        (GOOD | {"hash_ids": 3}, ":2: hash_ids must be a list, not 3"),
        (GOOD | {"hash_ids": ["x"]}, ':2: hash_ids[0] must be an integer from 0 to 2^63 - 1, not "x"'),
        (GOOD | {"hash_ids": [-1]}, ":2: hash_ids[0] must be an integer from 0"),
        (GOOD | {"hash_ids": [1 << 63]}, ":2: hash_ids[0] must be an integer from 0"),
        (GOOD | {"hash_ids": [1, 2]}, ":2: 2 hash_ids cannot be the 512-token blocks of 512 tokens"),
        (GOOD | {"input_length": 99999}, ":2: 1 hash_ids cannot be the 512-token blocks of 99999 tokens"),
        ("[" * 100000, ":2: not JSON"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, bad: Any, message: str) -> None:
    path = jsonl(tmp_path / "bad.jsonl", GOOD, bad, GOOD)
    with pytest.raises(TraceError) as caught:
        read_trace(path)
    assert str(caught.value).startswith(str(path) + message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ('{"a":\n 1,}', ":2: not JSON"),
        ("[]", ": must be an object, not []"),
        ({"requests": []}, ": block_size is missing"),
        ({"block_size": 0, "requests": []}, ": block_size must be an integer from 1"),
        ({"block_size": 64}, ": requests is missing"),
        ({"block_size": 64, "requests": []}, ": no requests in this file"),
        ({"block_size": 64, "requests": [3]}, ": requests[0]: must be an object, not 3"),
        ({"block_size": 64, "requests": [turn(0, [1]), {"t": 1}]}, ": requests[1]: hash_ids is missing"),
        ({"block_size": 64, "requests": [turn(0, [1, 2], **{"in": 64})]}, ": requests[0]: 2 hash_ids are more than"),
        ({"block_size": 64, "hash_id_scope": "x", "requests": [turn(0, [1])]}, ': hash_id_scope must be "local" or'),
        (
            {"block_size": 64, "requests": [{"t": 1, "requests": [turn(0, [1]), {"t": "x"}]}]},
            ': requests[0]: sub-agent requests[1]: t must be a number, not "x"',
        ),
    ],
)
def test_bad_documents_are_named(tmp_path: Path, document: Any, message: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    with pytest.raises(TraceError) as caught:
        read_trace(path)
    assert str(caught.value).startswith(str(path) + message)


def test_sub_agents_nest_only_so_deep(tmp_path: Path) -> None:
    requests: list[Any] = [turn(0, [1])]
    for _ in range(40):
        requests = [{"t": 0, "requests": requests}]
    with pytest.raises(TraceError, match="sub-agents nested deeper than 32"):
        read_trace(agentic(tmp_path / "a.json", requests))


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"missing\.jsonl: No such file"):
        read_trace(tmp_path / "missing.jsonl")
    with pytest.raises(TraceError, match=r"no \.json or \.jsonl file in this directory"):
        read_trace(tmp_path)
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe{}")
    with pytest.raises(TraceError, match=r"b\.jsonl: not UTF-8 text \(byte 0\)"):
        read_trace(tmp_path / "b.jsonl")
    (tmp_path / "b.jsonl").write_text("\n\n")
    with pytest.raises(TraceError, match=r"b\.jsonl: no requests in this file"):
        read_trace(tmp_path / "b.jsonl")


def test_files_of_different_block_sizes_do_not_mix(tmp_path: Path) -> None:
    agentic(tmp_path / "a.json", [turn(0, [1])])
    jsonl(tmp_path / "b.jsonl", GOOD)
    with pytest.raises(TraceError, match=r"different block sizes \(a\.json 64, b\.jsonl 512"):
        read_trace(tmp_path)
    jsonl(tmp_path / "b.jsonl", line(0, 64, [1]))
    assert read_trace(tmp_path, block_tokens=64).kind == "mixed"


def check_real(workload: Workload, requests: int, hits: int, blocks: int, distinct: int) -> None:
    bound = ceiling(workload, workload.block_tokens)
    assert len(workload.requests) == requests
    assert (bound.hit_blocks, bound.prompt_blocks, bound.distinct_blocks) == (hits, blocks, distinct)


@needs_traces
def test_the_conversation_trace_is_read_to_the_block() -> None:
    check_real(read_trace(TRACES / "conversation.jsonl"), 12031, 105710, 288500, 182790)


@needs_traces
def test_the_agentic_traces_are_read_to_the_block() -> None:
    check_real(read_trace(TRACES / "agentic"), 172, 269325, 287802, 18477)
