# ruff: noqa: A002, PYI021
"""Types of the C extension; the package re-exports them (`dynamo_llm`, `dynamo_llm.aio`)."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from types import GenericAlias, TracebackType
from typing import Any, Generic, Literal, Self, TypeVar, final, overload

from typing_extensions import Buffer, disjoint_base

_T = TypeVar("_T")

__version__: str

class KvbmError(Exception):
    """Base of every error of this package."""

class BlockManagerError(KvbmError):
    """A block operation failed; `code` is the C name of the reason, e.g. "KVBM_ENOBLOCKS"."""

    code: str

class StorageError(KvbmError):
    """Memory or another store could not be had or used; `code` as above."""

    code: str

class OutOfBlocksError(BlockManagerError):
    """Fewer blocks are free or evictable than were asked for."""

    requested: int
    available: int

class InvalidArgumentError(BlockManagerError, ValueError):
    """An argument is out of range; the text names it and says what is allowed."""

class BlockStateError(BlockManagerError):
    """The block is not in a state that allows this (released, immutable, incomplete, in an operation)."""

class StaleBlockError(BlockStateError):
    """The block was released or registered; this object no longer holds it."""

class ImmutableBlockError(BlockStateError):
    """The block is registered, hence read-only."""

class IncompleteBlockError(BlockStateError):
    """The block's tokens do not fill a page."""

class WrongManagerError(BlockManagerError):
    """The block belongs to another manager, pool or geometry."""

class ClosedError(BlockManagerError):
    """The manager is closed, or closed while the operation was in flight."""

class ForkedError(BlockManagerError):
    """The manager belongs to the parent of this forked process."""

class OperationTimeoutError(BlockManagerError, TimeoutError):
    """The operation's deadline passed; nothing was changed."""

class OverloadedError(BlockManagerError):
    """Every operation slot is in use (plain face only; the asyncio face waits for one)."""

@final
class DType:
    """Element type. Members compare by identity; `DType("bf16")` parses a name."""

    FP8_E4M3: DType
    FP8_E5M2: DType
    FP16: DType
    BF16: DType
    FP32: DType
    INT8: DType
    U8: DType
    def __new__(cls, name: str) -> DType: ...
    @property
    def name(self) -> str: ...
    @property
    def itemsize(self) -> int: ...

@final
class SequenceHashes(Sequence[bytes]):
    """An immutable packed array of 16-byte sequence hashes; exports the buffer protocol (n * 16 bytes).

    `SequenceHashes(iterable_of_16_byte_objects)` or `SequenceHashes(buffer)` whose length is a multiple of 16.
    """

    def __new__(cls, hashes: Iterable[bytes] | Buffer = ()) -> SequenceHashes: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    @overload
    def __getitem__(self, key: int, /) -> bytes: ...
    @overload
    def __getitem__(self, key: slice, /) -> SequenceHashes: ...
    def __len__(self) -> int: ...
    def __eq__(self, value: object, /) -> bool: ...
    def __hash__(self) -> int: ...

def flush_logs() -> None:
    """Emits log records of native threads to the logger "dynamo_llm" now."""

def hash_tokens(
    tokens: Sequence[int] | Buffer,
    page_size: int,
    *,
    salt: bytes | str | int | None = None,
    parent: bytes | None = None,
) -> SequenceHashes:
    """Sequence hashes of the full pages in `tokens`: a sequence of ints, or a buffer of 32-bit integers (no copy).

    A trailing part of a page is ignored. Chain: XXH3-128(parent key || tokens of the block, little-endian 32-bit).
    """

