"""The plain face of the Python package.

py_alloc_release      one block allocated and released
py_alloc_release_64   64 blocks in one call, ns a block
py_match_8192         8,192 resident keys, given as SequenceHashes
py_match_8192_bytes   the same keys as a list of bytes objects
py_hash_tokens_8192   the 8,192 keys of 131,072 tokens, given as a buffer of 32-bit integers
py_dlpack_export      a NumPy array of one layer
py_threads            allocate and release by 8 Python threads on one manager
"""

import array
import functools
import sys
import threading
from collections.abc import Callable
from time import perf_counter_ns

import numpy
from common import Summary, report, run

import dynamo_llm

KEYS = 8192
PAGE = 16


def manager(blocks: int, **options: object) -> dynamo_llm.BlockManager:
    return dynamo_llm.BlockManager(
        num_layers=2,
        page_size=PAGE,
        inner_dim=64,
        host_blocks=blocks,
        **options,  # type: ignore[arg-type]
    )


def bench_allocate() -> None:
    with manager(4096) as blocks:
        allocate = blocks.allocate_blocks

        def alloc_release(count: int, iterations: int) -> int:
            start = perf_counter_ns()
            for _ in range(iterations):
                allocate(count).release()
            return perf_counter_ns() - start

        def floor(iterations: int) -> int:
            # What any C function costs that returns a new object with a method: a bytearray, emptied.
            make = bytearray
            start = perf_counter_ns()
            for _ in range(iterations):
                make(1).clear()
            return perf_counter_ns() - start

        results = run(
            {
                "one": (functools.partial(alloc_release, 1), 500),
                "many": (functools.partial(alloc_release, 64), 50),
                "floor": (floor, 2000),
            },
            batches=500,
        )
    report(
        "py_alloc_release",
        "ns",
        results["one"],
        reference=("target: 1.0 us", 1000),
        target_value=1000,
        floor_bytearray_made_and_cleared_ns=round(results["floor"].median, 1),
        host_blocks=4096,
    )
    report(
        "py_alloc_release_64",
        "ns/block",
        results["many"].scaled(1 / 64),
        reference=("py_alloc_release", results["one"].median),
        blocks=64,
    )


def bench_match() -> None:
    tokens = array.array("I", ((i * 2654435761) & 0xFFFFFFFF for i in range(KEYS * PAGE)))
    hashes = dynamo_llm.hash_tokens(tokens, PAGE)
    listed = list(hashes)
    with manager(KEYS, bytes=False) as blocks:
        pool = blocks.get_host_pool()
        assert pool is not None
        pool.register_blocks(pool.allocate_blocks(KEYS), hashes=hashes).release()

        def match(keys: dynamo_llm.SequenceHashes | list[bytes], iterations: int) -> int:
            ns = 0
            for _ in range(iterations):
                start = perf_counter_ns()
                found = pool.match_sequence_hashes(keys)
                ns += perf_counter_ns() - start
                if len(found) != KEYS:
                    sys.exit(f"matched {len(found)} of {KEYS}")
                found.release()
                pool.available_blocks()  # settles what was released, so that the next match does not
            return ns

        def hashing(iterations: int) -> int:
            start = perf_counter_ns()
            for _ in range(iterations):
                dynamo_llm.hash_tokens(tokens, PAGE)
            return perf_counter_ns() - start

        def copying(iterations: int) -> int:
            start = perf_counter_ns()
            for _ in range(iterations):
                tokens[:]
            return perf_counter_ns() - start

        results = run(
            {
                "packed": (functools.partial(match, hashes), 1),
                "listed": (functools.partial(match, listed), 1),
                "hash": (hashing, 1),
                "copy": (copying, 4),
            },
            batches=300,
        )
    report(
        "py_match_8192",
        "ns",
        results["packed"],
        reference=("target: 0.3 ms", 300_000),
        target_value=300_000,
        keys=KEYS,
        given_as="SequenceHashes",
    )
    report(
        "py_match_8192_bytes",
        "ns",
        results["listed"],
        reference=("py_match_8192", results["packed"].median),
        keys=KEYS,
        given_as="list of bytes",
    )
    report(
        "py_hash_tokens_8192",
        "ns",
        results["hash"],
        reference=("copy of the array of tokens", results["copy"].median),
        keys=KEYS,
        page_size=PAGE,
    )


def bench_dlpack() -> None:
    with manager(16) as blocks, blocks.allocate_blocks(1) as held:
        layer = held[0][0]
        array_of_layer = numpy.from_dlpack(layer)

        def export(source: object, iterations: int) -> int:
            start = perf_counter_ns()
            for _ in range(iterations):
                numpy.from_dlpack(source)  # type: ignore[arg-type]
            return perf_counter_ns() - start

        results = run(
            {
                "layer": (functools.partial(export, layer), 200),
                "numpy": (functools.partial(export, array_of_layer), 200),
            },
            batches=300,
        )
        del array_of_layer
    report(
        "py_dlpack_export",
        "ns",
        results["layer"],
        reference=("numpy.from_dlpack of a NumPy array", results["numpy"].median),
        layer_bytes=layer.nbytes,
    )


def crew(work: Callable[[], object], threads: int) -> Callable[[int], int]:
    """A subject: `threads` threads share the iterations."""

    def subject(iterations: int) -> int:
        start_line = threading.Barrier(threads)
        begins: list[int] = []
        ends: list[int] = []

        def body() -> None:
            start_line.wait()
            begins.append(perf_counter_ns())
            for _ in range(iterations // threads):
                work()
            ends.append(perf_counter_ns())

        members = [threading.Thread(target=body) for _ in range(threads)]
        for member in members:
            member.start()
        for member in members:
            member.join()
        return max(ends) - min(begins)

    return subject


def bench_threads() -> None:
    threads, iterations = 8, 16_000
    with manager(4096) as blocks:
        results: dict[str, Summary] = run(
            {
                "eight": (crew(lambda: blocks.allocate_blocks(1).release(), threads), iterations),
                "one": (crew(lambda: blocks.allocate_blocks(1).release(), 1), iterations // threads),
            },
            batches=30,
        )
    report(
        "py_threads",
        "ns",
        results["eight"],
        reference=("the same by one thread", results["one"].median),
        threads=threads,
        switch_interval_s=sys.getswitchinterval(),
    )


if __name__ == "__main__":
    bench_allocate()
    bench_match()
    bench_dlpack()
    bench_threads()
