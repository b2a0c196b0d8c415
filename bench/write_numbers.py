"""Makes docs/numbers.md from the raw results in bench/results/.

    python bench/write_numbers.py                  write docs/numbers.md
    python bench/write_numbers.py --run [NAME...]  first run `./dev bench` (or some of it) and keep what it prints
    python bench/write_numbers.py --lines FILE     first take over JSON lines that `./dev bench` printed into FILE
    python bench/write_numbers.py --check          say whether docs/numbers.md is what would be written

Each file bench/results/<machine>.json holds the JSON lines of one machine, one result a line; a result that is measured
again replaces its line. --machine names the file (default: host).
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
PAGE = ROOT / "docs" / "numbers.md"

HEAD = """<!-- Generated from bench/results/ by bench/write_numbers.py --run. Do not edit. -->

# Numbers

This page is generated from the output of `./dev bench`; the raw lines are in `bench/results/`. Each value is the
median over many short batches, and its spread runs from the 10th to the 90th percentile of those batches. A reference
is measured in the same run, batch by batch in turn with its subject, unless its name starts with "target". Ratio is
value / reference. The target is an upper limit. What each name measures is said at the head of its program in `bench/`.
"""

# Members of `conditions` that describe the machine; the others belong to the result.
MACHINE = ("cpu", "cores", "kernel", "compiler", "revision")


def number(value: float | None) -> str:
    if value is None:
        return ""
    if abs(value) >= 1_000:
        return f"{round(value):,}"
    return f"{value:.4g}"


def target(result: dict[str, Any]) -> tuple[str, str]:
    """The target, and whether it is met."""
    wanted = result.get("target")
    if wanted is None:
        return "", ""
    if "ratio_max" in wanted:
        met = result["ratio"] is not None and result["ratio"] <= wanted["ratio_max"]
        return f"ratio {number(wanted['ratio_max'])}", "yes" if met else "**no**"
    return number(wanted["value_max"]), "yes" if result["value"] <= wanted["value_max"] else "**no**"


def reference_text(reference: dict[str, Any] | None) -> str:
    if reference is None:
        return ""
    # A target's name says its value.
    name: str = reference["name"]
    return name if name.startswith("target") else f"{name}: {number(reference['value'])}"


def row(result: dict[str, Any]) -> str:
    reference = result["reference"]
    low, high = result["spread"]
    wanted, met = target(result)
    conditions = ", ".join(
        f"{name.replace('_', ' ')} {number(value) if isinstance(value, float) else json.dumps(value).strip(chr(34))}"
        for name, value in result["conditions"].items()
        if name not in MACHINE
    )
    cells = [
        f"`{result['name']}`",
        number(result["value"]),
        f"{number(low)} to {number(high)}",
        result["unit"],
        reference_text(reference),
        number(result["ratio"]),
        wanted,
        met,
        conditions,
    ]
    return "| " + " | ".join(cells) + " |"


def machine(conditions: dict[str, Any]) -> str:
    return f"{conditions['cpu']}, {conditions['cores']} cores, kernel {conditions['kernel']}"


def section(file: Path) -> str:
    results = load(file)
    machines = sorted({machine(result["conditions"]) for result in results})
    built = sorted({f"{r['conditions']['compiler']} at {r['conditions']['revision']}" for r in results})
    lines = [f"## {file.stem}", "", f"Machine: {'; '.join(machines)}. Built with {', '.join(built)}.", ""]
    lines.append("| name | value | spread | unit | reference | ratio | target | met | conditions |")
    lines.append("| --- | ---: | ---: | --- | --- | ---: | ---: | --- | --- |")
    lines += [row(result) for result in results]
    judged = [target(result)[1] for result in results if result.get("target") is not None]
    lines += ["", f"Targets met: {judged.count('yes')} of {len(judged)}."]
    return "\n".join(lines) + "\n"


def load(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines() if line.strip()]


def page() -> str:
    return "\n".join([HEAD, *(section(file) for file in sorted(RESULTS.glob("*.json")))])


def merge(file: Path, lines: Iterable[str]) -> None:
    """Takes new results over into the file."""
    results = {result["name"]: result for result in load(file)} if file.exists() else {}
    for line in lines:
        result = json.loads(line)
        results[result["name"]] = result
        print(f"{result['name']}: {number(result['value'])} {result['unit']}", file=sys.stderr)
    RESULTS.mkdir(exist_ok=True)
    file.write_text("".join(json.dumps(result) + "\n" for result in results.values()))


def measure(file: Path, names: list[str]) -> None:
    with subprocess.Popen([ROOT / "dev", "bench", *names], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = list(process.stdout)
    if process.returncode != 0:
        sys.exit(f"./dev bench ended with status {process.returncode}")
    merge(file, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes docs/numbers.md from bench/results/.")
    parser.add_argument("--run", action="store_true", help="run ./dev bench first")
    parser.add_argument("--lines", type=Path, metavar="FILE", help="take over what ./dev bench printed")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if docs/numbers.md is out of date")
    parser.add_argument("--machine", default="host", help="name of the results file, without .json")
    parser.add_argument("names", nargs="*", metavar="NAME", help="with --run: which benchmarks")
    arguments = parser.parse_args()
    if arguments.names and not arguments.run:
        parser.error("NAME needs --run")
    if arguments.run:
        measure(RESULTS / f"{arguments.machine}.json", arguments.names)
    if arguments.lines is not None:
        merge(RESULTS / f"{arguments.machine}.json", arguments.lines.read_text().splitlines())
    if arguments.check:
        sys.exit(0 if PAGE.exists() and PAGE.read_text() == page() else f"{PAGE.relative_to(ROOT)} is out of date")
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
