"""Documents to train an SAE on, streamed from files or from `datasets`, never loaded whole, taken up anywhere."""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from core.errors import DataError

_PIECE = 1 << 16
"""Bytes of a .txt file read at a time."""
_HASHED_WHOLE = 1 << 28
Position = list[int]
_BEGIN: Position = [0, 0]


class TextReader(Protocol):
    """The texts of one source, in order, blank ones passed over; it can be opened again where it stands.

    Attributes:
        position: a JSON value: where the next text begins.
    """

    def __iter__(self) -> Iterator[str]: ...

    def __next__(self) -> str: ...

    @property
    def position(self) -> Any: ...


def open_texts(source: str, position: Any = None) -> TextReader:
    """Opens one entry of `sae.texts`, at its start or at a position a reader of the same source had.

    Args:
        source: a `.txt` file (cut at blank lines into documents of about 65,000 bytes), a `.jsonl` or `.parquet` file
            with a `text` column, a folder of such files, or a Hugging Face dataset with a `text` column: a name on the
            Hub or a folder in any layout that `datasets` reads. `name:subset:split` names a configuration and a split
            (`train` when left out). Datasets are streamed; nothing is copied to disk.

    Raises:
        DataError: the source is missing or unreadable, or (while reading) a row has no text; names file and line or row.
    """
    path = Path(source)
    if path.suffix in _READERS or _holds_text_files(path) or (path.is_dir() and not any(path.rglob("*.*"))):
        return FileTexts(text_files(path), position)
    return DatasetTexts(source, position)


def documents(source: str) -> Iterator[str]:
    """The texts of one entry of `sae.texts` from the start; arguments and errors as `open_texts`."""
    yield from open_texts(source)


class FileTexts:
    """The texts of some files. Taken up again, it reads nothing before its position (of a Parquet file, at most the
    row group it stands in)."""

    def __init__(self, files: list[Path], position: Any = None) -> None:
        self._files = files
        self.position: Any = position or [0, _BEGIN]
        self._running = self._texts()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        return next(self._running)

    def _texts(self) -> Iterator[str]:
        first, begin = self.position
        for number in range(first, len(self._files)):
            file = self._files[number]
            for text, end in _READERS[file.suffix](file, begin):
                self.position = [number, end]
                if text.strip():
                    yield text
            begin = _BEGIN


class DatasetTexts:
    """The `text` column of a dataset, streamed. Taken up again with the dataset's own state, where it keeps one (every
    one read from files does); else the rows before are read and passed over."""

    def __init__(self, source: str, position: Any = None) -> None:
        self._name = source
        self._row = position["row"] if position else 0
        with _said_in_a_sentence(source):
            self._rows = _load_dataset(source)
            if position and position["state"]:
                self._rows.load_state_dict(position["state"])
            elif position:
                self._rows = self._rows.skip(self._row)
            self._running = iter(self._rows)
        # Left open until the interpreter ends, the reader's own threads may meet what is already torn down.
        weakref.finalize(self, self._running.close)

    @property
    def position(self) -> Any:
        try:
            state = json.loads(json.dumps(self._rows.state_dict()))
        except (AttributeError, NotImplementedError, TypeError, ValueError):
            state = None
        return {"row": self._row, "state": state}

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        while True:
            with _said_in_a_sentence(self._name):
                item = next(self._running)
            self._row += 1
            text = _text_of(item, f"{self._name}, row {self._row}")
            if text.strip():
                return text


def text_files(path: Path) -> list[Path]:
    """The file itself, or the text files directly inside a folder, by name.

    Raises:
        DataError: there is no such file, or the folder holds none.
    """
    files = sorted(file for file in path.iterdir() if file.suffix in _READERS) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise DataError(
            f"There is no text in {path}; sae.texts takes .txt, .jsonl or .parquet files, or dataset names."
        )
    return files


def texts_hash(source: str) -> str:
    """Changes when the texts do: SHA-256 over the files, or the dataset's name.

    Files of more than 256 MB go in by their size and 64 pieces spread over them, so that a corpus is not read twice.
    """
    path = Path(source)
    digest = hashlib.sha256(source.encode() if not path.exists() else b"")
    if path.exists():
        readable = path.is_file() or _holds_text_files(path)
        for file in text_files(path) if readable else sorted(path.rglob("*.*")):
            if file.is_file():
                _add_file(digest, file)
    return digest.hexdigest()


