"""Finds a published checkpoint and says what it is, without opening more than names and headers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from core.errors import ModelError
from core.models.resolve import HUB_FILES
from core.models.streamed import FolderTensors
from core.sae.formats import PublishedSae, read_json
from core.sae.formats_pt import read_pt
from core.sae.formats_saelens import WEIGHTS as SAELENS_WEIGHTS
from core.sae.formats_saelens import read_saelens
from core.sae.formats_sparsify import WEIGHTS as SPARSIFY_WEIGHTS
from core.sae.formats_sparsify import config_file, read_sparsify

Layout = Literal["sarm", "pt", "saelens", "sparsify", "armorm"]
LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "auto": ("sarm", "pt", "saelens", "sparsify", "armorm"),
    "sarm": ("sarm",),
    "sae": ("pt", "saelens", "sparsify"),
    "armorm": ("armorm",),
}
"""What each value of --kind accepts."""
PICKLED = (".pt", ".pth")


def resolve_published(name: str, revision: str | None = None) -> Path:
    """The file or folder of a checkpoint: a local path, or `owner/repository[/path]` on the Hub (its cache first).

    Raises:
        ModelError: it is neither there nor in the cache, and could not be fetched.
    """
    if (path := Path(name).expanduser()).exists():
        return path.absolute()  # links stay: in the Hub's cache only they have names
    parts = name.strip("/").split("/")
    found = None
    if len(parts) >= 2 and ".." not in parts and not name.startswith((".", "/", "~")):
        repository, inside = "/".join(parts[:2]), "/".join(parts[2:])
        for local_only in [True] if os.environ.get("HF_HUB_OFFLINE") == "1" else [True, False]:
            folder = _snapshot(repository, inside, revision, local_only)
            if folder is not None and (folder / inside).exists():
                found = folder / inside
                if found.is_file() or any(found.glob("*.safetensors")):
                    return found
    if found is not None:
        return found
    raise ModelError(
        f"{name} is not a file or folder here, not in the Hugging Face cache, and could not be fetched from the Hub; "
        "give the path of the checkpoint, or connect once to fetch it."
    )


def layout_of(path: Path) -> Layout:
    """What a checkpoint is.

    Raises:
        ModelError: nothing that is read here, several at once, or a folder this program made itself.
    """
    if path.is_file():
        if path.suffix in PICKLED:
            return "pt"
        raise ModelError(f"{path} is a single {path.suffix or 'file'}; give a .pt file of SARM or SAFER, or a folder.")
    if (path / SAELENS_WEIGHTS).is_file() and (path / "cfg.json").is_file():
        return "saelens"
    if (path / SPARSIFY_WEIGHTS).is_file() and config_file(path).is_file():
        return "sparsify"
    if (path / "config.json").is_file() and any(path.glob("*.safetensors*")):
        return _model_layout(path)
    raise ModelError(_not_a_checkpoint(path))


def read_sae(
    path: Path,
    layout: Layout,
    *,
    layer: int | None = None,
    k: int | None = None,
    input_scale: float | None = None,
) -> PublishedSae:
    """Reads an SAE of the layouts pt, saelens and sparsify.

    Raises:
        ModelError: it cannot be represented exactly, or is damaged.
    """
    if input_scale is not None and layout != "saelens":
        raise ModelError("--input-scale is for SAELens folders that say expected_average_only_in.")
    if layout == "pt":
        return read_pt(path, layer=layer, k=k)
    if layout == "saelens":
        return read_saelens(path, layer=layer, k=k, input_scale=input_scale)
    return read_sparsify(path, layer=layer, k=k)


def _model_layout(path: Path) -> Layout:
    config: dict[str, Any] = read_json(path / "config.json")
    if config.get("model_type") == "rewardscope_sarm":
        raise ModelError(f"{path} is already a SARM folder of this program; use it as it is (model.name, kind: sarm).")
    with FolderTensors(path) as tensors:
        names = tensors.names()
    if "regression_layer.weight" in names or any(name.startswith("gating.") for name in names):
        return "armorm"
    if "sarm_param" in config or any(name.startswith("sae.") for name in names):
        return "sarm"
    raise ModelError(
        f"{path} is an ordinary model: no sae.* and no gating.* among its {len(names)} tensors; use it directly as model.name."
    )


def _not_a_checkpoint(path: Path) -> str:
    inside = sorted(child for child in path.iterdir() if not child.name.startswith("."))
    if pickles := [child.name for child in inside if child.suffix in PICKLED]:
        return f"{path} holds {', '.join(pickles[:5])}; give the one SAE file to import."
    if folders := [child.name for child in inside if (child / "cfg.json").is_file()]:
        return (
            f"{path} holds several SAEs ({', '.join(folders[:5])}, ...); give the folder of one, {path / folders[0]}."
        )
    if any(child.suffix == ".bin" for child in inside):
        return f"{path} has pickled weights (*.bin), which are never loaded; convert them to safetensors first."
    return (
        f"{path} holds no checkpoint that is read here (SARM, ArmoRM: config.json and *.safetensors; SAELens: cfg.json and "
        f"{SAELENS_WEIGHTS}; sparsify: cfg.json and {SPARSIFY_WEIGHTS}; SARM and SAFER SAEs: a .pt file); of a Hub repository with "
        "several SAEs give the folder too, owner/name/folder."
    )


def _snapshot(repository: str, inside: str, revision: str | None, local_only: bool) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    # Never code; a pickled file only when it is named.
    wanted = [inside] if inside.endswith(PICKLED) else [f"{inside}/{p}" if inside else p for p in HUB_FILES]
    try:
        return Path(
            snapshot_download(
                repository,
                revision=revision,
                allow_patterns=wanted,
                ignore_patterns=[f"{inside}/*/*" if inside else "*/*"],  # a repository may hold an SAE for every layer
                local_files_only=local_only,
                etag_timeout=10,
            )
        )
    except (LocalEntryNotFoundError, HFValidationError, HfHubHTTPError, OSError):
        return None
