import dataclasses
import hashlib

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from core.features.entries import entries_by_feature, peak_tokens
from core.features.labels import offline
from core.features.labels.accuracy import balanced_accuracy, wilson
from core.features.labels.marks import MOVED_AFTER, MOVED_BEFORE, moved_marks
from core.features.labels.offline import label_table, quoted
from core.features.pieces import token_pieces
from core.features.samples import Half
from tests.core.features.synthetic import END_TOKEN, SyntheticRun, dense, random_answers, synthetic_run

SORRY, DIGITS, LENGTH, END, AFTER, START, TWO, RARE, OFTEN, DEAD = 0, 1, 2, 3, 4, 5, 6, 7, 8, 10
NOISE = range(40, 64)


@pytest.fixture(scope="module")
def run():
    rng = np.random.default_rng(11)
    answers = random_answers(300, rng, extra=("sorry", "17", "8", "how to bake"))
    answers[0] = ("A zebra and a zebra walk by the zebra.", "No animals here.")
    return synthetic_run(
        answers,
        {
            SORRY: lambda t, i: 1.0 + i / 50 if t[i].lower() == "sorry" else 0,
            DIGITS: lambda t, i: 0.9 * t[i].isdigit(),
            LENGTH: lambda t, i: len(t) / 100,
            END: lambda t, i: 0.8 * (t[i] == END_TOKEN),
            AFTER: lambda t, i: 0.7 * (i > 1 and t[i - 2 : i] == ["how", "to"]),
            START: lambda t, i: 0.6 * (i == 0),
            TWO: lambda t, i: 1.1 * (t[i] in {"lantern", "orange", "winter"}),
            RARE: lambda t, i: 2.0 * (t[i] == "zebra"),
            OFTEN: lambda t, i: 0.55 * (t[i] == "river" and len(t) % 3 > 0),
        },
        latents=64,
        k=12,
        filler=NOISE,
    )


def labelled(run: SyntheticRun, seed: int = 0) -> pl.DataFrame:
    return label_table(run.arrays, run.pairs, run.responses, token_pieces(run.arrays, run.responses), seed)


@pytest.fixture(scope="module")
def table(run):
    return labelled(run)


def chooses(run: SyntheticRun) -> np.ndarray:
    """Which answers choose labels, by the documented rule."""
    first = [hashlib.sha256(prompt.encode()).digest()[0] % 2 == 0 for prompt in run.pairs["prompt_id"]]
    return np.repeat(first, 2)


def test_columns_are_those_of_the_schema(table):
    assert table.schema == {
        "feature_id": pl.UInt32,
        "source": pl.String,
        "text": pl.String,
        "safety_rating": pl.UInt8,
        "detection_score": pl.Float64,
        "detection_low": pl.Float64,
        "detection_high": pl.Float64,
        "fuzzing_score": pl.Float64,
        "fuzzing_low": pl.Float64,
        "fuzzing_high": pl.Float64,
        "detection_n": pl.UInt32,
        "fuzzing_n": pl.UInt32,
        "model": pl.String,
    }
    assert table["feature_id"].to_list() == list(range(64))
    assert table["safety_rating"].null_count() == 64
    assert set(table["source"]) == {"offline"}
    assert set(table["model"]) == {"rewardscope-offline-1"}


@pytest.mark.parametrize(
    ("feature", "text"),
    [
        (SORRY, "“sorry”"),
        (DIGITS, "digits"),
        (END, "end of turn"),
        (START, "first word of the answer"),
        (LENGTH, "active on nearly every token"),
        (DEAD, "never active"),
    ],
)
def test_planted_features_are_named(table, feature, text):
    assert table["text"][feature] == text


def test_several_words_make_one_label(table):
    assert set(table["text"][TWO].split(", ")) == {"“orange”", "“winter”"}


def test_what_stands_before_can_be_the_pattern(table):
    assert table["text"][AFTER] in {"“bake”", "“to bake”", "“how to bake”", "after “to”", "after “how to”"}
    assert table["detection_score"][AFTER] > 0.95


