"""Processes and threads: forks, signals, threads that hammer, logs, interpreter exit, sub-interpreters."""

import asyncio
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest
from kvbm_tools import ahost, asynchronous, free, host, plain, wait_until

import dynamo_llm


def script(text: str, timeout: float = 60) -> str:
    """Runs a program of its own, which must end well; returns what it printed."""
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text)], capture_output=True, text=True, timeout=timeout, check=False
    )
    assert result.returncode == 0, result.stderr
    assert not result.stderr, result.stderr
    return result.stdout


def test_a_forked_child_is_told_so() -> None:
    out = script(
        """
        import asyncio, os, sys, warnings
        import dynamo_llm
        from dynamo_llm import aio

        warnings.simplefilter("ignore")
        manager = dynamo_llm.BlockManager(2, 4, 8, host_blocks=4)
        pool = manager.get_host_pool()
        blocks = manager.allocate_blocks(2)
        other = aio.BlockManager(2, 4, 8, host_blocks=4)

        async def use():
            await other.allocate_blocks(1)

        child = os.fork()
        if child == 0:
            names = []
            for call in (
                lambda: manager.allocate_blocks(1),
                lambda: pool.match_sequence_hashes([b"x" * 16]),
                lambda: pool.register_blocks(blocks),
                lambda: pool.stats(),
                lambda: manager.close(),
                lambda: asyncio.run(use()),
            ):
                try:
                    call()
                    names.append("nothing")
                except Exception as error:
                    names.append(type(error).__name__)
            print(names, flush=True)
            del blocks, pool, manager, other
            os._exit(0)

        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert pool.available_blocks() == 2
        del blocks
        assert pool.available_blocks() == 4
        """
    )
    assert out == str(["ForkedError"] * 6) + "\n"


def test_an_interrupt_ends_a_waiting_call() -> None:
    manager = plain(2)
    held = manager.allocate_blocks(2)
    timer = threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        manager.allocate_blocks(1, timeout=None)
    assert time.monotonic() - begun < 10
    timer.join()
    del held
    assert free(manager) == 2
    assert host(manager).stats()["waiting_count"] == 0


