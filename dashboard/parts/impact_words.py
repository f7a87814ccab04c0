"""What stands under the curve: the point in words, how honest it is, how far previews were off. Escaped HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dashboard.escape import MISSING, esc, figure, known, plain, signed
from dashboard.parts.impact_curve import ACTED, MEASURE_NAMES, NAMES, amount, domain_title, percent_text, points_text
from dashboard.parts.impact_points import MEASURES, KnownPoints, PreviewError, Row

SCOPES = {"head": "its head alone", "lora": "LoRA adapters", "full": "every weight"}
STATES_OF = {
    "head": "Only the linear head is fitted again, exactly, on the changed pairs; the SAE and the model below stay as they are.",
    "classifier": "A refit of the scalar head on cached final states: the reward model below it stays as it is.",
}


def heading_html(domain: str, row: Mapping[str, Any] | None) -> str:
    """The domain drawn large, with its size."""
    size = (
        f'<span class="rs-muted rs-small">n = {_count(row["n"], "held-out pair")}, {_count(row["n_prompts"], "prompt")}</span>'
        if row
        else ""
    )
    title = domain_title(domain)
    return f'<div class="line"><span class="big">{esc(title[:1].upper() + title[1:])}</span>{size}</div>'


def honest_html(kind: str) -> str:
    """What the points are, always in sight: a head refit, not a retrain."""
    told = esc(STATES_OF.get(kind, STATES_OF["head"]))
    return (
        f'<div class="honest"><span class="key"><span class="dot" aria-hidden="true"></span><b title="{told}">Preview: head refit, not a '
        'retrain</b></span><span class="key"><span class="diamond" aria-hidden="true"></span>retrained</span>'
        f'<span class="rs-small rs-muted">{told}</span></div>'
    )


def point_html(row: Row | None, ratio: float, n_changed: int | None, action: str, domain: str, measure: str) -> str:
    """The point at the slider's ratio in one sentence."""
    pairs = f" ({n_changed:,} pairs {ACTED[action]})" if n_changed is not None else ""
    start = f"At <b>{percent_text(ratio)}</b>{pairs}: "
    if row is None:
        return f'<div class="said" role="status">{start}<span class="rs-muted">no point yet</span></div>'
    value, low, high = (row[name] for name in MEASURES[measure])
    text = f"{MEASURE_NAMES[measure]} of {esc(domain_title(domain))} <b>{amount(value, measure)}</b>{_interval(low, high, measure)}"
    if known(row["accuracy_change"]) and measure == "accuracy" and ratio:
        text += f", <b>{points_text(row['accuracy_change'])}</b>{_interval(row['change_low'], row['change_high'], 'points')} against unchanged"
    sure = "95 % intervals over prompts" if known(low) else "too few for an interval"
    size = f"n = {row['n']:,} pairs of {_count(row['n_prompts'], 'prompt')}, {sure}"
    return f'<div class="said" role="status">{start}{text}. <span class="rs-muted rs-small">{size}.</span></div>'


def errors_html(errors: Sequence[PreviewError], n_retrained: int, command: str) -> str:
    """How far previews were from retrained points, or how to get one.

    Args:
        errors: one a scope; n_retrained: retrained plans of the run, also those without a preview.
        command: what to run for a first retrained point.
    """
    if not n_retrained:
        return f'<div class="said rs-muted">No retrained point yet: save the plan, then run <code>{esc(command)}</code></div>'
    parts = []
    for error in errors:
        figures = []
        if error.change is not None:
            figures.append(f"of the accuracy change <b>{100 * error.change:.1f} points</b>")
        if error.accuracy is not None:
            figures.append(f"of the accuracy itself {100 * error.accuracy:.1f} points")
        parts.append(
            f"{esc(SCOPES.get(error.scope, error.scope))}: mean absolute error {' and '.join(figures) or MISSING}, "
            f"n = {_count(error.n, 'point')} of {_count(error.plans, 'plan')}"
        )
    compared = sum(error.plans for error in errors)
    rest = f" {n_retrained - compared:,} retrained without a preview here." if n_retrained > compared else ""
    if not parts:
        return f'<div class="said">{_count(n_retrained, "retrained plan")}, none with a preview of the same plan to compare with.</div>'
    return f'<div class="said"><b>How far the preview is off.</b> Against retraining {"; ".join(parts)}.{rest}</div>'


