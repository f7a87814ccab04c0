"""What the reviewer is looking at: the one state every view shares. It knows no widget and is carried by the URL."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, quote

import param

from core.store.feature_queries import BY_SIZE, CLUSTER_NONE, FILTER_COLUMNS, SORT_COLUMNS, FeatureFilter

VIEWS = ("features", "pairs", "salience", "impact", "steering", "benchmarks")
SIGNS = ("any", "raises", "lowers")
VERDICTS = ("any", "right", "wrong")
TOKEN_MODES = ("feature", "total")
MAP_COLOURS = ("weight", "cluster")
POOLINGS = ("last", "mean", "max", "boundary_sum")
VOLCANO_AXES = ("effect", "effect_size", "s")
DIRECTIONS = ("poison", "denoise")
ACTIONS = ("flip", "drop")
STRATEGIES = ("set", "random", "margin", "loss", "length")
STEERING_RANGE = (-100.0, 100.0)
"""Multipliers a link or a number box may give; the sliders themselves go from -2 to 3."""
MOST_STEERED = 40
PAIR_SORTS = ("index", "margin", "-margin")

Range = tuple[float | None, float | None]
Polygon = tuple[tuple[float, float], ...]


class AppState(param.Parameterized):
    """Selection and filters. Views read it, write it and watch it; nothing here draws anything.

    Change several values at once with `state.param.update(...)`, so that watchers run once.
    """

    run = param.String("", doc="Name of the open run's folder.")
    view = param.Selector(default="features", objects=list(VIEWS))
    feature = param.Integer(None, bounds=(0, None), allow_None=True, doc="The selected feature.")
    pair = param.String(None, allow_None=True, doc="The selected pair's pair_id.")
    dark = param.Boolean(False, doc="Dark theme.")

    # Features view
    search = param.String("", doc="Words looked for in labels and contexts.")
    sort = param.Selector(default=BY_SIZE, objects=list(SORT_COLUMNS))
    descending = param.Boolean(True)
    sign = param.Selector(default="any", objects=list(SIGNS), doc="Features that raise or lower the reward.")
    show_dead = param.Boolean(False, doc="Also list features that were never active.")
    cluster = param.Integer(None, bounds=(CLUSTER_NONE, None), allow_None=True)
    ranges = param.Dict({}, doc="{column: (low, high)}, None = open end; columns of FILTER_COLUMNS.")
    lasso = param.ClassSelector(default=(), class_=tuple, doc="Polygon ((x, y), ...) in map coordinates; () = none.")
    map_colour = param.Selector(default="weight", objects=list(MAP_COLOURS))

    # Salience and Impact views
    slice = param.String("all", doc="Which pairs salience is computed on: 'all' or column=value.")
    pooling = param.Selector(default="mean", objects=list(POOLINGS))
    length_control = param.Boolean(False, doc="Show effects at equal length.")
    volcano = param.Selector(
        default="effect_size", objects=list(VOLCANO_AXES), doc="Horizontal axis of the volcano plot."
    )
    set_name = param.String("", doc="The open safety set, 'name' or 'name@version'; '' = the run's default set.")
    direction = param.Selector(default="poison", objects=list(DIRECTIONS))
    action = param.Selector(default="flip", objects=list(ACTIONS))
    strategy = param.Selector(default="set", objects=list(STRATEGIES))
    ratio = param.Number(0.05, bounds=(0, 0.5), doc="Share of the training pairs that is changed.")
    impact_domain = param.String("all", doc="Held-out domain whose curve is drawn large.")

    # Steering view
    steering = param.Dict(
        {}, doc="{feature: multiplier of its head weight}, the features on the sliders; 1 = unchanged, 0 = ablated."
    )
    target = param.String("", doc="The concept steered at, a slice column=value of the pairs; '' = the run's first.")
    present = param.Boolean(False, doc="Presentation mode: large type, the sliders, the text and its ranking only.")

    # Benchmarks view
    benchmark = param.String("", doc="The open benchmark; '' = the first there is.")
    benchmark_cell = param.String("", doc="The cell whose items are listed, in the benchmark's own words; '' = none.")
    benchmark_item = param.String(None, allow_None=True, doc="The open item's id.")

    # Pairs view
    pair_search = param.String("", doc="Words looked for in prompts and answers.")
    domain = param.String(None, allow_None=True)
    category = param.String(None, allow_None=True, doc="'' = pairs without a category.")
    source = param.String(None, allow_None=True)
    split = param.String(None, allow_None=True)
    verdict = param.Selector(default="any", objects=list(VERDICTS), doc="Whether the model prefers the chosen answer.")
    margin = param.Tuple((None, None), length=2, doc="(low, high) of the margin, None = open end.")
    pair_sort = param.Selector(default="index", objects=list(PAIR_SORTS))
    tokens = param.Selector(
        default="feature", objects=list(TOKEN_MODES), doc="What the answers' tokens are coloured by."
    )

    # This session only: never in the URL
    live_steering = param.Dict({}, doc="`steering` as it is under the hand that drags; the same at rest.")
    reveal = param.Boolean(False, doc="Show text that is blurred by default.")
    drafts = param.Dict({}, doc="{set_name: FeatureSet}, sets changed and not saved yet; see dashboard/sets.py.")
    notices = param.List(
        [], item_type=str, doc="Sentences the page shows, newest last (a wrong link, a missing feature)."
    )

    @param.depends("steering", watch=True)
    def _at_rest(self) -> None:
        self.live_steering = dict(self.steering)

    def notice(self, text: str) -> None:
        """Adds a sentence the page shows to the reviewer."""
        if text not in self.notices:
            self.notices = [*self.notices, text]

    @property
    def feature_filter(self) -> FeatureFilter:
        """The Features view's filters as the store takes them."""
        return FeatureFilter(
            search=self.search,
            sign=self.sign,
            alive_only=not self.show_dead,
            cluster=self.cluster,
            ranges={name: tuple(bounds) for name, bounds in self.ranges.items()},
            lasso=tuple(self.lasso),
        )

    def set_range(self, column: str, low: float | None, high: float | None) -> None:
        """Sets or (both None) removes one column's range."""
        others = {name: bounds for name, bounds in self.ranges.items() if name != column}
        self.ranges = others if low is None and high is None else {**others, column: (low, high)}

    def clear_feature_filters(self) -> None:
        """Back to every live feature."""
        self._reset("search", "sign", "show_dead", "cluster", "ranges", "lasso")

    def clear_pair_filters(self) -> None:
        """Back to every pair."""
        self._reset("pair_search", "domain", "category", "source", "split", "verdict", "margin")

    def open_feature(self, feature: int) -> None:
        """Shows a feature in the Features view."""
        self.param.update(feature=feature, view="features")

    def open_pair(self, pair: str, feature: int | None = None) -> None:
        """Shows a pair in the Pairs view; with `feature`, its tokens are coloured by that feature."""
        changes: dict[str, Any] = {"pair": pair, "view": "pairs"}
        if feature is not None:
            changes |= {"feature": feature, "tokens": "feature"}
        self.param.update(**changes)

    @property
    def is_steered(self) -> bool:
        """Whether a slider stands anywhere but at 1."""
        return any(multiplier != 1 for multiplier in self.steering.values())

    def steer(self, feature: int, multiplier: float | None = 1.0) -> None:
        """Puts a feature on the sliders, moves its slider, or (None) takes it off."""
        others = {one: value for one, value in self.steering.items() if one != feature}
        if multiplier is None:
            self.steering = others
        else:
            self.steering = {**self.steering, feature: float(multiplier)}

    def link(self, **changes: Any) -> str:
        """The href of a plain link within this run, e.g. `link(view="features", feature=12)`.

        Clicked, the page changes just these values in place (parts/bridge.js); opened in a new tab it shows the same
        feature or pair without this tab's filters. Escape it before it goes into HTML.
        """
        parts = [f"{URL[name].key}={_quote(URL[name].encode(value))}" for name, value in changes.items()]
        return "?" + "&".join([f"run={_quote(self.run)}", *parts])

    def _reset(self, *names: str) -> None:
        self.param.update(**{name: self.param[name].default for name in names})