def test_an_interrupted_handler_that_does_not_raise_goes_on_waiting() -> None:
    manager = plain(1)
    held = [manager.allocate_blocks(1)]
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: seen.append(number))
    try:
        first = threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGUSR1))
        second = threading.Timer(0.3, held.clear)
        first.start()
        second.start()
        assert len(manager.allocate_blocks(1, timeout=None)) == 1
        assert seen == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_waiting_call_lets_other_threads_run() -> None:
    manager = plain(2)
    held = manager.allocate_blocks(2)
    got: list[int] = []
    threads = [
        threading.Thread(target=lambda: got.append(len(manager.allocate_blocks(1, timeout=None)))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    wait_until(lambda: host(manager).stats()["waiting_count"] == 8)
    held.release()
    for thread in threads:
        thread.join()
    assert got == [1] * 8
    assert free(manager) == 2


def test_without_a_free_operation_slot_a_plain_call_is_refused_in_the_end() -> None:
    manager = plain(1, max_operations=16)
    held = manager.allocate_blocks(1)
    threads = [threading.Thread(target=lambda: manager.allocate_blocks(1, timeout=None)) for _ in range(16)]
    for thread in threads:
        thread.start()
    wait_until(lambda: host(manager).stats()["waiting_count"] == 16)
    begun = time.monotonic()
    with pytest.raises(dynamo_llm.OverloadedError):
        manager.allocate_blocks(1)
    assert 0.5 < time.monotonic() - begun < 10
    held.release()
    for thread in threads:
        thread.join()
    assert len(manager.allocate_blocks(1)) == 1


@pytest.mark.parametrize("borrow", [True, False])
def test_threads_hammering(borrow: bool) -> None:
    manager = plain(64, borrow=borrow)
    pool = host(manager)
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for i in range(1500 if borrow else 300):
                tokens = [(seed * i) % 5] * 8
                blocks = manager.allocate_blocks(2, timeout=30)
                part = blocks[1:]
                registered = pool.register_blocks(blocks, tokens)
                assert part[0].state == "released"
                assert len(pool.match_sequence_hashes(registered.sequence_hashes())) == 2
                assert registered[1].sequence_hash() == registered.sequence_hashes()[1]
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert free(manager) == 64
    stats = pool.stats()
    assert stats["allocated_count"] == 6 * 2 * (1500 if borrow else 300)
    assert manager.stats()["operations_in_flight"] == 0


def test_threads_that_share_one_list() -> None:
    manager = plain(8)
    for _ in range(200):
        blocks = manager.allocate_blocks(8)
        barrier = threading.Barrier(3)

        def use(blocks: dynamo_llm.BlockList = blocks, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            for block in blocks:
                block.release()

        threads = [threading.Thread(target=use) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert free(manager) == 8


def test_closing_while_others_work() -> None:
    for _ in range(10):
        manager = plain(4)
        ended: list[str] = []

        def work(manager: dynamo_llm.BlockManager = manager, ended: list[str] = ended) -> None:
            try:
                while True:
                    manager.allocate_blocks(3, timeout=None)
            except dynamo_llm.ClosedError:
                ended.append("closed")

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.01)
        manager.close()
        for thread in threads:
            thread.join()
        assert ended == ["closed"] * 4


def test_an_exiting_interpreter_does_not_mind_open_managers() -> None:
    script("""
        import asyncio, dynamo_llm, numpy, threading
        from dynamo_llm import aio
        manager = dynamo_llm.BlockManager(2, 4, 8, host_blocks=4)
        blocks = manager.allocate_blocks(2)
        array = numpy.from_dlpack(blocks[0])
        other = aio.BlockManager(2, 4, 8, host_blocks=4)
        async def main():
            global kept
            kept = await other.allocate_blocks(4)
            global task
            task = asyncio.ensure_future(other.allocate_blocks(1, timeout=None))
            await asyncio.sleep(0.01)
            task.cancel()
        asyncio.run(main())
        cycle = [manager, other]
        cycle.append(cycle)
        def forever():
            try:
                manager.allocate_blocks(4, timeout=None)
            except BaseException:
                pass
        threading.Thread(target=forever, daemon=True).start()
        """)


def test_a_subinterpreter_works_or_is_refused() -> None:
    script("""
        import dynamo_llm
        try:
            import _xxsubinterpreters as interpreters
        except ImportError:
            raise SystemExit(0)
        interpreter = interpreters.create()
        try:
            interpreters.run_string(interpreter, '''
        try:
            import dynamo_llm
        except ImportError:
            pass
        else:
            manager = dynamo_llm.BlockManager(2, 4, 8, host_blocks=2)
            assert len(manager.allocate_blocks(2)) == 2
            manager.close()
            del manager
        ''')
        finally:
            interpreters.destroy(interpreter)
        assert len(dynamo_llm.BlockManager(2, 4, 8, host_blocks=2).allocate_blocks(1)) == 1
        """)


def test_native_logs_reach_logging(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="dynamo_llm"):
        manager = plain(4, huge_pages="try")
        dynamo_llm.flush_logs()
        manager.close()
    for record in caplog.records:
        assert record.name == "dynamo_llm"
        assert record.levelno in (10, 20, 30, 40)
        assert ": " in record.getMessage()


def test_the_borrowed_reactor_serves_loop_and_threads_at_once() -> None:
    manager = asynchronous(8)
    stop = threading.Event()

    async def main() -> None:
        pool = ahost(manager)
        for _ in range(300):
            async with manager.allocate_blocks(2, timeout=None) as blocks:
                await pool.register_blocks(blocks[:1])
        stop.set()

    def other() -> None:
        async def loop() -> None:
            while not stop.is_set():
                async with manager.allocate_blocks(5, timeout=None):
                    await asyncio.sleep(0)

        asyncio.run(loop())

    thread = threading.Thread(target=other)
    thread.start()
    asyncio.run(main())
    thread.join()
    wait_until(lambda: free(manager) == 8)
