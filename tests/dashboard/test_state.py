"""The shared state and its link."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import param
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.store.feature_queries import FILTER_COLUMNS, SORT_COLUMNS
from dashboard.state import URL, AppState, bind_to_url, from_query, to_query

number = st.floats(-1e6, 1e6).map(lambda value: float(f"{value:.6g}"))
end = st.none() | number
span = st.tuples(end, end).map(
    lambda pair: pair if None in pair or pair[0] <= pair[1] else (pair[1], pair[0])  # type: ignore[operator]
)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
states = st.fixed_dictionaries(
    {
        "run": text,
        "view": st.sampled_from(["features", "pairs"]),
        "feature": st.none() | st.integers(0, 10**8),
        "pair": st.none() | text,
        "dark": st.booleans(),
        "search": text,
        "sort": st.sampled_from(SORT_COLUMNS),
        "descending": st.booleans(),
        "sign": st.sampled_from(["any", "raises", "lowers"]),
        "show_dead": st.booleans(),
        "cluster": st.none() | st.integers(-1, 99),
        "ranges": st.dictionaries(st.sampled_from(FILTER_COLUMNS), span, max_size=3),
        "lasso": st.just(()) | st.lists(st.tuples(number, number), min_size=3, max_size=8).map(tuple),
        "map_colour": st.sampled_from(["weight", "cluster"]),
        "steering": st.dictionaries(st.integers(0, 10**8), st.integers(-400, 400).map(lambda n: n / 20), max_size=5),
        "target": text,
        "present": st.booleans(),
        "benchmark": text,
        "benchmark_item": st.none() | text,
        "pair_search": text,
        "domain": st.none() | text,
        "category": st.none() | text,
        "source": st.none() | text,
        "split": st.none() | text,
        "verdict": st.sampled_from(["any", "right", "wrong"]),
        "margin": span,
        "tokens": st.sampled_from(["feature", "total"]),
    }
)


class Address(param.Parameterized):
    """Stands for the address bar."""

    search = param.String("")


@given(states)
def test_a_link_opens_the_state_it_was_copied_from(values: dict[str, Any]) -> None:
    query = to_query(AppState(**values))
    read, problems = from_query(query)
    assert not problems
    assert {name: read[name] for name in values} == values
    assert query.isascii()


def test_a_fresh_state_needs_no_query_and_keys_are_short_and_unique() -> None:
    assert to_query(AppState()) == ""
    keys = [url.key for url in URL.values()]
    assert len(set(keys)) == len(keys)
    assert max(map(len, keys)) <= 8


@pytest.mark.parametrize(
    "query",
    [
        "?f=abc", "?f=-1", "?f=1e3", "?f=99999999999999", "?view=settings", "?range=weight", "?range=secret:1~2",
        "?range=weight:2~1", "?range=weight:nan~", "?lasso=1~2", "?lasso=1~2,3", "?sort=DROP", "?desc=yes",
        "?cluster=-2", "?margin=x~y", "?tokens=", "?steer=7", "?steer=7:nan", "?steer=7:1e9", "?steer=x:1", "?present=yes",
    ],
)  # fmt: skip
def test_what_a_link_gets_wrong_is_left_out_and_said(query: str) -> None:
    values, problems = from_query(query)
    assert all(values[name] == AppState.param[name].default for name in URL)
    assert len(problems) == 1
    assert "was ignored" in problems[0]


@given(st.text(max_size=80))
def test_no_query_is_an_exception(query: str) -> None:
    values, _ = from_query("?" + query)
    AppState(**values)


def test_state_and_address_follow_each_other() -> None:
    state, address = AppState(run="one"), Address(search="?f=7&q=cat")
    bind_to_url(state, address, lambda values: [])
    assert (state.feature, state.search, state.run) == (7, "cat", "one")
    assert address.search == "?run=one&f=7&q=cat"
    state.set_range("density", 0.01, None)
    assert address.search == "?run=one&f=7&q=cat&range=density:0.01~"
    address.search = "?run=one&f=8"
    assert (state.feature, state.search, state.ranges) == (8, "", {})


def test_what_the_run_does_not_have_is_corrected_with_a_notice() -> None:
    def check(values: dict[str, Any]) -> list[str]:
        values["feature"] = None
        return ["no such feature"]

    state, address = AppState(), Address(search="?f=7")
    bind_to_url(state, address, check)
    assert state.feature is None
    assert state.notices == ["no such feature"]
    assert address.search == ""


def test_links_change_only_what_they_name() -> None:
    state = AppState(run="a b", search="cat")
    assert state.link(view="features", feature=3) == "?run=a%20b&view=features&f=3"


def test_clearing_filters_keeps_the_selection() -> None:
    state = AppState(feature=3, search="cat", sign="raises", lasso=((0, 0), (1, 0), (1, 1)), domain="chat")
    state.clear_feature_filters()
    assert (state.feature, state.search, state.sign, state.lasso, state.domain) == (3, "", "any", (), "chat")
    state.clear_pair_filters()
    assert state.domain is None


def test_ranges_are_set_and_removed_one_by_one() -> None:
    state = AppState()
    state.set_range("weight", None, 0.5)
    state.set_range("density", 0.1, 0.2)
    state.set_range("weight", None, None)
    assert state.ranges == {"density": (0.1, 0.2)}


def test_sliders_move_one_by_one_and_the_hand_follows_at_rest() -> None:
    state = AppState()
    state.steer(7)
    assert (state.steering, state.is_steered) == ({7: 1.0}, False)
    state.steer(9, 0)
    state.live_steering = {7: 2.5, 9: 0.0}
    assert state.steering == {7: 1.0, 9: 0.0}
    state.steer(7, 2)
    assert state.live_steering == state.steering == {7: 2.0, 9: 0.0}
    assert state.is_steered
    state.steer(7, None)
    assert to_query(state) == "?steer=9:0"


def test_the_state_knows_no_widget_and_the_page_no_torch() -> None:
    code = (
        "import sys; import dashboard.state; assert not [m for m in sys.modules if m.split('.')[0] in ('panel', 'bokeh')];"
        "import dashboard.app, dashboard.views.pairs;"
        "assert not [m for m in sys.modules if m.split('.')[0] in ('torch', 'transformers', 'sklearn', 'umap', 'datasets')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
