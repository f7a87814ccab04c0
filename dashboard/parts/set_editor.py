"""The open safety set: what is in it, the buttons that change it, and the sheet to make, save, import and open sets."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import panel as pn
import panel_material_ui as pmui
import polars as pl

from core.errors import RewardscopeError
from core.salience.sets import DEFAULT_POOLING, DEFAULT_SLICE, set_by_rating, set_by_salience
from core.store.reader import RunReader
from core.store.review import ReviewStore
from core.store.sets import FeatureSet, read_set, set_to_json
from dashboard import sets
from dashboard.escape import esc
from dashboard.state import AppState
from dashboard.theme import sheet

DEFAULT_OPTION = "The run’s default (highest |s|)"
TRAIN = "the training pairs (keeps held-out pairs unseen)"
HERE = "the open slice and pooling"
ORDERS = {"|s| (SAFER)": "s", "|effect size|": "effect_size", "|effect|": "effect"}


def summary_html(one: FeatureSet | None, unsaved: bool, problem: str) -> str:
    """One line on the open set."""
    if one is None:
        return f'<div class="rs-failed rs-small" role="alert">{esc(problem)}</div>'
    state = '<span class="unsaved">unsaved changes</span>' if unsaved else ""
    return (
        f'<div class="says" role="status"><span><b class="rs-num">{len(one.plus):,}</b> in S+ · '
        f'<b class="rs-num">{len(one.minus):,}</b> in S−</span>{state}'
        f'<span title="how it was made">{esc(sets.made_by(one.how))}</span></div>'
    )


def list_html(stored: list[FeatureSet], state: AppState) -> str:
    """Every stored version, newest first, each a link that opens it."""
    if not stored:
        return "<p class='rs-muted rs-small'>No set is stored yet for this run’s SAE.</p>"
    rows = []
    for one in stored:
        href = esc(state.link(set_name=f"{one.name}@{one.version}"))
        rows.append(
            f"<tr><td><a href='{href}'>{esc(one.name)}</a></td><td class='rs-num'>{one.version}</td>"
            f"<td class='rs-num'>{len(one.plus):,}</td><td class='rs-num'>{len(one.minus):,}</td>"
            f"<td>{esc(sets.made_by(one.how))}</td><td class='rs-num'>{esc(one.created[:16].replace('T', ' '))}</td></tr>"
        )
    return (
        "<table class='sets'><thead><tr><th>set</th><th>version</th><th>S+</th><th>S−</th><th>made by</th><th>stored (UTC)</th>"
        f"</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


class SetEditor:
    """Widgets over the open set (dashboard/sets.py). Whoever changes the set does so through the state.

    `targets()` says which features the buttons act on.
    """

    def __init__(
        self,
        state: AppState,
        reader: RunReader,
        store: ReviewStore,
        targets: Callable[[], list[int]],
        ratings: Callable[[], pl.DataFrame],
    ) -> None:
        self._state, self._reader, self._store = state, reader, store
        self._targets, self._ratings = targets, ratings
        self._problem = ""
        self._build()

    # ------------------------------------------------------------------ layout

    def _build(self) -> None:
        small = {"size": "small", "margin": (8, 5, 4, 5)}
        self._open = pmui.Select(
            label="Safety set", description="", sizing_mode="stretch_width", min_width=150, **small
        )
        self._open.param.watch(self._opened, "value")
        self._says = self._pane(sizing_mode="stretch_width", margin=(0, 10, 2, 10))
        self._undo = self._button("Drop changes", lambda: sets.drop_draft(self._state))
        self._more = self._button("Make, save …", self._show_sheet)
        self.to_plus = self._button("+ to S+", lambda: self.mark(1))
        self.to_minus = self._button("− to S−", lambda: self.mark(-1))
        self.take_out = self._button("Take out (0)", lambda: self.mark(0))
        self._name = pmui.TextInput(label="Name", description="", width=260, **small)
        self._save = pmui.Button(label="Save as a new version", size="small", margin=8, align="center")
        self._save.on_click(lambda _: self._try(self._save_it))
        self._size = pmui.IntInput(
            label="At most", value=sets.DEFAULT_SIZE, start=1, width=100, description="", **small
        )
        self._order = pmui.Select(label="Ranked by", options=ORDERS, value="s", width=150, description="", **small)
        self._max_q = pmui.FloatInput(label="q at most (1 = any)", value=1.0, start=0, end=1, step=0.01, width=140, description="", **small)  # fmt: skip
        self._equal = pmui.Checkbox(label="at equal length", value=False, size="small", margin=6, align="center")
        self._pairs = pmui.Select(label="Salience on", options=[TRAIN, HERE], value=TRAIN, width=330, description="", **small)  # fmt: skip
        self._rating = pmui.IntInput(
            label="Rating at least", value=5, start=1, end=5, width=110, description="", **small
        )
        self._candidates = pmui.IntInput(label="of the top |s|", value=256, start=1, width=120, description="", **small)
        self._file = pmui.FileInput(
            label="Import a set (JSON)", accept=".json", size="small", margin=8, variant="outlined"
        )
        self._file.param.watch(self._imported, "value")
        self._export = pmui.FileDownload(
            callback=self._json, filename="set.json", label="Export (JSON)", size="small", margin=8, variant="outlined", align="center"
        )  # fmt: skip
        self._done = self._pane(sizing_mode="stretch_width", margin=(4, 8))
        self._stored = self._pane(sizing_mode="stretch_width", margin=(4, 8))
        make = pmui.Button(label="Make from thresholds", size="small", variant="outlined", margin=8, align="center")
        make.on_click(lambda _: self._try(self._by_salience))
        rate = pmui.Button(label="Make from ratings", size="small", variant="outlined", margin=8, align="center")
        rate.on_click(lambda _: self._try(self._by_rating))
        self.sheet = pmui.Dialog(
            self._done,
            self._heading("Save", "Stored sets are never changed; saving makes the next version of a name."),
            self._line(self._name, self._save, self._export, self._file),
            self._heading("Make from salience", "S+ takes positive signs, S− negative ones. It replaces the open set’s unsaved state."),
            self._line(self._pairs, self._size, self._order, self._max_q, self._equal, make),
            self._heading("Make from safety ratings", "A feature without a rating is left out: missing is never a rating."),
            self._line(self._rating, self._candidates, rate),
            self._heading("Stored sets", ""),
            self._stored,
            title="Safety sets",
            show_close_button=True,
            close_on_click=True,
            width_option="md",
            margin=0,
        )  # fmt: skip

    def _pane(self, content: str = "", **params: Any) -> pn.pane.HTML:
        return pn.pane.HTML(content, stylesheets=[sheet("parts"), sheet("salience")], **{"margin": 0, **params})

    def _heading(self, title: str, note: str) -> pn.pane.HTML:
        return self._pane(
            f"<h3>{esc(title)}</h3><p class='rs-small rs-muted'>{esc(note)}</p>",
            sizing_mode="stretch_width",
            margin=(10, 8, 0, 8),
        )

    def _line(self, *parts: Any) -> pn.Row:
        """Parts side by side, on further lines where there is no room. (FlexBox would need eval, which the policy forbids.)"""
        styles = {"align-items": "center", "flex-wrap": "wrap"}
        return pn.Row(*parts, sizing_mode="stretch_width", margin=0, styles=styles)

    def _button(self, label: str, does: Callable[[], object]) -> pmui.Button:
        button = pmui.Button(label=label, variant="text", size="small", margin=2, align="center")
        button.on_click(lambda _: self._try(does))
        return button

    def layout(self) -> list[Any]:
        """What to put one below the other."""
        line = {"sizing_mode": "stretch_width", "margin": 0, "styles": {"align-items": "center"}}
        return [
            pn.Row(self._open, self._undo, self._more, **line),
            self._says,
        ]

    # ---------------------------------------------------------------- behaviour

    @property
    def set(self) -> FeatureSet | None:
        """The open set, None when it cannot be opened (the line says why)."""
        try:
            self._problem = ""
            return sets.open_set(self._state, self._reader, self._store)
        except RewardscopeError as error:
            self._problem = str(error)
            return None

    def show(self) -> FeatureSet | None:
        """Shows what is open now, and returns it."""
        one, unsaved = self.set, sets.is_unsaved(self._state)
        self._says.object = summary_html(one, unsaved, self._problem)
        self._undo.visible = unsaved
        self.to_plus.disabled = self.to_minus.disabled = self.take_out.disabled = one is None
        self._fill_names()
        if self.sheet.open:
            self._fill_sheet(one)
        return one

    def mark(self, sign: int) -> None:
        """Puts the buttons' features into S+ (1) or S- (-1), or takes them out (0)."""
        if self.set is None:
            return
        if targets := self._targets():
            sets.mark(self._state, self._reader, self._store, targets, sign)

    def _fill_names(self) -> None:
        """The menu: the default, each stored name, the version that is open, each marked when it has a draft."""
        names = ["", *(one.name for one in self._store.sets(sets.sae_of(self._reader)))]
        if self._state.set_name not in names:
            names.append(self._state.set_name)
        names += [name for name in self._state.drafts if name not in names]
        titles = {}
        for name in names:
            title = name or DEFAULT_OPTION
            titles[f"{title} — unsaved changes" if name in self._state.drafts else title] = name
        self._open.param.update(options=titles, value=self._state.set_name)

    def _opened(self, event: Any) -> None:
        if event.new is not None and event.new != self._state.set_name:
            self._state.set_name = event.new

    def _show_sheet(self) -> None:
        one = self.set
        if not self._name.value:
            self._name.value = self._state.set_name.partition("@")[0]
        self._done.object = ""
        self._fill_sheet(one)
        self.sheet.open = True

    def _fill_sheet(self, one: FeatureSet | None) -> None:
        self._stored.object = list_html(self._store.sets(sets.sae_of(self._reader), all_versions=True), self._state)
        self._export.disabled = one is None
        if one is not None:
            safe = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in one.name)
            self._export.filename = f"{safe}{f'-v{one.version}' if one.version else ''}.json"

    def _try(self, does: Callable[[], object]) -> None:
        """Does it; what cannot be done is said on the sheet, or as a notice while that is closed."""
        try:
            said = does()
        except RewardscopeError as error:
            if self.sheet.open:
                self._done.object = f'<div class="rs-failed" role="alert">{esc(error)}</div>'
            else:
                self._state.notice(str(error))
            return
        if isinstance(said, str):
            self._done.object = f'<div class="rs-small" role="status">{esc(said)}</div>'

    def _save_it(self) -> str:
        saved = sets.save_as(self._name.value or "", self._state, self._reader, self._store)
        return f"Saved as {sets.title(saved)}."

    def _source(self) -> tuple[str, str]:
        here = self._pairs.value == HERE
        return (self._state.slice, self._state.pooling) if here else (DEFAULT_SLICE, DEFAULT_POOLING)

    def _by_salience(self) -> str:
        part, pooling = self._source()
        made = set_by_salience(
            self._reader.salience(part, pooling),
            name=self._draft_name(),
            sae=sets.sae_of(self._reader),
            size=int(self._size.value or 1),
            order=self._order.value,
            max_q=self._max_q.value if self._max_q.value is not None and self._max_q.value < 1 else None,
            length_adjusted=self._equal.value,
            slice=part,
            pooling=pooling,
        )
        return self._made(made)

    def _by_rating(self) -> str:
        part, pooling = self._source()
        made = set_by_rating(
            self._reader.salience(part, pooling),
            self._ratings(),
            name=self._draft_name(),
            sae=sets.sae_of(self._reader),
            min_rating=int(self._rating.value or 5),
            candidates=int(self._candidates.value or 1),
            size=int(self._size.value or 1),
            slice=part,
            pooling=pooling,
        )
        return self._made(made)

    def _made(self, one: FeatureSet) -> str:
        sets.put_draft(self._state, one)
        return f"{len(one.plus)} features in S+ and {len(one.minus)} in S−, not saved yet."

    def _draft_name(self) -> str:
        return self._state.set_name.partition("@")[0] or "new set"

    def _imported(self, event: Any) -> None:
        if event.new:
            self._try(lambda: self._import(event.new, str(self._file.filename or "set.json")))

    def _import(self, content: bytes, filename: str) -> str:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / (
                "".join(c for c in filename if c.isalnum() or c in " -_.")[-80:].strip(" .") or "set.json"
            )
            path.write_bytes(content)
            one = read_set(path, sae=sets.sae_of(self._reader), latents=len(self._reader.features))
        self._name.value = one.name
        return self._made(one)

    def _json(self) -> io.BytesIO:
        one = self.set
        return io.BytesIO(set_to_json(one).encode() if one is not None else b"")
