"""The asyncio face on asyncio and uvloop: waiting, cancelling, closing loops, several loops, many tasks."""

import asyncio
import gc
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from kvbm_tools import LOOPS, ahost, asynchronous, each_loop, free, run, wait_until

import dynamo_llm
from dynamo_llm import aio, hash_tokens


@each_loop
@pytest.mark.parametrize("borrow", [True, False])
def test_the_operations(kind: str, borrow: bool) -> None:
    async def main() -> None:
        async with asynchronous(8, borrow=borrow) as manager:
            pool = ahost(manager)
            blocks = await manager.allocate_blocks(3)
            assert isinstance(blocks, aio.BlockList)
            tokens = list(range(12))
            registered = await pool.register_blocks(blocks, tokens)
            hashes = hash_tokens(tokens, 4)
            assert registered.sequence_hashes() == hashes
            assert len(await pool.match_sequence_hashes([*hashes, b"x" * 16])) == 3
            assert await pool.contains([hashes[0], b"x" * 16]) == [True, False]
            assert len(await pool.allocate_blocks(1)) == 1
            assert await pool.register_blocks([]) is not None
            with pytest.raises(dynamo_llm.OutOfBlocksError) as caught:
                await manager.allocate_blocks(9)
            assert caught.value.requested == 9
            with pytest.raises(dynamo_llm.StaleBlockError):
                await pool.register_blocks(blocks)
        assert manager.closed
        with pytest.raises(dynamo_llm.ClosedError):
            await manager.allocate_blocks(1)

    run(kind, main())


@each_loop
def test_an_answered_operation_takes_no_turn(kind: str) -> None:
    async def main() -> None:
        async with asynchronous(4) as manager:
            turns = 0

            def count() -> None:
                nonlocal turns
                turns += 1
                loop.call_soon(count)

            loop = asyncio.get_running_loop()
            loop.call_soon(count)
            for _ in range(10):
                await manager.allocate_blocks(1)
            assert turns == 0
            assert free(manager) == 4

    run(kind, main())


@each_loop
def test_everything_that_takes_coroutines(kind: str) -> None:
    async def main() -> None:
        async with asynchronous(16, borrow=False) as manager:
            operation = manager.allocate_blocks(1)
            assert asyncio.iscoroutine(operation)
            await operation
            assert len(await asyncio.create_task(manager.allocate_blocks(2))) == 2
            assert [len(x) for x in await asyncio.gather(*(manager.allocate_blocks(n) for n in (1, 2, 3)))] == [1, 2, 3]
            assert len(await asyncio.wait_for(manager.allocate_blocks(2), 10)) == 2
            assert len(await asyncio.shield(manager.allocate_blocks(2))) == 2
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(manager.allocate_blocks(1)) for _ in range(5)]
            assert [len(task.result()) for task in tasks] == [1] * 5
            async with asyncio.timeout(10):
                assert len(await manager.allocate_blocks(2)) == 2
            done, _ = await asyncio.wait([asyncio.ensure_future(manager.allocate_blocks(1))])
            assert len(done.pop().result()) == 1
            del tasks, done
            task = asyncio.create_task(manager.allocate_blocks(3))
            assert "allocate_blocks" in repr(task)
            await task
            del task
            await asyncio.sleep(0)  # the handle that runs us refers to the task
            assert free(manager) == 16

    run(kind, main())


@each_loop
def test_async_with(kind: str) -> None:
    async def main() -> None:
        async with asynchronous(8, borrow=False) as manager:
            async with manager.allocate_blocks(3) as blocks:
                assert free(manager) == 5
            assert free(manager) == 8
            assert blocks[0].state == "released"
            async with await manager.allocate_blocks(3) as blocks:
                assert free(manager) == 5
            assert free(manager) == 8
            with pytest.raises(TypeError):
                async with ahost(manager).contains([]) as _:
                    pass

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run(kind, main())


@each_loop
def test_waiting_in_line_is_served_in_order(kind: str) -> None:
    async def main() -> None:
        async with asynchronous(4) as manager:
            held = await manager.allocate_blocks(4)
            order: list[int] = []

            async def take(n: int) -> None:
                async with manager.allocate_blocks(2, timeout=None):
                    order.append(n)

            tasks = [asyncio.create_task(take(n)) for n in range(6)]
            await asyncio.sleep(0.01)
            assert not order
            held.release()
            await asyncio.gather(*tasks)
            assert order == list(range(6))
            assert free(manager) == 4

    run(kind, main())


