"""The asyncio face: the names of `dynamo_llm`, with operations that are awaited.

    from dynamo_llm import aio

    async with aio.BlockManager(num_layers=32, page_size=16, inner_dim=4096) as manager:
        blocks = await manager.allocate_blocks(4)

Works on asyncio and uvloop, with several loops in several threads. An operation that is answered at once is awaited
without a turn of the loop. Cancelling a task cancels its operation; its blocks come back when that is settled.
"""

from dynamo_llm._kvbm import AsyncBlockManager as BlockManager
from dynamo_llm._kvbm import AsyncBlockPool as BlockPool
from dynamo_llm._kvbm import (
    Block,
    BlockList,
    BlockManagerError,
    BlockStateError,
    ClosedError,
    DType,
    ForkedError,
    ImmutableBlockError,
    IncompleteBlockError,
    InvalidArgumentError,
    KvbmError,
    Layer,
    Operation,
    OperationTimeoutError,
    OutOfBlocksError,
    OverloadedError,
    SequenceHashes,
    StaleBlockError,
    StorageError,
    WrongManagerError,
    hash_tokens,
)

__all__ = [
    "Block",
    "BlockList",
    "BlockManager",
    "BlockManagerError",
    "BlockPool",
    "BlockStateError",
    "ClosedError",
    "DType",
    "ForkedError",
    "ImmutableBlockError",
    "IncompleteBlockError",
    "InvalidArgumentError",
    "KvbmError",
    "Layer",
    "Operation",
    "OperationTimeoutError",
    "OutOfBlocksError",
    "OverloadedError",
    "SequenceHashes",
    "StaleBlockError",
    "StorageError",
    "WrongManagerError",
    "hash_tokens",
]
