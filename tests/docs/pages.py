"""Reads the documentation: pages, their fenced blocks, their headings and links. The rules are in docs/testing.md."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

FENCE = re.compile(r"^(?P<indent> *)(?P<mark>`{3,}|~{3,})(?P<language>[^\s`]*)[^`]*$")
# [text](target), ![text](target); not inside `code`.
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)")
HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*#*$")


@dataclass(frozen=True)
class Block:
    page: Path
    line: int  # of the first line inside the fence, from 1
    language: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> list[Block]:
    found = []
    lines = page.read_text().splitlines()
    number = 0
    while number < len(lines):
        fence = FENCE.match(lines[number])
        number += 1
        if fence is None:
            continue
        first, indent, body = number, len(fence["indent"]), []
        while number < len(lines) and lines[number].strip() != fence["mark"]:
            body.append(lines[number][indent:])
            number += 1
        if number == len(lines):
            raise ValueError(f"{page}:{first}: the fenced block is never closed")
        number += 1
        found.append(Block(page, first + 1, fence["language"], "\n".join(body) + "\n"))
    return found


def prose(page: Path) -> list[tuple[int, str]]:
    """(line number, text) of what is neither in a fenced block nor in `code`."""
    text = page.read_text().splitlines()
    inside = {number for block in blocks(page) for number in range(block.line - 1, block.line + block.text.count("\n"))}
    return [(number, re.sub(r"`[^`]*`", "", line)) for number, line in enumerate(text, 1) if number not in inside]


def links(page: Path) -> list[tuple[int, str]]:
    return [(number, target) for number, line in prose(page) for target in LINK.findall(line)]


def anchors(page: Path) -> set[str]:
    """What #fragments of this page may say: its headings by GitHub's rule."""
    inside = {number for block in blocks(page) for number in range(block.line - 1, block.line + block.text.count("\n"))}
    found: set[str] = set()
    for number, line in enumerate(page.read_text().splitlines(), 1):
        heading = HEADING.match(line)
        if heading is None or number in inside:
            continue
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1]).lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        unique, again = slug, 0
        while unique in found:
            again += 1
            unique = f"{slug}-{again}"
        found.add(unique)
    return found