@dataclass(frozen=True)
class UrlKey:
    """How one parameter stands in the query string; `decode` raises ValueError with what would be right."""

    key: str
    encode: Callable[[Any], str]
    decode: Callable[[str], Any]


def _quote(text: str) -> str:
    return quote(text, safe="~:,-_.")


def _text(value: str) -> str:
    return value


def _number(text: str) -> float | None:
    if text == "":
        return None
    try:
        value = float(text)
    except ValueError:
        raise ValueError("numbers") from None
    if not math.isfinite(value):
        raise ValueError("finite numbers")
    return value


def _whole(least: int) -> Callable[[str], int]:
    def decode(text: str) -> int:
        digits = text.removeprefix("-")
        if not (digits.isascii() and digits.isdigit() and len(digits) <= 9) or int(text) < least:
            raise ValueError(f"a whole number from {least}")
        return int(text)

    return decode


def _one_of(options: tuple[str, ...]) -> Callable[[str], str]:
    def decode(text: str) -> str:
        if text not in options:
            raise ValueError("one of " + ", ".join(options))
        return text

    return decode


def _ratio(text: str) -> float:
    value = _number(text)
    if value is None or not 0 <= value <= 0.5:
        raise ValueError("a share from 0 to 0.5")
    return value


def _flag(text: str) -> bool:
    return _one_of(("0", "1"))(text) == "1"


