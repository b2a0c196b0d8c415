"""Block contents: what is written, that the check sees every change, and that both ways agree with plain integers."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_llm.cli.fill import Bytes, Codec

keys = st.binary(min_size=16, max_size=16)


def key(number: int) -> bytes:
    return hashlib.sha256(number.to_bytes(8, "little")).digest()[:16]


def memory(size: int, pieces: int = 1) -> list[Bytes]:
    whole = np.zeros(size, dtype=np.uint8)
    return [part for part in np.array_split(whole, pieces) if part.size] or [whole]


@given(keys, st.integers(1, 200), st.integers(1, 5))
def test_writing_gives_the_pattern_and_checking_accepts_it(k: bytes, size: int, pieces: int) -> None:
    codec = Codec(size)
    block = memory(size, pieces)
    codec.write(block, k)
    assert b"".join(piece.tobytes() for piece in block) == codec.pattern(k)
    assert codec.check(block, k) is None


@pytest.mark.parametrize(("size", "pieces"), [(512, 1), (513, 1), (96, 3), (61, 4), (7, 1)])
def test_every_bit_of_every_byte_is_seen(size: int, pieces: int) -> None:
    codec = Codec(size)
    block = memory(size, pieces)
    codec.write(block, key(1))
    offset = 0
    for piece in block:
        for i in range(piece.size):
            for bit in range(8):
                piece[i] ^= 1 << bit
                mismatch = codec.check(block, key(1))
                assert mismatch is not None
                assert (mismatch.offset, mismatch.wrong_bytes) == (offset + i, 1)
                assert mismatch.expected[:1] != mismatch.found[:1]
                assert mismatch.found[0] == piece[i]
                piece[i] ^= 1 << bit
        offset += piece.size
    assert codec.check(block, key(1)) is None


@given(keys, keys)
def test_another_blocks_bytes_fail(a: bytes, b: bytes) -> None:
    codec = Codec(256)
    block = memory(256)
    codec.write(block, a)
    assert (codec.check(block, b) is None) == (a == b)


def test_another_blocks_bytes_fail_in_every_word() -> None:
    codec = Codec(4096)
    block = memory(4096)
    codec.write(block, key(1))
    ours = block[0].view(np.uint64).copy()
    codec.write(block, key(2))
    assert (ours != block[0].view(np.uint64)).all()


def test_words_in_another_order_fail() -> None:
    codec = Codec(4096)
    block = memory(4096)
    codec.write(block, key(1))
    words = block[0].view(np.uint64)
    assert len(np.unique(words)) == len(words)
    words[[10, 11]] = words[[11, 10]]
    mismatch = codec.check(block, key(1))
    assert mismatch is not None
    assert mismatch.offset // 8 == 10


def test_zeros_and_half_a_copy_fail() -> None:
    codec = Codec(4096)
    block = memory(4096)
    assert codec.check(block, key(3)) is not None
    codec.write(block, key(3))
    block[0][2048:] = 0
    mismatch = codec.check(block, key(3))
    assert mismatch is not None
    assert mismatch.offset >= 2048


def test_wrong_sizes_are_refused() -> None:
    codec = Codec(64)
    with pytest.raises(ValueError, match="the block has 63 bytes, not 64"):
        codec.write(memory(63), key(1))
    with pytest.raises(ValueError, match="a key has 16 bytes, not 4"):
        codec.check(memory(64), b"four")
    with pytest.raises(ValueError, match="block_bytes must be at least 1"):
        Codec(0)
