"""Puts the page together: header, rail, the run's quality, the shared selection, and the view on show."""

from __future__ import annotations

import logging
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import panel as pn
import panel_material_ui as pmui
from panel.util import edit_readonly

from core.errors import RewardscopeError
from core.store.pair_queries import pair_row
from core.store.reader import RunReader
from dashboard import runs
from dashboard.escape import esc
from dashboard.parts.bridge import Bridge
from dashboard.parts.chips import chips_html, notices_html, rail_html
from dashboard.parts.help import SHORTCUTS_HTML
from dashboard.parts.jump import Jump, find_anything
from dashboard.parts.run_quality import about_html, strip_html
from dashboard.state import VIEWS, AppState, bind_to_url, from_query
from dashboard.theme import LOGO, PAGE_SX, THEME_CONFIG, sheet
from dashboard.views.features import FeaturesView

FILTER_PARAMS = ["search", "sign", "show_dead", "cluster", "ranges", "lasso"]
PAIR_PARAMS = ["pair_search", "domain", "category", "source", "split", "verdict", "margin"]
STEERING_PARAMS = ["steering", "target", "benchmark", "benchmark_cell"]
SALIENCE_PARAMS = ["slice", "pooling", "length_control", "set_name"]


log = logging.getLogger(__name__)


class View(Protocol):
    """What the page asks of a view, besides showing it."""

    def __panel__(self) -> Any: ...

    def step(self, by: int) -> None:
        """Selects the next (+1) or previous (-1) row of the view's list."""


@runtime_checkable
class MarksFeatures(Protocol):
    """A view whose selected feature the keys +, - and 0 put into S+, into S- or take out of the open set."""

    def mark(self, sign: int) -> None: ...


def build() -> pmui.Page:
    """The page of one session, opened at what its address says."""
    query = pn.state.location.search if pn.state.location else ""
    try:
        page = App(query).page
        pn.state.on_session_destroyed(lambda _: release(page))
        return page
    except Exception as error:  # a page that says what failed, never an endless spinner
        log.exception("the page could not be built")
        text = f"{type(error).__name__}: {error}"
        return pmui.Page(
            title="Rewardscope", theme_config=THEME_CONFIG, sx=PAGE_SX, main=[_failed(text)], raw_css=[sheet("page")]
        )


def release(page: pmui.Page) -> None:
    """Lets go of a page whose session has ended: pmui ties each one to Panel's process-wide `busy`, which would keep it.

    Only another tie undoes that one, so the page is tied to itself.
    """
    with edit_readonly(page):
        page.busy = page.param.contextbar_open


def html(content: str = "", sheets: tuple[str, ...] = (), **params: Any) -> pn.pane.HTML:
    """A pane for escaped HTML of ours."""
    params.setdefault("sizing_mode", "stretch_width")
    params.setdefault("margin", 0)
    return pn.pane.HTML(content, stylesheets=[sheet("parts"), *map(sheet, sheets)], **params)