def format_number(value: float | None) -> str:
    """A number as it stands in a link: short, exact enough to find the same rows; '' for an open end."""
    return "" if value is None else f"{value:.6g}"


def _encode_span(bounds: Range) -> str:
    return "~".join(format_number(end) for end in bounds)


def _decode_span(text: str) -> Range:
    low, separator, high = text.partition("~")
    if not separator:
        raise ValueError("low~high")
    bounds = (_number(low), _number(high))
    if bounds[0] is not None and bounds[1] is not None and bounds[0] > bounds[1]:
        raise ValueError("low~high with low below high")
    return bounds


def _encode_ranges(ranges: Mapping[str, Range]) -> str:
    return ",".join(f"{name}:{_encode_span(bounds)}" for name, bounds in ranges.items())


def _decode_ranges(text: str) -> dict[str, Range]:
    ranges = {}
    for part in text.split(","):
        name, _, span = part.partition(":")
        if name not in FILTER_COLUMNS:
            raise ValueError("column:low~high with a column of " + ", ".join(FILTER_COLUMNS))
        ranges[name] = _decode_span(span)
    return ranges


def _encode_lasso(polygon: Polygon) -> str:
    return ",".join(f"{format_number(x)}~{format_number(y)}" for x, y in polygon)


def _decode_lasso(text: str) -> Polygon:
    points = []
    for part in text.split(","):
        x, _, y = part.partition("~")
        point = (_number(x), _number(y))
        if point[0] is None or point[1] is None:
            raise ValueError("x~y,x~y,x~y")
        points.append((point[0], point[1]))
    if not 3 <= len(points) <= 500:
        raise ValueError("3 to 500 points x~y")
    return tuple(points)


def _encode_steering(steering: Mapping[int, float]) -> str:
    return ",".join(f"{feature}:{format_number(multiplier)}" for feature, multiplier in steering.items())


def _decode_steering(text: str) -> dict[int, float]:
    found: dict[int, float] = {}
    for part in filter(None, text.split(",")):
        feature, _, value = part.partition(":")
        multiplier = _number(value)
        if multiplier is None or not STEERING_RANGE[0] <= multiplier <= STEERING_RANGE[1]:
            raise ValueError(f"feature:multiplier with multipliers from {STEERING_RANGE[0]} to {STEERING_RANGE[1]}")
        found[_whole(0)(feature)] = multiplier
    if len(found) > MOST_STEERED:
        raise ValueError(f"at most {MOST_STEERED} features")
    return found


def _flag_text(value: bool) -> str:
    return str(int(value))


