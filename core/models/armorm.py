"""ArmoRM-style reward models: named objectives and a gate that weighs them by the prompt; no remote code is run.

    o   = W_reg h(x, y)                        n_obj objectives of the state at the last token       regression_layer
    a   = o T                                  verbosity and the like taken out of each              reward_transform_matrix
    g   = s softmax(MLP(h(x)) / temperature)   of the state at the end of the prompt                 gating.*
    r   = sum_j g_j a_j                        the contributions shown

h is the final-layer, final-norm state. The prompt ends at the last end-of-turn token before the answer (the published code
looks for `<|eot_id|><|start_header_id|>assistant<|end_header_id|>\\n\\n` and takes its first token, the same place).
Source: Wang et al. 2024, "Interpretable Preferences via Multi-Objective Reward Modeling and Mixture-of-Experts", and the
files of RLHFlow/ArmoRM-Llama3-8B-v0.1: gating.layers.{i}.weight and bias with ReLU between, gating.logit_scale [1],
gating_temperature (10 where config.json is silent).
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.data.chat import EncodedAnswer, encode_pair
from core.data.schema import Message
from core.errors import DataError, ModelError, disk_full_is_said
from core.models.backbone import Backbone, load_backbone
from core.models.published_sarm import ImportedModel
from core.models.published_tokenizer import copy_tokenizer
from core.models.streamed import FolderTensors, write_streamed
from core.progress import Progress
from core.sae.formats import read_json
from core.store.stages import write_json

NAMES = (
    "helpsteer-helpfulness",
    "helpsteer-correctness",
    "helpsteer-coherence",
    "helpsteer-complexity",
    "helpsteer-verbosity",
    "ultrafeedback-overall_score",
    "ultrafeedback-instruction_following",
    "ultrafeedback-truthfulness",
    "ultrafeedback-honesty",
    "ultrafeedback-helpfulness",
    "beavertails-is_safe",
    "prometheus-score",
    "argilla-overall_quality",
    "argilla-judge_lm",
    "code-complexity",
    "code-style",
    "code-explanation",
    "code-instruction-following",
    "code-readability",
)
"""The 19 objectives of ArmoRM-Llama3-8B-v0.1, in order (its model card)."""
REGRESSION, TRANSFORM, LOGIT_SCALE = "regression_layer.weight", "reward_transform_matrix", "gating.logit_scale"
EMBEDDING = "model.embed_tokens.weight"


@dataclass(frozen=True)
class ObjectiveScore:
    """One answer's reward and what it is made of; arrays are float64 [n_obj].

    Attributes:
        text: the answer.
        reward: sum of `contributions`.
        names: of the objectives.
        contributions: g_j a_j.
        gates: g_j, from the prompt alone: the same for every answer to it.
        objectives: a_j, after the transform.
        raw: o_j, as the objectives were trained to be.
    """

    text: str
    reward: float
    names: tuple[str, ...]
    contributions: np.ndarray
    gates: np.ndarray
    objectives: np.ndarray
    raw: np.ndarray


@dataclass(frozen=True)
class GatedHeads:
    """The heads of an ArmoRM-style model, float64.

    Attributes:
        regression: [n_obj, d].
        transform: [n_obj, n_obj].
        layers: (weight [out, in], bias [out]) of the gate, ReLU between them.
        temperature, scale: of the gate's softmax.
        names: of the objectives.
    """

    regression: np.ndarray
    transform: np.ndarray
    layers: tuple[tuple[np.ndarray, np.ndarray], ...]
    temperature: float
    scale: float
    names: tuple[str, ...]

    def gates(self, prompt: np.ndarray) -> np.ndarray:
        """g of the state at the end of the prompt, float64 [d] -> [n_obj]; they sum to `scale`."""
        x = prompt
        for number, (weight, bias) in enumerate(self.layers, start=1):
            x = weight @ x + bias
            x = np.maximum(x, 0.0) if number < len(self.layers) else x
        powers = np.exp((x - x.max()) / self.temperature)
        return self.scale * powers / powers.sum()

    def score(self, text: str, prompt: np.ndarray, end: np.ndarray) -> ObjectiveScore:
        """The decomposition from the states at the end of the prompt and of the answer, float64 [d] each."""
        gates, raw = self.gates(prompt), self.regression @ end
        objectives = raw @ self.transform
        contributions = gates * objectives
        return ObjectiveScore(text, float(contributions.sum()), self.names, contributions, gates, objectives, raw)


@dataclass(frozen=True)
class ObjectiveModel:
    """An ArmoRM-style reward model, loaded once."""

    backbone: Backbone
    heads: GatedHeads

    def score(self, messages: Sequence[Message], answers: Sequence[str]) -> list[ObjectiveScore]:
        """Scores answers to one conversation (the conversation is computed once).

        Raises:
            DataError: an answer is empty.
            ModelError: the chat template ends no turn before the answer.
        """
        for number, answer in enumerate(answers, start=1):
            if not answer.strip():
                raise DataError(f"Answer {number} is empty; there is nothing to score.")
        encoded = encode_pair(self.backbone.tokenizer, messages, answers, max_length=self.backbone.context_length)
        return self._scores([encoded], answers, 2048)

    def answer_rewards(self, groups: Sequence[Sequence[EncodedAnswer]], tokens_per_batch: int = 2048) -> np.ndarray:
        """Rewards of answers in the order given over all groups (those of a group share a prompt): float64 [n].

        Raises:
            ModelError: the chat template ends no turn before the answer.
        """
        scored = self._scores(groups, [""] * sum(map(len, groups)), tokens_per_batch)
        return np.array([one.reward for one in scored], np.float64)

    def _scores(
        self, groups: Sequence[Sequence[EncodedAnswer]], texts: Sequence[str], tokens_per_batch: int
    ) -> list[ObjectiveScore]:
        ends = [end_of_prompt(answer) for group in groups for answer in group]
        sequences = ([answer.ids for answer in group] for group in groups)
        scored: dict[int, ObjectiveScore] = {}
        for index, states in self.backbone.states_of_groups(sequences, tokens_per_batch):
            of_prompt, of_answer = (states[place].cpu().double().numpy() for place in (ends[index], -1))
            scored[index] = self.heads.score(texts[index], of_prompt, of_answer)
        return [scored[index] for index in range(len(ends))]


def end_of_prompt(answer: EncodedAnswer) -> int:
    """Index of the last end-of-turn token before the answer.

    Raises:
        ModelError: there is none.
    """
    turn_end, before = answer.ids[-1], answer.ids[: answer.answer_start]
    if turn_end not in before:
        raise ModelError(
            "The model's chat template puts no end-of-turn token before the answer, so the gate has no prompt to read."
        )
    return len(before) - 1 - before[::-1].index(turn_end)


def load_objectives(path: Path, *, dtype: str = "bfloat16", device: str = "auto") -> ObjectiveModel:
    """Loads an ArmoRM-style folder: config.json, *.safetensors, tokenizer files.

    Raises:
        ModelError: not such a model, or its weights are missing, damaged or of wrong shapes.
    """
    heads = read_heads(path)
    backbone = load_backbone(path, None, dtype=dtype, device=device, final_norm=True)
    if backbone.d_model != heads.regression.shape[1]:
        raise ModelError(
            f"{path}: the objectives read {heads.regression.shape[1]} numbers, the model has {backbone.d_model}."
        )
    return ObjectiveModel(backbone, heads)


def is_armorm(path: Path) -> bool:
    """Whether a folder's weights are those of objectives and a gate."""
    try:
        with FolderTensors(path) as tensors:
            return REGRESSION in tensors and LOGIT_SCALE in tensors
    except ModelError:
        return False


