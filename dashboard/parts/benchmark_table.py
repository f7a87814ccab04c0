"""A benchmark's table as escaped HTML: our rows beside the published ones, every cell of ours a link to its items."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from core.evaluate.items import BENCHMARKS, HUB, TITLES
from core.evaluate.published import NONE_PUBLISHED, PUBLISHED, PublishedRow, comparability, comparable
from core.evaluate.rewardbench import SECTIONS
from core.evaluate.rewardbench2 import SUBSETS
from core.evaluate.rm_bench import DIFFICULTIES, DOMAINS
from dashboard.benchmarks import Row
from dashboard.escape import MISSING, esc

MAIN: dict[str, tuple[str, ...]] = {
    "rewardbench": tuple(SECTIONS),
    "rewardbench2": ("overall", *SUBSETS),
    "rm-bench": ("overall", *DIFFICULTIES, *DOMAINS),
}
"""Columns of the table; for pairs, the overall accuracy and every domain."""
MOST_DOMAINS = 14
RULES = {
    "rewardbench": "A pair is right when the chosen answer's reward is strictly higher. Sections are means of subsets with "
    "published weights (math-prm counts as 984); there is no overall score.",
    "rewardbench2": "Best of n: 1 when the right answer has the highest reward, shared among ties; Ties has a rule of its "
    "own and can reach 101. Overall is the mean of the six subsets.",
    "rm-bench": "Three styles of a right answer against three styles of a wrong one. Hard: the wrong one is fancier; "
    "normal: same style; easy: the right one is fancier.",
    "pairs": "A pair is right when every right answer's reward is strictly above every wrong one's.",
}

CellLink = Callable[[Row, str], str]


def picker_html(open_one: str, counts: Mapping[str, int], link: Callable[[str], str]) -> str:
    """The benchmarks as a row of links with the number of stored results."""
    parts = []
    for name in BENCHMARKS:
        n = counts.get(name, 0)
        now = ' aria-current="page"' if name == open_one else ""
        told = (
            f'<span class="rs-muted">{n} result{"" if n == 1 else "s"}</span>'
            if n
            else '<span class="rs-muted">–</span>'
        )
        parts.append(f'<a href="{esc(link(name))}"{now}>{esc(TITLES[name])} {told}</a>')
    return f'<nav class="picker" aria-label="Benchmarks">{"".join(parts)}</nav>'


def empty_html(benchmark: str, run: str) -> str:
    """What to do when this run has no result."""
    data = "" if benchmark in HUB else " --data FILE"
    hub = (
        f" The data is {esc(HUB[benchmark][0])} of the Hugging Face Hub, or a local copy with <code>--data FILE</code>."
        if benchmark in HUB
        else " Any file or dataset that <code>rewardscope build</code> reads will do."
    )
    return (
        f'<div class="rs-empty"><b>{esc(run)} has not been scored on {esc(TITLES[benchmark])}.</b>'
        f"Run <code>rewardscope evaluate {esc(benchmark)} {esc(run)}{data}</code>, then come back to this view.{hub}</div>"
    )


def columns_of(benchmark: str, rows: Sequence[Row]) -> list[str]:
    """The columns: the benchmark's own, and where a total is missing the mean of the domains that are there."""
    extra = [name for row in rows for name in row.figures if name.startswith("mean of ")]
    if benchmark != "pairs":
        return [*dict.fromkeys(extra), *MAIN[benchmark]] if extra else list(MAIN[benchmark])
    names = dict.fromkeys(name for row in rows for name, one in row.figures.items() if one["kind"] != "subset")
    return ["overall", *[name for name in names if name != "overall"][:MOST_DOMAINS]]


def table_html(benchmark: str, rows: Sequence[Row], link: CellLink, cell: tuple[str, str]) -> str:
    """Our rows, then the published ones.

    Args:
        link: the href of a cell of ours.
        cell: (row key, figure) of the open cell.
    """
    columns = columns_of(benchmark, rows)
    published = PUBLISHED.get(benchmark, ())
    head = "".join(f'<th scope="col">{esc(_title(name))}</th>' for name in columns)
    body = "".join(_our_row(row, columns, link, cell, bool(published)) for row in rows)
    if published:
        words = "Published (not measured here)"
        body += f'<tr class="group"><th colspan="{len(columns) + 1}" scope="rowgroup">{words}</th></tr>'
        body += "".join(_published_row(row, columns) for row in published)
    caption = f'<caption class="rs-muted">{esc(RULES[benchmark])} Percent; 95 % intervals are a bootstrap over prompts.</caption>'
    size = " small" if cell[0] else ""  # with a cell open, its items need the room
    return (
        f'<div class="scroll{size}" tabindex="0" role="region" aria-label="{esc(TITLES[benchmark])} scores">'
        f'<table class="scores">{caption}<thead><tr><th scope="col">Reward model</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table>{_notes(benchmark, rows, bool(published))}</div>"
    )


def _title(name: str) -> str:
    return name[:1].upper() + name[1:]


