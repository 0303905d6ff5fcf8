"""Lines of text files: plain or compressed, decoded, and of bounded length."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

from loraens.data.tables import MAX_RECORD, Reading, too_long
from loraens.errors import InputError


def _open_zstd(path: Path) -> IO[bytes]:
    import pyarrow  # whose zstd saves a package; Python has it from 3.14 on

    stream: Any = pyarrow.input_stream(str(path), compression="zstd")
    return io.BufferedReader(stream)


COMPRESSIONS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _open_zstd,
}


class Lines:
    """Lines of a stream, decoded, with their ends.

    Args:
        stream: Bytes; it is left open.
        name: The file's name, for messages.
        reading: Its encoding.
    """

    def __init__(self, stream: BinaryIO, name: str, reading: Reading) -> None:
        self.name = name
        self._reading = reading
        self._number = 0
        utf8 = reading.encoding.lower().replace("_", "-") in ("utf-8", "utf8")
        encoding = "utf-8-sig" if utf8 else reading.encoding
        # only \n ends a line: texts may contain other separators
        self._text = io.TextIOWrapper(stream, encoding, newline="\n")

    def first(self) -> tuple[int, str] | None:
        """The first line that is not blank, or the begin of it where it is longer than a record may
        be, and its number; None where there is none.
        """
        while line := self._read(self._text.readline, MAX_RECORD + 1):
            self._number += 1
            if line.strip():
                return self._number, line
        return None

    def __iter__(self) -> Iterator[tuple[int, str]]:
        while line := self._read(self._text.readline, MAX_RECORD + 1):
            self._number += 1
            if len(line) > MAX_RECORD:
                raise too_long(f"{self.name} line {self._number}")
            yield self._number, line

    def read(self, characters: int) -> str:
        """At most so many further characters; "" at the end."""
        text = self._read(self._text.read, characters)
        self._number += text.count("\n")
        return text

    def detach(self) -> None:
        """Let go of the stream, so that it is not closed together with this."""
        self._text.detach()

    def _read(self, method: Callable[[int], str], size: int) -> str:
        try:
            return method(size)
        except UnicodeError as error:
            raise InputError(
                f"{self.name} {self._undecoded(error)}: save it as UTF-8, or give its encoding"
                f" (--{self._reading.flag}encoding)"
            ) from None
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise InputError(
                f"{self.name} is damaged after line {self._number} ({error}): make it again"
            ) from None

    def _undecoded(self, error: UnicodeError) -> str:
        encoding = self._reading.encoding.upper()
        if not isinstance(error, UnicodeDecodeError):
            return f"is not {encoding} ({error})"
        number = self._number + 1 + error.object[: error.start].count(b"\n")
        return f"line {number} is not {encoding} (byte 0x{error.object[error.start]:02x})"
