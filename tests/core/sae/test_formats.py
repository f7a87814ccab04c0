"""Published SAE files in their exact layouts, without the libraries that write them; hostile and damaged ones."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from core.errors import ModelError
from core.models.published import layout_of, resolve_published
from core.sae.checkpoint import load_sae
from core.sae.formats_pt import read_pt
from core.sae.formats_saelens import layer_of, read_saelens
from core.sae.formats_sparsify import read_sparsify

D, LATENTS, K = 4, 6, 2
NAME = f"Llama-3.1-8B-Instruct_sequence_Latent{LATENTS}_Layer16_K{K}_1B.pt"


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def sarm_state(dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    state = {
        "pre_bias": random(D),
        "latent_bias": random(LATENTS),
        "encoder.weight": random(LATENTS, D),
        "decoder.weight": random(D, LATENTS),
    }
    return {name: tensor.to(dtype) for name, tensor in state.items()}


def saved(path: Path, state: Any) -> Path:
    torch.save(state, path)
    return path


# --- .pt files of SARM and SAFER ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_sarm_file_gives_the_golden_features(tmp_path: Path, dtype: torch.dtype) -> None:
    """The worked example of SARM's formulas: pre_process, TopK without ReLU."""
    rows = torch.cat([torch.eye(4), -torch.eye(4)[:1], torch.full((1, 4), 0.5)])
    state = {
        "pre_bias": torch.tensor([0.1, 0, 0, -0.1]),
        "latent_bias": torch.tensor([0, 0.2, 0, 0, 0, 0.05]),
        "encoder.weight": rows,
        "decoder.weight": rows.T.contiguous(),
    }
    path = saved(tmp_path / NAME, {name: tensor.to(dtype) for name, tensor in state.items()})
    published = read_pt(path)
    assert (published.sae.k, published.metadata["layer"], published.metadata["level"]) == (2, "16", "sequence")
    assert published.dtype == dtype
    published.save(tmp_path / "sae.safetensors")
    sae, metadata = load_sae(tmp_path / "sae.safetensors")
    assert metadata["format"] == "sarm-pt"
    active = sae.encode(torch.tensor([[1.0, 2, 3, 6]]))
    assert active.indices.tolist() == [[3, 4]]
    tolerance = 1e-6 if dtype == torch.float32 else 1e-3  # 0.1 is no bfloat16
    assert active.values[0].tolist() == pytest.approx([1.48872951, 1.02581967], abs=tolerance)


@pytest.mark.parametrize(
    ("name", "level"),
    [
        (f"Llama-3.2-3B_token_Latent{LATENTS}_Layer14_K2_1B.pt", "token"),
        (f"Llama-3.2-3B_sequence_Adapted_Latent{LATENTS}_Layer14_K2_1B.pt", "sequence"),
        (f"my_token_base_sequence_Latent{LATENTS}_Layer14_K2_100M.pt", "sequence"),
    ],
)
def test_names_are_read_as_sarm_writes_them(tmp_path: Path, name: str, level: str) -> None:
    metadata = read_pt(saved(tmp_path / name, sarm_state())).metadata
    assert (metadata["level"], metadata["layer"], metadata["k"]) == (level, "14", "2")


def test_safer_files_must_be_told_their_sizes(tmp_path: Path) -> None:
    path = saved(tmp_path / "stage2.pt", sarm_state(torch.float32))
    with pytest.raises(ModelError, match=r"give --layer and --k; SAFER.*--layer 12 --k 64"):
        read_pt(path)
    with pytest.raises(ModelError, match=r"give --k;"):
        read_pt(path, layer=12)
    assert read_pt(path, layer=12, k=K).metadata["level"] == "sequence"
    assert read_pt(saved(tmp_path / "stage1.pt", sarm_state()), layer=12, k=K).metadata["level"] == "token"


def test_names_that_contradict_are_said(tmp_path: Path) -> None:
    path = saved(tmp_path / NAME, sarm_state())
    with pytest.raises(ModelError, match="says k = 2, the option asks for 3"):
        read_pt(path, k=3)
    renamed = saved(tmp_path / "base_token_Latent65536_Layer16_K192_1B.pt", sarm_state())
    with pytest.raises(ModelError, match="says 65536 latents, the file holds 6"):
        read_pt(renamed)


class Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("old_format", [False, True])
def test_code_in_a_file_is_not_run(tmp_path: Path, old_format: bool) -> None:
    path = tmp_path / NAME
    state = {**sarm_state(), "pre_bias": Hostile(tmp_path / "executed")}
    torch.save(state, path, _use_new_zipfile_serialization=not old_format)
    with pytest.raises(ModelError, match="pickled code or objects"):
        read_pt(path)
    path.write_bytes(pickle.dumps(Hostile(tmp_path / "executed")))
    with pytest.raises(ModelError, match=r"pickled code|not a readable torch file"):
        read_pt(path)
    assert not (tmp_path / "executed").exists()


def test_files_from_before_torch_1_6_are_read(tmp_path: Path) -> None:
    path = tmp_path / NAME
    torch.save(sarm_state(), path, _use_new_zipfile_serialization=False)
    assert read_pt(path).sae.latents == LATENTS


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: s.pop("latent_bias"), "has no latent_bias"),
        (lambda s: s.update({"decoder.weight": random(LATENTS, D)}), r"decoder.weight is \[6, 4\].*asks for \[4, 6\]"),
        (lambda s: s.update({"encoder.weight": random(LATENTS)}), r"encoder.weight must be \[M, d\]"),
        (lambda s: s.update({"pre_bias": torch.full((D,), float("inf"))}), "pre_bias holds NaN or infinity"),
        (lambda s: s.update({"epoch": 3}), "does not hold a state dict of tensors"),
    ],
)
def test_a_state_dict_that_does_not_fit_is_said(tmp_path: Path, change: Any, sentence: str) -> None:
    state = sarm_state()
    change(state)
    with pytest.raises(ModelError, match=sentence):
        read_pt(saved(tmp_path / NAME, state))