def progress_html(done: int, total: int) -> str:
    """How much of the curves is there."""
    return (
        f'<span class="working" role="status"><span class="track" aria-hidden="true"><span style="width:{100 * done // total}%"></span>'
        f"</span> {done:,} of {total:,} points of the curves</span>"
    )


def table_html(points: KnownPoints, choice: tuple[str, str, str], members: str, domain: str, measure: str) -> str:
    """The figures behind the large drawing.

    Args:
        choice: strategy, direction, action; members: `set_key` of the open set.
    """
    strategy, direction, action = choice
    order = [strategy, *(name for name in NAMES if name != strategy)]
    rows = []
    for name in order:
        for key in points.keys(name, direction, action, members):
            row = (points.get(key) or {}).get(domain)
            if row is None:
                continue
            value, low, high = (row[column] for column in MEASURES[measure])
            change = figure(row["accuracy_change"] * 100, "signed") if known(row["accuracy_change"]) else MISSING
            seed = f", seed {key.seed}" if name == "random" else ""
            rows.append(
                f"<tr><td>{NAMES[name]}{seed}</td><td class='num'>{percent_text(key.ratio)}</td><td class='num'>{amount(value, measure)}</td>"
                f"<td class='num'>{_interval(low, high, measure).strip() or '–'}</td><td class='num'>{change}</td></tr>"
            )
    heads = f"<tr><th>strategy</th><th class='num'>share</th><th class='num'>{MEASURE_NAMES[measure]}</th><th class='num'>95 % interval</th><th class='num'>change of accuracy, points</th></tr>"
    start = points.unchanged.get(domain)
    first = ""
    if start:
        value, low, high = (start[column] for column in MEASURES[measure])
        first = f"<tr><td>unchanged</td><td class='num'>0 %</td><td class='num'>{amount(value, measure)}</td><td class='num'>{_interval(low, high, measure).strip() or '–'}</td><td></td></tr>"
    return f'<details class="table"><summary>Every figure of {esc(domain_title(domain))} as a table</summary><table class="points"><thead>{heads}</thead><tbody>{first}{"".join(rows)}</tbody></table></details>'


def no_set_html(problem: str) -> str:
    """The chosen strategy needs a set and there is none."""
    return (
        f'<div class="warned" role="alert"><b>There is no set to choose pairs by.</b> {esc(problem)} '
        "Or open a saved set, or choose the pairs by another strategy.</div>"
    )


def failed_html(problems: Mapping[str, str]) -> str:
    """What could not be computed, each in a sentence."""
    names = {
        "ranking": "the order of the pairs",
        "point": "the point",
        "curve": "the rest of the curves",
        "export": "the file",
    }
    reasons: dict[str, list[str]] = {}
    for name, text in problems.items():
        reasons.setdefault(text, []).append(names[name])
    lines = []
    for text, missing in reasons.items():
        listed = " and ".join([", ".join(missing[:-1]), missing[-1]] if len(missing) > 1 else missing)
        verb = "is" if len(missing) == 1 else "are"
        lines.append(f"<p><b>{listed[:1].upper()}{listed[1:]} {verb} missing.</b> {esc(text)}</p>")
    return f'<div class="rs-failed" role="alert">{"".join(lines)}</div>'


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def _interval(low: Any, high: Any, measure: str) -> str:
    if not known(low) or not known(high):
        return ""
    if measure == "margin":
        return f" ({signed(low)} to {signed(high)})"
    if measure == "points":
        return f" ({plain(100 * low, 2)} to {plain(100 * high, 2)})"
    return f" ({100 * low:.1f}–{100 * high:.1f})"
