"""SARM as a transformers model: features and rewards are a plain computation's, gradients flow through the kept values alone,
and what is saved is what is loaded, by Auto classes and by this program."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from core.errors import ModelError
from core.models.backbone import load_backbone
from core.models.sarm import SarmForSequenceClassification, identity_sae, load_sarm, sarm_of, save_sarm
from core.sae.topk import TopKSAE
from core.sae.variants import VariantSAE
from tests.core.models.architectures import save_model
from tests.core.models.test_backbone import sequences

LAYER, LATENTS, K = 3, 48, 5
GROUPS = [sequences(0), sequences(1, n=1), sequences(2, n=3, shared=30)]
FLAT = [ids for group in GROUPS for ids in group]
STARTS = [max(1, len(ids) - 4) for ids in FLAT]


def model_of(folder: Path, pooling: str, architecture: str = "llama") -> SarmForSequenceClassification:
    torch.manual_seed(0)
    sae = TopKSAE(32, LATENTS, K, seed=1)
    for weight in sae.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    made = sarm_of(save_model(architecture, folder / "base"), sae, LAYER, pooling, sae_facts={"level": "sequence"})
    torch.nn.init.normal_(made.score.weight)
    return made.eval()


def batch(rows: list[list[int]], starts: list[int], *, pad: int = 0, left: bool = False) -> dict[str, torch.Tensor]:
    width = max(map(len, rows)) + 2
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    at = [width - len(row) if left else 0 for row in rows]
    for number, (row, begin) in enumerate(zip(rows, at, strict=True)):
        ids[number, begin : begin + len(row)] = torch.tensor(row)
        mask[number, begin : begin + len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask, "answer_start": torch.tensor(starts) + torch.tensor(at)}


@torch.no_grad()
def rewards(model: Any, **inputs: torch.Tensor) -> np.ndarray:
    return np.asarray(model(**inputs).logits[:, 0])


def plain(folder: Path, sae: TopKSAE, weights: np.ndarray, pooling: str) -> tuple[list[np.ndarray], list[float]]:
    """Features [T, M] and rewards from the whole model of transformers, one sequence at a time, then float64 numpy."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    w = {key: value.detach().double().numpy() for key, value in sae.named_parameters()}
    features, found = [], []
    for ids, start in zip(FLAT, STARTS, strict=True):
        with torch.no_grad():
            x = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[LAYER][0].double().numpy()
        h = (x - x.mean(1, keepdims=True)) / (x.std(1, ddof=1, keepdims=True) + 1e-6)
        pre = (h - w["pre_bias"]) @ w["encoder.weight"].T + w["latent_bias"]
        kept = np.argsort(-pre, axis=1, kind="stable")[:, :K]
        z = np.zeros_like(pre)
        np.put_along_axis(z, kept, np.take_along_axis(pre, kept, 1), 1)
        features.append(z)
        found.append(float((z[-1] if pooling == "last" else z[start:].mean(0)) @ weights))
    return features, found


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "qwen2"])
def test_features_and_rewards_are_those_of_a_plain_computation(tmp_path: Path, architecture: str, pooling: str) -> None:
    made = model_of(tmp_path, pooling, architecture)
    weights = made.score.weight[0].detach().double().numpy()
    features, expected = plain(tmp_path / "base", made.sae, weights, pooling)
    scale = {"atol": 1e-4 * np.std(expected), "rtol": 1e-4}
    assert np.std(expected) > 0.1
    for left in (False, True):  # whatever the padding is: the end-of-turn token, a word, another
        for pad in (0, 2, 50):
            np.testing.assert_allclose(rewards(made, **batch(FLAT, STARTS, pad=pad, left=left)), expected, **scale)
    alone = [rewards(made, **batch([ids], [start]))[0] for ids, start in zip(FLAT, STARTS, strict=True)]
    np.testing.assert_allclose(alone, expected, **scale)
    save_sarm(tmp_path / "saved", made, AutoTokenizer.from_pretrained(tmp_path / "base"), dtype="float32")
    loaded = load_sarm(tmp_path / "saved", dtype="float32", device="cpu")
    starts = iter(STARTS)
    groups = [[(ids, next(starts)) for ids in group] for group in GROUPS]
    for budget in (1, 40, 10_000):
        np.testing.assert_allclose(loaded.rewards(groups, budget), expected, **scale)
    np.testing.assert_array_equal(loaded.head.weights, weights)
    assert (loaded.config.layer, loaded.head.pooling, loaded.config.sae_facts) == (
        LAYER,
        pooling,
        {"level": "sequence"},
    )
    for states, z in zip(loaded.backbone.states(FLAT), features, strict=True):
        found = loaded.sae.encode(states)
        dense = torch.zeros(len(states), LATENTS).scatter_(1, found.indices, found.values).numpy()
        np.testing.assert_allclose(dense, z, atol=1e-4 * np.abs(z).max())