def _our_row(row: Row, columns: Sequence[str], link: CellLink, cell: tuple[str, str], beside: bool) -> str:
    cells = "".join(_our_cell(row, name, link, cell, beside) for name in columns)
    note = f'<span class="note">{esc(row.note)}</span>' if row.note else ""
    mine = ' <span class="rs-tag">this run</span>' if row.own else ""
    return f'<tr class="ours"><th scope="row">{esc(row.title)}{mine}{note}</th>{cells}</tr>'


def _our_cell(row: Row, name: str, link: CellLink, cell: tuple[str, str], beside: bool) -> str:
    one = row.figures.get(name)
    if one is None or one["value"] is None:
        why = one["note"] if one else "not a figure of this result"
        return f'<td title="{esc(why)}">{MISSING}</td>'
    now = ' aria-current="true"' if (row.key, name) == cell else ""
    apart = beside and not comparable(row.result.benchmark, row.result.facts["data"], one)
    mark = '<span class="apart" title="not comparable with the published rows">≠</span>' if apart else ""
    words = f"{_title(name)} of {row.title}: {interval_text(one)}{'; ' + one['note'] if one['note'] else ''}"
    return (
        f'<td><a href="{esc(link(row, name))}"{now} title="{esc(words)}"><b>{100 * one["value"]:.1f}</b>{mark}'
        f"<span>{interval_text(one, short=True)}</span></a></td>"
    )


def interval_text(one: Mapping[str, Any], short: bool = False) -> str:
    """'[69.5, 73.7] n 1,798', or in words."""
    span = "" if one["low"] is None else f"{100 * one['low']:.1f}–{100 * one['high']:.1f}"
    if short:
        return f"{span} · n {one['n']:,}" if span else f"n {one['n']:,}"
    value = f"{100 * one['value']:.1f} %" if one["value"] is not None else "missing"
    return f"{value} ({f'95 % {span}, ' if span else ''}n = {one['n']:,}, {one['n_prompts']:,} prompts)"


def _published_row(row: PublishedRow, columns: Sequence[str]) -> str:
    cells = "".join(
        f"<td>{row.scores[name]:.1f}</td>" if name in row.scores else '<td title="not published">–</td>'
        for name in columns
    )
    return (
        f'<tr class="published"><th scope="row">{esc(row.model)}<span class="note">{esc(row.source)} '
        f'<a href="{esc(row.url)}" rel="noreferrer noopener" target="_blank">{esc(row.url.removeprefix("https://"))}</a></span></th>{cells}</tr>'
    )


def _notes(benchmark: str, rows: Sequence[Row], published: bool) -> str:
    about: dict[str, list[str]] = {}
    for row in rows:
        for sentence in [] if row.multipliers else comparability(benchmark, row.result.facts["data"]):
            about.setdefault(sentence, []).append(f"{row.title}{f' ({row.note})' if row.note else ''}")
    said = [f"{sentence} ({'; '.join(names)})" for sentence, names in about.items()]
    if published and said:
        said.insert(0, "≠ marks a figure that must not be read beside the published rows.")
    if not published:
        said.append(NONE_PUBLISHED[benchmark])
    return "".join(f'<p class="rs-small rs-muted">{esc(sentence)}</p>' for sentence in said)


def subsets_html(benchmark: str, rows: Sequence[Row], link: CellLink, cell: tuple[str, str]) -> str:
    """The figures the columns are made of: a row a subset, a column for each row of ours; '' where there is none."""
    main = set(columns_of(benchmark, rows))
    names = [name for row in rows for name, one in row.figures.items() if name not in main and one["value"] is not None]
    if not names or benchmark == "rewardbench2":
        return ""
    listed = list(dict.fromkeys(names))
    absent = sorted({n for row in rows for n, one in row.figures.items() if one["value"] is None} - set(listed) - main)
    weights = {name: weight for section in SECTIONS.values() for name, weight in section.items()}
    sections = {name: section for section, held in SECTIONS.items() for name in held}
    head = "".join(f'<th scope="col">{esc(row.title)}<span class="note">{esc(row.note)}</span></th>' for row in rows)
    body = []
    for name in listed:
        where = sections.get(name, "no section") if benchmark == "rewardbench" else name.rpartition(" ")[0]
        told = f"{where}, weight {weights[name]}" if name in weights else where
        cells = "".join(_our_cell(row, name, link, cell, False) for row in rows)
        body.append(
            f'<tr class="ours"><th scope="row">{esc(name)}<span class="note">{esc(told)}</span></th>{cells}</tr>'
        )
    lacking = f'<p class="rs-small rs-muted">Missing here: {esc(", ".join(absent))}.</p>' if absent else ""
    is_open, size = " open" if cell[1] in listed else "", " small" if cell[0] else ""
    return (
        f'<details class="subsets"{is_open}><summary>Subsets ({len(listed)})</summary><div class="scroll{size}" tabindex="0" '
        f'role="region" aria-label="Subsets"><table class="scores"><thead><tr><th scope="col">Subset</th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>{lacking}</details>"
    )
