"""Many texts in few bytes: side by side in one buffer, where a tuple of them takes thrice that."""

from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray


class Packed(Sequence[str]):
    """Texts such as file names, each made when it is asked for.

    Args:
        content: all of them in UTF-8, with what is no UTF-8 as the system has it.
        starts: (n,) int64, the byte at which each begins.
        lengths: (n,) int32, of each in bytes.
    """

    def __init__(
        self, content: bytearray, starts: NDArray[np.int64], lengths: NDArray[np.int32]
    ) -> None:
        self.content, self.starts, self.lengths = content, starts, lengths

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> "Packed": ...

    def __getitem__(self, index: Any) -> "str | Packed":
        if isinstance(index, slice):
            return Packed(self.content, self.starts[index], self.lengths[index])
        start = int(self.starts[index])
        text = self.content[start : start + int(self.lengths[index])]
        return text.decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        for text in self.encoded():
            yield text.decode("utf-8", "surrogateescape")

    def encoded(self) -> Iterator[bytearray]:
        """Each as it lies in the buffer."""
        for first in range(0, len(self), 65536):
            part = slice(first, first + 65536)
            starts, ends = self.starts[part], self.starts[part] + self.lengths[part]
            for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
                yield self.content[start:end]

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Sequence)
            and len(self) == len(other)
            and all(a == b for a, b in zip(self, other, strict=True))
        )

    __hash__ = None  # type: ignore[assignment]  # as of a list

    def equal(
        self, ones: NDArray[np.integer[Any]], others: NDArray[np.integer[Any]]
    ) -> NDArray[np.bool_]:
        """Whether the texts at some positions (n,) are those at others (n,)."""
        found = np.empty(len(ones), bool)
        for first in range(0, len(ones), 65536):
            part = slice(first, first + 65536)
            pairs = zip(*(self.take(of[part]).encoded() for of in (ones, others)), strict=True)
            found[part] = [a == b for a, b in pairs]
        return found

    def take(self, indices: NDArray[np.integer[Any]]) -> "Packed":
        """Those at some positions; the buffer is shared."""
        return Packed(self.content, self.starts[indices], self.lengths[indices])

    def alone(self) -> "Packed":
        """The same in a buffer that holds nothing else."""
        ends = np.cumsum(self.lengths, dtype=np.int64)
        return Packed(bytearray().join(self.encoded()), ends - self.lengths, self.lengths)


class Packing:
    """Collects texts, piece after piece."""

    def __init__(self) -> None:
        self._content = bytearray()
        self._lengths: list[NDArray[np.int32]] = []

    def add(self, texts: Sequence[str]) -> None:
        """Put these after those that are there."""
        joined = "".join(texts)
        if joined.isascii():
            self._content += joined.encode()
            self._lengths.append(np.fromiter(map(len, texts), np.int32, len(texts)))
            return
        encoded = [text.encode("utf-8", "surrogateescape") for text in texts]
        self._content += b"".join(encoded)
        self._lengths.append(np.fromiter(map(len, encoded), np.int32, len(encoded)))

    def packed(self) -> Packed:
        """All of them."""
        lengths = np.concatenate([np.zeros(0, np.int32), *self._lengths])
        ends = np.cumsum(lengths, dtype=np.int64)
        return Packed(self._content, ends - lengths, lengths)
