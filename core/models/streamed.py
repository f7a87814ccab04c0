"""Weights read and written tensor by tensor: a checkpoint larger than memory can be copied, cut and checked."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from core.errors import ModelError, disk_full_is_said
from core.progress import Progress, Silent

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
NAMES = {name: dtype for dtype, name in DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """One tensor of a file to be written.

    Attributes:
        name: its key.
        dtype, shape: known before it is read.
        read: gives it when its turn comes.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Tensor]


class FolderTensors:
    """The tensors in a folder's safetensors files, whichever shard holds them; nothing is read before it is asked for.

    Raises:
        ModelError: no safetensors files, a damaged one, a shard of the index that is missing, a tensor in two shards.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open = ExitStack()
        self._files: dict[str, Any] = {}
        try:
            for path in _shards(folder):
                self._add(path)
        except BaseException:
            self._open.close()
            raise

    def __enter__(self) -> FolderTensors:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def names(self) -> list[str]:
        return sorted(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._files[name].get_slice(name).get_shape())

    def dtype(self, name: str) -> torch.dtype:
        kind = self._files[name].get_slice(name).get_dtype()
        if kind not in NAMES:
            raise ModelError(f"{self.folder}: {name} is stored as {kind}, which is not read here; save it as bfloat16.")
        return NAMES[kind]

    def read(self, name: str) -> Tensor:
        try:
            return self._files[name].get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{self.folder}: {name} cannot be read ({error}); copy it again.") from None

    def entry(self, name: str, as_name: str | None = None) -> Entry:
        """The tensor as something to write, checked for NaN and infinity when it is read."""

        def read() -> Tensor:
            tensor = self.read(name)
            # A sum is one pass; only where it is not finite (it may overflow) every value is looked at.
            whole = not tensor.is_floating_point() or bool(torch.isfinite(tensor.sum(dtype=_sum_type(tensor))))
            if not whole and not torch.isfinite(tensor).all():
                raise ModelError(f"{self.folder}: {name} holds NaN or infinity; the training it came from diverged.")
            return tensor

        return Entry(as_name or name, self.dtype(name), self.shape(name), read)

    def check_shapes(self, wanted: Mapping[str, tuple[int, ...]], asked_by: str) -> None:
        """Insists that tensors are there with their shapes.

        Raises:
            ModelError: one is missing or has another shape; `asked_by` says what decides.
        """
        if missing := [name for name in wanted if name not in self]:
            raise ModelError(
                f"{self.folder} has no {missing[0]}{f' and {len(missing) - 1} other tensors' * (len(missing) > 1)}, "
                f"which {asked_by} asks for; nothing is guessed."
            )
        for name, shape in wanted.items():
            if self.shape(name) != tuple(shape):
                raise ModelError(
                    f"{self.folder}: {name} is {list(self.shape(name))}, but {asked_by} asks for {list(shape)}."
                )

    def _add(self, path: Path) -> None:
        try:
            file = self._open.enter_context(safe_open(path, framework="pt"))
        except FileNotFoundError:
            raise ModelError(f"{path} is missing, though the index in its folder names it; fetch it again.") from None
        except (SafetensorError, OSError, ValueError) as error:
            raise ModelError(f"{path} is not a readable safetensors file ({error}); copy it again.") from None
        for name in file.keys():  # noqa: SIM118
            if name in self._files:
                raise ModelError(f"{self.folder}: two of its files hold {name}; leave only those of one checkpoint.")
            self._files[name] = file


def write_streamed(
    path: Path, entries: Iterable[Entry], metadata: Mapping[str, str], progress: Progress | None = None
) -> None:
    """Writes a safetensors file with one tensor in memory at a time; it appears whole or not at all.

    The format: the header's length (u64, little endian), a JSON header with the place of each tensor, the bytes.

    Raises:
        DiskFullError: no room. ModelError: whatever reading a tensor raises.
    """
    entries = list(entries)
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    at = 0
    for entry in entries:
        size = entry.dtype.itemsize * int(torch.Size(entry.shape).numel())
        header[entry.name] = {
            "dtype": DTYPES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [at, at + size],
        }
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".part")
    with disk_full_is_said(path.parent):
        try:
            with aside.open("wb") as file, (progress or Silent()).task("weights", len(entries), "tensors") as task:
                file.write(struct.pack("<Q", len(text)) + text)
                for entry in entries:
                    tensor = entry.read().contiguous()
                    if tensor.dtype != entry.dtype or tuple(tensor.shape) != entry.shape:
                        raise ModelError(f"{entry.name} changed while {path} was being written; do it again.")
                    file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
                    del tensor
                    task.advance()
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)


def _sum_type(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _shards(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{index} is not a readable index of shards ({error}); fetch it again.") from None
        if outside := [name for name in names if Path(name).name != name]:
            raise ModelError(f"{index} names {outside[0]}, which is not a file of its folder; it is not opened.")
        return [folder / name for name in names]
    if not (found := sorted(folder.glob("*.safetensors"))):
        raise ModelError(f"{folder} has no *.safetensors; pickled weights are not read (convert them first).")
    return found
