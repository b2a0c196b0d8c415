"""Reads what test and benchmark runs leave behind, for ./dev.

count.py bazel EVENTS     prints `passed failed skipped` of a Bazel run's build event file; a test that is a Check
                          program counts as its cases
count.py junit FILE       the same of a JUnit file
count.py bench PROGRAM [NAME...]
                          copies a benchmark's JSON lines; with names only those wanted
"""

import json
import re
import sys
import urllib.parse
import xml.etree.ElementTree
from pathlib import Path

CHECK_LINE = re.compile(r"^\d+%: Checks: (\d+), Failures: (\d+), Errors: (\d+)", re.MULTILINE)


def bazel(events: Path) -> tuple[int, int, int]:
    logs: dict[str, str] = {}
    status: dict[str, str] = {}
    for line in events.read_text().splitlines() if events.exists() else []:
        event = json.loads(line)
        if "testResult" in event:
            label = event["id"]["testResult"]["label"]
            for output in event["testResult"].get("testActionOutput", []):
                if output["name"] == "test.log":
                    logs[label] = urllib.parse.unquote(urllib.parse.urlparse(output["uri"]).path)
        elif "testSummary" in event:
            status[event["id"]["testSummary"]["label"]] = event["testSummary"]["overallStatus"]
    passed = failed = 0
    for label, overall in sorted(status.items()):
        log = Path(logs[label]).read_text(errors="replace") if label in logs and Path(logs[label]).exists() else ""
        cases = [tuple(map(int, groups)) for groups in CHECK_LINE.findall(log)]
        bad = sum(failures + errors for _, failures, errors in cases)
        good = sum(checks for checks, _, _ in cases) - bad
        if overall in ("PASSED", "FLAKY"):
            if cases and good == 0:
                print(f"{label}: ran no case", file=sys.stderr)
                bad = 1
            passed += good if cases else 1
            failed += bad
        else:
            print(f"{label}: {overall}", file=sys.stderr)
            passed += good
            failed += max(bad, 1)
    return passed, failed, 0


def junit(file: Path) -> tuple[int, int, int]:
    if not file.exists():
        return 0, 0, 0
    total = bad = skipped = 0
    for suite in xml.etree.ElementTree.parse(file).getroot().iter("testsuite"):
        total += int(suite.get("tests", 0))
        bad += int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        skipped += int(suite.get("skipped", 0))
    return total - bad - skipped, bad, skipped


def bench(program: str, names: list[str]) -> None:
    for line in sys.stdin:
        try:
            result = json.loads(line)
        except json.JSONDecodeError:
            result = None
        if not isinstance(result, dict):
            print(line, end="", file=sys.stderr)
        elif not names or any(name in program or name in str(result.get("name")) for name in names):
            print(line, end="", flush=True)


def main() -> None:
    kind, *arguments = sys.argv[1:]
    if kind == "bench":
        bench(arguments[0], arguments[1:])
    else:
        print(*{"bazel": bazel, "junit": junit}[kind](Path(arguments[0])))


if __name__ == "__main__":
    main()
