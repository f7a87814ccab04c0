"""Try your own text: a prompt and answers scored by the run's real model, ranked live under the sliders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import panel as pn
import panel_material_ui as pmui

from core.store.reader import RunReader
from dashboard.parts import own_text_words as words
from dashboard.parts import pair_text
from dashboard.parts.own_text_answer import OpenAnswer
from dashboard.parts.own_text_editor import OwnTextEditor
from dashboard.parts.own_text_model import MOST_ANSWERS, MOST_CHARACTERS, OwnTextModel
from dashboard.parts.own_text_ranking import OwnTextRanking, ranking_content
from dashboard.parts.own_text_ranks import Place, deciders, ranking
from dashboard.parts.pair_text import PAIR_SHEETS
from dashboard.parts.tokens import TOKEN_CSS, plain_html
from dashboard.state import AppState
from dashboard.theme import sheet


class OwnText(pn.viewable.Viewer):
    """Boxes, ranking, and the open answer's tokens and waterfall; `large` is the presentation's form, without the last two.

    Both forms of a session show the same text and scores (OwnTextModel.of). The model is read when the boxes are first
    seen, not before.
    """

    def __init__(self, state: AppState, reader: RunReader, large: bool = False, **params: Any) -> None:
        super().__init__(**params)
        self.state, self.reader, self.large = state, reader, large
        self.model = OwnTextModel.of(state, reader)
        self._labels = reader.labels()
        self._places: list[Place] = []
        self._version = 0

        def html(**params: Any) -> pn.pane.HTML:
            sheets = [*PAIR_SHEETS, TOKEN_CSS, sheet("impact"), sheet("own_text")]
            given = {"margin": (4, 0), "css_classes": ["presented"] if large else []} | params
            return pn.pane.HTML(stylesheets=sheets, sizing_mode="stretch_width", **given)

        self._editor = OwnTextEditor(
            content=self._texts(),
            limits={"answers": MOST_ANSWERS, "characters": MOST_CHARACTERS},
            large=large,
            on_message=self._on_message,
            sizing_mode="stretch_width",
            margin=0,
        )
        self._status = html()
        self._retry = pmui.Button(
            label="Try again",
            size="small",
            variant="outlined",
            visible=False,
            margin=(0, 0, 6, 0),
            on_click=lambda _: self.model.retry(),
        )
        self._asked = html(visible=False)
        self._ranking = OwnTextRanking(on_open=self._open, large=large, sizing_mode="stretch_width", margin=(4, 0))
        self._deciders = html()
        self._empty = html(object=_EMPTY)
        self._answer = None if large else OpenAnswer(state, reader)
        self._layout = self._large() if large else self._normal()
        model = self.model
        model.param.watch(self._on_texts, "texts")
        model.param.watch(self._on_scores, "scores")
        model.param.watch(lambda _: self._draw_status(), "status")
        model.param.watch(lambda _: self._draw_open(), "open")
        state.param.watch(lambda _: self._move(), "live_steering")
        state.param.watch(lambda _: self._draw(), "steering")
        state.param.watch(self._on_pair, "pair")
        state.param.watch(lambda _: self._catch_up(), ["view", "present"])
        self._draw_status()
        self._draw()

    def __panel__(self) -> pn.viewable.Viewable:
        return self._layout

    # ------------------------------------------------------------------- layout

    def _normal(self) -> pn.viewable.Viewable:
        assert self._answer is not None
        present = pmui.Button(  # no link: one would carry the sliders' places as they stood in the address
            label="Present",
            size="small",
            variant="outlined",
            margin=(0, 0, 4, 0),
            on_click=lambda _: self._present(),
        )
        left = _column(self._editor, flex="1 1 340px")
        right = _column(
            pn.Row(self._status, present, sizing_mode="stretch_width", margin=0, styles={"gap": "8px"}),
            *(self._retry, self._asked, self._empty, self._ranking, self._deciders, self._answer.box),
            flex="1.7 1 440px",
        )
        return pn.Row(
            left,
            right,
            sizing_mode="stretch_both",
            scroll="y-auto",
            margin=0,
            styles={"flex-wrap": "wrap", "gap": "8px 24px", "min-height": "0", "padding": "10px 14px", "align-content": "flex-start",
                    "background": "var(--rs-surface)"},
        )  # fmt: skip

    def _large(self) -> pn.viewable.Viewable:
        self._fold = pmui.Button(
            label="Edit the text",
            size="large",
            variant="outlined",
            margin=(8, 0),
            visible=False,
            sx={"fontSize": "17px"},
            on_click=lambda _: self._fold_boxes(),
        )
        self._boxes = _column(self._editor)
        return _column(
            *(self._asked, self._boxes, self._status, self._retry, self._ranking, self._deciders, self._fold),
            styles={"padding": "0 8px 24px", "gap": "8px"},
        )

    def _fold_boxes(self) -> None:
        self._boxes.visible = not self._boxes.visible
        self._fold.label = "Hide the boxes" if self._boxes.visible else "Edit the text"
        self._draw_asked()

    # ------------------------------------------------------------------ drawing

    @property
    def _on_show(self) -> bool:
        """Whether this form is the one in use; the other one is drawn when it comes back."""
        return self.state.present == self.large

    def _texts(self) -> dict[str, Any]:
        model = self.model
        n = len(model.earlier)
        return {
            "prompt": model.prompt,
            "answers": [
                {"text": one.text, "note": one.note, "sensitive": one.sensitive} for one in model.answers or []
            ],
            "earlier": f"{n} earlier turn{'' if n == 1 else 's'} of the pair's conversation come first. " if n else "",
            "example": "Use the selected pair" if self.state.pair is not None else "Use an example",
            "version": self._version_up(),
        }

    def _version_up(self) -> int:
        self._version += 1
        return self._version

    def _on_texts(self, *_: Any) -> None:
        if self.model.origin is not self:
            self._editor.content = self._texts()
        with pn.io.hold():
            self._draw_asked()
            self._draw_status()

    def _on_scores(self, *_: Any) -> None:
        if self.large and self._boxes.visible and self._fold.visible:
            self._fold_boxes()  # what was scored is meant to be looked at
        self._draw()

    def _on_pair(self, *_: Any) -> None:
        """The example's button says which pair it takes; the boxes keep what stands in them."""
        self._editor.content = self._texts()

    def _catch_up(self) -> None:
        if self._on_show:
            self._draw()

    def _draw_status(self) -> None:
        model = self.model
        state = model.service.state(model.run)
        done = ""
        if model.scored and model.from_run:
            done = f"{len(model.scored)} answers of the run, scored from its stored activations."
        elif model.scored and state.held is not None:
            done = words.done_words(len(model.scored), model.seconds, state.held.about)
        if model.stale:
            done = "The text has changed since it was scored; score it again (Ctrl+Enter)."
        blocked = model.lost and model.stored_pair is None
        with pn.io.hold():
            self._status.object = words.status_html(
                state, model.request, model.ahead, model.problem, model.restarted, done
            )
            self._retry.visible = model.lost
            self._editor.param.update(
                blocked="There is no model to score new text with." if blocked else "", busy=bool(model.request)
            )

    def _draw(self) -> None:
        """Everything, under the sliders as they stand at rest."""
        model = self.model
        if not self._on_show and self._places:
            return
        with pn.io.hold():
            self._empty.visible = not model.scored
            self._rank()
            self._draw_asked()
            if model.scored:
                found = deciders(model.scored, self._places, self._live(), 4 if self.large else 6)
                names = self._names([one.feature for one in found])
                self._deciders.object = words.deciders_html(found, names, self._places, self._add_link)
            if self.large and model.scored:
                if not self._fold.visible:  # the boxes have done their work
                    self._fold_boxes()
                self._fold.visible = True
            self._draw_open()

    def _move(self) -> None:
        """What follows the hand: the ranking, and the waterfall of the open answer."""
        if not self._on_show or not self.model.scored:
            return
        with pn.io.hold():
            self._rank()
            if self._answer is not None and self._open_place is not None:
                self._answer.explain(self._open_place)

    def _rank(self) -> None:
        model, live = self.model, self._live()
        self._places = ranking(model.scored, live)
        if model.scored:
            changed = sum(by != 1 for by in live.values())
            self._ranking.content = ranking_content(
                self._places, model.drafts, changed, number=model.scores, large=self.large
            )

    def _draw_asked(self) -> None:
        """The prompt that was scored, where the box does not show it."""
        model = self.model
        in_box = model.asked_prompt == model.prompt and not (self.large and not self._boxes.visible)
        shown = bool(model.scored) and not in_box
        self._asked.param.update(object=_asked_html(model.asked_prompt, self.large), visible=shown)

    def _live(self) -> dict[int, float]:
        return dict(self.state.live_steering)

    def _draw_open(self) -> None:
        """The open answer, where there is room for one."""
        model, place = self.model, self._open_place
        with pn.io.hold():
            self._ranking.selected = model.open if self._answer is not None and model.scored else None
            if self._answer is not None and place is not None:
                answer, held = model.scored[model.open], model.service.state(model.run).held
                limit = held.limit if held else answer.n_prompt + answer.n_read
                self._answer.open(answer, model.drafts[model.open], place, limit)

    @property
    def _open_place(self) -> Place | None:
        return next((one for one in self._places if one.index == self.model.open), None)

    # ------------------------------------------------------------------- acting

    def _on_message(self, name: str, texts: Mapping[str, Any]) -> None:
        model = self.model
        if name == "write":
            model.write(texts["prompt"], texts["answers"], self)
        elif name == "score":
            model.score()
        elif name == "example":
            model.use_example()
        elif name == "earlier":
            model.forget_earlier()
        elif name == "seen":
            model.load()

    def _present(self) -> None:
        """With the sliders as they stand, also when the hand has only just left them."""
        self.state.param.update(steering=self._live(), present=True)

    def _open(self, index: int) -> None:
        if 0 <= index < len(self.model.scored):
            self.model.open = index

    def _names(self, features: list[int]) -> dict[int, str | None]:
        return {feature: self._labels.get(feature) for feature in features}

    def _add_link(self, feature: int) -> str:
        """Puts a feature on the sliders, wherever they stand (the view, or the presentation); the others stay put."""
        return self.state.link(steering={**self._live(), feature: 1.0})


_EMPTY = (
    '<div class="rs-empty"><b>Which answer does this reward model prefer?</b>Type a prompt and two or more answers, or '
    "use an example, and press Score. Then move a slider: the ranking follows without asking the model again.</div>"
)


def _asked_html(prompt: str, large: bool) -> str:
    body = f'<div class="asked{" large" if large else ""}" dir="auto">{plain_html(prompt)}</div>'
    return (
        body if large or len(prompt) <= pair_text.LONG_PROMPT else f"<details><summary>Prompt</summary>{body}</details>"
    )


def _column(*parts: Any, flex: str = "", styles: dict[str, str] | None = None) -> pn.Column:
    # Without "none" Bokeh keeps every part within its container's height, and what lies below is drawn over it.
    given = {"min-width": "0", "max-height": "none", **({"flex": flex} if flex else {}), **(styles or {})}
    return pn.Column(*parts, sizing_mode="stretch_width", margin=0, styles=given)