def read_heads(path: Path) -> GatedHeads:
    """The objectives and the gate in a folder.

    Raises:
        ModelError: a tensor is missing, of a wrong shape or not finite; a gate with batch normalisation or quantiles.
    """
    config = read_json(path / "config.json")
    with FolderTensors(path) as tensors:
        if missing := [name for name in (REGRESSION, TRANSFORM, LOGIT_SCALE) if name not in tensors]:
            raise ModelError(f"{path} is not an ArmoRM-style model: it has no {', '.join(missing)}.")
        rows, d = tensors.shape(REGRESSION) if len(tensors.shape(REGRESSION)) == 2 else (0, 0)
        n = int(config.get("num_objectives", rows))
        tensors.check_shapes({REGRESSION: (n, d), TRANSFORM: (n, n), LOGIT_SCALE: (1,)}, f"a model of {n} objectives")
        numbers = _gate_layers(path, tensors)
        layers, wide = [], d
        for number in numbers:
            weight, bias = f"gating.layers.{number}.weight", f"gating.layers.{number}.bias"
            out = n if number == numbers[-1] else tensors.shape(weight)[0]
            tensors.check_shapes({weight: (out, wide), bias: (out,)}, "the gate")
            layers.append((_exact(tensors, weight), _exact(tensors, bias)))
            wide = out
        temperature = float(config.get("gating_temperature", 10))
        if not temperature > 0:
            raise ModelError(f"{path / 'config.json'}: gating_temperature must be above 0, not {temperature:g}.")
        return GatedHeads(
            _exact(tensors, REGRESSION),
            _exact(tensors, TRANSFORM),
            tuple(layers),
            temperature,
            float(_exact(tensors, LOGIT_SCALE)[0]),
            objective_names(config, n),
        )


