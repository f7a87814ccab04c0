"""Removes features from the residual stream and computes the reward again.

At every answer token t where feature i is active, hidden_states[l] becomes

    x'_t = x_t - z_ti W_dec[:, i] std(x_t)

which is what is left when the feature's part of the SAE's reconstruction is taken out and the SAE's error is kept. The
prompt stays as it is. Then what lies above layer l is computed again: the SAE and its head (`HeadRerun`; other
features change, because TopK lets another one in), or the upper blocks, final norm and score of an ordinary reward model
(`ClassifierRerun`).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from core.data.chat import EncodedAnswer
from core.errors import ModelError
from core.models.backbone import Backbone, PackedAttention, cut_config, wrap_backbone
from core.models.classifier import Classifier, load_classifier
from core.models.packing import Pack, Segment
from core.sae.topk import TopKActivations, TopKSAE

SPLIT_TOLERANCE = 1e-3
"""Largest accepted difference between the reward of the whole model and of its two parts, relative (float32 rounding)."""


@dataclass(frozen=True)
class AnswerEffects:
    """What removing each asked feature does to one answer's reward.

    Attributes:
        reward: with everything in place.
        change: float64 [n], reward with the feature minus without it; 0 where it is not active.
        attribution: float64 [n], what attribution predicts for `change`; 0 where it is not active.
        active: bool [n].
    """

    reward: float
    change: np.ndarray
    attribution: np.ndarray
    active: np.ndarray


class Rerun(Protocol):
    """A reward model from which features can be taken away."""

    tokenizer: Any
    context_length: int

    def ablate(self, answers: Sequence[EncodedAnswer], features: Sequence[int]) -> list[AnswerEffects]:
        """What removing each feature does to each answer's reward; the answers share a prompt.

        Raises:
            ModelError: the model does not allow it.
        """


class HeadRerun:
    """The head on features: removes a feature from the state, encodes again, and adds up the full reward.

    Attribution is the contribution w_i z_i, which leaves out what the other features do.
    """

    def __init__(self, backbone: Backbone, sae: TopKSAE, weights: np.ndarray, pooling: str) -> None:
        self.backbone, self.sae, self.pooling = backbone, sae, pooling
        self.weights = torch.from_numpy(weights)
        self.tokenizer, self.context_length = backbone.tokenizer, backbone.context_length

    def ablate(self, answers: Sequence[EncodedAnswer], features: Sequence[int]) -> list[AnswerEffects]:
        """See Rerun."""
        whole = _states(self.backbone, answers)
        own = [states[answer.answer_start :] for states, answer in zip(whole, answers, strict=True)]
        return [self._ablate(states, features) for states in own]

    @torch.no_grad()
    def _ablate(self, states: Tensor, features: Sequence[int]) -> AnswerEffects:
        """`states`: of the answer's tokens, [T, d]."""
        states = states[-1:] if self.pooling == "last" else states
        found = self.sae.encode(states)
        z, std = activations_of_features(found, features), self.sae.normalise(states).std
        before = self._token_rewards(found)
        change = np.zeros(len(features))
        for column, feature in enumerate(features):
            at = z[:, column].nonzero().squeeze(1)
            if len(at):
                without = states[at] - z[at, column, None] * self.sae.decoder_rows[feature] * std[at]
                after = self._token_rewards(self.sae.encode(without))
                change[column] = float((before[at.cpu()] - after).sum()) / len(z)
        exact = z.cpu().double()
        attribution = exact.mean(dim=0) * self.weights[torch.as_tensor(features, dtype=torch.long)]
        return AnswerEffects(float(before.mean()), change, attribution.numpy(), (exact != 0).any(dim=0).numpy())

    def _token_rewards(self, found: TopKActivations) -> Tensor:
        """sum_i w_i z_ti of every token, float64 [T], on the CPU (not every accelerator has float64)."""
        return (self.weights[found.indices.cpu()] * found.values.cpu().double()).sum(dim=1)