def test_true_patterns_are_detected_and_false_alarms_count(table):
    for feature in (SORRY, DIGITS, END, START, TWO):
        assert table["detection_score"][feature] == 1
        assert 0.9 < table["detection_low"][feature] < 1
        assert table["detection_n"][feature] >= 100
    assert table["text"][OFTEN] == "“river”"
    assert 0.6 < table["detection_score"][OFTEN] < 0.9  # a third of the rivers are near misses


def test_true_patterns_tell_right_marks_from_wrong_ones(table):
    for feature in (SORRY, DIGITS, END, START, TWO):
        assert table["fuzzing_score"][feature] == 1
        assert 0.85 < table["fuzzing_low"][feature] < 1
        assert 50 <= table["fuzzing_n"][feature] <= 100
    # Every river that is marked rightly is a river; those on which the feature is silent are rarely drawn.
    assert table["fuzzing_score"][OFTEN] > 0.9


def test_marks_are_moved_to_silent_tokens_nearby_in_every_second_context(run):
    arrays, full = run.arrays, dense(run.arrays)
    peaks = peak_tokens(arrays)
    for block in entries_by_feature(arrays, most=20):
        drawn = Half(arrays, ~chooses(run), 0).draw(block, arrays.token_start[block.response] + peaks[block.position])
        moved = moved_marks(arrays, drawn, block.lo, 0)
        before = drawn.rows[:, drawn.active]
        assert np.array_equal(moved.rows[:, moved.active], before[:, ::2])
        for row, f in enumerate(range(block.lo, block.hi)):
            for was, now in zip(before[row, 1::2], moved.rows[row, ~moved.active], strict=True):
                if was < 0 or now < 0:
                    assert now < 0
                    continue
                assert full[now, f] == 0
                assert -MOVED_BEFORE <= now - was <= MOVED_AFTER
                ends = np.searchsorted(arrays.token_start, [was, now], side="right")
                assert ends[0] == ends[1]  # the same answer


def test_rare_and_dead_features_are_not_scored(table):
    assert table["text"][RARE].startswith("too rare to label")
    for feature in (RARE, DEAD):
        assert table.row(feature)[4:12] == (None,) * 8


def test_random_features_are_no_better_than_chance_and_say_so(table):
    noise = table.filter(pl.col("feature_id").is_in(list(NOISE)))
    assert noise["text"].str.starts_with("no clear token pattern").mean() > 0.9
    covered = (noise["detection_low"] <= 0.5) & (noise["detection_high"] >= 0.5)
    assert covered.mean() > 0.8
    assert noise["detection_score"].mean() == pytest.approx(0.5, abs=0.03)
    assert noise["fuzzing_score"].mean() == pytest.approx(0.5, abs=0.06)


def test_the_scored_half_does_not_touch_the_text(run, table):
    """Held-out answers get each other's words, their activations stay: only scores may change."""
    held_out = np.flatnonzero(~chooses(run))
    rng = np.random.default_rng(0)
    texts = run.responses["text"].to_list()
    char, ids = run.arrays.token_char.copy(), run.arrays.token_ids.copy()
    for response in held_out:
        rows = run.arrays.tokens_of(response)
        n = rows.stop - rows.start
        words = rng.choice(["zebra", "Sorry", "sorry", "99", "how", "to", "quartz", "."], n - 1)
        ends = np.cumsum([len(word) + 1 for word in words])
        texts[response] = " " + " ".join(words)
        char[rows] = np.stack(
            [np.append(ends - [len(w) + 1 for w in words], ends[-1]), np.append(ends, ends[-1])], axis=1
        )
        ids[rows] = rng.integers(1, 30, n)
    arrays = dataclasses.replace(run.arrays, token_char=char, token_ids=ids)
    other = labelled(SyntheticRun(arrays, run.pairs, run.responses.with_columns(text=pl.Series(texts))))
    assert other["text"].to_list() == table["text"].to_list()
    assert other["detection_score"][SORRY] < 0.7
    assert other["detection_score"][END] == 1


