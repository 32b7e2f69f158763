"""Rows of Parquet files with recordings in them, one at a time.

Row groups of such files are large: FLEURS has 1000 clips in one, some 700 MB, and as writers look at a page's size once
in 1024 rows only, often all of it in a single page. pyarrow holds such a page twice, compressed and not. So pages of
PLAIN values are streamed here (Parquet's format: github.com/apache/parquet-format; Snappy's: google/snappy,
format_description.txt); what cannot be streamed, and all other columns, is left to pyarrow.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow.parquet as pq

BATCH = 32  # rows
LARGE = 32 << 20  # bytes of a column in a row group, from which on it is streamed
BUFFER = 1 << 20  # bytes read at a time
BLOCK = 1 << 16  # bytes that Snappy compresses at a time; it copies from nothing before them
DATA_PAGE, DICTIONARY_PAGE = 0, 2  # PageType; version 2 of data pages is 3
PLAIN, DICTIONARY_ENCODINGS = 0, {2, 8}  # Encoding


class FilePart(io.RawIOBase):
    """A file of which only the bytes from `start` on are on the disk, in `path`; offsets are those of the whole."""

    def __init__(self, path: Path, start: int = 0):
        self._file, self._start = path.open("rb", buffering=BUFFER), start

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._start + self._file.seek(offset - (self._start if whence == io.SEEK_SET else 0), whence)

    def tell(self) -> int:
        return self._start + self._file.tell()

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size)

    def close(self) -> None:
        self._file.close()
        super().close()


@dataclass(frozen=True)
class _Page:
    kind: int
    encoding: int
    values: int
    body: int  # offset in the file
    length: int  # bytes, compressed


def read_rows(
    path: Path, metadata: pq.FileMetaData, group: int, columns: list[str], large: str, start: int = 0
) -> Iterator[dict[str, Any]]:
    """The rows of one row group, in their order.

    Parameters
    ----------
    path
        The file; or its bytes from `start` on, up to the end of the row group at least.
    metadata
        Of the whole file.
    columns
        Names of leaf columns, those in a struct as ``struct.leaf``.
    large
        One of them, of type BYTE_ARRAY, whose values are large.

    Yields
    ------
    dict
        The values by column.

    Raises
    ------
    OSError, ValueError
        If the file is damaged.
    """
    [at] = [at for at in range(metadata.num_columns) if metadata.schema.column(at).path == large]
    chunk, nullable = metadata.row_group(group).column(at), metadata.schema.column(at).max_definition_level > 0
    with FilePart(path, start) as file, FilePart(path, start) as other, FilePart(path, start) as third:
        pages = _streamable_pages(file, chunk, nullable)
        streamed = _streamed(file, pages, chunk)
        values = streamed if pages else (row[large] for row in _read(other, metadata, group, [large]))
        rest = _read(third, metadata, group, [name for name in columns if name != large])
        for value, row in zip(values, rest, strict=True):
            yield {**row, large: value}


def _read(file: FilePart, metadata: pq.FileMetaData, group: int, columns: list[str]) -> Iterator[dict[str, Any]]:
    # no threads: those that prefetch from a Python file abort the process when the reader is left early
    parquet = pq.ParquetFile(file, metadata=metadata, buffer_size=BUFFER, pre_buffer=False)
    for batch in parquet.iter_batches(BATCH, row_groups=[group], columns=columns, use_threads=False):
        for row in batch.to_pylist():
            yield {name: _leaf(row, name) for name in columns}


def _leaf(row: dict[str, Any], name: str) -> Any:
    value: Any = row
    for part in name.split("."):
        value = None if value is None else value[part]
    return value


def _streamable_pages(file: BinaryIO | FilePart, chunk: Any, nullable: bool) -> list[_Page]:
    """The pages that hold each value of a large column once and in order; none if there are no such pages."""
    nulls = chunk.statistics.null_count if chunk.is_stats_set and chunk.statistics.has_null_count else None
    if not nullable:  # as datasets writes none: its pages lack the levels that `_streamed` skips
        return []
    if chunk.total_compressed_size < LARGE or chunk.compression not in ("SNAPPY", "UNCOMPRESSED") or nulls != 0:
        return []
    offset = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
    end = offset + chunk.total_compressed_size
    pages = []
    while offset < end:
        file.seek(offset)
        header = _thrift_struct(file)
        details = header.get(5) or header.get(7) or {}
        page = _Page(_i32(header[1]), _i32(details.get(2, -2)), _i32(details.get(1, 0)), file.tell(), _i32(header[3]))
        pages.append(page)
        offset = page.body + page.length
    stored = [page for page in pages if page.kind == DICTIONARY_PAGE or page.encoding == PLAIN]
    references = [page for page in pages if page.kind == DATA_PAGE and page.encoding in DICTIONARY_ENCODINGS]
    in_dictionary = sum(page.values for page in pages if page.kind == DICTIONARY_PAGE)
    if len(stored) + len(references) < len(pages) or any(
        page.kind not in (DATA_PAGE, DICTIONARY_PAGE) for page in pages
    ):
        return []
    # as many references as entries: each stands once, and entries are in the order of their first reference
    return stored if sum(page.values for page in references) == in_dictionary else []


def _streamed(file: FilePart, pages: list[_Page], chunk: Any) -> Iterator[bytes]:
    for page in pages:
        file.seek(page.body)
        body = _Stream(_unsnapped(file, page.length) if chunk.compression == "SNAPPY" else _blocks(file, page.length))
        if page.kind == DATA_PAGE:
            body.take(int.from_bytes(body.take(4), "little"))  # definition levels, all the same without nulls
        for _ in range(page.values):
            yield body.take(int.from_bytes(body.take(4), "little"))


class _Stream:
    """Bytes out of blocks, as many as are asked for."""

    def __init__(self, blocks: Iterator[bytes]):
        self._blocks, self._rest = blocks, b""

    def take(self, length: int) -> bytes:
        parts, missing = [], length
        while len(self._rest) < missing:
            parts.append(self._rest)
            missing -= len(self._rest)
            if not (block := next(self._blocks, b"")):
                raise ValueError("a page ends too early")
            self._rest = block
        parts.append(self._rest[:missing])
        self._rest = self._rest[missing:]
        return b"".join(parts)


def _blocks(file: FilePart, length: int) -> Iterator[bytes]:
    while length:
        block = file.read(min(BLOCK, length))
        if not block:
            return
        length -= len(block)
        yield block


def _unsnapped(file: FilePart, length: int) -> Iterator[bytes]:
    """Blocks of a page that is one Snappy stream of `length` bytes."""
    end = file.tell() + length
    missing = _varint(file)
    window = bytearray()
    while missing > 0 and file.tell() < end:
        before = len(window)
        while len(window) < before + BLOCK and len(window) - before < missing:
            tag = file.read(1)[0]
            size = (tag >> 2) + 1
            if tag & 3 == 0:  # literal
                if size > 60:
                    size = int.from_bytes(file.read(size - 60), "little") + 1
                window += file.read(size)
                continue
            if tag & 3 == 1:
                size, back = 4 + (tag >> 2 & 7), (tag >> 5) << 8 | file.read(1)[0]
            else:
                back = int.from_bytes(file.read(2 if tag & 3 == 2 else 4), "little")
            if not 0 < back <= len(window):
                raise ValueError("a damaged Snappy page")
            copied = window[-back:][:size]
            window += (copied * (size // len(copied) + 1))[:size]
        missing -= len(window) - before
        yield bytes(window[before:])
        window = window[-BLOCK:]


def _thrift_struct(file: BinaryIO | FilePart) -> dict[int, Any]:
    """Fields of a struct by number, in Thrift's compact protocol; of the types that page headers have."""
    fields: dict[int, Any] = {}
    number = 0
    while byte := file.read(1)[0]:
        number = number + (byte >> 4) if byte >> 4 else _i32(_varint(file))
        kind = byte & 15
        if kind in (1, 2):
            fields[number] = kind == 1
        elif kind == 8:
            fields[number] = file.read(_varint(file))
        else:
            fields[number] = _thrift_struct(file) if kind == 12 else _varint(file)
    return fields


def _i32(value: int) -> int:
    """An integer out of its zigzag form."""
    return value >> 1 ^ -(value & 1)


def _varint(file: BinaryIO | FilePart) -> int:
    value = shift = 0
    while (byte := file.read(1)[0]) & 128:
        value |= (byte & 127) << shift
        shift += 7
    return value | byte << shift