def test_the_gradient_of_the_loss_is_the_analytic_one(tmp_path: Path) -> None:
    """Bradley-Terry through TopK, in float64, on one comparison:

    dL/dr_c = -dL/dr_r = -sigmoid(r_r - r_c), dr/dw = pooled z, and for a pooled token with active set S
    dr/dh = sum_S w_i W_enc[i] / n, which the standardisation turns into dr/dx.
    """
    made = model_of(tmp_path, "mean").double()
    inputs = batch(FLAT[:2], STARTS[:2])
    seen: list[torch.Tensor] = []
    hook = made.model.register_forward_hook(lambda _, __, out: (out[0].retain_grad(), seen.append(out[0]))[0])
    r = made(**inputs).logits[:, 0]
    hook.remove()
    torch.nn.functional.softplus(r[1] - r[0]).backward()
    slope = torch.sigmoid(r[1] - r[0]).detach() * torch.tensor([-1.0, 1.0], dtype=torch.float64)
    (x,) = seen
    w, expected = made.score.weight[0].detach(), torch.zeros_like(x)
    d_w = torch.zeros(LATENTS, dtype=torch.float64)
    with torch.no_grad():
        for row, (ids, start) in enumerate(zip(FLAT[:2], STARTS[:2], strict=True)):
            for at in range(start, len(ids)):
                own = x[row, at]
                centred, std = own - own.mean(), own.std()
                pre = made.sae.encoder.weight @ (centred / (std + 1e-6) - made.sae.pre_bias) + made.sae.latent_bias
                kept = pre.topk(K).indices
                share = slope[row] / (len(ids) - start)
                d_w[kept] += share * pre[kept]
                g = share * (w[kept, None] * made.sae.encoder.weight[kept]).sum(0)
                inner = (g @ centred) / (len(own) - 1) / std / (std + 1e-6) ** 2
                expected[row, at] = (g - g.mean()) / (std + 1e-6) - inner * centred
    torch.testing.assert_close(x.grad, expected, atol=1e-13, rtol=1e-9)
    torch.testing.assert_close(made.score.weight.grad[0], d_w, atol=1e-13, rtol=1e-9)
    assert made.sae.encoder.weight.grad is None
    weight = made.model.layers[LAYER - 1].mlp.down_proj.weight  # and it goes on into the blocks: finite differences

    @torch.no_grad()
    def loss(step: float) -> float:
        weight[2, 3] += step
        r = made(**inputs).logits[:, 0]
        weight[2, 3] -= step
        return float(torch.nn.functional.softplus(r[1] - r[0]))

    difference = (loss(1e-6) - loss(-1e-6)) / 2e-6
    assert weight.grad[2, 3].item() == pytest.approx(difference, rel=1e-5, abs=1e-10)


def test_padding_gets_no_gradient_and_gives_none(tmp_path: Path) -> None:
    made = model_of(tmp_path, "mean").double()
    gradients = []
    for left in (False, True):
        made.zero_grad()
        made(**batch(FLAT, STARTS, pad=2, left=left)).logits.square().sum().backward()
        gradients.append({key: weight.grad.clone() for key, weight in made.model.named_parameters()})
    for key, one in gradients[0].items():
        assert torch.isfinite(one).all(), key
        torch.testing.assert_close(gradients[1][key], one, atol=1e-9, rtol=1e-7)