URL: dict[str, UrlKey] = {
    "run": UrlKey("run", _text, _text),
    "view": UrlKey("view", _text, _one_of(VIEWS)),
    "feature": UrlKey("f", str, _whole(0)),
    "pair": UrlKey("p", _text, _text),
    "dark": UrlKey("dark", _flag_text, _flag),
    "search": UrlKey("q", _text, _text),
    "sort": UrlKey("sort", _text, _one_of(SORT_COLUMNS)),
    "descending": UrlKey("desc", _flag_text, _flag),
    "sign": UrlKey("sign", _text, _one_of(SIGNS)),
    "show_dead": UrlKey("dead", _flag_text, _flag),
    "cluster": UrlKey("cluster", str, _whole(CLUSTER_NONE)),
    "ranges": UrlKey("range", _encode_ranges, _decode_ranges),
    "lasso": UrlKey("lasso", _encode_lasso, _decode_lasso),
    "map_colour": UrlKey("map", _text, _one_of(MAP_COLOURS)),
    "slice": UrlKey("slice", _text, _text),
    "pooling": UrlKey("pool", _text, _one_of(POOLINGS)),
    "length_control": UrlKey("len", _flag_text, _flag),
    "volcano": UrlKey("axis", _text, _one_of(VOLCANO_AXES)),
    "set_name": UrlKey("set", _text, _text),
    "direction": UrlKey("dir", _text, _one_of(DIRECTIONS)),
    "action": UrlKey("act", _text, _one_of(ACTIONS)),
    "strategy": UrlKey("strategy", _text, _one_of(STRATEGIES)),
    "ratio": UrlKey("ratio", format_number, _ratio),
    "impact_domain": UrlKey("on", _text, _text),
    "steering": UrlKey("steer", _encode_steering, _decode_steering),
    "target": UrlKey("target", _text, _text),
    "present": UrlKey("present", _flag_text, _flag),
    "benchmark": UrlKey("bench", _text, _text),
    "benchmark_cell": UrlKey("cell", _text, _text),
    "benchmark_item": UrlKey("item", _text, _text),
    "pair_search": UrlKey("pq", _text, _text),
    "domain": UrlKey("domain", _text, _text),
    "category": UrlKey("category", _text, _text),
    "source": UrlKey("source", _text, _text),
    "split": UrlKey("split", _text, _text),
    "verdict": UrlKey("verdict", _text, _one_of(VERDICTS)),
    "margin": UrlKey("margin", _encode_span, _decode_span),
    "pair_sort": UrlKey("psort", _text, _one_of(PAIR_SORTS)),
    "tokens": UrlKey("tokens", _text, _one_of(TOKEN_MODES)),
}


def to_query(state: AppState) -> str:
    """The query string of a link to this state: only what differs from the defaults, '' for a fresh page."""
    parts = []
    for name, url in URL.items():
        value = getattr(state, name)
        if value != state.param[name].default:
            parts.append(f"{url.key}={_quote(url.encode(value))}")
    return "?" + "&".join(parts) if parts else ""


def from_query(query: str) -> tuple[dict[str, Any], list[str]]:
    """Reads a query string.

    Returns:
        The parameters it gives (a value for every parameter, defaults where the link is silent or wrong), and one
        sentence for each part that could not be used.
    """
    given = dict(parse_qsl(query.removeprefix("?"), keep_blank_values=True))
    if given.get("theme") == "dark":  # Panel's own word for it, which it follows whether we do or not
        given.setdefault("dark", "1")
    values, problems = {}, []
    for name, url in URL.items():
        values[name] = AppState.param[name].default
        text = given.pop(url.key, None)
        if text is None:
            continue
        try:
            values[name] = url.decode(text)
        except ValueError as error:
            problems.append(f"The link's “{url.key}={text[:60]}” was ignored: it should be {error}.")
    return values, problems


def bind_to_url(state: AppState, location: Any, check: Callable[[dict[str, Any]], list[str]]) -> None:
    """Keeps state and address bar the same: a link opens this state, each change is a link (and a step back).

    Args:
        location: any object with a watchable string parameter `search`, the query string.
        check: corrects values in place that fit the types but not the run (an unknown feature) and says so.
    """

    def apply(*_: Any) -> None:
        if location.search == to_query(state):
            return
        values, problems = from_query(location.search)
        values["run"] = values["run"] or state.run
        problems += check(values)
        state.param.update(**values)
        for problem in problems:
            state.notice(problem)

    def publish(*_: Any) -> None:
        query = to_query(state)
        if query != location.search:
            location.search = query

    apply()
    publish()
    state.param.watch(publish, list(URL))
    location.param.watch(apply, "search")
