"""KVBM: a KV block manager for LLM inference.

`BlockManager` is the plain face; `dynamo_llm.aio.BlockManager` is the asyncio face with the same names, awaited.

    import dynamo_llm

    with dynamo_llm.BlockManager(num_layers=32, page_size=16, inner_dim=4096) as manager:
        blocks = manager.allocate_blocks(4)
        layer = blocks[0][0]  # numpy.from_dlpack(layer), torch.from_dlpack(layer)
"""

from dynamo_llm import aio
from dynamo_llm._kvbm import (
    Block,
    BlockList,
    BlockManager,
    BlockManagerError,
    BlockPool,
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
    __version__,
    flush_logs,
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
    "__version__",
    "aio",
    "flush_logs",
    "hash_tokens",
]
