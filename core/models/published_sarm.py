"""Published SARM checkpoints, made into a SARM folder of this program (core/models/sarm).

What they hold: safetensors with `model.*` (decoder blocks under the names transformers gives them), `sae.*` (four tensors)
and `score.weight` [1, M]; a config.json of the decoder with a dictionary `sarm_param`:

    sae_source_layer l    the SAE reads hidden_states[l]; blocks from l on do not exist, whatever num_hidden_layers says
    sae_latent_size M, sae_k k
    sarm_use_activation   (older: sarm_use_topk) false means that the head reads dense pre-activations: no features
    sae_use_sequence_level

The oldest checkpoint has no `sarm_param`; its class computes without TopK unless told otherwise, so that must be asked.
The reward is read at the end-of-turn token ('last'). That token is found by its place, never by the padding token, so a
checkpoint whose padding is its end-of-turn token is read at the right place (the published code is not).
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from core.errors import ModelError, disk_full_is_said
from core.models.backbone import cut_config
from core.models.published_tokenizer import copy_tokenizer
from core.models.resolve import quiet_transformers
from core.models.sarm_config import SarmConfig
from core.models.streamed import FolderTensors, write_streamed
from core.progress import Progress
from core.sae.formats import agreed, positive, read_json
from core.sae.formats_pt import sizes_in
from core.store.stages import write_json

SAE_KEYS = ("sae.pre_bias", "sae.latent_bias", "sae.encoder.weight", "sae.decoder.weight")
SCORE = "score.weight"


@dataclass(frozen=True)
class SarmSizes:
    """What a checkpoint says, or an option does, of its SAE: hidden_states[layer], M, k, 'sequence' or 'token'."""

    layer: int
    latents: int
    k: int
    level: str | None


@dataclass(frozen=True)
class ImportedModel:
    """What became of a checkpoint: facts for people and machines, and sentences they should read."""

    facts: dict[str, Any]
    notes: tuple[str, ...]


def import_sarm(
    source: Path,
    out: Path,
    *,
    layer: int | None = None,
    k: int | None = None,
    topk: bool = False,
    name: str | None = None,
    progress: Progress | None = None,
) -> ImportedModel:
    """Writes a SARM folder of a published checkpoint, tensor by tensor.

    Args:
        source: folder with config.json, *.safetensors and tokenizer files.
        out: new folder; it appears whole or not at all.
        layer, k: for a checkpoint without `sarm_param`, where its name does not say them; or to check them.
        topk: confirms that a head whose files do not say so was trained on TopK activations.
        name: what it was published as, where the folder's name is another (in the Hub's cache it is a hash).

    Raises:
        ModelError: a missing or damaged file, a missing tensor, a wrong shape, NaN, a head trained without TopK.
        DiskFullError: no room.
    """
    config = read_json(source / "config.json")
    with FolderTensors(source) as tensors:
        name = name or source.name
        sizes = sizes_of(source, config, tensors, layer=layer, k=k, topk=topk, name=name)
        decoder = decoder_config(source, config, sizes.layer)
        wanted = _wanted(decoder, sizes)
        tensors.check_shapes(wanted, "its config.json")
        notes = []
        head = tensors.entry(SCORE).read()
        if not head.any():
            notes.append("score.weight is all zeros (a checkpoint before reward training): every reward will be 0.")
        aside = out.with_name(out.name + ".part")
        shutil.rmtree(aside, ignore_errors=True)
        with disk_full_is_said(out.parent):
            try:
                aside.mkdir(parents=True)
                write_streamed(
                    aside / "model.safetensors", [tensors.entry(name) for name in wanted], {"format": "pt"}, progress
                )
                notes += copy_tokenizer(source, aside, rows=tensors.shape("model.embed_tokens.weight")[0])
                _write_config(aside, decoder, sizes, tensors.dtype("model.embed_tokens.weight"), name)
                write_json(aside / "rewardscope.json", {"imported": {"format": "sarm", "source": name}})
                aside.rename(out)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
    facts = {
        "kind": "sarm",
        "path": str(out),
        "layer": sizes.layer,
        "latents": sizes.latents,
        "k": sizes.k,
        "pooling": "last",
        "d_model": int(decoder.hidden_size),
        "architecture": decoder.model_type,
        "head": "zero" if not head.any() else "trained",
    }
    return ImportedModel(facts, tuple(notes))


def sizes_of(
    source: Path,
    config: dict[str, Any],
    tensors: FolderTensors,
    *,
    layer: int | None,
    k: int | None,
    topk: bool,
    name: str,
) -> SarmSizes:
    """The SAE's place and sizes, from `sarm_param`, else from options, names and the tensors.

    Raises:
        ModelError: they are not known, contradict each other, or the head was trained without TopK.
    """
    param = config.get("sarm_param")
    if param is not None and not isinstance(param, dict):
        raise ModelError(f"{source / 'config.json'}: sarm_param must be a dictionary, not {param!r}.")
    where = source / "config.json"
    _check_topk(name, param, topk)
    if "sae.latent_bias" not in tensors:
        raise ModelError(f"{source} has no sae.latent_bias, which every SARM checkpoint has; it is not whole.")
    held = tensors.shape("sae.latent_bias")[0]
    if param is not None:
        if missing := [key for key in ("sae_source_layer", "sae_latent_size", "sae_k") if key not in param]:
            raise ModelError(f"{where}: sarm_param does not say {', '.join(missing)}.")
        said = [positive(param[key], key, where) for key in ("sae_source_layer", "sae_latent_size", "sae_k")]
        at, latents, active = agreed("the layer", said[0], layer, where), said[1], agreed("k", said[2], k, where)
        level = "sequence" if param.get("sae_use_sequence_level") else None
    else:
        named_m, named_layer, named_k = sizes_in(name + "_")
        # The published class has no blocks above the SAE, so what is there is the layer where the name is silent.
        at = agreed("the layer", _blocks(tensors) if named_layer is None else named_layer, layer, source)
        active, latents, level = agreed("k", named_k, k, source), named_m or held, None
        if active is None:
            raise ModelError(
                f"{where} has no sarm_param and the name {name} does not say k (as _Latent65536_Layer16_K192_ "
                "does); give --k (192 for SARM-4B)."
            )
    if latents != held:
        raise ModelError(f"{source} says {latents} latents, its sae.latent_bias has {held}; the files mix two models.")
    if at is None or active is None:  # said above
        raise ModelError(f"{source} does not say the SAE's layer and k.")
    return SarmSizes(at, held, active, level)


def decoder_config(source: Path, config: dict[str, Any], layer: int) -> Any:
    """The decoder's configuration as transformers knows it, cut at the SAE; remote code named in it is ignored.

    Raises:
        ModelError: not a decoder transformers knows.
    """
    from transformers import AutoConfig

    facts = {key: value for key, value in config.items() if key not in ("auto_map", "architectures", "sarm_param")}
    try:
        with quiet_transformers():
            decoder = AutoConfig.for_model(str(facts.pop("model_type", "")), **facts).get_text_config()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{source / 'config.json'} describes no decoder that transformers knows: {first}") from None
    decoder.num_hidden_layers = max(decoder.num_hidden_layers, layer)  # what is there decides, not this number
    return cut_config(decoder, layer)


def _check_topk(name: str, param: dict[str, Any] | None, topk: bool) -> None:
    """Refuses a head that reads dense pre-activations, and asks where the files do not say."""
    said = None
    for key in ("sarm_use_activation", "sarm_use_topk"):
        if said is None and param is not None:
            said = param.get(key)
    # The published parser takes "TopK" in the name for yes, and "woTopK" contains it.
    if said is None and "wotopk" in name.lower().replace("-", "").replace("_", ""):
        said = False
    if said is False:
        raise ModelError(
            f"The head of {name} was trained without TopK, on all M dense pre-activations: these are no sparse "
            "features, and its rewards with TopK would be those of another model. It is not imported."
        )
    if said is None and not topk:
        raise ModelError(
            f"{name} does not say whether its head was trained with TopK (its class computes without unless told "
            "otherwise); if you know that it was, as the paper's models were, say so with --topk."
        )


def _blocks(tensors: FolderTensors) -> int:
    """How many decoder blocks the weights hold, 0 .. n-1 without a gap."""
    numbers = {int(name.split(".")[2]) for name in tensors.names() if name.startswith("model.layers.")}
    if not numbers or numbers != set(range(len(numbers))):
        raise ModelError(
            f"{tensors.folder} does not hold decoder blocks 0, 1, ... under model.layers; it is not whole."
        )
    return len(numbers)


def _wanted(decoder: Any, sizes: SarmSizes) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that are kept: blocks below the SAE, the SAE and the head; no final norm."""
    from transformers import AutoModel

    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in AutoModel.from_config(decoder).state_dict().items()}
    d, m = int(decoder.hidden_size), sizes.latents
    wanted = {f"model.{name}": shape for name, shape in shapes.items() if not name.startswith("norm.")}
    wanted |= dict(zip(SAE_KEYS, ((d,), (m,), (m, d), (d, m)), strict=True))
    return {**wanted, SCORE: (1, m)}


def _write_config(folder: Path, decoder: Any, sizes: SarmSizes, dtype: torch.dtype, source: str) -> None:
    facts = {**decoder.to_dict(), "model_type": decoder.model_type, "num_hidden_layers": sizes.layer}
    said = {"layer": str(sizes.layer), "level": sizes.level or "token", "format": "sarm", "source": source}
    made = SarmConfig(facts, sizes.latents, sizes.k, "last", said, dtype=dtype)
    made.architectures = ["SarmForSequenceClassification"]
    made.save_pretrained(folder)
