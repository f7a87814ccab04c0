"""ArmoRM-style models: the decomposition against a plain float64 computation of the published formula."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from core.cli import app
from core.data.chat import encode_pair
from core.errors import DataError, ModelError
from core.models.armorm import NAMES, import_armorm, is_armorm, load_objectives, objective_names
from tests.core.models.architectures import save_model
from tests.core.models.published import REMOTE_CODE, D, shards

N, HIDDEN = 19, 24
# As Llama-3 writes turns: a header, the text, and a token that ends the turn.
TEMPLATE = (
    "{% for m in messages %}w90 {{ m['role'] | replace('user', 'w91') | replace('assistant', 'w92') }} w93 "
    "{{ m['content'] | trim }} </s> {% endfor %}"
)
MESSAGES = [
    {"role": "user", "content": "w4 w5"},
    {"role": "assistant", "content": "w6"},
    {"role": "user", "content": "w7 w8 w9"},
]
ANSWERS = ["w10 w11", "w12", "w13 w14 w15 w16"]


def armorm_checkpoint(folder: Path, *, config: dict[str, Any] | None = None, **changes: Tensor | None) -> Path:
    """An ArmoRM checkpoint as published (LlamaForRewardModelWithGating), with three hidden gate layers."""
    base = save_model("llama", folder / "base")
    generator = torch.Generator().manual_seed(2)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.5

    decoder = AutoModelForCausalLM.from_pretrained(base).model.state_dict()
    state: dict[str, Tensor | None] = {f"model.{name}": tensor for name, tensor in decoder.items()}
    state |= {
        "regression_layer.weight": random(N, D),
        "reward_transform_matrix": torch.eye(N) + 0.1 * random(N, N),
        "gating.logit_scale": torch.tensor([1.5]),
    }
    for number, (wide, out) in enumerate([(D, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, N)]):
        state |= {f"gating.layers.{number}.weight": random(out, wide), f"gating.layers.{number}.bias": random(out)}
    state |= {name.replace("__", "."): tensor for name, tensor in changes.items()}
    out = folder / "ArmoRM-tiny"
    shards(out, {name: tensor.contiguous() for name, tensor in state.items() if tensor is not None})
    facts = json.loads((base / "config.json").read_text())
    facts |= {
        "architectures": ["LlamaForRewardModelWithGating"],
        "auto_map": {"AutoModelForSequenceClassification": "modeling_custom.LlamaForRewardModelWithGating"},
        "num_objectives": N,
        "gating_temperature": 2.0,
        "gating_hidden_dim": HIDDEN,
        "gating_n_hidden": 3,
        "id2label": {str(number): f"LABEL_{number}" for number in range(N)},
        "label2id": {f"LABEL_{number}": number for number in range(N)},
        **(config or {}),
    }
    (out / "config.json").write_text(json.dumps(facts))
    (out / "modeling_custom.py").write_text(REMOTE_CODE)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(out)
    return out


def plain(folder: Path, ids: list[int]) -> tuple[float, np.ndarray, np.ndarray]:
    """Reward, gates and raw objectives of one sequence by the published formula, in float64."""
    held = {name: tensor.double() for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
    model = AutoModel.from_pretrained(folder.parent / "base", dtype=torch.float64).eval()
    with torch.no_grad():
        hidden = model(torch.tensor([ids])).last_hidden_state[0]  # after the final norm
    # The start of the last "</s> w90 w92 w93": the end of the prompt.
    pattern = [2, 90, 92, 93]
    start = max(i for i in range(len(ids) - 3) if ids[i : i + 4] == pattern)
    x = hidden[start]
    for number in range(4):
        x = held[f"gating.layers.{number}.weight"] @ x + held[f"gating.layers.{number}.bias"]
        x = torch.relu(x) if number < 3 else x
    gates = torch.softmax(x / 2.0, dim=0) * held["gating.logit_scale"][0]
    raw = held["regression_layer.weight"] @ hidden[-1]
    adjusted = raw @ held["reward_transform_matrix"]
    return float((gates * adjusted).sum()), gates.numpy(), raw.numpy()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return armorm_checkpoint(tmp_path_factory.mktemp("armorm"))


def test_scores_are_those_of_the_formula(checkpoint: Path) -> None:
    model = load_objectives(checkpoint, dtype="float32", device="cpu")
    scored = model.score(MESSAGES, ANSWERS)
    encoded = encode_pair(model.backbone.tokenizer, MESSAGES, ANSWERS, max_length=128)
    for one, text, answer in zip(scored, ANSWERS, encoded, strict=True):
        reward, gates, raw = plain(checkpoint, answer.ids)
        assert one.text == text
        assert one.reward == pytest.approx(reward, abs=2e-4)
        np.testing.assert_allclose(one.gates, gates, atol=2e-5)
        np.testing.assert_allclose(one.raw, raw, atol=2e-4)
        assert one.contributions.sum() == pytest.approx(one.reward, abs=1e-12)
        np.testing.assert_allclose(one.contributions, one.gates * one.objectives, atol=1e-12)
        assert one.gates.sum() == pytest.approx(1.5, abs=1e-9)
        assert one.names == NAMES
    np.testing.assert_allclose(scored[0].gates, scored[2].gates, atol=1e-6)
    assert np.ptp([one.reward for one in scored]) > 0.05
    with pytest.raises(DataError, match="Answer 2 is empty"):
        model.score(MESSAGES, ["w4", " "])


def test_an_imported_copy_scores_the_same_and_holds_no_code(checkpoint: Path, tmp_path: Path) -> None:
    made = import_armorm(checkpoint, tmp_path / "copy")
    assert made.facts["objectives"] == list(NAMES)
    assert is_armorm(tmp_path / "copy")
    assert not list((tmp_path / "copy").glob("*.py"))
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    assert "auto_map" not in config
    before = load_objectives(checkpoint, dtype="float32", device="cpu").score(MESSAGES, ANSWERS)
    after = load_objectives(tmp_path / "copy", dtype="float32", device="cpu").score(MESSAGES, ANSWERS)
    assert [one.reward for one in before] == [one.reward for one in after]


def test_the_command_line_shows_objectives(checkpoint: Path) -> None:
    arguments = ["score", "--model", str(checkpoint), "-p", "w4 w5", "-a", "w6 w7", "-a", "w8"]
    shown = CliRunner().invoke(app, [*arguments, "--top", "3"])
    assert shown.exit_code == 0, shown.output
    assert shown.output.count("reward") == 2
    assert "other (16)" in shown.output
    assert any(name in shown.output for name in NAMES)
    found = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    for answer in found["answers"]:
        assert [entry["objective"] for entry in answer["contributions"]] == list(NAMES)
        assert sum(entry["contribution"] for entry in answer["contributions"]) == pytest.approx(answer["reward"])


def test_names_come_from_the_configuration_where_it_has_them() -> None:
    assert objective_names({}, 19) == NAMES
    assert objective_names({}, 2) == ("objective 1", "objective 2")
    assert objective_names({"objectives": ["a", "b"]}, 2) == ("a", "b")
    assert objective_names({"id2label": {"0": "x", "1": "y"}}, 2) == ("x", "y")
    assert objective_names({"objectives": ["a"], "id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, 2)[0] == "objective 1"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"reward_transform_matrix": None}, "no reward_transform_matrix"),
        ({"reward_transform_matrix": torch.eye(18)}, r"reward_transform_matrix is \[18, 18\].*\[19, 19\]"),
        ({"regression_layer__weight": torch.ones(19 * 3, D)}, r"regression_layer.weight is \[57, 32\]"),
        ({"gating__layers__3__weight": torch.ones(18, HIDDEN)}, r"layers.3.weight is \[18, 24\]"),
        ({"gating__layers__1__bias": None}, "no gating.layers.1.bias"),
        ({"gating__layers__1__bias": None, "gating__layers__1__weight": None}, "no whole gate"),
        ({"gating__layers__1__running_mean": torch.ones(HIDDEN)}, "running_mean: its gate is not ArmoRM's"),
        ({"gating__logit_scale": torch.tensor([float("nan")])}, "logit_scale holds NaN"),
        ({"config": {"gating_temperature": 0}}, "gating_temperature must be above 0"),
    ],
)
def test_what_does_not_fit_is_said(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        load_objectives(armorm_checkpoint(tmp_path, **changes))


def test_a_truncated_file_is_said(tmp_path: Path) -> None:
    folder = armorm_checkpoint(tmp_path)
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    save_file({"regression_layer.weight": torch.ones(N, D)}, folder / "model.safetensors")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-8])
    with pytest.raises(ModelError, match="not a readable safetensors file"):
        load_objectives(folder)
    assert not is_armorm(folder)
