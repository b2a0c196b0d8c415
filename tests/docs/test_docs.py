"""Every code block of README.md and docs/ is run, and every link leads somewhere. docs/testing.md states the rules."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pages import ROOT, Block, anchors, blocks, links, pages

PAGES = pages()
BLOCKS = [block for page in PAGES for block in blocks(page)]
# Not run: output listings, and diagrams that the viewer draws.
LISTINGS = {"console", "text", "mermaid"}
# These would set the machine up or run the tests inside the tests: ./dev must know the command, that is all.
SET_UP = re.compile(r"^\s*(\./dev\b.*|(?:python -m )?pip install .*)$")


def of(language: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == language]


def environment() -> dict[str, str]:
    """.venv/bin first, and no settings of the developer's that a reader would not have."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return {**kept, "PATH": f"{ROOT / '.venv' / 'bin'}:{kept['PATH']}"}


def demand(command: list[str | Path], cwd: Path, what: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
    )
    if done.returncode != 0:
        end = "\n".join(done.stdout.splitlines()[-60:])
        pytest.fail(f"{what}: status {done.returncode}\n{end}", pytrace=False)
    return done.stdout


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
def test_block_is_of_a_language_that_is_tested(block: Block) -> None:
    assert block.language in {"python", "c", "bash", *LISTINGS}, f"{block.name}: language {block.language!r}"


# --- Python: the blocks of a page share one namespace, in order -------------------------------------------------------

RUN_PAGE = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from pages import blocks
page = Path({page!r})
namespace = {{"__name__": "__main__"}}
for block in blocks(page):
    if block.language == "python":
        # Blank lines before it make a traceback show the page's own line numbers.
        source = "\\n" * (block.line - 1) + block.text
        exec(compile(source, str(page), "exec", dont_inherit=True), namespace)
"""


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(b.page == page for b in of("python"))],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_python_blocks_run(page: Path, tmp_path: Path) -> None:
    script = RUN_PAGE.format(tests=str(Path(__file__).parent), page=str(page))
    # In a folder of its own: what a block writes does not land in the checkout.
    demand([sys.executable, "-W", "error", "-c", script], tmp_path, str(page.relative_to(ROOT)))


# --- C: a complete program, or a fragment that uses `manager` ---------------------------------------------------------

FRAME = """
#include <assert.h>
#include <stdio.h>
#include <string.h>
#include "actors/kvbm.h"
{includes}
static void fragment(kvbm_manager *manager) {{
#line {line} "{page}"
{body}
}}
int main(void) {{
    kvbm_group_options group = {{
        .size = sizeof group,
        .geometry = {{.num_layers = 2, .outer_dim = 2, .page_size = 4, .inner_dim = 8, .dtype = KVBM_DTYPE_FP16,
                     .form = KVBM_LAYOUT_FULLY_CONTIGUOUS}},
        .host_blocks = 64,
    }};
    kvbm_options options = {{
        .size = sizeof options, .groups = &group, .group_count = 1, .flags = KVBM_OPEN_TRACK_TOKENS}};
    kvbm_manager *manager = NULL;
    if (kvbm_manager_open(&options, &manager, NULL) != 0)
        return 1;
    fragment(manager);
    kvbm_pool_stats stats = {{.size = sizeof(stats)}};
    /* A fragment gives back what it took. */
    if (kvbm_pool_stats_mt(manager, 0, KVBM_TIER_HOST, &stats) != 0 || stats.leased_blocks + stats.mutable_blocks != 0)
        return 2;
    if (kvbm_manager_close_mt(manager, 10000000000) != 0)
        return 3;
    kvbm_manager_release_mt(manager);
    return 0;
}}
"""


def program_of(block: Block) -> str:
    if re.search(r"\bint main\(", block.text):
        return f'#line {block.line} "{block.page}"\n{block.text}'
    lines = block.text.splitlines()
    includes = [line for line in lines if line.startswith("#include")]
    body = ["" if line in includes else line for line in lines]
    return FRAME.format(includes="\n".join(includes), line=block.line, page=block.page, body="\n".join(body))


@pytest.mark.parametrize("block", of("c"), ids=lambda block: block.name)
def test_c_block_compiles_and_runs(block: Block, tmp_path: Path) -> None:
    source, program = tmp_path / "block.c", tmp_path / "block"
    source.write_text(program_of(block))
    flags = ["-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-g", "-I", ROOT]
    library = ROOT / ".cache" / "bin" / "actors" / "libkvbm.a"
    assert library.exists(), "./dev build makes the library"
    demand(["cc", *flags, source, library, "-luv", "-lxxhash", "-lpthread", "-o", program], tmp_path, block.name)
    demand([program], tmp_path, block.name)


# --- shell ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dev_commands() -> set[str]:
    """The commands that `./dev help` lists: the first word of each line of its table."""
    text = demand(["./dev", "help"], ROOT, "./dev help")
    return set(re.findall(r"^  ([a-z][\w-]*)(?= |$)", text, re.MULTILINE))


@pytest.mark.parametrize("block", of("bash"), ids=lambda block: block.name)
def test_shell_block_runs(block: Block, dev_commands: set[str]) -> None:
    run = []
    for line in block.text.splitlines():
        if not SET_UP.match(line):
            run.append(line)
        elif line.split()[0] == "./dev":
            words = re.sub(r"#.*", "", line).split()
            assert len(words) > 1, f"{block.name}: ./dev without a command"
            assert words[1] in dev_commands, f"{block.name}: ./dev has no command {words[1]}"
        else:
            for word in line.split()[2:]:
                if "/" in word and "*" not in word:
                    assert (ROOT / word).exists(), f"{block.name}: {word} does not exist"
    script = "\n".join(run)
    if re.sub(r"#.*", "", script).strip():
        demand(["bash", "-euo", "pipefail", "-c", script], ROOT, block.name)


# --- pages ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page: Path) -> None:
    wrong = []
    for line, target in links(page):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists():
            wrong.append(f"{page.relative_to(ROOT)}:{line}: {target} does not exist")
        elif anchor and (file.suffix != ".md" or anchor not in anchors(file)):
            wrong.append(f"{page.relative_to(ROOT)}:{line}: {target} has no such heading")
    assert not wrong, "\n".join(wrong)


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached: set[Path] = set()
    waiting = [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached:
            continue
        reached.add(page)
        for _, target in links(page):
            file = (page.parent / target.partition("#")[0]).resolve()
            if file.suffix == ".md" and file.exists():
                waiting.append(file)
    lost = sorted(str(page.relative_to(ROOT)) for page in set(PAGES) - reached)
    assert not lost, f"no link leads to {lost}"


def test_numbers_are_those_of_the_kept_results() -> None:
    demand([sys.executable, "bench/write_numbers.py", "--check"], ROOT, "docs/numbers.md")


def test_a_c_compiler_is_there() -> None:
    assert shutil.which("cc"), "no C compiler: the C blocks cannot be tested"