def _add_file(digest: Any, file: Path) -> None:
    size = file.stat().st_size
    with file.open("rb") as stream:
        if size <= _HASHED_WHOLE:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
            return
        digest.update(str(size).encode())
        for number in range(64):
            stream.seek(number * (size - _PIECE) // 63)
            digest.update(stream.read(_PIECE))


def _holds_text_files(path: Path) -> bool:
    return path.is_dir() and any(file.suffix in _READERS for file in path.iterdir())


def _txt(path: Path, begin: Position) -> Iterator[tuple[str, Position]]:
    """Position: [byte, 0]."""
    at = begin[0]
    try:
        with path.open("rb") as file:
            file.seek(at)
            rest = b""
            while True:  # a cut depends on nothing but where the one before was
                rest += file.read(_PIECE - len(rest))
                marks = (b"\n\n", b"\r\n\r\n", b"\n", b" ") if len(rest) == _PIECE else ()
                cut = next((rest.rfind(mark) + len(mark) for mark in marks if mark in rest), 0)
                cut = cut or (_whole_characters(rest) if marks else len(rest))
                at += cut
                yield rest[:cut].decode("utf-8").replace("\r\n", "\n"), [at, 0]
                if not marks:
                    return
                rest = rest[cut:]
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason}); convert it first.") from None


def _whole_characters(data: bytes) -> int:
    """Bytes up to the last character that may not be whole yet."""
    cut = len(data)
    while cut > 1 and data[cut - 1] & 0xC0 == 0x80:
        cut -= 1
    return cut - 1 if cut > 1 and data[cut - 1] >= 0xC0 else len(data)


def _jsonl(path: Path, begin: Position) -> Iterator[tuple[str, Position]]:
    """Position: [byte, lines before it]."""
    at, number = begin
    with path.open("rb") as file:
        file.seek(at)
        for line in file:
            at, number = at + len(line), number + 1
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8"))
            except (UnicodeDecodeError, ValueError) as error:
                raise DataError(f"{path}, line {number} is not valid JSON in UTF-8: {error}.") from None
            yield _text_of(row, f"{path}, line {number}"), [at, number]


def _parquet(path: Path, begin: Position) -> Iterator[tuple[str, Position]]:
    """Position: [row, 0]."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            if "text" not in file.schema_arrow.names:
                raise DataError(f"{path} has no column `text` (it has {', '.join(file.schema_arrow.names[:8])}).")
            groups, row = list(range(file.num_row_groups)), 0
            while groups and row + file.metadata.row_group(groups[0]).num_rows <= begin[0]:
                row += file.metadata.row_group(groups.pop(0)).num_rows
            for batch in file.iter_batches(batch_size=256, row_groups=groups, columns=["text"]) if groups else ():
                for value in batch.column(0).to_pylist():
                    row += 1
                    if row > begin[0]:
                        yield _text_of({"text": value}, f"{path}, row {row}"), [row, 0]
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is not a readable Parquet file: {_first_line(error)}") from None


def _load_dataset(source: str) -> Any:
    from datasets import load_dataset

    name, subset, split = (source, "", "") if Path(source).is_dir() else (*source.split(":"), "", "")[:3]
    return load_dataset(name, subset or None, split=split or "train", streaming=True)


@contextmanager
def _said_in_a_sentence(name: str) -> Iterator[None]:
    try:
        yield
    except (StopIteration, DataError):
        raise
    except Exception as error:  # whatever the hub, its client or a dataset's files come up with
        raise DataError(
            f"The text {name} is neither a file nor a dataset that can be read: {_first_line(error)}"
        ) from None


def _text_of(row: Any, where: str) -> str:
    if not isinstance(row, dict) or "text" not in row:
        raise DataError(f"{where} has no field `text`.")
    if row["text"] is None:
        return ""
    if not isinstance(row["text"], str):
        raise DataError(f"{where}: `text` is not text but {type(row['text']).__name__}.")
    return row["text"]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


_READERS: dict[str, Callable[[Path, Position], Iterator[tuple[str, Position]]]] = {
    ".txt": _txt,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
}
