"""The command line, in this process through click's runner and as a program of its own."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import dynamo_llm
import dynamo_llm.cli
from dynamo_llm.cli.app import cli

SMALL = ["replay", "--limit", "60", "--host-blocks", "9000", "--inner-dim", "8"]
PROGRAM = [sys.executable, "-m", "dynamo_llm.cli"]


def invoke(*args: object) -> Result:
    return CliRunner().invoke(cli, [str(arg) for arg in args], prog_name="kvbm")


def summary(*args: object) -> dict[str, Any]:
    result = invoke(*args, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


def write_trace(path: Path, requests: int = 5) -> Path:
    lines = (
        {"timestamp": 100 * i, "input_length": 1100, "output_length": 10, "hash_ids": [0, 1, 100 + i]}
        for i in range(requests)
    )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_version_and_help() -> None:
    assert invoke("--version").output == f"kvbm {dynamo_llm.__version__}\n"
    assert "replay" in invoke("--help").output
    text = invoke("replay", "--help").output
    for option in ("--host-blocks", "--page-size", "--num-layers", "--inner-dim", "--outer-dim", "--dtype"):
        assert option in text
    for option in ("--concurrency", "--speed", "--no-bytes", "--policy", "--report", "--json", "--limit", "--seed"):
        assert option in text
    assert "Exit status" in text
    assert "--corrupt-block" not in text
    assert max(map(len, text.splitlines())) <= 110


COUNTS = (
    *("requests", "prompt_tokens", "output_tokens", "prompt_blocks", "hit_blocks", "ceiling_hit_blocks"),
    *("distinct_blocks", "prefill_tokens_saved", "saved_bytes", "written_blocks", "written_bytes", "evicted_blocks"),
    *("duplicate_blocks", "waited_requests", "uncached_requests", "uncached_blocks", "verified_blocks"),
    *("verified_bytes", "verify_failures"),
)
NUMBERS = ("seconds", "hit_rate", "ceiling_hit_rate", "requests_per_second", "fill_seconds", "verify_seconds")


def test_json_is_one_object_with_every_figure() -> None:
    found = summary(*SMALL)
    for name in COUNTS:
        assert type(found[name]) is int, name
        assert found[name] >= 0
    for name in NUMBERS:
        assert isinstance(found[name], float), name
    for step in ("match", "allocate", "register", "request", "hash", "wait", "native_match", "native_allocate"):
        ranks = [found[f"{step}_{rank}_ns"] for rank in ("p50", "p90", "p99", "p999", "max")]
        assert all(type(value) is int for value in ranks)
        if not step.startswith("native"):
            assert ranks == sorted(ranks), step
    assert found["requests"] == 60
    assert found["verify_failures"] == 0
    assert found["verified_bytes"] == found["hit_blocks"] * found["config"]["block_bytes"] > 0
    assert found["interrupted"] is False
    assert found["config"]["page_size"] == 16


def test_one_request_at_a_time_reaches_the_ceiling_and_seeds_repeat() -> None:
    first, second = (summary(*SMALL, "--concurrency", 1, "--seed", 5) for _ in range(2))
    other = summary(*SMALL, "--concurrency", 1, "--seed", 6)
    assert first["hit_blocks"] == first["ceiling_hit_blocks"] == second["hit_blocks"]
    assert first["prompt_tokens"] == second["prompt_tokens"] != other["prompt_tokens"]


def test_a_trace_brings_its_page_size(tmp_path: Path) -> None:
    found = summary("replay", write_trace(tmp_path / "t.jsonl"), "--concurrency", 1)
    assert found["config"]["page_size"] == 512
    assert found["config"]["block_bytes"] == 32768
    assert (found["requests"], found["prompt_blocks"], found["hit_blocks"]) == (5, 15, 8)
    assert found["prefill_tokens_saved"] == 4 * 1024
    fine = summary("replay", tmp_path / "t.jsonl", "--concurrency", 1, "--page-size", 64)
    assert (fine["prompt_blocks"], fine["hit_blocks"]) == (5 * 18, 4 * 16)


def test_a_directory_of_conversations_replays(tmp_path: Path) -> None:
    for name in ("a", "b"):
        turns = [{"t": float(i), "in": 64 * (i + 2), "out": 1, "hash_ids": list(range(i + 2))} for i in range(3)]
        (tmp_path / f"{name}.json").write_text(json.dumps({"block_size": 64, "requests": turns}))
    found = summary("replay", tmp_path, "--limit", 4)
    assert found["requests"] == 4
    found = summary("replay", tmp_path, "--concurrency", 1)
    assert (found["prompt_blocks"], found["hit_blocks"], found["config"]["kind"]) == (18, 10, "agentic")


def test_without_json_the_table_is_the_output() -> None:
    result = invoke(*SMALL)
    assert result.exit_code == 0
    for name in ("hit rate", "unbounded ceiling", "prefill tokens saved", "memory saved by reuse", "evictions"):
        assert name in result.stdout
    assert re.search(r"verification failures\W+0\b", result.stdout)
    assert re.search(r"allocate, awaited", result.stdout)
    assert "60/60 requests" in result.stderr


def test_no_bytes_verifies_nothing() -> None:
    found = summary(*SMALL, "--no-bytes")
    assert found["verified_bytes"] == found["written_bytes"] == found["verify_failures"] == 0
    assert found["hit_blocks"] > 0


def test_a_wrong_byte_is_exit_status_1() -> None:
    result = invoke(*SMALL, "--json", "--corrupt-block", 0)
    assert result.exit_code == 1
    assert json.loads(result.stdout)["verify_failures"] > 0
    line = next(line for line in result.stderr.splitlines() if "verification failed" in line)
    assert re.search(
        r"request \d+: key [0-9a-f]{32} in block \d+: 1 wrong bytes, the first at offset \d+: expected \w+, found", line
    )


def test_a_failed_operation_is_one_line_and_exit_status_1(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> None:
        raise dynamo_llm.BlockManagerError("the pool is on fire")

    monkeypatch.setattr("dynamo_llm.cli.server.Server._hold", fail)
    result = invoke(*SMALL, "--json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines()[-1] == "kvbm: BlockManagerError: the pool is on fire"


def test_the_report_is_one_page_without_a_network(tmp_path: Path) -> None:
    directory = tmp_path / "deep" / "report"
    result = invoke(*SMALL, "--report", directory)
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in directory.iterdir()) == ["report.html", "summary.json"]
    page = (directory / "report.html").read_text()
    assert page.count("<svg") == page.count("</svg>") == 3
    for word in ("Hit rate over time", "Occupancy over time", "Latency", "Configuration", "every hit verified"):
        assert word in page
    # Addresses name vocabularies only; nothing is loaded from anywhere.
    assert set(re.findall(r"https?://[^\"' <]+", page)) == {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert not re.findall(r"<(script|link|img|iframe)\b|@import|url\((?!#)", page)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', page)) <= set(ids)
    assert json.loads((directory / "summary.json").read_text())["requests"] == 60


def test_a_report_of_a_failed_replay_says_so(tmp_path: Path) -> None:
    assert invoke(*SMALL, "--corrupt-block", 0, "--report", tmp_path).exit_code == 1
    page = (tmp_path / "report.html").read_text()
    assert "verification failed" in page
    assert "every hit verified" not in page


def test_svg_is_a_picture_of_the_tables(tmp_path: Path) -> None:
    assert invoke(*SMALL, "--svg", tmp_path / "a.svg").exit_code == 0
    picture = (tmp_path / "a.svg").read_text()
    assert picture.startswith("<svg")
    # The name of a vocabulary, and a credit in a comment; nothing is loaded.
    assert "@font-face" not in picture
    assert "--svg" not in picture
    assert "verification" in picture


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["replay", "--host-blocks", "0"], "--host-blocks"),
        (["replay", "--host-blocks", "x"], "--host-blocks"),
        (["replay", "--page-size", "-1"], "--page-size"),
        (["replay", "--num-layers", "0"], "--num-layers"),
        (["replay", "--inner-dim", "0"], "--inner-dim"),
        (["replay", "--outer-dim", "3"], "--outer-dim"),
        (["replay", "--dtype", "fp64"], "--dtype"),
        (["replay", "--concurrency", "0"], "--concurrency"),
        (["replay", "--speed", "0"], "--speed"),
        (["replay", "--speed", "nan"], "--speed"),
        (["replay", "--limit", "0"], "--limit"),
        (["replay", "--limit", "99999999999999999999999"], "--limit"),
        (["replay", "--seed", "-1"], "--seed"),
        (["replay", "--allocate-timeout", "nan"], "--allocate-timeout"),
        (["replay", "--policy", "nonsense", "--limit", "5"], "policy"),
        (["replay", "--host-blocks", "60000000"], "memory"),
        (["replay", "--page-size", "60000", "--limit", "5"], "no prompt fills a block of 60000 tokens"),
        (["replay", "--nonsense"], "--nonsense"),
        (["replay", "no-such-trace.jsonl"], "no-such-trace.jsonl: No such file"),
        (["replay", "--report", "/dev/null/x"], "--report"),
        (["nonsense"], "nonsense"),
    ],
)
def test_bad_options_are_one_line_and_exit_status_2(args: list[str], message: str) -> None:
    result = invoke(*args)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("kvbm")


def test_bad_traces_name_file_and_line(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "bad.jsonl")
    path.write_text(path.read_text() + '{"timestamp": 1, "output_length": 2}\n')
    result = invoke("replay", path, "--json")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"kvbm: {path}:6: hash_ids is missing\n"


def test_no_command_shows_the_help() -> None:
    result = invoke()
    assert result.exit_code == 2
    assert "Usage: kvbm" in result.stderr


def test_missing_extras_are_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in ("rich", "click") else real(name))
    with pytest.raises(SystemExit) as caught:
        dynamo_llm.cli.main()
    assert caught.value.code == 2
    line = "kvbm: not installed: click, rich; the command line needs: pip install 'dynamo-llm[cli]'\n"
    assert capsys.readouterr() == ("", line)


def test_interrupted_while_it_starts_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupting:
        def find_spec(self, name: str, *_: Any) -> None:
            if name == "dynamo_llm.cli.app":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "dynamo_llm.cli.app", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Interrupting(), *sys.meta_path])
    with pytest.raises(SystemExit) as exit_info:
        dynamo_llm.cli.main()
    assert exit_info.value.code == 130
    assert capsys.readouterr().err == "kvbm: interrupted\n"


def test_importing_the_package_imports_no_extra() -> None:
    code = "import sys, dynamo_llm.cli; print(sorted({'click', 'rich', 'numpy', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_as_a_program_standard_output_is_json_alone() -> None:
    done = subprocess.run([*PROGRAM, *SMALL, "--json"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    assert json.loads(done.stdout)["requests"] == 60
    assert "verification failures" in done.stderr


@pytest.mark.parametrize("args", [["--help"], ["replay", "--limit", "5"], ["replay", "--limit", "5", "--json"]])
def test_as_a_program_output_without_room_is_one_line(args: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "dynamo_llm.cli", *args]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1] == "kvbm: No space left on device"


def test_as_a_program_json_with_standard_output_closed_is_refused() -> None:
    done = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", *PROGRAM, *SMALL, "--json"], stderr=subprocess.PIPE, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "standard output is closed" in done.stderr


def test_as_a_program_a_bad_option_is_exit_status_2() -> None:
    done = subprocess.run([*PROGRAM, "replay", "--limit", "x"], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr


def test_interrupted_it_sums_up_what_was_done(tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "long.jsonl", 3000)
    with subprocess.Popen(
        [*PROGRAM, "replay", str(trace), "--speed", "1", "--json", "--report", str(tmp_path / "report")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stderr is not None
        # The first line of progress: the replay runs.
        assert "requests" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    found = json.loads(stdout)
    assert found["interrupted"] is True
    assert 0 < found["requests"] < 3000
    assert found["verify_failures"] == 0
    assert "interrupted" in stderr
    assert "Traceback" not in stderr
    assert "interrupted" in (tmp_path / "report" / "report.html").read_text()
