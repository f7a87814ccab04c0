"""What a feature's card says."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import parse_qs

import polars as pl
import pytest

from core.features.labels.merged import feature_labels
from core.store.reader import FeatureCard, RunReader
from core.store.review import ReviewStore
from dashboard.parts.feature_card import BANDS, card_html
from dashboard.state import AppState
from tests.dashboard.conftest import assert_harmless, elements
from tests.synthetic_run import HOSTILE


def html_of(reader: RunReader, feature: int, full: bool = True) -> str:
    card = reader.card(feature)
    assert card is not None
    return card_html(card, AppState(run=reader.name, feature=feature), len(reader.features), full)


def words(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


def test_it_states_weight_sign_rank_and_every_figure(plain: RunReader) -> None:
    card = plain.card(12)
    assert card is not None
    text = words(html_of(plain, 12))
    says = "raises the reward" if card.figures["weight"] > 0 else "lowers the reward"  # type: ignore[operator]
    assert says in text
    assert f"rank {card.figures['weight_rank']} of 150" in text
    for name in ("density", "max", "mean", "answers", "mean contrib.", "length corr."):
        assert name in text
    assert "not normalised" in text


def test_bands_come_in_order_with_interval_and_share(plain: RunReader) -> None:
    html = html_of(plain, 12)
    places = [html.index(title) for title in BANDS.values() if title in html]
    assert places == sorted(places)
    card = plain.card(12)
    assert card is not None
    assert len(re.findall(r"Interval .*? \(contains 25 % of its active answers\)", html)) == 4


def test_every_context_opens_its_pair_at_this_feature(plain: RunReader) -> None:
    card = plain.card(12)
    assert card is not None
    links = [
        attributes["href"] for tag, attributes in elements(html_of(plain, 12)) if attributes.get("class") == "open"
    ]
    assert len(links) == len(card.contexts)
    for link in links:
        query = parse_qs(str(link)[1:])
        assert query["view"] == ["pairs"]
        assert query["f"] == ["12"]
        assert query["p"][0] in set(card.contexts["pair_id"])


def test_a_few_of_each_band_at_first_and_all_on_request(plain: RunReader) -> None:
    brief, full = html_of(plain, 12, full=False), html_of(plain, 12, full=True)
    assert brief.count("class='context'") < full.count("class='context'")
    assert " of " in words(brief)


def with_labels(reader: RunReader, store: ReviewStore, feature: int) -> str:
    card = reader.card(feature)
    assert card is not None
    labels = feature_labels(card.labels, reader, store, feature)
    return card_html(card, AppState(run=reader.name, feature=feature), len(reader.features), True, labels)


def test_labels_of_an_endpoint_stand_below_with_ratings_and_both_scores(plain: RunReader, tmp_path: Path) -> None:
    store = ReviewStore(tmp_path)
    row = {"sae": plain.manifest.sae["sha256"], "run_id": "r", "feature_id": 12, "source": "some-model"}
    scores = {"detection_score": 0.9, "detection_low": 0.8, "detection_high": 0.95, "detection_n": 40}
    store.save_labels(
        [{**row, "text": "refusals", "safety_rating": 5, **scores, "problem": "no monosemanticity in it"}]
    )
    text = words(with_labels(plain, store, 12))
    assert text.index("label by offline:") < text.index("label by some-model:")
    assert (
        "“refusals” label by some-model: safety 5 of 5 · monosemanticity n/a · detection 0.90 [0.80, 0.95], n = 40"
        in text
    )
    assert "fuzzing n/a · missing : no monosemanticity in it" in text
    assert "safety" not in words(html_of(plain, 12)).split("label by")[1].split("Activation")[0]  # a rule rates nothing


def test_a_reply_that_could_not_be_used_is_missing_and_says_why(plain: RunReader, tmp_path: Path) -> None:
    store = ReviewStore(tmp_path)
    row = {"sae": plain.manifest.sae["sha256"], "run_id": "r", "feature_id": 12, "source": HOSTILE}
    store.save_labels([{**row, "text": None, "problem": f"the reply is no JSON: {HOSTILE}"}])
    html = with_labels(plain, store, 12)
    assert "missing : the reply is no JSON" in words(html)
    assert "of 5" not in html
    assert_harmless(html)


def test_neighbours_are_links_to_their_cards(plain: RunReader) -> None:
    card = plain.card(12)
    assert card is not None
    links = {str(attributes.get("href")) for tag, attributes in elements(html_of(plain, 12)) if tag == "a"}
    for other in card.neighbours["other_id"]:
        assert f"?run=plain&view=features&f={other}" in links


def test_rejected_answers_of_safety_domains_are_blurred_and_no_others(plain: RunReader) -> None:
    card = plain.card(12)
    assert card is not None
    expected = card.contexts.filter((pl.col("side") == "rejected") & pl.col("domain").is_in(["privacy", "weapons"]))
    assert html_of(plain, 12).count("rs-blur") == len(expected)


def test_a_dead_feature_is_told_from_a_missing_figure(plain: RunReader) -> None:
    dead = plain.features.frame.filter(~pl.col("alive"))["feature_id"][0]
    text = words(html_of(plain, dead))
    assert "never active in this run" in text
    assert "No histogram: it was never active" in text
    assert "No contexts" in text
    assert "n/a" in text


@pytest.mark.parametrize("feature", [1, 3, 12, 33])
def test_hostile_text_stays_text(hostile: RunReader, feature: int) -> None:
    html = html_of(hostile, feature)
    assert "onerror" in words(html)
    assert_harmless(html)


def test_missing_weight_rank_neighbours_and_pair_do_not_break_it(plain: RunReader) -> None:
    card = plain.card(12)
    assert card is not None
    bare = FeatureCard(
        figures={**card.figures, "length_corr": float("nan"), "cluster_name": None, "label": None},
        labels=card.labels.head(0),
        histogram=None,
        bands=card.bands.head(0),
        contexts=card.contexts.with_columns(
            pl.lit(None, pl.String).alias("pair_id"), pl.lit(None, pl.String).alias("domain")
        ),
        neighbours=card.neighbours.head(0),
    )
    text = words(card_html(bare, AppState(feature=12), 150, full=True))
    assert "No label" in text
    assert "None stored" in text
    assert "open pair" not in text