def objective_names(config: dict[str, Any], n: int) -> tuple[str, ...]:
    """Names from config.json (`objectives`, `attributes` or `id2label`), else ArmoRM's own where there are 19."""
    labels = config.get("id2label")
    listed = list(labels.values()) if isinstance(labels, dict) else []
    for given in (config.get("objectives"), config.get("attributes"), listed):
        names = [name for name in given if isinstance(name, str)] if isinstance(given, list) else []
        if len(names) == n and not all(name.startswith("LABEL_") for name in names):
            return tuple(names)
    return NAMES if n == len(NAMES) else tuple(f"objective {number}" for number in range(1, n + 1))


def import_armorm(source: Path, out: Path, *, progress: Progress | None = None) -> ImportedModel:
    """Copies an ArmoRM-style model without its code, its objectives named in config.json, tensor by tensor.

    Raises:
        ModelError: see `read_heads`. DiskFullError: no room.
    """
    heads = read_heads(source)
    config = read_json(source / "config.json")
    config.pop("auto_map", None)
    config["objectives"] = list(heads.names)
    aside = out.with_name(out.name + ".part")
    shutil.rmtree(aside, ignore_errors=True)
    with disk_full_is_said(out.parent), FolderTensors(source) as tensors:
        try:
            aside.mkdir(parents=True)
            if EMBEDDING not in tensors:
                raise ModelError(f"{source} has no {EMBEDDING}; it is not whole.")
            write_streamed(
                aside / "model.safetensors",
                [tensors.entry(name) for name in tensors.names()],
                {"format": "pt"},
                progress,
            )
            notes = copy_tokenizer(source, aside, rows=tensors.shape(EMBEDDING)[0])
            write_json(aside / "config.json", config)
            aside.rename(out)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    facts = {
        "kind": "armorm",
        "path": str(out),
        "objectives": list(heads.names),
        "d_model": heads.regression.shape[1],
        "gate_layers": len(heads.layers),
        "temperature": heads.temperature,
    }
    return ImportedModel(facts, tuple(notes))


def _gate_layers(path: Path, tensors: FolderTensors) -> list[int]:
    names = [name for name in tensors.names() if name.startswith("gating.layers.")]
    if strange := [name for name in names if not name.endswith((".weight", ".bias"))]:
        raise ModelError(
            f"{path} has {strange[0]}: its gate is not ArmoRM's (linear layers with ReLU), so it is not read."
        )
    numbers = sorted({int(name.split(".")[2]) for name in names})
    if not numbers or numbers != list(range(len(numbers))):
        raise ModelError(f"{path} has no whole gate: gating.layers.0, 1, ... are expected, found {numbers}.")
    return numbers


def _exact(tensors: FolderTensors, name: str) -> np.ndarray:
    return np.asarray(tensors.entry(name).read().double().numpy())