@each_loop
def test_timeouts(kind: str) -> None:
    async def main() -> None:
        async with asynchronous(4) as manager:
            held = await manager.allocate_blocks(4)
            begun = time.monotonic()
            with pytest.raises(dynamo_llm.OperationTimeoutError, match="within the timeout of 20 ms"):
                await manager.allocate_blocks(1, timeout=0.02)
            assert 0.015 < time.monotonic() - begun < 5
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(manager.allocate_blocks(1, timeout=None), 0.01)
            held.release()
            wait_until(lambda: free(manager) == 4)
            assert len(await manager.allocate_blocks(4)) == 4

    run(kind, main())


Stage = Callable[[asyncio.Task[Any], aio.BlockList], Any]


def before_start(task: asyncio.Task[Any], held: aio.BlockList) -> Any:
    task.cancel()


async def while_waiting(task: asyncio.Task[Any], held: aio.BlockList) -> None:
    await asyncio.sleep(0.005)
    task.cancel()


async def with_the_answer_on_its_way(task: asyncio.Task[Any], held: aio.BlockList) -> None:
    await asyncio.sleep(0.005)
    held.release()
    time.sleep(0.01)  # noqa: ASYNC251 - the answer comes while the loop does not look
    task.cancel()


async def in_the_turn_of_the_answer(task: asyncio.Task[Any], held: aio.BlockList) -> None:
    await asyncio.sleep(0.005)
    loop = asyncio.get_running_loop()
    held.release()
    time.sleep(0.01)  # noqa: ASYNC251
    # Runs after the reader has set the future's result and before the task goes on.
    loop.call_soon(lambda: loop.call_soon(task.cancel))
    await asyncio.sleep(0)


@each_loop
@pytest.mark.parametrize("stage", [before_start, while_waiting, with_the_answer_on_its_way, in_the_turn_of_the_answer])
@pytest.mark.parametrize("borrow", [True, False])
def test_cancelling_at_every_stage_loses_no_block(kind: str, stage: Stage, borrow: bool) -> None:
    async def main() -> None:
        async with asynchronous(4, borrow=borrow) as manager:
            for _ in range(5):
                held = await manager.allocate_blocks(3)
                task = asyncio.create_task(manager.allocate_blocks(4, timeout=None))
                if (step := stage(task, held)) is not None:
                    await step
                result = None
                try:
                    result = await task
                except asyncio.CancelledError:
                    pass
                del result, task
                held.release()
                for _ in range(2000):
                    if free(manager) == 4:
                        break
                    await asyncio.sleep(0.001)
                assert free(manager) == 4
            assert ahost(manager).stats()["waiting_count"] == 0

    run(kind, main())


@each_loop
def test_a_cancelled_registration_settles(kind: str) -> None:
    async def main() -> None:
        async with asynchronous(4, borrow=False) as manager:
            pool = ahost(manager)
            for _ in range(200):
                blocks = await manager.allocate_blocks(2)
                task = asyncio.create_task(pool.register_blocks(blocks))
                await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):  # in flight: borrow=False answers through the loop alone
                    await task
                blocks.release()
                del blocks, task
                while free(manager) != 4:  # noqa: ASYNC110
                    await asyncio.sleep(0)

    run(kind, main())


@each_loop
def test_blocks_in_a_registration_in_flight_are_refused(kind: str) -> None:
    async def main() -> None:
        async with asynchronous(4, borrow=False) as manager:
            pool = ahost(manager)
            blocks = await manager.allocate_blocks(2)
            one, two = pool.register_blocks(blocks), pool.register_blocks(blocks)
            results = await asyncio.gather(one, two, return_exceptions=True)
            assert [type(result) for result in results] in (
                [aio.BlockList, dynamo_llm.BlockStateError],
                [aio.BlockList, dynamo_llm.StaleBlockError],
            )

    run(kind, main())


@each_loop
def test_awaiting_twice_and_on_two_loops(kind: str) -> None:
    manager = asynchronous(2)

    async def main() -> aio.Operation[aio.BlockList]:
        operation = manager.allocate_blocks(1)
        await operation
        with pytest.raises(RuntimeError, match="awaited already"):
            await operation
        held = await manager.allocate_blocks(2)
        waiting = manager.allocate_blocks(1, timeout=None)
        task = asyncio.create_task(waiting)
        await asyncio.sleep(0.005)
        with pytest.raises(RuntimeError, match="is being awaited already"):
            await waiting
        caught: list[BaseException] = []

        async def elsewhere() -> None:
            try:
                await waiting
            except RuntimeError as error:
                caught.append(error)

        thread = threading.Thread(target=lambda: run(kind, elsewhere()))
        thread.start()
        while thread.is_alive():  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        assert "cannot be awaited on" in str(caught[0])
        assert str(caught[0]).lower().count("loop") >= 3
        held.release()
        assert len(await task) == 1
        return waiting

    run(kind, main())
    wait_until(lambda: free(manager) == 2)