def test_damaged_pt_files_are_said(tmp_path: Path) -> None:
    path = saved(tmp_path / NAME, sarm_state())
    whole = path.read_bytes()
    for cut in (whole[: len(whole) // 2], whole[:10], b""):
        path.write_bytes(cut)
        with pytest.raises(ModelError, match="not a readable torch file|pickled code"):
            read_pt(path)
    with pytest.raises(ModelError, match="There is no file"):
        read_pt(tmp_path / "none.pt")


# --- SAELens -----------------------------------------------------------------------------------------------------------


def saelens_folder(folder: Path, config: dict[str, Any], **changes: Tensor | None) -> Path:
    """As version 5 wrote it, before settings moved into `metadata`."""
    folder.mkdir(parents=True, exist_ok=True)
    cfg = {
        "architecture": "standard",
        "d_in": D,
        "d_sae": LATENTS,
        "activation_fn_str": "relu",
        "apply_b_dec_to_input": True,
        "hook_name": "blocks.7.hook_resid_pre",
        "hook_layer": 7,
        "hook_head_index": None,
        "normalize_activations": "none",
        "model_name": "tiny",
        "dtype": "float32",
        **config,
    }
    (folder / "cfg.json").write_text(json.dumps({key: value for key, value in cfg.items() if value != "absent"}))
    tensors = {
        "W_enc": random(D, LATENTS),
        "b_enc": random(LATENTS),
        "W_dec": random(LATENTS, D),
        "b_dec": random(D),
        **changes,
    }
    save_file(
        {name: tensor for name, tensor in tensors.items() if tensor is not None}, folder / "sae_weights.safetensors"
    )
    return folder


def test_saelens_by_hand(tmp_path: Path) -> None:
    folder = saelens_folder(tmp_path / "sae", {})
    sae = read_saelens(folder, k=5).sae
    x = random(10, D)
    w_enc, b_enc, b_dec = random(D, LATENTS), random(LATENTS), random(D)
    dense = torch.relu((x - b_dec) @ w_enc + b_enc)
    active = sae.encode(x)
    torch.testing.assert_close(torch.zeros(10, LATENTS).scatter_(1, active.indices, active.values), dense)
    torch.testing.assert_close(sae.reconstruct(x), dense @ random(LATENTS, D) + b_dec)
    topk = read_saelens(
        saelens_folder(tmp_path / "topk", {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 2}})
    )
    assert (topk.metadata["activation"], topk.sae.k) == ("topk_relu", 2)
    old = read_saelens(saelens_folder(tmp_path / "old", {"architecture": "absent", "normalize_activations": False}))
    assert old.metadata["activation"] == "relu"


@pytest.mark.parametrize(
    ("hook", "layer"),
    [
        ("blocks.0.hook_resid_post", 1),
        ("blocks.7.hook_resid_post", 8),
        ("blocks.7.hook_resid_pre", 7),
        ("model.layers.3", 4),
        ("layers.3", 4),
        ("transformer.h.11", 12),
    ],
)
def test_hooks_are_hidden_states(hook: str, layer: int) -> None:
    assert layer_of(hook, None, Path("sae")) == layer
    assert layer_of(hook, layer, Path("sae")) == layer
    with pytest.raises(ModelError, match="the option asks for 40"):
        layer_of(hook, 40, Path("sae"))


@pytest.mark.parametrize(
    ("hook", "sentence"),
    [
        ("blocks.7.hook_mlp_out", "not the residual stream"),
        ("blocks.7.hook_resid_mid", "not the residual stream"),
        ("blocks.7.attn.hook_z", "not the residual stream"),
        ("layers.3.mlp", "not the residual stream"),
        ("blocks.0.hook_resid_pre", "trained on the embeddings"),
        ("", "give --layer N"),
    ],
)
def test_other_hooks_are_refused(hook: str, sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        layer_of(hook, None, Path("sae"))


@pytest.mark.parametrize(
    ("config", "changes", "sentence"),
    [
        ({"architecture": "transcoder"}, {}, "architecture 'transcoder'"),
        ({"architecture": "skip_transcoder"}, {}, "architecture 'skip_transcoder'"),
        ({"architecture": "topk"}, {}, "k must be a whole number above 0, not None"),
        ({"normalize_activations": "covariance_whitening"}, {}, "scales its input by 'covariance_whitening'"),
        ({"reshape_activations": "hook_z"}, {}, "attention heads"),
        ({"activation_fn_str": "tanh-relu"}, {}, "activation 'tanh-relu'"),
        ({"d_in": 5}, {}, r"W_enc is \[4, 6\].*d_in=5"),
        ({}, {"b_enc": None}, "has no b_enc"),
        ({"architecture": "gated"}, {}, "has no b_gate, b_mag, r_mag"),
        ({"architecture": "jumprelu"}, {}, "has no threshold"),
        ({}, {"W_dec": random(D, LATENTS)}, r"decoder.weight is \[6, 4\].*asks for \[4, 6\]"),
        ({}, {"b_dec": torch.full((D,), float("nan"))}, "holds NaN"),
        ({}, {"scaling_factor": torch.full((LATENTS,), 2.0)}, "finetuning scaling factors"),
    ],
)
def test_saelens_what_does_not_fit_is_said(
    tmp_path: Path, config: dict[str, Any], changes: dict[str, Tensor | None], sentence: str
) -> None:
    with pytest.raises(ModelError, match=sentence):
        read_saelens(saelens_folder(tmp_path / "sae", config, **changes))


# --- sparsify ----------------------------------------------------------------------------------------------------------


def sparsify_folder(folder: Path, config: dict[str, Any], **changes: Tensor | None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    cfg = {"activation": "topk", "expansion_factor": 32, "num_latents": LATENTS, "k": K, "d_in": D, **config}
    (folder / "cfg.json").write_text(json.dumps(cfg))
    tensors = {
        "encoder.weight": random(LATENTS, D),
        "encoder.bias": random(LATENTS),
        "W_dec": random(LATENTS, D, seed=1),
        "b_dec": random(D),
        **{name.replace("__", "."): tensor for name, tensor in changes.items()},
    }
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, folder / "sae.safetensors")
    return folder


@pytest.mark.parametrize("signed", [False, True])
def test_sparsify_by_hand(tmp_path: Path, signed: bool) -> None:
    folder = sparsify_folder(tmp_path / "layers.11", {"signed": signed, "k": 4})
    published = read_sparsify(folder)
    assert (published.metadata["layer"], published.metadata["activation"]) == ("12", "topk" if signed else "topk_relu")
    x = random(30, D)
    pre = (x - random(D)) @ random(LATENTS, D).T + random(LATENTS)
    top = (pre if signed else pre.relu()).topk(4)
    dense = torch.zeros_like(pre).scatter_(1, top.indices, top.values)
    active = published.sae.encode(x)
    torch.testing.assert_close(torch.zeros_like(pre).scatter_(1, active.indices, active.values), dense)
    torch.testing.assert_close(published.sae.reconstruct(x), dense @ random(LATENTS, D, seed=1) + random(D))
    assert bool((dense < 0).any()) is signed


def test_sparsify_folders_may_call_themselves_otherwise(tmp_path: Path) -> None:
    folder = sparsify_folder(tmp_path / "my-copy", {})
    with pytest.raises(ModelError, match="give --layer N"):
        read_sparsify(folder)
    assert read_sparsify(folder, layer=9).metadata["layer"] == "9"
    (folder / "cfg.json").rename(folder / "config.json")
    assert layout_of(folder) == "sparsify"
    assert read_sparsify(folder, layer=9).sae.k == K


@pytest.mark.parametrize(
    ("config", "changes", "sentence"),
    [
        ({"transcode": True}, {}, "is a transcoder: it predicts"),
        ({"skip_connection": True}, {}, "transcoder with a skip connection"),
        ({}, {"W_skip": random(D, D)}, "skip connection"),
        ({"activation": "relu"}, {}, "activation 'relu'"),
        ({"num_latents": 7}, {}, r"encoder.weight is \[6, 4\].*asks for \[7, 4\]"),
        ({"k": 0}, {}, "k must be a whole number above 0"),
        ({}, {"W_dec": None}, "has no W_dec"),
        ({}, {"encoder__bias": random(5)}, r"latent_bias is \[5\]"),
    ],
)
def test_sparsify_what_does_not_fit_is_said(
    tmp_path: Path, config: dict[str, Any], changes: dict[str, Tensor | None], sentence: str
) -> None:
    with pytest.raises(ModelError, match=sentence):
        read_sparsify(sparsify_folder(tmp_path / "layers.2", config, **changes))


# --- finding out what something is -------------------------------------------------------------------------------------


def test_layouts_are_recognised_or_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert layout_of(saelens_folder(tmp_path / "saelens", {})) == "saelens"
    assert layout_of(sparsify_folder(tmp_path / "coders" / "layers.3", {})) == "sparsify"
    assert layout_of(saved(tmp_path / NAME, sarm_state())) == "pt"
    with pytest.raises(ModelError, match=r"several SAEs \(layers.3, ...\); give the folder of one"):
        layout_of(tmp_path / "coders")
    with pytest.raises(ModelError, match=f"holds {NAME}; give the one SAE file"):
        layout_of(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="no checkpoint that is read here"):
        layout_of(tmp_path / "empty")
    (tmp_path / "empty" / "pytorch_model.bin").touch()
    with pytest.raises(ModelError, match="pickled weights"):
        layout_of(tmp_path / "empty")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("nobody/nothing-at-all", str(tmp_path / "none")):
        with pytest.raises(ModelError, match="not a file or folder here"):
            resolve_published(name)


def test_the_hub_is_read_from_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files there are links to blobs without names; one folder of a repository is asked for, or one file."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--someone--saes"
    snapshot = repository / "snapshots" / commit
    sparsify_folder(snapshot / "layers.3", {})
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    saved(tmp_path / "blob", sarm_state())
    (snapshot / NAME).symlink_to(tmp_path / "blob")
    folder = resolve_published("someone/saes/layers.3")
    assert read_sparsify(folder).metadata["layer"] == "4"
    for file in (resolve_published(f"someone/saes/{NAME}"), resolve_published(str(snapshot / NAME))):
        assert read_pt(file).metadata["layer"] == "16"


def test_truncated_weights_are_said(tmp_path: Path) -> None:
    folder = saelens_folder(tmp_path / "saelens", {})
    file = folder / "sae_weights.safetensors"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ModelError, match="not a readable safetensors file"):
        read_saelens(folder)
    (folder / "cfg.json").write_text("{")
    with pytest.raises(ModelError, match="not readable JSON"):
        read_saelens(folder)
