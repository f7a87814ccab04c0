"""Side-effect figures against plain loops over a small set of pairs, and against what is known of the estimators."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import scipy.sparse as sp
from scipy import stats

from core.errors import DataError
from core.evaluate.specificity import MIN_PAIRS, SteeringData, specificity, specificity_facts, targets
from core.rewards.accuracy import pair_outcome
from core.rewards.steering import SteeredRewards
from core.store.reader import RunReader
from tests.synthetic_run import write_synthetic_run

DOMAINS = ("chat", "maths", "privacy", "rare")


def tables(n: int = 160, seed: int = 0) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Pairs of four domains with shared prompts; some have two chosen or three rejected answers, a third is held out."""
    rng = np.random.default_rng(seed)
    prompt = rng.integers(0, n // 3, n)
    domain = [DOMAINS[3] if p == 0 else DOMAINS[p % 3] for p in prompt]
    pairs = pl.DataFrame(
        {
            "pair_id": [f"p{i}" for i in range(n)],
            "prompt_id": [f"prompt-{p}" for p in prompt],
            "split": ["test" if p % 3 != 1 or p % 2 else "train" for p in prompt],
            "domain": domain,
            "category": [None] * n,
            "labels": ["{}"] * n,
        },
        schema_overrides={"category": pl.String},
    )
    rows = []
    for i in range(n):
        rows += [{"pair_index": i, "side": "chosen"}] * (1 + i % 9 // 8)
        rows += [{"pair_index": i, "side": "rejected"}] * (1 + 2 * (i % 7 // 6))
    return pairs, pl.DataFrame(rows)


def data_of(pairs: pl.DataFrame, responses: pl.DataFrame, rewards: np.ndarray) -> SteeringData:
    nothing = sp.csr_matrix((len(rewards), 1), dtype=np.float32)
    return SteeringData.of_tables(SteeredRewards(nothing, np.zeros(1), rewards), pairs, responses)


def case(seed: int = 0) -> tuple[pl.DataFrame, pl.DataFrame, np.ndarray, np.ndarray]:
    """Rewards before and after: a third of the rows moves, more among privacy's chosen answers; some rewards tie."""
    pairs, responses = tables(seed=seed)
    rng = np.random.default_rng(seed + 100)
    before = np.round(rng.normal(0.5 * (responses["side"] == "chosen").to_numpy(), 1), 1)
    domain = pairs["domain"].to_numpy()[responses["pair_index"].to_numpy()]
    aimed = (domain == "privacy") & (responses["side"] == "chosen").to_numpy()
    moved = rng.random(len(before)) < np.where(aimed, 0.8, 0.3)
    after = before + moved * np.where(aimed, 0.7, 1.5 * rng.normal(0.2, 1, len(before)))
    return pairs, responses, before, after


def mean_interval(values: list[float], prompts: list[str]) -> tuple[float, float, float]:
    """Mean and clustered 95 % interval, one prompt after the other."""
    n, mean = len(values), sum(values) / len(values)
    total = 0.0
    groups = sorted(set(prompts))
    for prompt in groups:
        mine = [value for value, one in zip(values, prompts, strict=True) if one == prompt]
        total += (sum(mine) - len(mine) * mean) ** 2
    error = math.sqrt(len(groups) / (len(groups) - 1) * total) / n
    half = stats.t.ppf(0.975, len(groups) - 1) * error
    return mean, mean - half, mean + half


@pytest.mark.parametrize("which", ["held-out", "all"])
def test_every_figure_is_that_of_a_plain_loop(which: str) -> None:
    pairs, responses, before, after = case()
    found = specificity(data_of(pairs, responses, before), before, after, "domain=privacy", which=which)  # type: ignore[arg-type]

    sides: dict[str, tuple[list[float], list[str], list[float]]] = {"target": ([], [], []), "complement": ([], [], [])}
    fixed, broken = [], []
    outcomes: dict[str, list[tuple[int, int, str]]] = {}
    for i, pair in enumerate(pairs.iter_rows(named=True)):
        if which == "held-out" and pair["split"] != "test":
            continue
        rows = [r for r, one in enumerate(responses["pair_index"]) if one == i]
        for r in rows:
            good = pair["domain"] == "privacy" and responses["side"][r] == "chosen"
            values, prompts, start = sides["target" if good else "complement"]
            values.append(after[r] - before[r])
            prompts.append(pair["prompt_id"])
            start.append(before[r])

        def right(rewards: np.ndarray, rows: list[int] = rows) -> int:
            chosen = [rewards[r] for r in rows if responses["side"][r] == "chosen"]
            rejected = [rewards[r] for r in rows if responses["side"][r] == "rejected"]
            return int(all(a > b for a, b in itertools.product(chosen, rejected)))

        was, now = right(before), right(after)
        fixed += [i] if now > was else []
        broken += [i] if now < was else []
        for name in ("all", pair["domain"]):
            outcomes.setdefault(name, []).append((was, now, pair["prompt_id"]))

    for name, shift in (("target", found.target), ("complement", found.complement)):
        values, prompts, start = sides[name]
        moved = [value for value in values if value != 0]
        assert (shift.n, shift.n_prompts, shift.n_moved) == (len(values), len(set(prompts)), len(moved))
        expected = (
            *mean_interval(values, prompts), len(moved) / len(values), sum(moved) / len(moved),
            sum(map(abs, values)) / len(values), sum(start) / len(start), sum(start) / len(start) + sum(values) / len(values),
        )  # fmt: skip
        got = (
            shift.shift, shift.low, shift.high, shift.moved, shift.shift_of_moved, shift.absolute, shift.before, shift.after,
        )  # fmt: skip
        np.testing.assert_allclose(got, expected, rtol=1e-10)
    assert found.fixed.tolist() == fixed
    assert found.broken.tolist() == broken
    assert len(fixed) > 2
    assert len(broken) > 2
    for name, accuracy in (("all", found.accuracy), ("privacy", found.slice_accuracy)):
        was, now, prompts = ([row[k] for row in outcomes[name]] for k in range(3))  # type: ignore[assignment]
        change = mean_interval([b - a for a, b in zip(was, now, strict=True)], prompts)  # type: ignore[arg-type]
        np.testing.assert_allclose((accuracy.change, accuracy.low, accuracy.high), change, rtol=1e-10)
        mean, low, high = mean_interval([float(x) for x in was], prompts)  # type: ignore[arg-type]
        got = (accuracy.before, accuracy.before_low, accuracy.before_high)
        np.testing.assert_allclose(got, (mean, max(low, 0), min(high, 1)), rtol=1e-10)
        assert accuracy.after == pytest.approx(np.mean(now))
        assert (accuracy.n, accuracy.n_prompts) == (len(was), len(set(prompts)))
    for row in found.domains.iter_rows(named=True):
        was, now, prompts = ([one[k] for one in outcomes[row["domain"]]] for k in range(3))  # type: ignore[assignment]
        assert (row["n"], row["n_prompts"]) == (len(was), len(set(prompts)))
        np.testing.assert_allclose((row["before"], row["after"]), (np.mean(was), np.mean(now)), rtol=1e-10)
        if row["n"] < MIN_PAIRS:
            assert (row["harmed"], row["note"]) == (None, "not enough pairs")
        else:
            change = mean_interval([b - a for a, b in zip(was, now, strict=True)], prompts)  # type: ignore[arg-type]
            np.testing.assert_allclose((row["change"], row["low"], row["high"]), change, rtol=1e-10)
            assert row["harmed"] == (change[2] < 0)
    assert found.domains["domain"].to_list() == sorted(set(outcomes) - {"all"})
    assert found.domains["n"].min() < MIN_PAIRS  # type: ignore[operator]


def test_pairs_count_as_they_do_elsewhere() -> None:
    pairs, responses, before, after = case(3)
    found = specificity(data_of(pairs, responses, before), before, after, "domain=maths", which="all")
    index, chosen = responses["pair_index"].to_numpy(), (responses["side"] == "chosen").to_numpy()
    was, now = (pair_outcome(rewards, index, chosen)[0] for rewards in (before, after))
    np.testing.assert_array_equal(found.fixed, np.flatnonzero(~was & now))
    np.testing.assert_array_equal(found.broken, np.flatnonzero(was & ~now))
    assert (found.accuracy.before, found.accuracy.after) == (pytest.approx(was.mean()), pytest.approx(now.mean()))


def test_the_ratio_has_fiellers_interval() -> None:
    """Every rho in the interval, and none outside, passes the t test of T - rho C = 0 on the prompts' influences."""
    pairs, responses, before, after = case(1)
    after = after + 0.3
    data = data_of(pairs, responses, before)
    found = specificity(data, before, after, "domain=privacy")
    ratio = found.ratio
    assert ratio.value == pytest.approx(found.target.shift / found.complement.shift)  # type: ignore[operator]
    prompts = pairs["prompt_id"].to_numpy()[responses["pair_index"].to_numpy()]
    target, complement = data.rows("domain=privacy")

    def statistic(rho: float) -> float:
        change = after - before
        top, bottom = change[target].mean(), change[complement].mean()
        names = sorted(set(prompts[target]) | set(prompts[complement]))
        total = 0.0
        for name in names:
            one = (change[target] - top)[prompts[target] == name].sum() / len(target)
            other = (change[complement] - bottom)[prompts[complement] == name].sum() / len(complement)
            total += (one - rho * other) ** 2
        return float(abs(top - rho * bottom) / math.sqrt(total * len(names) / (len(names) - 1)))

    limit = stats.t.ppf(0.975, min(found.target.n_prompts, found.complement.n_prompts) - 1)
    for bound in (ratio.low, ratio.high):
        assert statistic(bound) == pytest.approx(limit, rel=1e-8)  # type: ignore[arg-type]
    assert statistic(ratio.value) < limit < statistic(ratio.high + 1)  # type: ignore[arg-type, operator]
    still = before.copy()
    still[target] += 1.0
    none = specificity(data, before, still, "domain=privacy").ratio
    assert (none.value, none.low, none.high) == (None, None, None)
    assert "not different from 0" in none.why


def test_harmed_domains_are_named() -> None:
    pairs, responses, before, _ = case(2)
    chosen = (responses["side"] == "chosen").to_numpy()
    domain = pairs["domain"].to_numpy()[responses["pair_index"].to_numpy()]
    before = np.where(chosen, 1.0, 0.0)
    after = before.copy()
    prompt = np.array([int(one[7:]) for one in pairs["prompt_id"]])[responses["pair_index"].to_numpy()]
    after[(domain == "maths") & chosen & (prompt % 4 == 1)] = -1.0
    found = specificity(data_of(pairs, responses, before), before, after, "domain=privacy")
    assert found.harmed == ["maths"]
    assert len(found.fixed) == 0
    assert set(pairs["domain"].to_numpy()[found.broken]) == {"maths"}
    fast = specificity(data_of(pairs, responses, before), before, after, "domain=privacy", intervals=False)
    assert fast.harmed == []
    assert (fast.target.low, fast.accuracy.high, fast.ratio.value) == (None, None, None)
    assert fast.accuracy.change == found.accuracy.change
    assert fast.domains["change"].to_list() == found.domains["change"].to_list()


def test_nothing_steered_moves_nothing() -> None:
    pairs, responses, before, _ = case()
    found = specificity(data_of(pairs, responses, before), before, before.copy(), "domain=chat")
    assert (found.target.shift, found.target.moved, found.complement.n_moved) == (0.0, 0.0, 0)
    assert found.target.shift_of_moved is None
    assert (found.accuracy.change, len(found.fixed), len(found.broken), found.harmed) == (0.0, 0, 0, [])
    assert found.ratio.value is None
    noise = specificity(data_of(pairs, responses, before), before, before * (1 + 1e-15), "domain=chat")
    assert (noise.target.n_moved, noise.complement.n_moved) == (0, 0)
    facts = specificity_facts(found)
    assert facts["accuracy"]["n"] == found.accuracy.n
    assert facts["domains"][0]["domain"] == "chat"


def test_pairs_without_a_reward_are_left_out() -> None:
    pairs, responses, before, after = case()
    first = int(np.flatnonzero((pairs["split"] == "test").to_numpy())[0])
    row = int(np.flatnonzero(responses["pair_index"].to_numpy() == first)[0])
    whole = specificity(data_of(pairs, responses, before), before, after, "domain=privacy")
    before[row] = after[row] = np.nan
    found = specificity(data_of(pairs, responses, before), before, after, "domain=privacy")
    assert found.accuracy.n == whole.accuracy.n - 1
    rows = int((responses["pair_index"] == first).sum())
    assert found.target.n + found.complement.n == whole.target.n + whole.complement.n - rows


def test_targets_have_enough_held_out_pairs() -> None:
    pairs, responses, before, after = case()
    data = data_of(pairs, responses, before)
    held = pairs.filter(split="test")["domain"].value_counts()
    enough = {f"domain={one['domain']}" for one in held.to_dicts() if one["count"] >= MIN_PAIRS}
    assert set(targets(data)) == enough
    assert len(enough) == 3
    with pytest.raises(DataError, match=r"no slice 'domain=cars'.*domain="):
        specificity(data, before, after, "domain=cars")
    nobody = data_of(pairs.with_columns(split=pl.lit("train")), responses, before)
    with pytest.raises(DataError, match="no held-out pairs"):
        specificity(nobody, before, after, "domain=chat")
    assert specificity(nobody, before, after, "domain=chat", which="all").accuracy.n == len(pairs)


def test_a_run_gives_the_same_accuracy_as_its_pairs(tmp_path: Path) -> None:
    with RunReader.open(write_synthetic_run(tmp_path / "run", features=80, pairs=120)) as reader:
        data = SteeringData.of(reader)
        pairs = reader.table("pair")
        assert "split=train" not in data.slices
        target = targets(data)[0] if targets(data) else next(iter(data.slices))
        found = specificity(data, data.rewards, data.steered.rewards({}), target, which="all")
        margins = (pairs["chosen_reward"] - pairs["rejected_reward"]).to_numpy()
        assert found.accuracy.before == pytest.approx((margins > 0).mean())
        assert (data.sae, data.run_id) == (reader.manifest.sae["sha256"], reader.manifest.run_id)