@final
class Layer:
    """One layer of a block: shape `(outer_dim, page_size, inner_dim)`."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def strides(self) -> tuple[int, ...]:
        """In elements, as DLPack has them."""
    @property
    def dtype(self) -> DType: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def readonly(self) -> bool: ...
    @property
    def data_ptr(self) -> int: ...
    def __dlpack__(
        self,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...
    def copy_from(self, source: Any, /) -> None:
        """Copies a tensor in: any DLPack producer on the CPU of the same shape and dtype, any strides."""

@final
class Block:
    """One KV block. Dropping the last reference (tensors included) gives it back to its pool."""

    def __eq__(self, value: object, /) -> bool:
        """True for another object of the same block of the same manager."""
    def __hash__(self) -> int: ...
    def __len__(self) -> int:
        """Number of layers."""
    def __getitem__(self, key: int, /) -> Layer: ...
    def __iter__(self) -> Iterator[Layer]: ...
    def to_list(self) -> list[Layer]: ...
    @property
    def shape(self) -> tuple[int, ...]:
        """`(num_layers, outer_dim, page_size, inner_dim)`."""
    @property
    def strides(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> DType: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def readonly(self) -> bool: ...
    @property
    def state(self) -> Literal["partial", "complete", "registered", "released"]: ...
    @property
    def tier(self) -> Literal["device", "host", "disk", "remote"]: ...
    @property
    def block_id(self) -> int:
        """Slot number in its pool."""
    @property
    def duplicate(self) -> bool:
        """Returned by register_blocks for a key that was resident already."""
    @property
    def tokens(self) -> list[int]: ...
    def append_tokens(self, tokens: Sequence[int] | Buffer, /) -> None: ...
    def set_tokens(self, tokens: Sequence[int] | Buffer, /) -> None: ...
    def sequence_hash(self) -> bytes:
        """16 bytes. Raises BlockStateError before registration."""
    def release(self) -> None:
        """Gives the block back now (idempotent). Live tensors keep the memory until they are gone."""
    def __enter__(self) -> Self: ...
    def __exit__(self, t: type[BaseException] | None, v: BaseException | None, tb: TracebackType | None, /) -> None: ...
    def __dlpack__(
        self,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...
    def copy_from(self, source: Any, /) -> None:
        """Copies a tensor in: any DLPack producer on the CPU of the same shape and dtype, any strides."""

@final
class BlockList(Sequence[Block]):
    """Blocks of one operation. A sequence and a context manager (plain and async) that releases them at its end."""

    @overload
    def __getitem__(self, key: int, /) -> Block: ...
    @overload
    def __getitem__(self, key: slice, /) -> BlockList: ...
    def __len__(self) -> int: ...
    def __add__(self, value: BlockList, /) -> BlockList: ...
    def sequence_hashes(self) -> SequenceHashes: ...
    def release(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, t: type[BaseException] | None, v: BaseException | None, tb: TracebackType | None, /) -> None: ...
    async def __aenter__(self) -> Self: ...
    async def __aexit__(
        self, t: type[BaseException] | None, v: BaseException | None, tb: TracebackType | None, /
    ) -> None: ...

@final
class Operation(Generic[_T]):
    """What the asyncio face returns: a one-shot awaitable that is also a coroutine (`create_task`, `gather`, `wait_for`
    take it) and an async context manager where its result is one. The operation is submitted when it is first awaited;
    if it is answered at submit, awaiting it does not suspend."""

    def __class_getitem__(cls, item: Any, /) -> GenericAlias: ...
    @property
    def __name__(self) -> str: ...
    @property
    def __qualname__(self) -> str: ...
    def __await__(self) -> Generator[Any, None, _T]: ...
    def send(self, value: None, /) -> Any: ...
    def throw(self, *args: Any) -> Any: ...
    def close(self) -> None: ...
    async def __aenter__(self) -> _T: ...
    async def __aexit__(
        self, t: type[BaseException] | None, v: BaseException | None, tb: TracebackType | None, /
    ) -> None: ...

@final
class BlockPool:
    """The blocks of one tier, plain face."""

    @property
    def tier(self) -> Literal["device", "host", "disk", "remote"]: ...
    @property
    def block_bytes(self) -> int: ...
    def total_blocks(self) -> int: ...
    def available_blocks(self) -> int:
        """Free plus evictable."""
    def usage(self) -> float:
        """`1 - available / total`."""
    def stats(self) -> dict[str, int]:
        """Fields of kvbm_pool_stats."""
    def allocate_blocks(self, count: int, *, timeout: float | None = 0.0) -> BlockList: ...
    def register_blocks(
        self,
        blocks: Sequence[Block],
        tokens: Sequence[int] | Buffer | None = None,
        salt: bytes | str | int | None = None,
        *,
        hashes: SequenceHashes | Sequence[bytes] | Buffer | None = None,
        parent: bytes | None = None,
        priority: int = 0,
        priority_ttl: float | None = None,
        keep_duplicates: bool = False,
    ) -> BlockList: ...
    def match_sequence_hashes(self, hashes: SequenceHashes | Sequence[bytes] | Buffer) -> BlockList:
        """Leases the longest resident prefix."""
    def contains(self, hashes: SequenceHashes | Sequence[bytes] | Buffer) -> list[bool]:
        """Residency of each hash in this pool, without leasing."""

@disjoint_base
class BlockManager:
    """Plain face. Every argument after device_id is keyword-only."""

    def __init__(
        self,
        num_layers: int,
        page_size: int,
        inner_dim: int,
        dtype: DType | None = None,
        device_id: int = 0,
        *,
        outer_dim: int = 2,
        host_blocks: int | None = None,
        layout: Literal["contiguous", "layer_block", "layer_outer"] = "contiguous",
        alignment: int = 0,
        policy: str = "prefix",
        bytes: bool = True,
        track_tokens: bool = True,
        huge_pages: Literal["try", "off", "require"] = "try",
        numa_node: int | None = None,
        touch_threads: int | None = None,
        max_operations: int = 16384,
        borrow: bool = True,
        name: str = "kvbm",
    ) -> None: ...
    def allocate_blocks(self, count: int, *, timeout: float | None = 0.0) -> BlockList:
        """From the device pool when there is one, else the host pool. timeout in seconds: how long to wait in line when
        short; 0: do not wait; None: without limit."""
    def get_device_pool(self) -> BlockPool | None: ...
    def get_host_pool(self) -> BlockPool | None: ...
    def stats(self) -> dict[str, Any]:
        """Fields of kvbm_stats, latencies as nested dicts, plus "pools": {"host": {...}}."""
    @property
    def num_layers(self) -> int: ...
    @property
    def outer_dim(self) -> int: ...
    @property
    def page_size(self) -> int: ...
    @property
    def inner_dim(self) -> int: ...
    @property
    def dtype(self) -> DType: ...
    @property
    def block_bytes(self) -> int: ...
    @property
    def closed(self) -> bool: ...
    def close(self, timeout: float = 30.0) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, t: type[BaseException] | None, v: BaseException | None, tb: TracebackType | None, /) -> None: ...

@final
class AsyncBlockPool:
    """The blocks of one tier, asyncio face (`dynamo_llm.aio.BlockPool`). Gauges are plain calls."""

    @property
    def tier(self) -> Literal["device", "host", "disk", "remote"]: ...
    @property
    def block_bytes(self) -> int: ...
    def total_blocks(self) -> int: ...
    def available_blocks(self) -> int: ...
    def usage(self) -> float: ...
    def stats(self) -> dict[str, int]: ...
    def allocate_blocks(self, count: int, *, timeout: float | None = 0.0) -> Operation[BlockList]: ...
    def register_blocks(
        self,
        blocks: Sequence[Block],
        tokens: Sequence[int] | Buffer | None = None,
        salt: bytes | str | int | None = None,
        *,
        hashes: SequenceHashes | Sequence[bytes] | Buffer | None = None,
        parent: bytes | None = None,
        priority: int = 0,
        priority_ttl: float | None = None,
        keep_duplicates: bool = False,
    ) -> Operation[BlockList]: ...
    def match_sequence_hashes(self, hashes: SequenceHashes | Sequence[bytes] | Buffer) -> Operation[BlockList]: ...
    def contains(self, hashes: SequenceHashes | Sequence[bytes] | Buffer) -> Operation[list[bool]]: ...

@disjoint_base
class AsyncBlockManager:
    """Asyncio face (`dynamo_llm.aio.BlockManager`): the same arguments; operations return awaitables."""

    def __init__(
        self,
        num_layers: int,
        page_size: int,
        inner_dim: int,
        dtype: DType | None = None,
        device_id: int = 0,
        *,
        outer_dim: int = 2,
        host_blocks: int | None = None,
        layout: Literal["contiguous", "layer_block", "layer_outer"] = "contiguous",
        alignment: int = 0,
        policy: str = "prefix",
        bytes: bool = True,
        track_tokens: bool = True,
        huge_pages: Literal["try", "off", "require"] = "try",
        numa_node: int | None = None,
        touch_threads: int | None = None,
        max_operations: int = 16384,
        borrow: bool = True,
        name: str = "kvbm",
    ) -> None: ...
    def allocate_blocks(self, count: int, *, timeout: float | None = 0.0) -> Operation[BlockList]: ...
    def get_device_pool(self) -> AsyncBlockPool | None: ...
    def get_host_pool(self) -> AsyncBlockPool | None: ...
    def stats(self) -> dict[str, Any]: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def outer_dim(self) -> int: ...
    @property
    def page_size(self) -> int: ...
    @property
    def inner_dim(self) -> int: ...
    @property
    def dtype(self) -> DType: ...
    @property
    def block_bytes(self) -> int: ...
    @property
    def closed(self) -> bool: ...
    def close(self, timeout: float = 30.0) -> Operation[None]:
        """Awaitable; the wait happens off the loop's thread."""
    async def __aenter__(self) -> Self: ...
    async def __aexit__(
        self, t: type[BaseException] | None, v: BaseException | None, tb: TracebackType | None, /
    ) -> None: ...