def test_what_is_saved_is_loaded_bit_for_bit_by_the_auto_classes(tmp_path: Path) -> None:
    """In a fresh interpreter, after `import core` alone, which loads neither torch nor transformers."""
    made = model_of(tmp_path, "mean", "qwen2")
    save_sarm(tmp_path / "saved", made, AutoTokenizer.from_pretrained(tmp_path / "base"), dtype="bfloat16")
    stored = load_file(tmp_path / "saved" / "model.safetensors")
    assert {str(value.dtype) for key, value in stored.items() if key.startswith(("sae.", "score."))} == {
        "torch.float32"
    }
    assert {str(value.dtype) for key, value in stored.items() if key.startswith("model.")} == {"torch.bfloat16"}
    code = f"""
import sys, core
assert not {{"torch", "transformers"}} & set(sys.modules)
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
folder = {str(tmp_path / "saved")!r}
assert AutoConfig.from_pretrained(folder).k == {K}
assert AutoTokenizer.from_pretrained(folder).pad_token_id == 0
model, report = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
model.save_pretrained({str(tmp_path / "again")!r})
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == stored.keys()
    assert all(value.dtype == again[key].dtype and torch.equal(value, again[key]) for key, value in stored.items())


def test_tied_embeddings_are_saved_once(tmp_path: Path) -> None:
    base = save_model("llama", tmp_path / "base")
    tied = AutoModelForCausalLM.from_pretrained(base)
    tied.config.tie_word_embeddings = True
    tied.tie_weights()
    tied.save_pretrained(base)
    assert "lm_head.weight" not in load_file(base / "model.safetensors")
    made = sarm_of(base, TopKSAE(32, LATENTS, K), 2, "last")
    made.save_pretrained(tmp_path / "saved")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert torch.equal(again.model.embed_tokens.weight, tied.model.embed_tokens.weight)


def test_push_to_hub_uploads_config_and_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers.utils.hub as hub

    class Hub:
        files: dict[str, bytes] = {}  # noqa: RUF012

        def create_repo(self, repo_id: str, **_: object) -> Any:
            return type("Repo", (), {"repo_id": repo_id})()

        def create_commit(self, repo_id: str, operations: list[Any], **_: object) -> None:
            assert repo_id == "someone/sarm"
            for one in operations:
                with one.as_file() as file:
                    self.files[one.path_in_repo] = file.read()

    monkeypatch.setattr(hub, "hf_api", Hub)
    card = type("Card", (), {"save": lambda self, path: Path(path).write_text("card")})
    monkeypatch.setattr(hub, "create_and_tag_model_card", lambda *_, **__: card())  # it asks the Hub for the one there
    made = model_of(tmp_path, "mean")
    made.push_to_hub("someone/sarm")
    assert {"config.json", "model.safetensors"} <= set(Hub.files)
    (tmp_path / "fetched").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "fetched" / name).write_bytes(Hub.files[name])
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "fetched").eval()
    np.testing.assert_array_equal(rewards(again, **batch(FLAT, STARTS)), rewards(made, **batch(FLAT, STARTS)))


def test_in_bfloat16_the_sae_and_the_head_stay_float32(tmp_path: Path) -> None:
    made = model_of(tmp_path, "mean")
    made.save_pretrained(tmp_path / "saved")
    half = SarmForSequenceClassification.from_pretrained(tmp_path / "saved", dtype=torch.bfloat16).eval()
    assert half.model.embed_tokens.weight.dtype == torch.bfloat16
    assert {weight.dtype for weight in (*half.sae.parameters(), half.score.weight)} == {torch.float32}
    states = torch.randn(7, 32)
    expected = made.token_rewards(states)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(half.token_rewards(states), expected, atol=0, rtol=0)


def test_the_identity_is_a_plain_linear_head(tmp_path: Path) -> None:
    """r = mean over the answer of w . h, h standardised; its one spare feature is never active."""
    base = save_model("llama", tmp_path)
    made = sarm_of(base, identity_sae(32), LAYER, "mean").eval()
    torch.nn.init.normal_(made.score.weight)
    w = made.score.weight[0].detach().double().numpy()
    expected = []
    for states, start in zip(
        load_backbone(base, LAYER, dtype="float32", device="cpu").states(FLAT), STARTS, strict=True
    ):
        x = states[start:].double().numpy()
        h = (x - x.mean(1, keepdims=True)) / (x.std(1, ddof=1, keepdims=True) + 1e-6)
        expected.append(float(h.mean(0) @ w[:32]))
        assert made.sae.encode(states).indices.max() == 31
        torch.testing.assert_close(made.sae.reconstruct(states), states, atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(rewards(made, **batch(FLAT, STARTS)), expected, atol=1e-4, rtol=1e-4)


def test_what_is_no_sarm_model_is_said(tmp_path: Path) -> None:
    made = model_of(tmp_path, "mean")
    base, saved = tmp_path / "base", tmp_path / "saved"
    with pytest.raises(ModelError, match="not a SARM folder .*rewardscope train"):
        load_sarm(base, device="cpu")
    save_sarm(saved, made, AutoTokenizer.from_pretrained(base), dtype="float32", facts={"steps": 3})
    assert load_sarm(saved, device="cpu").head.metadata["trained"] == {"steps": 3}
    whole = load_file(saved / "model.safetensors")

    def stored(**changes: torch.Tensor | None) -> None:
        state = {**whole, **{key.replace("__", "."): value for key, value in changes.items()}}
        save_file({key: value for key, value in state.items() if value is not None}, saved / "model.safetensors")

    for changes, what in (
        ({"score__weight": None}, "has no score.weight"),
        ({"sae__latent_bias": torch.zeros(47)}, r"sae.latent_bias is \[47\], but \[48\] is needed"),
        ({"score__weight": torch.full((1, 48), torch.nan)}, "score.weight holds NaN"),
        ({"model__layers__0__mlp__up_proj__weight": None}, "tensors are missing"),
    ):
        stored(**changes)
        with pytest.raises(ModelError, match=what):
            load_sarm(saved, device="cpu")
    stored()
    (saved / "model.safetensors").write_bytes((saved / "model.safetensors").read_bytes()[:-9])
    with pytest.raises(ModelError, match="cannot be read"):
        load_sarm(saved, device="cpu")
    with pytest.raises(ModelError, match="needs a TopK SAE, and this is a VariantSAE"):
        sarm_of(base, VariantSAE(32, LATENTS, K, activation="relu", scaling="none"), LAYER, "mean")
    with pytest.raises(ModelError, match="width 16, the model in .* has 32"):
        sarm_of(base, TopKSAE(16, LATENTS, K), LAYER, "mean")
    with pytest.raises(ModelError, match="must be told where answers start"):
        made(torch.tensor([FLAT[0]]))
    with pytest.raises(ModelError, match="has no tokens"):
        made(torch.tensor([FLAT[0]]), answer_start=torch.tensor([len(FLAT[0])]))