def test_pairs_of_one_prompt_stay_in_one_half(run):
    pairs = run.pairs.with_columns(prompt_id=pl.lit("the only one"))
    table = label_table(run.arrays, pairs, run.responses, token_pieces(run.arrays, run.responses))
    assert table["detection_score"].null_count() == 64


def test_contexts_are_drawn_as_described(run):
    arrays, full = run.arrays, dense(run.arrays)
    half = chooses(run)
    peaks = peak_tokens(arrays)
    near = int(arrays.token_ids[np.flatnonzero(full[:, OFTEN])[0]])
    for block in entries_by_feature(arrays, most=20):
        peak_row = arrays.token_start[block.response] + peaks[block.position]
        drawn = Half(arrays, half, 0).draw(block, peak_row)
        for row, f in enumerate(range(block.lo, block.hi)):
            active, inactive = (drawn.rows[row, c][drawn.rows[row, c] >= 0] for c in (drawn.active, ~drawn.active))
            response = np.searchsorted(arrays.token_start, active, side="right") - 1
            assert np.all(full[active, f] != 0)
            assert np.all(full[inactive, f] == 0)
            assert len(np.unique(response)) == len(active) <= 100
            assert np.all(half[np.searchsorted(arrays.token_start, [*active, *inactive], side="right") - 1])
            for r, token in zip(response, active, strict=True):
                assert full[token, f] == full[arrays.tokens_of(r), f].max()
        if block.lo <= OFTEN < block.hi:
            first = drawn.rows[OFTEN - block.lo, 100:150]
            assert np.all(arrays.token_ids[first[first >= 0]] == near)
            assert np.sum(first >= 0) > 10


def test_blocks_do_not_change_labels_but_the_seed_draws_others(run, table, monkeypatch):
    assert not labelled(run, seed=1).equals(table)
    monkeypatch.setattr(offline, "FEATURES_AT_ONCE", 7)
    assert labelled(run).equals(table)


@given(st.integers(1, 60), st.data())
def test_wilson_inverts_the_score_test(n, data):
    count = data.draw(st.integers(0, n))
    p, low, high = (float(x) for x in wilson(np.array(count), np.array(n), 1.96))
    assert 0 <= low <= p == count / n <= high <= 1
    for bound, closed in ((low, count == 0), (high, count == n)):
        if not closed:  # the bounds are where |p - bound| is 1.96 of the standard errors at the bound
            assert abs(p - bound) == pytest.approx(1.96 * np.sqrt(bound * (1 - bound) / n), abs=1e-9)


def test_balanced_accuracy_and_newcombes_interval():
    # Newcombe 1998, table II, method 10: 56/70 - 48/80 has the 95 % interval 0.0524 to 0.3339.
    accuracy, low, high = balanced_accuracy(*(np.array(x) for x in (56, 70, 48, 80)))
    assert 2 * accuracy - 1 == pytest.approx(0.2)
    assert 2 * low - 1 == pytest.approx(0.0524, abs=1e-4)
    assert 2 * high - 1 == pytest.approx(0.3339, abs=1e-4)
    assert np.isnan(balanced_accuracy(*(np.array([x]) for x in (0, 0, 1, 5)))[0]).all()


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits, false_alarms = rng.binomial(40, 0.7, 4000), rng.binomial(90, 0.1, 4000)
    _, low, high = balanced_accuracy(hits, np.full(4000, 40), false_alarms, np.full(4000, 90), norm.ppf(0.975))
    assert np.mean((low <= 0.8) & (high >= 0.8)) == pytest.approx(0.95, abs=0.02)


def test_quotations_read_well():
    assert quoted(["I", "can't"]) == "“I can't”"
    assert quoted(["sorry", ",", "but"]) == "“sorry, but”"
    assert quoted(["\n", "The"]) == "“⏎ The”"
    assert quoted(["a\u202eb\x00"]) == "“aU+202EbU+0000”"
    assert len(quoted(["x" * 500])) < 60
