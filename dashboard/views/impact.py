"""The Impact view: what poisoned or cleaned preference data would do to the model, refitted while the slider moves."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import panel as pn
import panel_material_ui as pmui
import polars as pl

from core.errors import RewardscopeError
from core.store import pair_queries
from core.store.reader import RunReader
from core.store.sets import FeatureSet
from dashboard import sets, worker
from dashboard.delivery import Delivery
from dashboard.escape import esc
from dashboard.impact_tasks import PlanChoice
from dashboard.parts import impact_words as words
from dashboard.parts.changed_pair import ChangedPair
from dashboard.parts.impact_curve import ALL, ImpactCurve, curve_content, domains_of, now_content
from dashboard.parts.impact_points import LIMIT, preview_errors, set_key
from dashboard.parts.plan_bar import PlanBar
from dashboard.parts.plan_export import retrain_command
from dashboard.parts.plan_pairs import PlanPairs
from dashboard.parts.refits import Chosen, Refits, pairs_changed, stored_points
from dashboard.state import STRATEGIES, AppState
from dashboard.theme import sheet
from dashboard.worker import Outcome, Worker

CHOICE = ["set_name", "drafts", "strategy", "direction", "action"]
MEASURES = {"accuracy": "accuracy", "mean margin": "margin"}
REST = 200
"""Milliseconds without a move after which the list, the lines and the address follow the slider."""


class ImpactView(pn.viewable.Viewer):
    """Curve and plan 60 %, the pairs the plan changes 40 %; refits happen in the worker's process."""

    def __init__(self, state: AppState, reader: RunReader, work: Worker | None = None, **params: Any) -> None:
        super().__init__(**params)
        self._state, self._reader = state, reader
        self._store = sets.review_store()
        self._document = pn.state.curdoc
        self._deliver = Delivery()
        self._ratio = state.ratio
        self._moves = 0
        self._set: FeatureSet | None = None
        self._no_set = ""
        self._measured = self._store.impact("")  # no rows
        self._stale = True
        with reader.cursor() as cursor:
            counts = pair_queries.facet_counts(cursor).filter(facet="split")
        self._splits = dict(counts.select("value", "n").iter_rows())
        self._refits = Refits(reader, work or worker.shared(), self._deliver, self._changed)
        self._build()
        self._take_stored()
        state.param.watch(self._on_choice, CHOICE)
        state.param.watch(self._on_ratio_of_state, "ratio")
        state.param.watch(lambda _: self._draw(), "impact_domain")
        state.param.watch(self._on_pair, "pair")
        state.param.watch(self._on_view, "view")
        if self._document is not None:
            pn.state.on_session_destroyed(lambda _: self._refits.close())
        self._on_choice()

    # ------------------------------------------------------------------ layout

    def _build(self) -> None:
        state = self._state
        self._heading = self._pane(margin=(8, 10, 0, 10))
        self._measure = pmui.RadioButtonGroup(
            options=MEASURES, value="accuracy", label="", size="small", width=200, margin=(6, 10, 0, 4), align="center"
        )
        self._measure.param.watch(lambda _: self._draw(), "value")
        self._honest = self._pane(margin=(0, 10, 2, 10), object=words.honest_html(self._kind))
        self._curve = ImpactCurve(
            self._moved, self._pick_domain, ratio=self._ratio, sizing_mode="stretch_both", min_height=230, margin=(0, 6)
        )
        self._waiting = self._pane(margin=(0, 10))
        self._failed = self._pane(sizing_mode="stretch_width", margin=(2, 10), visible=False)
        self._retry = pmui.Button(
            label="Try again", size="small", variant="outlined", margin=(2, 10), visible=False, on_click=self._on_retry
        )
        self._words = self._pane(margin=(2, 10))
        self._point = self._pane(margin=(0, 10, 2, 10))
        self._bar = PlanBar(state, self._reader, self._store, self._moved, self._on_export)
        self._count = self._pane(margin=(8, 10, 4, 10))
        self._pairs = PlanPairs(self._reader, lambda pair: state.param.update(pair=pair))
        self._detail = ChangedPair(state, self._reader)

    def _pane(self, **params: Any) -> pn.pane.HTML:
        params = {"sizing_mode": "stretch_width", "margin": 0, **params}
        return pn.pane.HTML(stylesheets=[sheet("parts"), sheet("pair"), sheet("impact")], **params)

    def __panel__(self) -> pn.viewable.Viewable:
        if problem := self._unusable():
            return self._pane(
                object=f'<div class="rs-empty"><b>No plan can be made for this run.</b>{esc(problem)}</div>'
            )
        head = pn.Row(
            self._heading, self._measure, sizing_mode="stretch_width", margin=0, styles={"align-items": "center"}
        )
        failed = pn.Row(
            self._failed, self._retry, sizing_mode="stretch_width", margin=0, styles={"align-items": "center"}
        )
        bar = pn.Column(
            *self._bar.layout(self._point),
            sizing_mode="stretch_width",
            margin=0,
            styles={"border-top": "1px solid var(--rs-line)", "flex": "none"},
        )
        left = _box(6, head, self._honest, self._curve, failed, self._waiting, self._words, bar, line="right")
        buttons = [self._button("↑ Previous (k)", -1), self._button("↓ Next (j)", 1)]
        above = _box(38, self._count, self._pairs.widget, line="bottom")
        below = _box(62, pn.Row(*buttons, margin=(2, 0, 0, 0)), *self._detail.layout())
        return pn.Row(left, _box(4, above, below), sizing_mode="stretch_both", margin=0, styles={"min-height": "0"})

    def _button(self, label: str, by: int) -> pmui.Button:
        return pmui.Button(label=label, variant="text", size="small", margin=2, on_click=lambda _: self.step(by))

    @property
    def _kind(self) -> str:
        return str((self._reader.manifest.config.get("reward_model") or {}).get("kind", "head"))

    def _unusable(self) -> str:
        if not self._splits.get("train"):
            return "None of its pairs is a training pair, and plans change training pairs only."
        if len(self._splits) < 2:
            return "All of its pairs are training pairs, and a plan is judged on held-out ones."
        return ""

    # ---------------------------------------------------------------- behaviour

    def step(self, by: int) -> None:
        """Opens the next (1) or previous (-1) pair of those the plan changes."""
        pair = self._pairs.listed.beside(self._state.pair, by)
        if pair is not None:
            self._state.pair = pair

    def _take_stored(self) -> None:
        """The points the build has measured, at once: the default set's and the baselines'."""
        try:
            self._default: FeatureSet | None = sets.default_set(self._reader)
        except RewardscopeError:
            self._default = None
        self._refits.add_stored(self._reader, self._default)

    def _on_view(self, _: Any) -> None:
        if self._state.view == "impact":
            self._on_choice() if self._stale else self._on_pair()

    def _on_choice(self, *_: Any) -> None:
        """Another plan: its set, its order, its curve. While another view is on show it waits."""
        state = self._state
        self._stale = state.view != "impact"
        if self._stale or self._unusable():
            return
        try:
            self._set, self._no_set = sets.open_set(state, self._reader, self._store), ""
        except RewardscopeError as error:
            self._set, self._no_set = None, str(error)
        self._read_store()
        self._detail.use(self._set)
        self._refits.choose(Chosen(state.strategy, state.direction, state.action, self._set), self._ratio)
        self._show_order()
        self._draw()
        self._on_pair()

    def _read_store(self) -> None:
        """What was measured since the run was built, by the command line: previews and retrained points."""
        try:
            self._measured = self._store.impact(self._reader.manifest.run_id)
        except RewardscopeError as error:
            self._state.notice(str(error))  # the rest works without
            return
        self._refits.points.add(stored_points(self._measured, self._saved_set), set_key(self._set))
        self._refits.compare(self._retrained_plans())

    @property
    def _saved_set(self) -> FeatureSet | None:
        """The open set when it is as it is stored (or the default): points measured elsewhere name sets, not members."""
        return None if sets.is_unsaved(self._state) else self._set

    def _retrained_plans(self) -> dict[str, PlanChoice]:
        """How each retrained plan was made, by its id; those of sets that are gone are left out."""
        rows = self._measured.filter(pl.col("kind") == "retrained", pl.col("strategy").is_in(STRATEGIES))
        found = {}
        for row in rows.unique("plan", keep="first", maintain_order=True).iter_rows(named=True):
            one = self._set_named(row["set_name"], row["set_version"]) if row["strategy"] == "set" else None
            if row["strategy"] != "set" or one is not None:
                found[row["plan"]] = PlanChoice(
                    row["strategy"], row["direction"], row["action"], row["ratio"], row["seed"], one
                )
        return found

    def _set_named(self, name: str, version: int | None) -> FeatureSet | None:
        if not version:
            return self._default
        try:
            return self._store.find_set(sets.sae_of(self._reader), name, version)
        except RewardscopeError:
            return None

    def _moved(self, ratio: float) -> None:
        """A move of the slider or of the marker: the point follows at once, the rest when the hand rests."""
        if ratio == self._ratio:
            return
        self._ratio = ratio
        self._moves += 1
        self._refits.choose(self._chosen(), ratio)
        with pn.io.hold():
            self._bar.slider.ratio = ratio
            self._curve.ratio = ratio
            self._draw_now()
        self._later(partial(self._rested, self._moves))

    def _rested(self, moves: int) -> None:
        if moves != self._moves:
            return
        self._state.ratio = self._ratio
        self._draw()
        self._cut()

    def _on_ratio_of_state(self, event: Any) -> None:
        """The address or a link asks for another ratio."""
        if self._state.view != "impact":
            self._ratio, self._stale = event.new, True
        elif event.new != self._ratio and not self._unusable():
            self._moved(event.new)

    def _chosen(self) -> Chosen:
        state = self._state
        return Chosen(state.strategy, state.direction, state.action, self._set)

    def _changed(self, what: str) -> None:
        """An answer of the worker."""
        if what == "ranking":
            self._show_order()
            self._draw_status()
        elif what == "point":
            with pn.io.hold():
                self._draw_now()
                self._draw_status()
            self._later(partial(self._rested, self._moves))
        elif what == "compare":
            self._draw_words()
        else:
            self._draw()

    def _show_order(self) -> None:
        """The list follows the ranking."""
        ranked = self._refits.ranking
        with pn.io.hold():
            if ranked is None:
                self._pairs.order(np.empty(0, np.int64), np.empty(0), self._state.strategy)
            else:
                self._pairs.order(ranked.order, ranked.score, self._state.strategy)
            self._cut()

    def _cut(self) -> None:
        """The list ends where the plan does."""
        state = self._state
        n = self._n_changed or 0
        with pn.io.hold():
            self._pairs.cut(n, state.pair)
            self._count.object = self._count_html(n)
            if state.pair is None and state.view == "impact" and self._pairs.listed.at(0):
                state.pair = self._pairs.listed.at(0)  # a first look shows a pair, not an instruction
            self._explain()

    @property
    def _n_changed(self) -> int | None:
        ranked = self._refits.ranking
        return None if ranked is None else min(pairs_changed(ranked.n_train, self._ratio), len(ranked.order))

    @property
    def _lacks_set(self) -> bool:
        return self._state.strategy == "set" and self._set is None

    def _count_html(self, n: int) -> str:
        ranked, state = self._refits.ranking, self._state
        if ranked is None:
            text = (
                "No set, so no order."
                if self._lacks_set
                else ("The order is missing." if "ranking" in self._refits.problems else "Ranking the pairs …")
            )
            return f'<div class="said" role="status">{esc(text)}</div>'
        verb = {"flip": "Flips", "drop": "Drops"}[state.action]
        shares = self._pairs.by_domain(n)
        where = ", ".join(f"{esc(name)} {count:,}" for name, count in shares[:5]) + (" …" if len(shares) > 5 else "")
        warning = ""
        if state.strategy == "set" and not np.nan_to_num(ranked.score).any():
            warning = (
                '<div class="warned" role="alert">No feature of this set is active at a sentence end of any training pair: every '
                "pair score is 0 and the order is the file's. Pick other features in Salience.</div>"
            )
        return (
            f'<div class="said" role="status"><b>{verb} {n:,} of {ranked.n_train:,} training pairs</b>'
            f"{f' · {where}' if where else ''}</div>{warning}"
        )

    def _on_pair(self, *_: Any) -> None:
        if self._state.view != "impact" or self._unusable():
            return
        self._detail.open(self._state.pair)
        self._pairs.listed.mark(self._state.pair)
        self._explain()

    def _explain(self) -> None:
        state = self._state
        rank = self._pairs.rank(state.pair)
        self._detail.explain(
            self._refits.ranking, rank, self._n_changed or 0, (state.strategy, state.direction, state.action)
        )

    def _on_retry(self, _: Any) -> None:
        self._refits.retry()
        self._show_order()
        self._draw()

    def _pick_domain(self, domain: str) -> None:
        if domain in self._refits.points.unchanged:
            self._state.impact_domain = domain

    def _on_export(self, form: str) -> None:
        names = {"plan": "the plan", "parquet": "the Parquet file", "jsonl": "the JSONL file"}
        self._bar.export.busy = f"Making {names[form]} …"
        self._refits.problems.pop("export", None)
        self._refits.export(form, self._exported)

    def _exported(self, outcome: Outcome) -> None:
        if outcome.problem:
            self._bar.export.busy = ""
            self._refits.problems["export"] = outcome.problem
            self._draw_status()
        else:
            self._bar.export.save(outcome.value)

    # ------------------------------------------------------------------ drawing

    @property
    def _domain(self) -> str:
        """The domain drawn large; what a link names and the run does not have falls back to all."""
        wanted = self._state.impact_domain
        names = domains_of(self._refits.points)
        return wanted if wanted in names or not names else ALL if ALL in names else names[0]

    def _draw(self) -> None:
        """Everything but the list of pairs."""
        state, points, domain = self._state, self._refits.points, self._domain
        if state.view != "impact" or self._unusable():
            return
        here = (pl.col("direction") == state.direction) & (pl.col("action") == state.action)
        mine = self._measured.filter(pl.col("kind") == "retrained", here | (pl.col("strategy") == "none"))
        with pn.io.hold():
            self._heading.object = words.heading_html(domain, points.unchanged.get(domain))
            self._curve.content = curve_content(
                points,
                strategy=state.strategy,
                direction=state.direction,
                action=state.action,
                members=set_key(self._set),
                measure=self._measure.value,
                big=domain,
                limit=LIMIT if self._ratio <= LIMIT else 0.5,
                retrained=self._of_this_set(mine),
            )
            self._curve.ratio = self._ratio
            self._bar.show(self._set, self._ratio, ready=self._refits.ranking is not None)
            self._draw_now()
            self._draw_words()
            self._draw_status()

    def _of_this_set(self, rows: pl.DataFrame) -> list[dict[str, Any]]:
        """Retrained points that belong beside these curves: the baselines' and the open set's."""
        one = self._saved_set
        return [
            row
            for row in rows.iter_rows(named=True)
            if row["strategy"] != "set"
            or (one is not None and (row["set_name"], row["set_version"] or 0) == (one.name, one.version))
        ]

    def _draw_now(self) -> None:
        """The point at the slider's ratio, in the drawing and in words."""
        refits, measure, domain = self._refits, self._measure.value, self._domain
        rows = refits.now
        self._curve.now = now_content(rows, self._ratio, measure, refits.state, domain)
        self._point.object = words.point_html(
            (rows or {}).get(domain), self._ratio, self._n_changed, self._state.action, domain, measure
        )

    def _draw_words(self) -> None:
        state, points = self._state, self._refits.points
        retrained = self._measured.filter(pl.col("kind") == "retrained", pl.col("strategy") != "none")
        errors = preview_errors(retrained, self._refits.by_plan | self._stored_by_plan())
        n = retrained["plan"].n_unique()
        choice = (state.strategy, state.direction, state.action)
        table = words.table_html(points, choice, set_key(self._set), self._domain, self._measure.value)
        self._words.object = words.errors_html(errors, n, retrain_command(self._reader.name)) + table

    def _stored_by_plan(self) -> dict[tuple[str, str], dict[str, Any]]:
        rows = self._measured.filter(kind="preview")  # of any set
        return {(row["plan"], row["domain"]): row for row in rows.iter_rows(named=True)}

    def _draw_status(self) -> None:
        """What is still computed and what failed."""
        refits = self._refits
        progress, problems = refits.progress, dict(refits.problems)
        failed = words.failed_html(problems) if problems else words.no_set_html(self._no_set) if self._lacks_set else ""
        waiting = words.progress_html(*progress) if progress else ""
        if refits.restarted:
            waiting += '<span class="working"> The process that computes had stopped; it was started again.</span>'
        for reason in sorted(set(refits.given_up.values())):
            waiting += f'<span class="working"> {esc(reason)}</span>'
        with pn.io.hold():
            self._waiting.param.update(object=waiting, visible=bool(waiting))
            self._failed.param.update(object=failed, visible=bool(failed))
            self._retry.visible = bool(problems)

    # ------------------------------------------------------------------- timing

    def _later(self, call: Callable[[], None]) -> None:
        if self._document is None:
            call()
        else:
            self._document.add_timeout_callback(call, REST)


def _box(share: int, *parts: Any, line: str = "") -> pn.Column:
    """Parts one below the other on a surface that takes its share of the room and scrolls, with a line on one side."""
    styles = {"background": "var(--rs-surface)", "min-width": "0", "min-height": "0", "flex": f"{share} 1 0"}
    if line:
        styles[f"border-{line}"] = "1px solid var(--rs-line)"
    return pn.Column(*parts, sizing_mode="stretch_both", scroll="y-auto", margin=0, styles=styles)
