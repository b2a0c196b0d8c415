"""Default sizes of a replay: blocks of tens of KiB, and a pool that no machine has to fear."""

from pathlib import Path

from dynamo_llm.cli.ceiling import Ceiling

BLOCK_BYTES = 32 << 10
"""What the default of --inner-dim aims at."""
POOL_BYTES_MAX = 2 << 30
"""The default pool takes no more than this, and no more than a quarter of the available memory."""
POOL_BLOCKS_MAX = 1 << 24
"""The default without bytes: about a gigabyte of bookkeeping."""

BLOCK_ALIGNMENT = 4096
"""Where contiguous blocks begin in the slab (`alignment` of BlockManager, by default)."""


def slab_stride(block_bytes: int) -> int:
    """What a block takes of the slab."""
    return -(-block_bytes // BLOCK_ALIGNMENT) * BLOCK_ALIGNMENT


def default_inner_dim(num_layers: int, outer_dim: int, page_size: int, itemsize: int) -> int:
    """The inner dimension that makes a block of BLOCK_BYTES, at least 1."""
    return max(1, BLOCK_BYTES // (num_layers * outer_dim * page_size * itemsize))


def default_host_blocks(
    ceiling: Ceiling, concurrency: int, block_bytes: int | None, available_bytes: int | None
) -> int:
    """Enough for every distinct block and all that is in flight, as far as memory goes. `block_bytes`: of the slab;
    None without bytes. `available_bytes`: None where the system does not tell."""
    working_set = ceiling.distinct_blocks + concurrency * max(ceiling.blocks, default=1)
    if block_bytes is None:
        return max(1, min(working_set, POOL_BLOCKS_MAX))
    room = POOL_BYTES_MAX if available_bytes is None else min(POOL_BYTES_MAX, available_bytes // 4)
    return max(1, min(working_set, room // block_bytes))


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes that can be used without swapping, in this control group; None if unknown."""
    limits = []
    try:
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                limits.append(int(line.split()[1]) * 1024)
    except (OSError, ValueError, IndexError):
        pass
    group = root / "sys/fs/cgroup"
    try:
        limit = int((group / "memory.max").read_text())
        limits.append(max(0, limit - int((group / "memory.current").read_text())))
    except (OSError, ValueError):
        pass
    return min(limits, default=None)