@each_loop
@pytest.mark.parametrize("how", ["close", "throw", "cancel"])
def test_a_task_whose_operation_others_end_is_told(kind: str, how: str) -> None:
    async def main() -> None:
        async with asynchronous(2) as manager:
            held = await manager.allocate_blocks(2)
            operation = manager.allocate_blocks(1, timeout=None)
            task = asyncio.create_task(operation)
            await asyncio.sleep(0.005)
            if how == "close":
                operation.close()
            elif how == "throw":
                with pytest.raises(KeyError):
                    operation.throw(KeyError("x"))
            else:
                another = asyncio.create_task(operation)
                another.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await another
            with pytest.raises(RuntimeError, match="or closed"):
                await asyncio.wait_for(task, 10)
            held.release()
            while free(manager) != 2:  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    run(kind, main())


def test_without_a_loop_it_is_an_error() -> None:
    manager = asynchronous(2)
    with pytest.raises(RuntimeError, match="no running event loop"):
        manager.allocate_blocks(1).send(None)
    assert free(manager) == 2


def test_never_awaited_warns() -> None:
    manager = asynchronous(2)
    with pytest.warns(RuntimeWarning, match="operation 'allocate_blocks' was never awaited"):
        manager.allocate_blocks(1)
    operation = manager.allocate_blocks(1)
    operation.close()
    with pytest.raises(RuntimeError, match="awaited already"):
        operation.send(None)
    assert free(manager) == 2


def test_the_coroutine_protocol() -> None:
    async def main() -> None:
        async with asynchronous(2) as manager:
            operation = manager.allocate_blocks(1)
            with pytest.raises(StopIteration) as stopped:
                operation.send(None)
            assert len(stopped.value.value) == 1
            with pytest.raises(KeyError, match="thrown"):
                manager.allocate_blocks(1).throw(KeyError("thrown"))
            with pytest.raises(KeyError, match="thrown"):
                manager.allocate_blocks(1).throw(KeyError, KeyError("thrown"), None)
            bad = manager.allocate_blocks(1)
            with pytest.raises(TypeError):
                bad.throw(3)
            with pytest.raises(TypeError, match="can't send"):
                bad.send(1)  # type: ignore[arg-type]
            bad.close()

    asyncio.run(main())


@each_loop
@pytest.mark.parametrize("close", [True, False])
def test_a_loop_that_ends_with_operations_in_flight(kind: str, close: bool) -> None:
    """Neither their places in line nor their blocks are lost, and closing the manager does not hang."""
    manager = asynchronous(4)
    pool = ahost(manager)

    async def leave() -> aio.BlockList:
        held = await manager.allocate_blocks(3)
        tasks = [asyncio.ensure_future(manager.allocate_blocks(4, timeout=None)) for _ in range(20)]
        await asyncio.sleep(0.01)
        assert pool.stats()["waiting_count"] == 20
        for task in tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        return held

    loops = [LOOPS[kind]()]
    held = loops[0].run_until_complete(leave())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        if close:
            loops[0].close()
        loops.clear()
        gc.collect()
    if kind == "uvloop" and not close:
        # uvloop keeps a loop that ran and was not closed alive, with its tasks, also without this package. The
        # operations wait on, rightly; closing the manager is what ends them.
        held.release()
        run(kind, shut(manager))
        assert pool.stats()["waiting_count"] == 0
        return
    wait_until(lambda: pool.stats()["waiting_count"] == 0)
    held.release()
    wait_until(lambda: free(manager) == 4)
    assert len(run(kind, take(manager, 4))) == 4
    wait_until(lambda: free(manager) == 4)


async def shut(manager: aio.BlockManager) -> None:
    await manager.close()


async def take(manager: aio.BlockManager, count: int) -> aio.BlockList:
    return await manager.allocate_blocks(count)


@each_loop
def test_answers_that_come_after_the_loop_is_closed(kind: str) -> None:
    """The completions lie in the port, or go to the orphan callback: either way the blocks come back."""
    manager = asynchronous(64, borrow=False)
    for _ in range(30):
        loop = LOOPS[kind]()

        async def leave(loop: asyncio.AbstractEventLoop = loop) -> None:
            for _ in range(16):
                task = loop.create_task(manager.allocate_blocks(4))
                task._log_destroy_pending = False  # type: ignore[attr-defined]

        loop.run_until_complete(leave())
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        del loop
    gc.collect()
    wait_until(lambda: free(manager) == 64)


