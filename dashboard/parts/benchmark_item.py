"""One benchmark item: prompt, every answer in the order of its reward, and what makes the difference between two."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import panel as pn
import panel_material_ui as pmui
import polars as pl

from core.data.schema import prompt_text
from core.rewards.decomposition import reward_scale
from core.store.reader import RunReader
from dashboard.benchmarks import Row
from dashboard.escape import esc, shorten, signed
from dashboard.parts import pair_text
from dashboard.parts.aligned import aligned
from dashboard.parts.contributions import WaterfallTable, pair_contributions
from dashboard.parts.pair_text import PAIR_SHEETS
from dashboard.parts.tokens import plain_html
from dashboard.parts.waterfall import Waterfall, waterfall_content
from dashboard.sensitive import is_sensitive
from dashboard.state import AppState
from dashboard.theme import sheet

LONG_ANSWER = 1500
"""Characters from which an answer is folded."""


def ranked(rewards: np.ndarray, n_correct: int) -> list[int]:
    """Positions of the answers, highest reward first; among equals a wrong one first, as the rules count a tie."""
    wrong = np.arange(len(rewards)) >= n_correct
    return np.lexsort((np.arange(len(rewards)), ~wrong, -rewards)).tolist()


def answers_html(
    row: dict[str, Any], rewards: np.ndarray, before: np.ndarray | None, *, blurred: bool, domain: str
) -> str:
    """Every answer in the order of its reward: right or wrong in words, its text, blurred where it may be harmful.

    Args:
        row: the item.
        before: rewards without steering, to say what moved; None = nothing is steered.
        blurred: whether text that may be harmful is blurred.
        domain: what `is_sensitive` is asked about.
    """
    write = aligned([*rewards.tolist(), *([] if before is None else before.tolist())], digits=4)
    places = {at: place for place, at in enumerate(ranked(before, row["n_correct"]))} if before is not None else {}
    parts = []
    for place, at in enumerate(ranked(rewards, row["n_correct"])):
        is_right = at < row["n_correct"]
        text = row["answers"][at]
        hidden = blurred and is_sensitive(domain, "chosen" if is_right else "rejected")
        style = f'<span class="rs-tag">{esc(row["styles"][at].replace("_", " "))}</span>' if row["styles"] else ""
        cut = '<span class="rs-tag">end cut</span>' if row["truncated"][at] else ""
        moved = ""
        if before is not None:
            was = places[at]
            moved = f'<span class="rs-muted">was {write(float(before[at]))}, place {was + 1}</span>'
        body = f'<div class="text{" rs-blur" if hidden else ""}" dir="auto">{plain_html(text) or "(empty)"}</div>'
        if len(text) > LONG_ANSWER:
            opening = f'<span class="{"rs-blur" if hidden else ""}">{esc(shorten(text[:400], 200))}</span>'
            more = f'<span class="more">all {len(text):,} characters</span>'
            body = f"<details><summary>{opening} {more}</summary>{body}</details>"
        parts.append(
            f'<li class="{"right" if is_right else "wrong"}"><div class="head"><span class="place">{place + 1}</span>'
            f'<span class="word">{"RIGHT" if is_right else "WRONG"}</span><span class="big">r = {write(float(rewards[at]))}</span>'
            f"{style}{cut}{moved}</div>{body}</li>"
        )
    return f'<ol class="answers">{"".join(parts)}</ol>'


def item_table(row: Row, item: dict[str, Any], first: int, second: int) -> WaterfallTable | None:
    """The contributions to two answers of an item, aligned by feature; None for a model without features."""
    activations, weights = row.opened.activations, row.weights
    if activations is None or weights is None:
        return None
    frames, sums = [], []
    for response, position in enumerate((first, second)):
        features, pooled = activations.row(item["vectors"][position])
        sums.append(float(pooled @ weights[features]))
        frames.append(pl.DataFrame({"response_id": response, "feature_id": features, "pooled": pooled}))
    own = row.rewards[item["item_index"]]
    stored = [float(own[position]) - float(row.result.facts.get("offset", 0.0)) for position in (first, second)]
    if row.result.facts["model"]["kind"] == "classifier":
        stored = sums  # the head beside the model: its sums are its own rewards
    return pair_contributions(
        pl.concat(frames),
        weights,
        pooling="pooled",
        chosen=0,
        rejected=1,
        rewards=(stored[0], stored[1]),
        scale=reward_scale(np.concatenate(row.rewards)),
    )


class BenchmarkItem:
    """Shows one item of a row. Built once; `show` replaces what it shows."""

    def __init__(self, state: AppState, reader: RunReader) -> None:
        self.state, self.reader = state, reader
        self._row: Row | None = None
        self._item: dict[str, Any] | None = None

        def html(**params: Any) -> pn.pane.HTML:
            return pn.pane.HTML(
                stylesheets=[*PAIR_SHEETS, sheet("benchmarks")],
                sizing_mode="stretch_width",
                **({"margin": (4, 8)} | params),
            )

        self._status, self._title, self._prompt, self._answers, self._why = (
            html(),
            html(),
            html(margin=8),
            html(),
            html(),
        )
        self._reveal = pmui.Button(
            label="", size="small", variant="outlined", margin=(4, 8), on_click=lambda _: self._flip_reveal()
        )
        self._first = pmui.Select(label="Compare", size="small", width=250, margin=4)
        self._second = pmui.Select(label="with", size="small", width=250, margin=4)
        self._waterfall = Waterfall(on_select=self._select, sizing_mode="stretch_width", margin=(8, 0))
        picks = pn.Row(self._first, self._second, margin=(8, 4, 0, 4), styles={"flex-wrap": "wrap"})
        self._parts = pn.Column(picks, self._why, self._waterfall, sizing_mode="stretch_width", margin=0)
        self._body = pn.Column(
            *(self._title, self._prompt, self._reveal, self._answers, self._parts),
            sizing_mode="stretch_width",
            margin=0,
        )
        self._opening = False
        for picker in (self._first, self._second):
            picker.param.watch(lambda _: self._compare(), "value")
        state.param.watch(lambda _: self._draw_answers(), "reveal")

    def layout(self) -> list[Any]:
        """What to put one below the other."""
        return [self._status, self._body]

    def show(self, row: Row | None, item: dict[str, Any] | None, result: float, margin: float) -> None:
        """Shows an item of a row, or (None) says that there is none to show."""
        self._row, self._item = row, item
        with pn.io.hold():
            self._body.visible, self._status.visible = item is not None, item is None
            if row is None or item is None:
                self._status.object = pair_text.state_html("Pick an item from the list.")
                return
            verdict = {1.0: "right", 0.0: "wrong"}.get(result, "unknown")
            told = {"right": "right", "wrong": "wrong"}.get(verdict, f"{100 * result:.0f} % right")
            self._title.object = (
                f'<div class="line"><span class="badge {verdict}">{esc(told)}</span><span class="big">margin {signed(margin)}</span>'
                f'<span class="rs-muted">{esc(item["subset"])}{" · " + esc(item["group"]) if item["group"] else ""} · '
                f"{esc(item['item_id'])} · {esc(row.title)}{' (' + esc(row.note) + ')' if row.note else ''}</span></div>"
            )
            self._prompt.object = pair_text.prompt_html(prompt_text(json.loads(item["messages"])), item["messages"])
            self._draw_answers()
            self._offer()
            self._compare()

    # ------------------------------------------------------------------ drawing

    @property
    def _rewards(self) -> np.ndarray:
        assert self._row is not None
        assert self._item is not None
        return self._row.rewards[self._item["item_index"]]

    @property
    def _domain(self) -> str:
        """What the item is about: RewardBench's subsets are named by their section."""
        assert self._row is not None
        assert self._item is not None
        return domain_of(self._row.result.benchmark, self._item["subset"])

    def _draw_answers(self) -> None:
        row, item = self._row, self._item
        if row is None or item is None:
            return
        before = row.opened.rewards[item["item_index"]] if row.multipliers else None
        revealed = self.state.reveal
        with pn.io.hold():
            self._answers.object = answers_html(item, self._rewards, before, blurred=not revealed, domain=self._domain)
            self._reveal.visible = is_sensitive(self._domain, "rejected")
            self._reveal.label = "Blur wrong answers (r)" if revealed else "Show wrong answers (r)"

    def _offer(self) -> None:
        """Right and wrong answers to compare: at first the lowest right one with the strongest wrong one."""
        item, rewards = self._item, self._rewards
        assert item is not None
        order = ranked(rewards, item["n_correct"])
        names = {
            f"{place + 1}. {'right' if at < item['n_correct'] else 'wrong'}, r = {signed(float(rewards[at]), 4)}": at
            for place, at in enumerate(order)
        }
        lowest = int(np.argmin(rewards[: item["n_correct"]]))
        strongest = item["n_correct"] + int(np.argmax(rewards[item["n_correct"] :]))
        self._opening = True
        self._first.param.update(options=names, value=lowest)
        self._second.param.update(options=names, value=strongest)
        self._opening = False

    def _compare(self) -> None:
        row, item = self._row, self._item
        if self._opening or row is None or item is None:
            return
        first, second = self._first.value, self._second.value
        table = None if first is None or second is None else item_table(row, item, first, second)
        with pn.io.hold():
            self._parts.visible = table is not None or row.opened.activations is None
            if table is None:
                self._waterfall.content = {}
                self._why.object = pair_text.state_html(
                    "This reward model has no features: there is nothing its rewards are made of."
                )
                return
            self._why.object = self._said(row)
            same = row.result.facts["model"].get("sae_sha256") == self.reader.manifest.sae["sha256"]
            names = self._names(table.rows["feature_id"].to_list()) if same else {}
            titles = tuple("Right" if at < item["n_correct"] else "Wrong" for at in (first, second))
            content = waterfall_content(table, names, self._card_link, titles=(titles[0], titles[1]))
            content["columns"][2]["title"] = "Difference"
            self._waterfall.content = content

    def _said(self, row: Row) -> str:
        model = row.result.facts["model"]
        if model["kind"] == "classifier":
            words = "The rewards are the reward model's own; below is the head on features beside it, which does not sum to them."
        elif model.get("sae_sha256") != self.reader.manifest.sae["sha256"]:
            words = "This result has features of another SAE: they have no labels here, and the links are to this run's features."
        else:
            return ""
        return f'<div class="rs-small rs-muted">{esc(words)}</div>'

    # ------------------------------------------------------------------ acting

    def _select(self, feature: int) -> None:
        if feature in self.reader.features:
            self.state.feature = feature

    def _flip_reveal(self) -> None:
        self.state.reveal = not self.state.reveal

    def _names(self, features: list[int]) -> dict[int, str | None]:
        rows = self.reader.features.take(np.array(features, dtype=np.int64))
        return dict(zip(rows["feature_id"].to_list(), rows["label"].to_list(), strict=True))

    def _card_link(self, feature: int) -> str:
        return self.state.link(view="features", feature=feature)


def domain_of(benchmark: str, subset: str) -> str:
    """The domain that decides whether wrong answers may be harmful to read."""
    from core.evaluate.rewardbench import SECTIONS

    if benchmark == "rewardbench":
        section = next((section for section, subsets in SECTIONS.items() if subset in subsets), subset)
        return section.lower().replace(" ", "_")
    return subset.lower().replace(" ", "_")