class App:
    """One session: its state, its run, its page."""

    def __init__(self, query: str) -> None:
        given, problems = from_query(query)
        self.state = AppState()
        self.reader: RunReader | None = None
        self.failure = ""
        names: list[str] = []
        try:
            names = runs.names()
            wanted = given["run"]
            if wanted and wanted not in names:
                problems.append(f"There is no run “{wanted[:60]}” here; this is another one.")
                wanted = ""
            if names:
                self.state.run = wanted or names[0]
                self.reader = runs.reader(self.state.run)
        except (RewardscopeError, OSError) as error:
            self.failure = str(error)
        self.names = names
        self._views: dict[str, View] = {}
        self._frames: dict[str, pn.Column] = {}
        self.bridge = Bridge(on_key=self._on_key, search=query, margin=0, styles={"display": "none"})
        bind_to_url(self.state, self.bridge, self._check)
        for problem in problems:
            self.state.notice(problem)
        self.bridge.param.update(dark=self.state.dark, reveal=self.state.reveal, present=self.state.present)
        self.page = self._page()
        self._watch()

    # ------------------------------------------------------------------ layout

    def _page(self) -> pmui.Page:
        # One child that fills the window: its parts scroll, the page does not.
        fills = {"min-width": "0", "min-height": "0", "height": "100%"}
        parts = [self.bridge, *self._main(), self.about, self.help]
        main = pn.Column(*parts, sizing_mode="stretch_both", margin=0, styles=fills)
        return pmui.Page(
            title="Rewardscope",
            logo=str(LOGO),
            site_url="",
            favicon=str(LOGO),
            header=self._header(),
            sidebar=[self._rail] if self.reader else [],
            sidebar_width=92,
            sidebar_resizable=False,
            sidebar_variant="permanent",
            main=[main],
            theme_config=THEME_CONFIG,
            dark_theme=self.state.dark,
            raw_css=[sheet("page")],
            sx=PAGE_SX,
        )

    def _header(self) -> list[Any]:
        picker = pmui.Select(
            label="Run",
            options=self.names,
            value=self.state.run or None,
            size="small",
            width=180,
            height=40,
            margin=(8, 8, 0, 8),
            align="center",
        )
        picker.param.watch(lambda event: self.bridge.param.update(search=f"?{self._run_query(event.new)}"), "value")
        parts: list[Any] = [picker] if self.names else []
        if self.reader:
            reader = self.reader
            parts.append(Jump(lambda query: find_anything(reader, self.state, query), margin=(0, 8), align="center"))
            parts.append(pn.HSpacer())
            parts.append(self._button("About this run", self.about))
        else:
            parts.append(pn.HSpacer())
        parts.append(self._button("Shortcuts", self.help))
        return parts

    def _button(self, label: str, dialog: pmui.Dialog) -> pmui.Button:
        def show(_: Any) -> None:
            dialog.open = True

        return pmui.Button(label=label, variant="text", size="small", on_click=show, margin=2, align="center")

    def _main(self) -> list[Any]:
        if self.failure:
            return [_failed(self.failure)]
        if self.reader is None:
            return [html(_no_runs(), margin=24)]
        return [self._strip, self._chips, self._notices, self._stage]

    @cached_property
    def _strip(self) -> pn.pane.HTML:
        assert self.reader is not None
        return html(strip_html(self.reader), ("run",), visible=not self.state.present)

    @cached_property
    def _rail(self) -> pn.pane.HTML:
        return html(rail_html(self.state), ("rail",))

    @cached_property
    def _chips(self) -> pn.pane.HTML:
        return html(chips_html(self.state, self.reader), ("rail",), visible=not self.state.present)

    @cached_property
    def _notices(self) -> pn.pane.HTML:
        return html(notices_html(self.state), ("rail",), visible=bool(self.state.notices))

    @cached_property
    def _stage(self) -> pn.Column:
        stage = pn.Column(sizing_mode="stretch_both", margin=0, styles={"min-height": "0"})
        self._show(stage)
        return stage

    @cached_property
    def about(self) -> pmui.Dialog:
        content = html(about_html(self.reader), ("run",)) if self.reader else html()
        return pmui.Dialog(
            content,
            title="About this run",
            show_close_button=True,
            close_on_click=True,
            width_option="lg",
            sizing_mode="stretch_width",
        )

    @cached_property
    def help(self) -> pmui.Dialog:
        return pmui.Dialog(
            html(SHORTCUTS_HTML, ("rail",)),
            title="Keyboard and reading help",
            show_close_button=True,
            close_on_click=True,
        )

    # ---------------------------------------------------------------- behaviour

    def _watch(self) -> None:
        state = self.state
        self.page.param.watch(lambda event: state.param.update(dark=event.new), "dark_theme")
        state.param.watch(lambda event: self.bridge.param.update(reveal=event.new), "reveal")
        state.param.watch(lambda event: self.bridge.param.update(unsaved=bool(event.new)), "drafts")
        state.param.watch(self._on_dark, "dark")
        if self.reader is None:
            return
        state.param.watch(lambda _: self._show(self._stage), ["view", "present"])
        state.param.watch(self._on_present, "present")
        state.param.watch(
            self._on_selection,
            ["view", "feature", "pair", *FILTER_PARAMS, *PAIR_PARAMS, *SALIENCE_PARAMS, *STEERING_PARAMS],
        )
        state.param.watch(self._on_notices, "notices")
        self._on_selection()  # the first view may have opened its first row while the page was put together

    def _on_dark(self, event: Any) -> None:
        self.bridge.dark = event.new
        self.page.dark_theme = event.new

    def _on_selection(self, *_: Any) -> None:
        self._chips.object = chips_html(self.state, self.reader)
        self._rail.object = rail_html(self.state)

    def _on_notices(self, *_: Any) -> None:
        self._notices.param.update(object=notices_html(self.state), visible=bool(self.state.notices))

    def _on_present(self, event: Any) -> None:
        """The page around the stage goes and comes (header and rail by parts/bridge.js)."""
        self.bridge.present = event.new
        self._strip.visible = self._chips.visible = not event.new

    def _show(self, stage: pn.Column) -> None:
        """Puts the current view, or the presentation, on the stage; each is built the first time it is looked at."""
        assert self.reader is not None
        name = "present" if self.state.present else self.state.view
        if name not in self._frames:
            try:
                content: Any = _make_view(name, self.state, self.reader)
                self._views[name] = content
            except Exception as error:  # the other view goes on working
                log.exception("the view %s could not be built", name)
                content = _failed(f"{type(error).__name__}: {error}", f"The {name} view cannot be shown.")
            self._frames[name] = pn.Column(content, sizing_mode="stretch_both", margin=0, styles={"min-height": "0"})
            stage.append(self._frames[name])
        for other, frame in self._frames.items():
            frame.visible = other == name

    def _on_key(self, key: str) -> None:
        state = self.state
        if key == "?":
            self.help.open = not self.help.open
        elif key == "Escape":
            if self.help.open or self.about.open:
                self.help.open = self.about.open = False
            elif state.notices:
                state.notices = []
            elif state.present:
                state.present = False
            else:
                state.param.update(**{"pair" if state.view in ("pairs", "impact") else "feature": None})
        elif key == "r":
            state.reveal = not state.reveal
        elif state.present:
            return  # there is no list to step through and no other view to go to
        elif key in "123456":
            state.view = VIEWS[int(key) - 1]
        elif key in "+-0":
            if isinstance(view := self._views.get(state.view), MarksFeatures):
                view.mark({"+": 1, "-": -1, "0": 0}[key])
        elif state.view in self._views:
            self._views[state.view].step(1 if key in ("j", "ArrowDown") else -1)

    def _check(self, values: dict[str, Any]) -> list[str]:
        """Corrects what a link asks for and this run does not have, and says so."""
        if self.reader is None:
            return []
        problems = []
        feature, pair, cluster = values["feature"], values["pair"], values["cluster"]
        if feature is not None and feature not in self.reader.features:
            problems.append(f"This run has no feature {feature}.")
            values["feature"] = None
        if pair is not None:
            with self.reader.cursor() as cursor:
                if not len(pair_row(cursor, pair)):
                    problems.append(f"This run has no pair “{pair[:60]}”.")
                    values["pair"] = None
        if cluster is not None and cluster >= 0 and cluster not in self.reader.clusters["cluster"].to_list():
            problems.append(f"This run's map has no cluster {cluster}.")
            values["cluster"] = None
        strange = [one for one in values["steering"] if one not in self.reader.features]
        if strange:
            problems.append(f"This run has no feature {strange[0]} to steer.")
            values["steering"] = {one: by for one, by in values["steering"].items() if one not in strange}
        return problems

    def _run_query(self, name: str) -> str:
        fresh = AppState(run=name)
        return fresh.link(dark=True)[1:] if self.state.dark else fresh.link()[1:]


def _make_view(name: str, state: AppState, reader: RunReader) -> View | Any:
    if name == "present":
        from dashboard.parts.presentation import Presentation

        return Presentation(state, reader)
    if name == "features":
        return FeaturesView(state, reader)
    if name == "pairs":
        from dashboard.views.pairs import PairsView

        return PairsView(state, reader)
    if name == "salience":
        from dashboard.views.salience import SalienceView

        return SalienceView(state, reader)
    if name == "impact":
        from dashboard.views.impact import ImpactView

        return ImpactView(state, reader)
    if name == "steering":
        from dashboard.views.steering import SteeringView

        return SteeringView(state, reader)
    from dashboard.views.benchmarks import BenchmarksView

    return BenchmarksView(state, reader)


def _failed(text: str, what: str = "This run cannot be shown.") -> pn.pane.HTML:
    says = f'<div class="rs-failed" role="alert"><b>{what}</b><p>{esc(text)}</p></div>'
    return html(says, margin=24)


def _no_runs() -> str:
    return (
        f'<div class="rs-empty"><b>There is no run in {esc(runs.folder())} yet.</b>'
        "Build one with <code>rewardscope demo</code> or <code>rewardscope build CONFIG.yaml</code>, then reload this page.</div>"
    )
