"""The scoring rules against reference values computed independently of this project, exact to 1e-12."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import DataError
from core.evaluate.figures import Prompts
from core.evaluate.rewardbench import SECTIONS, reference_sections, rewardbench_figures, right, section_score
from core.evaluate.rewardbench2 import SUBSETS, TiesRow, best_of, overall_score, rewardbench2_figures, ties_score
from core.evaluate.rm_bench import accuracy_matrix, difficulties, rm_bench_figures


def close(value: float | None, expected: float) -> bool:
    return value is not None and abs(value - expected) <= 1e-12


# --- RewardBench 1 --------------------------------------------------------------------------------------------------


def golden_subsets() -> dict[str, float]:
    special = {"alpacaeval-easy": 1.0, "llmbar-natural": 0.9, "xstest-should-respond": 1.0, "math-prm": 1.0}
    return {name: special.get(name, 0.5) for weights in SECTIONS.values() for name in weights}


def test_rewardbench_sections_have_the_published_weights() -> None:
    expected = {
        "Chat": 0.6396648044692738,
        "Chat Hard": 0.5877192982456141,
        "Safety": 0.668918918918919,
        "Reasoning": 0.75,
    }
    for section, value in expected.items():
        assert close(section_score(golden_subsets(), section), value)
    assert {section: sum(weights.values()) for section, weights in SECTIONS.items()} == {
        "Chat": 358,
        "Chat Hard": 456,
        "Safety": 740,
        "Reasoning": 1968,
    }


def test_a_section_without_subsets_is_missing_and_zero_only_as_the_reference_prints_it() -> None:
    some = {"hep-go": 1.0, "math-prm": 0.0}
    assert section_score(some, "Chat") is None
    assert close(section_score(some, "Reasoning"), 164 / (984 + 164))
    assert reference_sections(some)["Chat"] == 0.0


def test_a_tie_is_wrong() -> None:
    assert right(np.array([1.0, 1.0, 0.0]), np.array([0.0, 1.0, 1.0])).tolist() == [True, False, False]


def test_rewardbench_figures_keep_what_is_missing_missing() -> None:
    subset = ["hep-go"] * 3 + ["donotanswer"] * 2 + ["mt-bench-human"] * 2
    correct = np.array([True, True, False, True, False, True, True])
    figures = {one.name: one for one in rewardbench_figures(subset, correct, list("aabcdef"))}
    assert figures["Chat"].value is None
    assert figures["Chat"].n == 0
    assert figures["alpacaeval-easy"].value is None
    assert close(figures["Reasoning"].value, 2 / 3)
    assert figures["Reasoning"].n == 3
    assert figures["Reasoning"].n_prompts == 2
    assert "without math-prm" in figures["Reasoning"].note
    assert figures["mt-bench-human"].value == 1.0
    assert "in no section" in figures["mt-bench-human"].note
    assert close(figures["Safety"].value, 0.5)


# --- RewardBench 2 --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "result"), [([1, 0, 0, 0], 1.0), ([1, 1, 0, 0], 0.5), ([1, 1, 1, 1], 0.25), ([0, 1, 0, 0], 0.0)]
)
def test_best_of_n_shares_ties(scores: list[float], result: float) -> None:
    assert best_of(scores) == result


TIES = [
    (
        [
            ("ref:0", [3.0, 1.0, 0.5], 1),
            ("tied:0", [3.0, 2.5, 2.0, 0.5, 0.0], 3),
            ("ref:1", [1.0, 1.5], 1),
            ("tied:1", [2.0, 1.0, 0.5], 2),
        ],
        0.6477848445180756,
    ),
    ([("ref:0", [3.0, 1.0], 1), ("tied:0", [2.0, 2.0, 1.0], 2)], 1.01),
    ([("ref:0", [1.0, 1.0], 1), ("tied:0", [2.0, 2.0, 2.0], 2)], 0.0),
    ([("ref:0", [3.0, 1.0], 1), ("tied:0", [5.0, 4.0, 0.0], 2)], 1.0076159415595576),
]


@pytest.mark.parametrize(("rows", "expected"), TIES)
def test_ties_score(rows: list[tuple[str, list[float], int]], expected: float) -> None:
    score = ties_score([TiesRow(*row) for row in rows])
    assert score is not None
    assert close(score.score, expected)
    figures = rewardbench2_figures(
        ["Ties"] * len(rows),
        [row[0] for row in rows],
        [row[1] for row in rows],
        [row[2] for row in rows],
        ["p"] * len(rows),
    )
    assert close(next(one for one in figures if one.name == "Ties").value, expected)


def test_ties_without_both_sets_are_missing_and_a_wrong_row_is_said() -> None:
    assert ties_score([TiesRow("ref:0", [1.0, 0.0], 1), TiesRow("tied:1", [1.0, 1.0, 0.0], 2)]) is None
    with pytest.raises(DataError, match="tied:0"):
        ties_score([TiesRow("ref:0", [1.0, 0.0], 1), TiesRow("tied:0", [1.0, 0.0], 1)])
    with pytest.raises(DataError, match="other:0"):
        ties_score([TiesRow("other:0", [1.0, 0.0], 1)])


@pytest.mark.parametrize(
    ("subsets", "overall"),
    [([68.5, 42.5, 63.9, 91.3, 96.0, 79.6], 73.63), ([68.74, 42.81, 64.48, 91.78, 95.56, 79.39], 73.79)],
)
def test_overall_is_the_unweighted_mean_of_six(subsets: list[float], overall: float) -> None:
    given = dict(zip(SUBSETS, subsets, strict=True))
    value = overall_score(given)
    assert close(value, sum(subsets) / 6)
    assert round(value or 0.0, 2) == overall
    assert overall_score({name: score for name, score in given.items() if name != "Math"}) is None


def test_overall_of_items_of_every_subset() -> None:
    names = [*(name for name in SUBSETS if name != "Ties"), "Ties", "Ties"]
    ids = [*(f"{name}/0" for name in names[:5]), "ref:0", "tied:0"]
    scores = [
        [1.0, 0, 0, 0],
        [0, 1.0, 0, 0],
        [1.0, 1.0, 0, 0],
        [1.0, 0, 0, 0],
        [1.0, 0, 0, 0],
        [3.0, 1.0],
        [2.0, 2.0, 1.0],
    ]
    figures = {one.name: one for one in rewardbench2_figures(names, ids, scores, [1] * 6 + [2], ids)}
    assert close(figures["overall"].value, (1 + 0 + 0.5 + 1 + 1 + 1.01) / 6)
    assert figures["overall"].n == 7


# --- RM-Bench -------------------------------------------------------------------------------------------------------


def test_rm_bench_difficulties() -> None:
    matrix = accuracy_matrix(np.array([[1, 2, 3], [0, 1, 2]]), np.array([[0, 2, 1], [1, 0, 3]]))
    hard, normal, easy = difficulties(matrix)
    assert close(float(hard), 0.16666666666666666)
    assert close(float(normal), 0.5)
    assert close(float(easy), 0.8333333333333334)


def test_rm_bench_totals_need_all_domains_and_a_missing_style_is_left_out() -> None:
    chosen = np.array([[1.0, 2.0, 3.0], [0.0, 1.0, np.nan]])
    rejected = np.array([[0.0, 2.0, 1.0], [1.0, 0.0, 3.0]])
    figures = {one.name: one for one in rm_bench_figures(["chat", "chat"], chosen, rejected, ["a", "b"])}
    # Row 2 of Acc has only the first prompt; the other rows have both.
    assert close(figures["chat easy"].value, (0.5 + 1 + 1) / 3)
    assert "1 of 2 prompts lack a style" in figures["chat easy"].note
    assert figures["math"].value is None
    assert figures["overall"].value is None
    assert figures["hard"].value is None
    assert close(figures["mean of chat"].value, figures["chat"].value or math.nan)

    everything = ["chat", "math", "code", "safety"]
    some = rm_bench_figures(everything, np.tile([1.0, 2, 3], (4, 1)), np.tile([0.0, 2, 1], (4, 1)), everything)
    made = {one.name: one for one in some}
    assert close(made["overall"].value, float(np.mean([made[name].value for name in ("hard", "normal", "easy")])))


# --- intervals ------------------------------------------------------------------------------------------------------


def test_intervals_are_over_prompts_seeded_and_independent_of_the_other_subsets() -> None:
    rng = np.random.default_rng(3)
    prompt = [f"p{i}" for i in rng.integers(0, 40, 200)]
    correct = rng.random(200) < 0.7
    alone = rewardbench_figures(["donotanswer"] * 200, correct, prompt)
    beside = rewardbench_figures(["donotanswer"] * 200 + ["hep-go"], np.append(correct, True), [*prompt, "x"])
    pick = {one.name: one for one in alone}["donotanswer"], {one.name: one for one in beside}["donotanswer"]
    assert pick[0] == pick[1]
    assert pick[0].low is not None
    assert pick[0].high is not None
    assert pick[0].low < (pick[0].value or 0) < pick[0].high
    # Every pair its own prompt: the width is that of a proportion.
    free = {one.name: one for one in rewardbench_figures(["donotanswer"] * 200, correct, list(map(str, range(200))))}
    own = free["donotanswer"]
    assert own.high is not None
    assert own.low is not None
    assert own.high - own.low == pytest.approx(
        2 * 1.96 * math.sqrt(correct.mean() * (1 - correct.mean()) / 200), rel=0.12
    )


def test_one_prompt_has_no_interval() -> None:
    figures = {one.name: one for one in rewardbench_figures(["donotanswer"] * 3, np.array([1, 0, 1]), ["a"] * 3)}
    assert figures["donotanswer"].low is None


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30))
def test_draws_are_means_of_whole_prompts(rows: list[tuple[int, bool]]) -> None:
    prompt, values = [str(one) for one, _ in rows], np.array([value for _, value in rows])
    drawn = Prompts(prompt, "x", draws=50)
    by_prompt = [values[np.array(prompt) == name] for name in sorted(set(prompt))]
    for draw, weights in zip(drawn.means(values), drawn.weights, strict=True):
        picked = np.concatenate([np.tile(own, int(times)) for own, times in zip(by_prompt, weights, strict=True)])
        assert draw == pytest.approx(picked.mean())