@each_loop
def test_a_manager_closed_with_operations_in_flight(kind: str) -> None:
    async def main() -> None:
        manager = asynchronous(2)
        held = await manager.allocate_blocks(2)
        tasks = [asyncio.create_task(manager.allocate_blocks(1, timeout=None)) for _ in range(10)]
        await asyncio.sleep(0.005)
        await manager.close()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(result) for result in results} == {dynamo_llm.ClosedError}
        await manager.close(timeout=1)
        del held

    run(kind, main())


@each_loop
def test_a_manager_dropped_with_operations_in_flight(kind: str) -> None:
    async def main() -> None:
        manager = asynchronous(2)
        held = await manager.allocate_blocks(2)
        operation = manager.allocate_blocks(1, timeout=None)
        task = asyncio.create_task(operation)
        await asyncio.sleep(0.005)
        del operation
        task.cancel()
        del manager
        with pytest.raises(asyncio.CancelledError):
            await task
        del task
        gc.collect()
        del held

    run(kind, main())


@each_loop
def test_loops_in_several_threads(kind: str) -> None:
    manager = asynchronous(32)
    failures: list[BaseException] = []

    async def work() -> None:
        pool = ahost(manager)

        async def request(n: int) -> None:
            async with manager.allocate_blocks(1 + n % 7, timeout=None) as blocks:
                registered = await pool.register_blocks(blocks)
                matched = await pool.match_sequence_hashes(registered.sequence_hashes())
                assert len(matched) == len(registered)

        for _ in range(20):
            await asyncio.gather(*(request(n) for n in range(20)))

    def thread() -> None:
        try:
            for _ in range(3):  # loops one after the other, too
                run(kind, work())
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=thread) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not failures
    wait_until(lambda: free(manager) == 32)
    assert manager.stats()["operations_in_flight"] == 0


@each_loop
@pytest.mark.parametrize("borrow", [True, False])
def test_five_thousand_tasks(kind: str, borrow: bool) -> None:
    async def main() -> None:
        async with asynchronous(64, borrow=borrow) as manager:
            served = 0

            async def request(n: int) -> None:
                nonlocal served
                blocks = await manager.allocate_blocks(1 + n % 4, timeout=None)
                await asyncio.sleep(0)
                blocks.release()
                served += 1

            await asyncio.gather(*(request(n) for n in range(5000)))
            assert served == 5000
            assert free(manager) == 64

    run(kind, main())


@each_loop
def test_more_operations_than_slots_wait_for_credit(kind: str) -> None:
    async def main() -> None:
        async with asynchronous(4, max_operations=16) as manager:
            held = await manager.allocate_blocks(4)

            async def request() -> int:
                async with manager.allocate_blocks(1, timeout=None) as blocks:
                    return len(blocks)

            tasks = [asyncio.create_task(request()) for _ in range(100)]
            late = asyncio.create_task(manager.allocate_blocks(1, timeout=0.02))
            await asyncio.sleep(0.01)
            tasks[50].cancel()
            with pytest.raises(dynamo_llm.OperationTimeoutError):
                await late
            held.release()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert results.count(1) == 99
            assert isinstance(results[50], asyncio.CancelledError)
            assert free(manager) == 4
            assert manager.stats()["operations_max"] >= 16

    run(kind, main())


def test_the_two_faces_of_the_extension_are_named_alike() -> None:
    assert set(aio.__all__) - set(dynamo_llm.__all__) == set()
    assert aio.BlockManager.__module__ == "dynamo_llm.aio"
    assert repr(aio.BlockManager) == "<class 'dynamo_llm.aio.BlockManager'>"


def test_operations_dropped_while_others_get_their_slot() -> None:
    async def main() -> None:
        async with asynchronous(4, max_operations=16) as manager:
            loop = asyncio.get_running_loop()
            held = await manager.allocate_blocks(4)
            full = [asyncio.create_task(manager.allocate_blocks(1, timeout=None)) for _ in range(16)]
            await asyncio.sleep(0.01)
            behind: list[Any] = []

            class Dropping(asyncio.Future[None]):
                def set_result(self, result: None) -> None:
                    super().set_result(result)
                    behind.clear()

            async def allocate() -> None:
                await manager.allocate_blocks(1, timeout=None)

            loop.create_future = lambda: Dropping(loop=loop)  # type: ignore[method-assign]
            first = asyncio.create_task(ahost(manager).contains([b"x" * 16]))
            await asyncio.sleep(0)
            del loop.create_future
            for _ in range(30):
                waiting = allocate()
                waiting.send(None)
                behind.append(waiting)
            del waiting
            for task in full:
                task.cancel()
            assert await asyncio.wait_for(first, 10) == [False]
            held.release()
            assert len(await manager.allocate_blocks(4, timeout=10)) == 4

    asyncio.run(main())