class ClassifierRerun:
    """An ordinary reward model: computes the lower blocks of an answer once, the upper ones once for each feature.

    Only the tokens from a feature's first active one on are computed again; they look at the unchanged ones before
    them. Attribution is gradient x activation: sum_t z_ti std(x_t) <d reward / d x_t, W_dec[:, i]>.

    Args:
        classifier: the reward model, in float32.
        layer: the SAE's, hidden_states[layer].
        tokens_per_batch: rows in one forward pass.

    Raises:
        ModelError: the reward model has fewer layers than that.
    """

    def __init__(self, classifier: Classifier, sae: TopKSAE, layer: int, *, tokens_per_batch: int = 2048) -> None:
        whole = classifier.backbone
        self.classifier, self.sae, self.tokens_per_batch = classifier, sae, tokens_per_batch
        self.tokenizer, self.context_length, self.device = whole.tokenizer, whole.context_length, whole.device
        self.lower = wrap_backbone(_part(whole.model, 0, layer), whole.tokenizer, layer, whole.device, whole.dtype)
        self.upper = _part(whole.model, layer, whole.layer)
        self.weights = torch.from_numpy(classifier.head.weights)
        self._divides = False

    def ablate(self, answers: Sequence[EncodedAnswer], features: Sequence[int]) -> list[AnswerEffects]:
        """See Rerun."""
        effects = []
        for answer, states in zip(answers, _states(self.lower, answers), strict=True):
            effects.append(self._ablate(states, answer.answer_start, features))
            self._check_division(answer.ids, effects[-1].reward)
        return effects

    def _ablate(self, states: Tensor, answer_start: int, features: Sequence[int]) -> AnswerEffects:
        length, own = len(states), states[answer_start:]
        reward, gradient = self._gradient(states)
        with torch.no_grad():
            z, std = activations_of_features(self.sae.encode(own), features), self.sae.normalise(own).std
            decoder = self.sae.decoder_rows[torch.as_tensor(features, device=z.device, dtype=torch.long)]
            attribution = (z * std * (gradient[answer_start:] @ decoder.T)).cpu().double().sum(dim=0)
            active = (z != 0).any(dim=0)
            change = np.zeros(len(features))
            for some in self._batches(length, answer_start, z, active):
                begins = [answer_start + int(z[:, column].nonzero()[0]) for column in some]
                edited = [
                    own[begin - answer_start :]
                    - z[begin - answer_start :, column, None] * decoder[column] * std[begin - answer_start :]
                    for column, begin in zip(some, begins, strict=True)
                ]
                rewards = self._rewards(torch.cat([states, *edited]), _branches(length, begins))
                change[some] = (rewards[0] - rewards[1:]).numpy()
        return AnswerEffects(reward, change, attribution.numpy(), active.cpu().numpy())

    def _batches(self, length: int, answer_start: int, z: Tensor, active: Tensor) -> list[list[int]]:
        """Columns of the active features, so many at once as fit."""
        batches: list[list[int]] = []
        used = self.tokens_per_batch
        for column in active.nonzero().squeeze(1).tolist():
            size = length - answer_start - int(z[:, column].nonzero()[0])
            if not batches or used + size > self.tokens_per_batch:
                batches.append([])
                used = length
            batches[-1].append(column)
            used += size
        return batches

    def _gradient(self, states: Tensor) -> tuple[float, Tensor]:
        """The reward of one sequence of states [T, d], and its gradient in them."""
        with torch.enable_grad():
            leaf = states.detach().requires_grad_()
            reward = self._rewards(leaf, _branches(len(states), []))[0]
            (gradient,) = torch.autograd.grad(reward, leaf)
        return float(reward.detach()), gradient

    def _rewards(self, states: Tensor, pack: Pack) -> Tensor:
        """Blocks layer.. , final norm and score over a pack's rows: float64 [1 + branches], the whole sequence first."""
        hidden = self.upper(
            inputs_embeds=states[None],
            position_ids=pack.positions.to(self.device)[None],
            use_cache=False,
            pack=PackedAttention(pack, self.device),
        ).last_hidden_state[0]
        ends = [segment.stop - 1 for segment in pack.segments]
        return hidden[ends].cpu().double() @ self.weights  # not every accelerator has float64

    def _check_division(self, ids: Sequence[int], reward: float) -> None:
        """Once: the reward of the undivided model must be that of its two parts, or the architecture hides something.

        Raises:
            ModelError: it is not.
        """
        if self._divides:
            return
        expected = float(self.classifier.rewards([[ids]])[0])
        if not abs(expected - reward) <= SPLIT_TOLERANCE * max(1.0, abs(expected)):
            raise ModelError(
                f"{type(self.upper).__name__} cannot be divided at layer {self.lower.layer}: whole it gives the reward "
                f"{expected:.6g}, in two parts {reward:.6g}; use a Llama, Qwen2/3, Mistral or Gemma-3 reward model."
            )
        self._divides = True


def load_classifier_rerun(path: Path, sae: TopKSAE, layer: int, *, device: str = "auto") -> ClassifierRerun:
    """Loads a sequence-classification checkpoint in float32 for re-runs: effects are small differences.

    Raises:
        ModelError: it is no reward model with one output, lacks weights, or has fewer layers than that.
    """
    classifier = load_classifier(path, dtype="float32", device=device)
    return ClassifierRerun(classifier, sae.to(classifier.backbone.device), layer)


def _states(backbone: Backbone, answers: Sequence[EncodedAnswer]) -> list[Tensor]:
    """hidden_states[layer] of each answer's whole conversation, [T, d]; what they share is computed once."""
    states = dict(backbone.states_of_groups([[answer.ids for answer in answers]], max_tokens=2048))
    # A copy outside inference mode, so that gradients may flow from it.
    return [states[index].clone() for index in range(len(answers))]


def activations_of_features(found: TopKActivations, features: Sequence[int]) -> Tensor:
    """Activation of the asked features at each token, 0 where inactive: [T, len(features)]."""
    asked = torch.as_tensor(features, device=found.indices.device, dtype=torch.long)
    hit = found.indices[:, :, None] == asked
    return (found.values[:, :, None] * hit).sum(dim=1)


def _part(base: Any, start: int, stop: int) -> Any:
    """The same model with only blocks start..stop, sharing its weights; inputs_embeds are what enters block `start`."""
    part = copy.copy(base)
    part._modules = dict(base._modules)
    kinds = getattr(base.config, "layer_types", None)
    part.config = cut_config(copy.deepcopy(base.config), stop)
    part.config.num_hidden_layers = stop - start
    if kinds:
        part.config.layer_types = kinds[start:stop]
    part.layers = nn.ModuleList(base.layers[start:stop])
    return part.eval().requires_grad_(False)


def _branches(length: int, begins: Sequence[int]) -> Pack:
    """A sequence of `length` rows, then for each begin a variant of it from row `begin` on; ids are not used."""
    segments = [Segment(0, length, 0, 0)]
    positions = [torch.arange(length)]
    rows = [np.arange(length)]
    at = length
    for begin in begins:
        own = length - begin
        segments.append(Segment(at, at + own, 0, begin))
        positions.append(torch.arange(begin, length))
        rows.append(np.concatenate([np.arange(begin), np.arange(at, at + own)]))
        at += own
    return Pack(
        torch.zeros(at, dtype=torch.long), torch.cat(positions), tuple(segments), tuple(rows), tuple(range(len(rows)))
    )
