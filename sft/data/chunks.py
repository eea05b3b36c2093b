"""The bytes of a plain, .gz or .zst file; a damaged one is an error, never a short file."""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

from sft.errors import DataError

_CHUNK = 1 << 18  # bytes per read


def chunks(path: Path, known: str) -> Iterator[bytes]:
    """The bytes of a file, decompressed, some at a time.

    Args:
        path: the file.
        known: its ending, which says how it is packed.

    Raises:
        DataError: UTF-16, or a damaged archive.
    """
    pieces = _zstd(path) if known.endswith("zst") else _plain(path, packed=known.endswith("gz"))
    try:
        for index, piece in enumerate(pieces):
            if index == 0 and piece.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise DataError(f"{path}: this file is UTF-16; save it as UTF-8")
            yield piece
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        # How many rows are missing cannot be known, so this is no counted drop.
        raise DataError(f"{path}: the compressed file is damaged or cut short ({error}); fetch it again") from None


def _plain(path: Path, packed: bool) -> Iterator[bytes]:
    with gzip.open(path, "rb") if packed else path.open("rb") as file:
        while piece := file.read(_CHUNK):
            yield piece


def _zstd(path: Path) -> Iterator[bytes]:
    import zstandard  # here, since most users never need it

    frame = None
    try:
        for data in _plain(path, packed=False):
            while data:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                if piece := frame.decompress(data):
                    yield piece
                data, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    except zstandard.ZstdError as error:
        raise EOFError(str(error)) from None
    if frame:  # the library takes a file that ends inside a frame for a complete one
        raise EOFError("it ends inside a frame")
