"""`kvbm policies`: the optimum against brute force, hits against the ceiling, the command and its files."""

import itertools
import json
import random
from pathlib import Path

import pytest
from click.testing import CliRunner

from dynamo_llm.cli.app import cli
from dynamo_llm.cli.ceiling import ceiling
from dynamo_llm.cli.policies import POLICIES, compare, hits, optimum, problems, prompts
from dynamo_llm.cli.workload import ChatShape, chat_workload


def best_by_trying(rows: list[list[int]], capacity: int, resident: frozenset[int] = frozenset()) -> int:
    """The most hits that any choice of victims allows."""
    if not rows:
        return 0
    row = rows[0]
    found = len(list(itertools.takewhile(resident.__contains__, row)))
    kept = frozenset(row[:capacity])
    others = resident - kept
    room = capacity - len(kept)
    choices = [others] if len(others) <= room else [frozenset(c) for c in itertools.combinations(others, room)]
    return found + max(best_by_trying(rows[1:], capacity, kept | choice) for choice in choices)


@pytest.mark.parametrize("seed", range(12))
def test_the_optimum_is_what_trying_everything_finds(seed: int) -> None:
    rng = random.Random(seed)
    chains = [[1, 2, 3], [1, 2, 4], [1, 5], [6, 7, 8], [6, 9]]
    rows = [chain[: rng.randint(1, 3)] for chain in rng.choices(chains, k=7)]
    for capacity in (3, 4, 5):
        assert optimum(rows, capacity) == best_by_trying(rows, capacity)


def test_with_room_for_everything_all_hit_what_an_unbounded_cache_hits() -> None:
    workload = chat_workload(3, ChatShape(requests=60))
    bound = ceiling(workload, workload.block_tokens)
    keys = prompts(workload)
    assert optimum(keys.numbers, bound.distinct_blocks) == bound.hit_blocks
    for policy in POLICIES:
        assert hits(workload, keys, policy, bound.distinct_blocks) == bound.hit_blocks


def test_no_policy_is_above_the_optimum_and_none_is_useless() -> None:
    from rich.console import Console

    workload = chat_workload(1, ChatShape(requests=300))
    result = compare(workload, (0.02, 0.1, 0.3), POLICIES, Console(quiet=True))
    assert problems([result]) == []
    for row in result["capacities"]:
        assert row["optimum"] <= result["ceiling"]
        assert all(0 < rate <= row["optimum"] for rate in row["hit_rates"].values())
    row["hit_rates"]["lru"] = 1.0
    assert len(problems([result])) == 1


def test_the_command_prints_one_object_and_writes_a_page(tmp_path: Path) -> None:
    words = ["policies", "--limit", "80", "--share", "0.05", "--share", "0.2", "--json", "--report", str(tmp_path)]
    done = CliRunner().invoke(cli, words, prog_name="kvbm")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["highest_mean"] in POLICIES
    assert [row["share"] for row in found["traces"][0]["capacities"]] == [0.05, 0.2]
    assert json.loads((tmp_path / "policies.json").read_text()) == found
    page = (tmp_path / "policies.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3", "")
    assert (tmp_path / "policies.svg").read_text().startswith("<svg")


@pytest.mark.parametrize(("words", "named"), [(["--policy", "fifo"], "policy"), (["no-such.jsonl"], "no-such.jsonl")])
def test_what_is_wrong_is_one_line(words: list[str], named: str) -> None:
    done = CliRunner().invoke(cli, ["policies", "--limit", "5", *words], prog_name="kvbm")
    assert done.exit_code == 2
    assert named in done.stderr
    assert "Traceback" not in done.output
