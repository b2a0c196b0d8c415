"""What a replay writes into blocks, and the check that it is still there.

A block's bytes are a function of its key. With the key's halves a and b, and `base` a fixed sequence of distinct 64-bit
words, word i of the block is

    (base[i] ^ a) + b    (mod 2^64, little-endian; a last part of a word is cut)

Writing evaluates that. Checking does not: it undoes the two steps on what it reads and compares with `base`, so a
mistake in the one is no mistake in the other. Both steps are bijections of a word and all words of `base` differ, so
every changed bit, and every word in another's place, is seen; another block's bytes fail in every word.
"""

import ctypes
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dynamo_llm.cli.prompts import splitmix

if TYPE_CHECKING:
    from dynamo_llm import Block

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint64]

_WORD = (1 << 64) - 1
_BASE_SEED = 0x6B76626D
_NUMPY_DTYPES = frozenset({"FP16", "FP32", "INT8", "U8"})


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Where a block's bytes are not those of its key."""

    offset: int
    """First wrong byte."""
    expected: bytes
    """Up to 8 bytes from there."""
    found: bytes
    wrong_bytes: int


class Codec:
    """Fills and checks blocks of one size. Not for several threads: it owns scratch memory."""

    def __init__(self, block_bytes: int) -> None:
        if block_bytes < 1:
            raise ValueError(f"block_bytes must be at least 1, not {block_bytes}")
        self.block_bytes = block_bytes
        words = -(-block_bytes // 8)
        self._base: Words = splitmix(np.arange(words, dtype=np.uint64) + np.uint64(_BASE_SEED))
        self._scratch: Words = np.empty(words, dtype=np.uint64)
        self._differs: npt.NDArray[np.bool_] = np.empty(words, dtype=np.bool_)

    def write(self, pieces: list[Bytes], key: bytes) -> None:
        """Fills a block. `pieces`: its memory in order."""
        a, b = _halves(key)
        whole = self._as_words(pieces)
        target = self._scratch if whole is None else whole
        np.bitwise_xor(self._base, np.uint64(a), out=target)
        np.add(target, np.uint64(b), out=target)
        if whole is None:
            source = target.view(np.uint8)
            for start, piece in _offsets(pieces):
                piece[:] = source[start : start + piece.size]

    def check(self, pieces: list[Bytes], key: bytes) -> Mismatch | None:
        """Reads a whole block; None if every byte is as written under `key`."""
        a, b = _halves(key)
        found = self._as_words(pieces)
        if found is None:
            found = self._gather(pieces, key)
        np.subtract(found, np.uint64(b), out=self._scratch)
        np.bitwise_xor(self._scratch, np.uint64(a), out=self._scratch)
        np.not_equal(self._scratch, self._base, out=self._differs)
        if not self._differs.any():
            return None
        return self._describe(pieces, key)

    def word(self, key: bytes, index: int) -> int:
        """One word of the pattern, by plain integers: what error reports show and what tests compare both ways with."""
        x = (index + _BASE_SEED + 0x9E3779B97F4A7C15) & _WORD
        x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & _WORD
        x = ((x ^ x >> 27) * 0x94D049BB133111EB) & _WORD
        a, b = _halves(key)
        return ((x ^ x >> 31 ^ a) + b) & _WORD

    def pattern(self, key: bytes) -> bytes:
        """The whole block, by plain integers (slow)."""
        words = (self.word(key, index).to_bytes(8, "little") for index in range(self._base.size))
        return b"".join(words)[: self.block_bytes]

    def _as_words(self, pieces: list[Bytes]) -> Words | None:
        """The block as words in place, if it is one piece of whole words."""
        if len(pieces) == 1 and self.block_bytes % 8 == 0 and pieces[0].size == self.block_bytes:
            return pieces[0].view(np.uint64)
        size = sum(piece.size for piece in pieces)
        if size != self.block_bytes:
            raise ValueError(f"the block has {size} bytes, not {self.block_bytes}")
        return None

    def _gather(self, pieces: list[Bytes], key: bytes) -> Words:
        """A copy in whole words; bytes beyond the block are made right, for they are not the block's."""
        copy = np.zeros(self._base.size, dtype=np.uint64)
        target = copy.view(np.uint8)
        for start, piece in _offsets(pieces):
            target[start : start + piece.size] = piece
        cut = self.block_bytes % 8
        if cut:
            last = self.word(key, self._base.size - 1).to_bytes(8, "little")
            target[self.block_bytes :] = np.frombuffer(last[cut:], dtype=np.uint8)
        return copy

    def _describe(self, pieces: list[Bytes], key: bytes) -> Mismatch:
        found = np.concatenate(pieces)
        expected = np.frombuffer(self.pattern(key), dtype=np.uint8)
        wrong = np.flatnonzero(found != expected)
        offset = int(wrong[0]) if wrong.size else 0
        part = slice(offset, offset + 8)
        return Mismatch(offset, expected[part].tobytes(), found[part].tobytes(), int(wrong.size))


def block_memory(block: "Block") -> list[Bytes]:
    """A block's memory as flat byte arrays, in order, through DLPack; writable if the block is.

    NumPy has no bfloat16 and no FP8: blocks of those types are reached by the address of each layer. The caller keeps
    the block for as long as it uses the arrays.
    """
    if block.dtype.name in _NUMPY_DTYPES:
        array = np.from_dlpack(block)
        if array.flags.c_contiguous:
            return [array.reshape(-1).view(np.uint8)]
        return [flat for layer in block for flat in _flat(np.from_dlpack(layer))]
    return [_at_address(layer.data_ptr, layer.nbytes) for layer in block]


def _flat(array: npt.NDArray[np.generic]) -> list[Bytes]:
    """Contiguous byte views that make up the array, in order."""
    if array.flags.c_contiguous:
        return [array.reshape(-1).view(np.uint8)]
    return [flat for part in array for flat in _flat(part)]


def _at_address(address: int, size: int) -> Bytes:
    return np.frombuffer(memoryview((ctypes.c_uint8 * size).from_address(address)), dtype=np.uint8)


def _halves(key: bytes) -> tuple[int, int]:
    if len(key) != 16:
        raise ValueError(f"a key has 16 bytes, not {len(key)}")
    return int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")


def _offsets(pieces: list[Bytes]) -> list[tuple[int, Bytes]]:
    result = []
    start = 0
    for piece in pieces:
        result.append((start, piece))
        start += piece.size
    return result


if sys.byteorder != "little":
    raise ImportError("the replay's block contents are little-endian words; this machine is big-endian")
