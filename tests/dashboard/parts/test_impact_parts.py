"""What the Impact view shows, without a browser: points, drawing, words, why a pair ranks, exports."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.impact.inputs import load_inputs
from core.impact.plans import make_plan
from core.impact.preview import IMPACT_SCHEMA
from core.impact.strategies import rank_pairs, set_score
from core.store.reader import RunReader
from core.store.sets import FeatureSet
from dashboard.parts import impact_words as words
from dashboard.parts.impact_curve import ALL, curve_content, domains_of, now_content
from dashboard.parts.impact_points import KnownPoints, key_of, preview_errors, ratios_of, set_key, wanted
from dashboard.parts.open_pair import open_pair
from dashboard.parts.pair_change import other_why_html, place_html, score_parts, set_values, set_why_html
from dashboard.parts.plan_export import export_choices, plan_command, retrain_command
from dashboard.parts.plan_pairs import pair_places, ranked_rows
from dashboard.parts.refits import pairs_changed, stored_points
from dashboard.sets import default_set
from tests.dashboard.conftest import assert_harmless, elements
from tests.synthetic_run import HOSTILE

NAMES = ("set", "random", "margin", "loss", "length")


def row(
    strategy: str, ratio: float, *, seed: int = 0, domain: str = ALL, accuracy: float | None = 0.8, **more: object
) -> dict[str, object]:
    """A row of the table `impact`."""
    facts: dict[str, object] = dict.fromkeys(IMPACT_SCHEMA)
    facts |= {"plan": f"{strategy}-{ratio}-{seed}", "direction": "poison", "action": "flip", "strategy": strategy}
    facts |= {"ratio": ratio, "seed": seed, "domain": domain, "n": 40, "n_prompts": 20, "kind": "preview"}
    if accuracy is not None:
        facts |= {
            "accuracy": accuracy,
            "accuracy_low": accuracy - 0.1,
            "accuracy_high": accuracy + 0.1,
            "accuracy_change": accuracy - 0.9,
        }
        facts |= {
            "change_low": accuracy - 0.95,
            "change_high": accuracy - 0.85,
            "mean_margin": 2 * accuracy,
            "margin_low": 1.0,
            "margin_high": 2.0,
        }
    return facts | more


def frame(*rows: dict[str, object]) -> pl.DataFrame:
    return pl.DataFrame(list(rows), schema=IMPACT_SCHEMA)


@pytest.fixture
def points() -> KnownPoints:
    known = KnownPoints()
    rows = [
        row("none", 0.0, accuracy=0.9),
        row("none", 0.0, domain="chat", accuracy=0.7),
        row("none", 0.0, domain="privacy", accuracy=None),
    ]
    for ratio in (0.05, 0.1):
        rows += [row("set", ratio, accuracy=0.9 - 2 * ratio), row("margin", ratio, accuracy=0.9 - ratio)]
        rows += [row("random", ratio, seed=seed, accuracy=0.88 - 0.01 * seed) for seed in range(3)]
    known.add(frame(*rows), "one set")
    return known


# ------------------------------------------------------------------------ points


def test_a_curve_starts_at_the_unchanged_head_and_another_set_has_none(points: KnownPoints) -> None:
    assert points.line("set", "poison", "flip", "one set", ALL, "accuracy") == [
        (0.0, 0.9, 0.8, 1.0),
        (0.05, pytest.approx(0.8), pytest.approx(0.7), pytest.approx(0.9)),
        (0.1, pytest.approx(0.7), pytest.approx(0.6), pytest.approx(0.8)),
    ]
    assert len(points.line("set", "poison", "flip", "another", ALL, "accuracy")) == 1
    assert len(points.line("set", "poison", "drop", "one set", ALL, "accuracy")) == 1
    assert len(points.line("margin", "poison", "flip", "another", ALL, "accuracy")) == 3  # baselines know no set


def test_random_plans_make_a_mean_and_a_band(points: KnownPoints) -> None:
    line = points.line("random", "poison", "flip", "", ALL, "accuracy")
    assert line[1][1] == pytest.approx(0.87)
    assert math.isnan(line[1][2])
    assert points.band("poison", "flip", ALL, "accuracy")[1] == (0.05, pytest.approx(0.86), pytest.approx(0.88))
    assert points.seeds("poison", "flip") == 3


def test_missing_is_never_a_zero(points: KnownPoints) -> None:
    assert math.isnan(points.line("set", "poison", "flip", "one set", "privacy", "accuracy")[0][1])
    content = content_of(points)
    privacy = next(domain for domain in content["domains"] if domain["name"] == "privacy")
    assert privacy["unchanged"] is None
    assert privacy["text"] == "n/a"


def test_what_is_wanted_starts_with_the_chosen_line_and_asks_for_no_set_where_there_is_none() -> None:
    keys = wanted("loss", "poison", "flip", [0.05, 0.1], [0, 1], "members")
    assert [key.strategy for key in keys[:2]] == ["loss", "loss"]
    assert [key.seed for key in keys[-4:]] == [0, 0, 1, 1]
    assert len(keys) == len(set(keys)) == 2 * (4 + 2)
    assert {key.strategy for key in wanted("set", "poison", "flip", [0.05], [0], "")} == {
        "random",
        "margin",
        "loss",
        "length",
    }


def test_known_points_are_not_asked_for_again(points: KnownPoints) -> None:
    keys = wanted("set", "poison", "flip", [0.05, 0.2], [0], "one set")
    missing = points.missing(keys)
    assert key_of("set", "poison", "flip", 0.05, 0, "one set") not in missing
    assert key_of("set", "poison", "flip", 0.2, 0, "one set") in missing
    assert points.get(key_of("set", "poison", "flip", 0.0, 0, "one set")) == points.unchanged


def test_the_runs_own_ratios_are_part_of_the_curve() -> None:
    assert ratios_of({}, "poison") == [0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2]
    assert ratios_of({"impact": {"denoise": [0.3]}}, "denoise") == [0.1, 0.15, 0.2, 0.3]


@given(st.integers(1, 3000), st.integers(0, 500))
def test_the_list_ends_where_the_plan_does(n_train: int, thousandths: int) -> None:
    ratio = thousandths / 1000
    assert pairs_changed(n_train, ratio) == n_train * thousandths // 1000


def test_the_count_is_the_plans_own(plain: RunReader) -> None:
    inputs = load_inputs(plain)
    for ratio in (0.0, 0.05, 0.1, 0.29, 0.5):
        plan = make_plan(inputs, strategy="length", direction="poison", action="flip", ratio=ratio)
        assert pairs_changed(plan.n_train, ratio) == len(plan.edits)


# ----------------------------------------------------------------- retrained points


def retrained(
    plan: str, domain: str, change: float, accuracy: float, scope: str = "lora", strategy: str = "set"
) -> dict[str, object]:
    return {
        "plan": plan,
        "domain": domain,
        "accuracy_change": change,
        "accuracy": accuracy,
        "kind": "retrained",
        "scope": scope,
        "strategy": strategy,
    }


def test_how_far_previews_are_off_is_measured_per_scope_with_its_n() -> None:
    rows = pl.DataFrame(
        [
            retrained("none", "all", 0.0, 0.7, strategy="none"),
            retrained("a", "all", 0.5, 0.5),
            retrained("a", "chat", -0.10, 0.60),
            retrained("a", "privacy", -0.20, 0.50),
            retrained("b", "chat", -0.05, 0.65, scope="head"),
            retrained("unknown", "chat", -0.9, 0.1),
        ]
    )
    previews = {("a", "chat"): row("set", 0.05, accuracy=0.7, accuracy_change=-0.06), ("a", "privacy"): row("set", 0.05, accuracy=0.5, accuracy_change=-0.3), ("b", "chat"): row("set", 0.05, accuracy=0.65, accuracy_change=None)}  # fmt: skip
    lora, head = preview_errors(rows, previews)
    assert (lora.scope, lora.n, lora.plans) == ("lora", 2, 1)
    assert lora.change == pytest.approx((0.04 + 0.10) / 2)
    assert lora.accuracy == pytest.approx((0.10 + 0.0) / 2)
    assert (head.change, head.accuracy) == (None, pytest.approx(0.0))
    text = words.errors_html([lora, head], 3, "")
    assert "mean absolute error of the accuracy change <b>7.0 points</b>" in text
    assert "n = 2 points of 1 plan" in text
    assert "1 retrained without a preview" in text


def test_without_a_retrained_point_the_exact_command_is_given() -> None:
    text = words.errors_html([], 0, retrain_command("my run"))
    assert "No retrained point yet" in text
    assert "rewardscope retrain &#x27;my run&#x27; --plan plan.json --scope lora" in text
    assert "none with a preview" in words.errors_html([], 2, "")


def test_stored_previews_count_for_the_set_they_were_made_with() -> None:
    rows = pl.DataFrame(
        [{"kind": "preview", "strategy": "set", "set_name": "mine", "set_version": version} for version in (1, 2)]
        + [{"kind": "preview", "strategy": "margin", "set_name": None, "set_version": None}]
        + [{"kind": "retrained", "strategy": "set", "set_name": "mine", "set_version": 2}]
    )
    mine = FeatureSet("mine", (1,), (2,), "sae", version=2)
    assert stored_points(rows, mine)["set_version"].to_list() == [2, None]
    assert stored_points(rows, None)["strategy"].to_list() == ["margin"]


# ---------------------------------------------------------------------- drawing


def content_of(points: KnownPoints, **changes: object) -> dict:
    choice = {
        "strategy": "set",
        "direction": "poison",
        "action": "flip",
        "members": "one set",
        "measure": "accuracy",
        "big": ALL,
        "limit": 0.2,
    }
    return curve_content(points, **(choice | changes))  # type: ignore[arg-type]


def test_the_drawing_has_the_chosen_line_on_top_and_the_domains_all_first(points: KnownPoints) -> None:
    content = content_of(points)
    assert [domain["name"] for domain in content["domains"]] == domains_of(points) == [ALL, "chat", "privacy"]
    lines = content["domains"][0]["lines"]
    assert [line["key"] for line in lines] == ["random", "margin", "set"]
    assert [line["main"] for line in lines] == [False, False, True]
    assert lines[0]["name"] == "random, 3 seeds"
    assert lines[0]["points"][1][2:] == [None, None]
    assert "flipped" in content["x_title"]


def test_retrained_points_are_told_apart_in_words(points: KnownPoints) -> None:
    real = row("set", 0.05, accuracy=0.75, kind="retrained", scope="lora")
    base = row("none", 0.0, accuracy=0.85, kind="retrained", scope="lora")
    found = content_of(points, retrained=[real, base])["domains"][0]["retrained"]
    assert found[0]["said"] == "Retrained (LoRA), 5 % flipped by this set: 75.0 % (65.0–85.0), n = 40"
    assert "unchanged pairs" in found[1]["said"]
    assert found[0]["main"]


def test_the_point_at_the_slider_has_its_interval_and_is_marked_when_it_is_sure() -> None:
    rows = {
        ALL: row("set", 0.05, accuracy=0.8),
        "chat": row("set", 0.05, domain="chat", accuracy=0.95, change_low=-0.1, change_high=0.2),
    }
    now = now_content(rows, 0.05, "accuracy", "done", ALL)
    assert now["said"] == "5 % → 80.0 % (70.0–90.0)"
    assert now["values"][ALL]["change"] == "−10.0 pts"
    assert now["values"][ALL]["sure"]
    assert not now["values"]["chat"]["sure"]
    assert now_content(None, 0.123, "accuracy", "computing", ALL)["said"] == "12.3 % · refitting …"
    assert now_content(rows, 0.05, "margin", "done", ALL)["values"][ALL]["text"] == "+1.60"


# ------------------------------------------------------------------------ words


def test_it_always_says_what_a_preview_is() -> None:
    for kind in ("head", "classifier"):
        assert "head refit, not a retrain" in words.honest_html(kind)
    assert "scalar head on cached final states" in words.honest_html("classifier")


def test_the_point_in_words_has_n_and_intervals() -> None:
    text = words.point_html(row("set", 0.05, accuracy=0.8), 0.05, 54, "flip", "chat", "accuracy")
    assert "At <b>5 %</b> (54 pairs flipped)" in text
    assert "of chat <b>80.0 %</b> (70.0–90.0), <b>−10.0 pts</b>" in text
    assert "n = 40 pairs of 20 prompts" in text
    assert "no point yet" in words.point_html(None, 0.05, None, "drop", ALL, "accuracy")


def test_every_drawn_figure_stands_in_the_table(points: KnownPoints) -> None:
    table = words.table_html(points, ("set", "poison", "flip"), "one set", ALL, "accuracy")
    assert sum(tag == "tr" for tag, _ in elements(table)) == 1 + 1 + 2 * (2 + 3)
    assert "random, seed 2" in table
    assert "80.0 %" in table


def test_no_words_from_data_are_markup(points: KnownPoints) -> None:
    points.add(frame(row("none", 0.0, domain=HOSTILE), row("set", 0.05, domain=HOSTILE)), "one set")
    one = FeatureSet(HOSTILE[:79], (1,), (2,), "sae", version=1)
    for html in (
        words.heading_html(HOSTILE, points.unchanged[HOSTILE]),
        words.point_html(points.unchanged[HOSTILE], 0.05, 3, "flip", HOSTILE, "accuracy"),
        words.table_html(points, ("set", "poison", "flip"), "one set", HOSTILE, "accuracy"),
        words.failed_html({"point": HOSTILE, "export": HOSTILE}),
        words.no_set_html(HOSTILE),
        words.errors_html([], 0, plan_command(HOSTILE, "set", "poison", "flip", 0.05, one)),
        set_why_html([], None, {}, lambda _: "?", HOSTILE),
        other_why_html("margin", 1.0, HOSTILE, {"chosen": [1], "rejected": [2]}),
    ):
        assert_harmless(html)


# ----------------------------------------------------------------- why a pair ranks


@pytest.fixture
def safety(plain: RunReader) -> FeatureSet:
    return default_set(plain)


def test_the_parts_of_a_pair_score_sum_to_what_the_plan_ranked_by(plain: RunReader, safety: FeatureSet) -> None:
    scores = set_score(load_inputs(plain), safety)
    seen = 0
    for index in range(0, 40, 3):
        pair = open_pair(plain, f"pair-{index:03d}")
        assert pair is not None
        rows = {side: [answer.row for answer in answers] for side, answers in pair.answers.items()}
        parts = score_parts(pair.activations, rows, safety)
        assert sum(part.difference for part in parts) == pytest.approx(scores[index], abs=1e-5)
        assert [abs(part.difference) for part in parts] == sorted(
            (abs(part.difference) for part in parts), reverse=True
        )
        assert all(part.sign == safety.sign(part.feature) for part in parts)
        seen += len(parts)
    assert seen


def test_tokens_show_positive_activations_of_both_sides_only() -> None:
    features = np.array([[0, 1], [2, 3]], np.uint16)
    values = np.array([[2.0, 1.0], [5.0, -3.0]], np.float32)
    signs = np.array([1.0, -1.0, 0.0, 1.0])
    assert set_values(features, values, signs).tolist() == [1.0, 0.0]


def test_a_score_that_does_not_add_up_is_said(plain: RunReader, safety: FeatureSet) -> None:
    pair = open_pair(plain, "pair-001")
    assert pair is not None
    rows = {side: [answer.row for answer in answers] for side, answers in pair.answers.items()}
    parts = score_parts(pair.activations, rows, safety)
    total = sum(part.difference for part in parts)
    link = "?view=features&f={}".format
    assert "These parts sum to" not in set_why_html(parts, total, {}, link, "pair score")
    assert "These parts sum to" in set_why_html(parts, total + 1, {}, link, "pair score")
    assert "is active at a sentence end" in set_why_html([], 0.0, {}, link, "pair score")


def test_baselines_say_their_figure_in_words() -> None:
    lengths = {"chosen": [40], "rejected": [10, 12]}
    assert "Drawn by lot" in other_why_html("random", 0.2, "", lengths)
    assert "+1.50" in other_why_html("margin", 1.5, "", lengths)
    assert "97.0 %" in other_why_html("loss", 0.97, "", lengths)
    assert "Chosen <b>40</b> tokens, rejected <b>10 and 12</b>" in other_why_html("length", 1.3, "", lengths)
    assert "no figure" in other_why_html("margin", float("nan"), "", lengths)


def test_what_happens_to_a_pair_depends_on_its_rank() -> None:
    assert "rejected answer becomes the chosen one" in place_html(3, 10, 100, "poison", "flip")
    assert "left out" in place_html(10, 10, 100, "denoise", "drop")
    assert "Not changed at this ratio" in place_html(11, 10, 100, "poison", "flip")
    assert "Plans change training pairs only" in place_html(None, 10, 100, "poison", "flip")


def test_rows_follow_the_ranking(plain: RunReader, safety: FeatureSet) -> None:
    ranked = rank_pairs(load_inputs(plain), "set", feature_set=safety, direction="poison")
    rows = ranked_rows(pair_places(plain), ranked.pair_index, ranked.score)
    assert rows["rank"].tolist() == list(range(1, len(ranked.pair_index) + 1))
    assert rows["pair_id"].tolist() == [f"pair-{index:03d}" for index in ranked.pair_index]
    shown = [float(text.replace("−", "-")) for text in rows["score"]]
    assert shown == sorted(shown, reverse=True)


# ---------------------------------------------------------------------- exports


def test_poisoned_data_is_named_so_before_it_is_saved() -> None:
    assert [label for _, label, danger in export_choices("poison") if danger] == [
        "POISONED data (Parquet)",
        "POISONED data (JSONL)",
    ]
    assert not any(danger or "POISON" in label for _, label, danger in export_choices("denoise"))


def test_the_command_names_the_saved_set_and_needs_none_for_the_default() -> None:
    saved = FeatureSet("my set", (1,), (2,), "sae", version=3)
    assert plan_command("demo", "set", "poison", "flip", 0.05, saved) == (
        "rewardscope plan demo --strategy set --set 'my set@3' --direction poison --action flip --ratio 0.05 --output plan.json"
    )
    default = FeatureSet("top by |s|", (1,), (2,), "sae")
    assert "--set" not in plan_command("demo", "set", "poison", "flip", 0.05, default)
    assert plan_command("demo", "set", "poison", "flip", 0.05, None) == ""
    assert "--set" not in plan_command("demo", "margin", "denoise", "drop", 0.1, saved)


def test_sets_with_the_same_members_share_their_points() -> None:
    assert set_key(FeatureSet("a", (1, 2), (3,), "s")) == set_key(FeatureSet("b", (2, 1), (3,), "s", version=4))
    assert set_key(FeatureSet("a", (1, 2), (3,), "s")) != set_key(FeatureSet("a", (1,), (2, 3), "s"))
    assert set_key(None) == ""
