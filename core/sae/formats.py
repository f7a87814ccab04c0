"""SAEs as others publish them, turned into a file of this program: the files of SARM and SAFER, SAELens, sparsify.

Every reader gives a `PublishedSae`. What it cannot represent exactly is refused in a sentence, never approximated.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from core.errors import ModelError
from core.sae.checkpoint import sae_of, save_sae
from core.sae.topk import TopKSAE

DTYPES = {torch.float16: "float16", torch.bfloat16: "bfloat16"}


@dataclass(frozen=True)
class PublishedSae:
    """An SAE read from somebody else's files.

    Attributes:
        sae: in float32, on the CPU.
        metadata: layer, level, source format and name; what `save_sae` writes.
        dtype: the type its weights are stored in without loss.
        notes: sentences the user should read.
    """

    sae: TopKSAE
    metadata: dict[str, str]
    dtype: torch.dtype
    notes: tuple[str, ...] = ()

    def save(self, path: Path) -> None:
        """Writes `sae.safetensors` as `load_sae` reads it.

        Raises:
            DiskFullError: no room.
        """
        save_sae(path, self.sae, self.metadata, self.dtype)


def made(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], where: Path, notes: Iterable[str] = ()
) -> PublishedSae:
    """A `PublishedSae` of tensors under this program's names and facts about them; None is left out.

    Raises:
        ModelError: a shape does not fit, a value is not finite, or k is no k.
    """
    facts = {name: str(value) for name, value in metadata.items() if value is not None}
    kinds = {tensor.dtype for tensor in tensors.values()}
    kind = kinds.pop() if len(kinds) == 1 else torch.float32
    sae = sae_of({name: tensor.to(torch.float32) for name, tensor in tensors.items()}, facts, where)
    return PublishedSae(
        sae.requires_grad_(False),
        facts,
        kind if kind in DTYPES else torch.float32,
        tuple(note for note in notes if note),
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ModelError: the file is missing, damaged or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"There is no {path}; give the folder as it was published.") from None
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ModelError(f"{path} is not readable JSON ({error}); copy it again.") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} must hold a JSON object.")
    return value


def read_all(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file, on the CPU.

    Raises:
        ModelError: the file is missing or is not a whole safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise ModelError(f"There is no {path}; give the folder as it was published.") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path} is not a readable safetensors file ({error}); copy it again.") from None


def need(tensors: Mapping[str, Tensor], keys: Iterable[str], where: Path, what: str) -> None:
    """Insists that tensors are there.

    Raises:
        ModelError: one is missing; `what` names the format.
    """
    if missing := [key for key in keys if key not in tensors]:
        raise ModelError(
            f"{where} is not {what}: it has no {', '.join(missing)} (it has {', '.join(sorted(tensors)[:8]) or 'nothing'})."
        )


def agreed(name: str, said: int | None, asked: int | None, where: Path) -> int | None:
    """A number the files say, or an option asks for.

    Raises:
        ModelError: the two differ.
    """
    if said is not None and asked is not None and said != asked:
        raise ModelError(
            f"{where} says {name} = {said}, the option asks for {asked}; leave the option out, or give the right file."
        )
    return said if asked is None else asked


def positive(value: Any, name: str, where: Path) -> int:
    """A count from a configuration.

    Raises:
        ModelError: it is no whole number above 0.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or value < 1:
        raise ModelError(f"{where}: {name} must be a whole number above 0, not {value!r}.")
    return int(value)
