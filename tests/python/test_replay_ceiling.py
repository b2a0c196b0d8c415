"""The ceiling of an unbounded cache, against a model that is as plain as can be."""

from hypothesis import given
from hypothesis import strategies as st

from dynamo_llm.cli.ceiling import ceiling
from dynamo_llm.cli.prompts import Request, Workload, prompt_tokens

LENGTHS = (3, 8, 5, 16, 1)
"""A segment id's length is a function of the id, as in every workload."""


def request(ids: tuple[int, ...], space: int = 0, block: int | None = None, cut: int = 0) -> Request:
    lengths = block if block is not None else tuple(LENGTHS[i % len(LENGTHS)] for i in ids)
    total = block * len(ids) if block is not None else sum(LENGTHS[i % len(LENGTHS)] for i in ids)
    return Request(0.0, space, ids, lengths, max(0, total - cut), 1, 0.0)


def workload(requests: list[Request]) -> Workload:
    return Workload("test", "chat", 8, ("a", "b"), requests)


def naive(requests: list[Request], page_size: int) -> list[int]:
    """Every prefix of whole pages ever seen, as its tokens; hits are the longest seen prefix."""
    seen: set[tuple[int, tuple[int, ...]]] = set()
    result = []
    for r in requests:
        tokens = tuple(int(token) for token in prompt_tokens(r))
        prefixes = [(r.space, tokens[: (i + 1) * page_size]) for i in range(r.pages(page_size))]
        hits = 0
        while hits < len(prefixes) and prefixes[hits] in seen:
            hits += 1
        seen.update(prefixes)
        result.append(hits)
    return result


paths = st.lists(st.integers(0, 4), max_size=6).map(tuple)


@given(
    st.lists(st.tuples(paths, st.integers(0, 1), st.integers(0, 20)), max_size=12),
    st.sampled_from([1, 2, 3, 4, 7, 8, 16, 33]),
)
def test_messages_of_any_length_match_the_model(prompts: list[tuple[tuple[int, ...], int, int]], page: int) -> None:
    requests = [request(ids, space, cut=cut) for ids, space, cut in prompts]
    bound = ceiling(workload(requests), page)
    assert list(bound.hits) == naive(requests, page)
    assert list(bound.blocks) == [r.pages(page) for r in requests]


@given(
    st.lists(st.tuples(paths, st.integers(0, 7)), max_size=12),
    st.sampled_from([(8, 8), (8, 4), (8, 16), (8, 3), (8, 12)]),
)
def test_blocks_of_a_trace_match_the_model(prompts: list[tuple[tuple[int, ...], int]], sizes: tuple[int, int]) -> None:
    block, page = sizes
    requests = [request(ids, block=block, cut=min(cut, 7)) for ids, cut in prompts]
    assert list(ceiling(workload(requests), page).hits) == naive(requests, page)


@given(st.lists(paths, max_size=10), st.randoms(use_true_random=False))
def test_total_does_not_depend_on_the_order(prompts: list[tuple[int, ...]], random: object) -> None:
    requests = [request(ids) for ids in prompts]
    shuffled = list(requests)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert ceiling(workload(requests), 4).hit_blocks == ceiling(workload(shuffled), 4).hit_blocks


def test_nothing_is_nothing() -> None:
    bound = ceiling(workload([]), 8)
    assert (bound.rate, bound.hit_blocks, bound.prompt_blocks, bound.distinct_blocks) == (0.0, 0, 0, 0)


def test_the_same_prompt_again_hits_whole() -> None:
    bound = ceiling(workload([request((1, 3, 2)), request((1, 3, 2)), request((1, 3))]), 4)
    assert bound.hits == (0, 7, 6)
    assert bound.distinct_blocks == 7
