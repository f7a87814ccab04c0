"""Imported SAEs against the libraries that wrote them: the same active latents, values to 1e-5.

The libraries are not needed to read their files, only to check it; without them the golden values of test_formats.py
remain.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from core.sae.checkpoint import load_sae
from core.sae.formats import PublishedSae
from core.sae.formats_saelens import read_saelens
from core.sae.formats_sparsify import read_sparsify

D, LATENTS = 16, 64


def states(n: int = 200) -> Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(3)) * 3 + 0.5


def dense(published: PublishedSae, folder: Path, x: Tensor) -> tuple[Tensor, Tensor]:
    """Features and reconstruction of an imported SAE after a round trip through its file."""
    published.save(folder / "sae.safetensors")
    sae, _ = load_sae(folder / "sae.safetensors")
    active = sae.encode(x)
    assert all(len(set(row)) == sae.k for row in active.indices.tolist())
    assert torch.equal(active.values, active.values.sort(dim=1, descending=True).values)
    z = torch.zeros(len(x), LATENTS).scatter_(1, active.indices, active.values)
    return z, sae.rebuild(x, active)


def same(ours: tuple[Tensor, Tensor], features: Tensor, rebuilt: Tensor) -> None:
    assert torch.equal(ours[0] != 0, features != 0)
    torch.testing.assert_close(ours[0], features, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours[1], rebuilt, atol=1e-4, rtol=1e-5)
    assert 0 < (features != 0).float().mean() < 0.9


@pytest.mark.parametrize("architecture", ["standard", "topk", "abstopk", "jumprelu", "gated"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"apply_b_dec_to_input": False},
        {"normalize_activations": "layer_norm"},
        {"normalize_activations": "constant_norm_rescale", "apply_b_dec_to_input": False},
        {"normalize_activations": "expected_average_only_in"},
    ],
    ids=["plain", "no-b-dec", "layer-norm", "constant-norm", "average"],
)
def test_saelens(tmp_path: Path, architecture: str, settings: dict[str, Any]) -> None:
    library = pytest.importorskip("sae_lens")
    from sae_lens.registry import get_sae_class

    made, config = get_sae_class(architecture)
    topk = {"k": 6, "rescale_acts_by_decoder_norm": settings == {}} if "topk" in architecture else {}
    theirs = made(config(d_in=D, d_sae=LATENTS, **topk, **settings))
    theirs.cfg.metadata.hook_name, theirs.cfg.metadata.model_name = "blocks.4.hook_resid_pre", "tiny"
    randomise(theirs)
    theirs.save_model(tmp_path / "saelens")
    again = library.SAE.load_from_disk(tmp_path / "saelens")
    x = states()
    with torch.no_grad():
        features = again.encode(x)
        rebuilt = again.decode(features)
    published = read_saelens(tmp_path / "saelens", k=None if topk else LATENTS - 1)
    assert published.metadata["layer"] == "4"
    assert ("average" in " ".join(published.notes)) is (
        settings.get("normalize_activations") == "expected_average_only_in"
    )
    same(dense(published, tmp_path, x), features, rebuilt)


@pytest.mark.parametrize("rescaled", [True, False])
def test_saelens_batch_topk_as_saved_for_inference_and_by_the_trainer(tmp_path: Path, rescaled: bool) -> None:
    library = pytest.importorskip("sae_lens")
    from sae_lens.registry import get_sae_training_class

    made, config = get_sae_training_class("batchtopk")
    trainer = made(config(d_in=D, d_sae=LATENTS, k=6, rescale_acts_by_decoder_norm=rescaled))
    trainer.cfg.metadata.hook_name = "blocks.2.hook_resid_post"
    randomise(trainer)
    trainer.topk_threshold = torch.tensor(1.5, dtype=torch.double)
    trainer.save_model(tmp_path / "trainer")
    trainer.save_inference_model(tmp_path / "inference")
    again = library.SAE.load_from_disk(tmp_path / "inference")
    x = states()
    with torch.no_grad():
        features = again.encode(x)
        rebuilt = again.decode(features)
    for folder in ("inference", "trainer"):
        published = read_saelens(tmp_path / folder, k=LATENTS - 1)
        assert published.metadata["activation"] == "jumprelu"
        assert published.metadata["layer"] == "3"
        same(dense(published, tmp_path, x), features, rebuilt)


def test_saelens_a_scale_that_was_not_folded(tmp_path: Path) -> None:
    pytest.importorskip("sae_lens")
    from sae_lens.registry import get_sae_class

    made, config = get_sae_class("standard")
    theirs = made(config(d_in=D, d_sae=LATENTS, normalize_activations="expected_average_only_in"))
    randomise(theirs)
    theirs.save_model(tmp_path / "saelens")
    published = read_saelens(tmp_path / "saelens", layer=3, k=LATENTS - 1, input_scale=0.25)
    theirs.fold_activation_norm_scaling_factor(0.25)
    x = states()
    with torch.no_grad():
        features = theirs.encode(x)
        rebuilt = theirs.decode(features)
    same(dense(published, tmp_path, x), features, rebuilt)


@pytest.mark.parametrize("activation", ["topk", "groupmax"])
def test_sparsify(tmp_path: Path, activation: str) -> None:
    library = pytest.importorskip("sparsify")
    k = 8
    coder = library.SparseCoder(D, library.SparseCoderConfig(num_latents=LATENTS, k=k, activation=activation))
    randomise(coder)
    coder.save_to_disk(tmp_path / "layers.4")
    again = library.SparseCoder.load_from_disk(tmp_path / "layers.4")
    x = states()
    with torch.no_grad():
        top = again.encode(x)
        features = torch.zeros(len(x), LATENTS).scatter_(1, top.top_indices, top.top_acts)
        rebuilt = again.decode(top.top_acts, top.top_indices)
    published = read_sparsify(tmp_path / "layers.4")
    assert (published.metadata["layer"], published.metadata["k"]) == ("5", str(k))
    same(dense(published, tmp_path, x), features, rebuilt)


def randomise(module: torch.nn.Module) -> None:
    """Weights of unequal sizes, so that a transposed or misplaced one shows."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.3 if parameter.ndim == 2 else 0.4))
            if name == "threshold":
                parameter.abs_()


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
