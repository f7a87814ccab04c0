"""Benchmark items: the Hub's files, local copies of them, the uniform pair files, or any pair file as a benchmark.

Rows are taken as they are: a pair whose two answers are the same text is a tie, not a fault; a row that cannot be used
is listed with its reason. Nothing here loads a model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core.config import PairsConfig
from core.data.adapters.cells import CellError, Cells, as_text, messages, prompt_messages, text, user
from core.data.load import load_pairs, source_hash
from core.data.read import Table, read_source
from core.data.schema import BadRow, Message, prompt_key
from core.errors import DataError
from core.evaluate.rewardbench2 import TIES
from core.evaluate.rm_bench import DOMAINS, STYLES

BENCHMARKS = ("rewardbench", "rewardbench2", "rm-bench", "pairs")
TITLES = {
    "rewardbench": "RewardBench",
    "rewardbench2": "RewardBench 2",
    "rm-bench": "RM-Bench",
    "pairs": "Preference pairs",
}
HUB = {
    "rewardbench": ("allenai/reward-bench", "filtered"),
    "rewardbench2": ("allenai/reward-bench-2", "test"),
    "rm-bench": ("THU-KEG/RM-Bench", None),
}
"""Where each benchmark is on the Hub, and the split that is scored (None = all)."""

UNIFORM = {"pair_id", "source", "section", "subset", "prompt", "chosen", "rejected", "group_id"}
RENAMED = {"rewardbench2": {"rb2-safety": "Safety"}}
"""Subset names of uniform files that stand for a published one."""


@dataclass(frozen=True)
class Item:
    """One prompt with its answers, scored together.

    Attributes:
        item_id: unique in its benchmark; of Ties 'ref:N' or 'tied:N'.
        messages: the conversation before the answers.
        answers: right ones first.
        n_correct: how many are right.
        subset: the published subset (RM-Bench: the domain; pairs: the domain).
        group: a finer class of the source, or ''.
        styles: RM-Bench: the style of each answer; otherwise ''.
    """

    item_id: str
    messages: Sequence[Message]
    answers: Sequence[str]
    n_correct: int
    subset: str
    group: str = ""
    styles: Sequence[str] = ()

    @property
    def prompt(self) -> str:
        """The prompt's key: items that share it are not independent."""
        return prompt_key(self.messages)


@dataclass(frozen=True)
class BenchmarkItems:
    """What is scored.

    Attributes:
        benchmark: one of BENCHMARKS.
        items: in file order.
        skipped: rows left out, with the reason.
        origin: what was read: path or dataset, sha256 or revision, n_rows, public (whether it is the published data).
    """

    benchmark: str
    items: Sequence[Item]
    skipped: Sequence[BadRow]
    origin: Mapping[str, Any]


def read_items(benchmark: str, data: str | None = None, limit: int | None = None) -> BenchmarkItems:
    """Reads a benchmark.

    Args:
        benchmark: one of BENCHMARKS.
        data: a file, a folder written by save_to_disk, or a dataset's name on the Hub; None = the published one.
        limit: at most so many prompts, evenly taken (of Ties, 'ref:N' and 'tied:N' stay together).

    Raises:
        DataError: no such benchmark, nothing of that name, or no usable row.
    """
    if benchmark not in BENCHMARKS:
        raise DataError(f"There is no benchmark {benchmark!r}; use {', '.join(BENCHMARKS)}.")
    if data is None and benchmark not in HUB:
        raise DataError("Say which pairs to score: --data FILE, or a dataset's name on the Hugging Face Hub.")
    source = data or HUB[benchmark][0]
    found = _from_pairs(source) if benchmark == "pairs" else _from_benchmark(benchmark, source)
    if not found.items:
        why = f" (row {found.skipped[0].row}: {found.skipped[0].reason})" if found.skipped else ""
        raise DataError(f"{source} holds no usable item of {TITLES[benchmark]}{why}.")
    taken = _evenly(found.items, limit)
    origin = {**found.origin, "n_items": len(taken), "n_skipped": len(found.skipped)}
    origin |= {"limit": limit, "n_over_limit": len(found.items) - len(taken)}
    return replace(found, items=taken, origin=origin)


def _from_benchmark(benchmark: str, source: str) -> BenchmarkItems:
    split = HUB[benchmark][1]
    local = Path(source).expanduser().exists()
    config = PairsConfig(source=source, split=None if local else split)
    try:
        read = read_source(config)
    except DataError as error:
        raise DataError(str(error).replace("set pairs.source to that path", "give it with --data")) from None
    tables = [table for table in read.tables if table.split == split] or read.tables
    items: list[Item] = []
    skipped: list[BadRow] = []
    seen: dict[str, int] = {}
    uniform = False
    for table in tables:
        skipped += table.unreadable
        uniform = set(table.columns) >= UNIFORM
        convert = _uniform(benchmark) if uniform else PUBLISHED[benchmark]
        if not uniform and (lacking := COLUMNS[benchmark] - set(table.columns)):
            raise DataError(
                f"{table.file} is no {TITLES[benchmark]} file: it lacks {', '.join(sorted(lacking))}; it has "
                f"{', '.join(table.columns)}."
            )
        for number, made in convert(table):
            if isinstance(made, str):
                skipped.append(BadRow(table.file, number, made))
                continue
            seen[made.item_id] = times = seen.get(made.item_id, 0) + 1
            items.append(made if times == 1 else replace(made, item_id=f"{made.item_id} ({times})"))
    n_rows = sum(len(table.rows) + len(table.unreadable) for table in tables)
    sha = source_hash(config) if local else None
    origin = {**read.origin, **({"sha256": sha} if sha else {}), "n_rows": n_rows, "uniform": uniform}
    return BenchmarkItems(benchmark, items, skipped, origin)


# --- the published files -------------------------------------------------------------------------------------------

Made = Iterator[tuple[int, Item | str]]
COLUMNS = {
    "rewardbench": {"prompt", "chosen", "rejected", "subset"},
    "rewardbench2": {"id", "prompt", "chosen", "rejected", "num_correct", "subset"},
    "rm-bench": {"prompt", "chosen", "rejected", "domain"},
}


def _each(make: Callable[[Cells, int], Item]) -> Callable[[Table], Made]:
    def convert(table: Table) -> Made:
        for number, cells in table.rows:
            try:
                yield number, make(cells, number)
            except CellError as bad:
                yield number, str(bad)

    return convert


def _prompt(cells: Cells) -> Sequence[Message]:
    """The conversation: text, or messages where a file gives them."""
    value = cells.get("prompt")
    return messages(cells, "prompt") if isinstance(value, list) else user(text(cells, "prompt"))


def _answers(cells: Cells, side: str) -> list[str]:
    """A list of answers; an empty answer is an answer."""
    value = cells.get(side)
    if not isinstance(value, list) or not value:
        raise CellError(f"column {side!r} holds no list of answers")
    return [as_text(one, f"answer {i} in column {side!r}", may_be_blank=True) for i, one in enumerate(value)]


def _rewardbench(cells: Cells, number: int) -> Item:
    subset = text(cells, "subset")
    answers = [as_text(cells.get(side), f"column {side!r}", may_be_blank=True) for side in ("chosen", "rejected")]
    return Item(f"{subset}/{cells.get('id', number)}", _prompt(cells), answers, 1, subset)


def _rewardbench2(cells: Cells, number: int) -> Item:
    subset, chosen, rejected = text(cells, "subset"), _answers(cells, "chosen"), _answers(cells, "rejected")
    if cells.get("num_correct") != len(chosen):
        raise CellError(f"num_correct is {cells.get('num_correct')!r}, but chosen has {len(chosen)} answers")
    own = str(cells.get("id", number))
    item_id = own if subset == TIES else f"{subset}/{own}"
    return Item(item_id, _prompt(cells), [*chosen, *rejected], len(chosen), subset)


def _rm_bench(cells: Cells, number: int) -> Item:
    domain, chosen, rejected = text(cells, "domain"), _answers(cells, "chosen"), _answers(cells, "rejected")
    if len(chosen) != 3 or len(rejected) != 3:
        raise CellError(f"{len(chosen)} chosen and {len(rejected)} rejected answers, not the 3 styles of each")
    item_id = f"{domain}/{cells.get('id', number)}"
    return Item(item_id, _prompt(cells), [*chosen, *rejected], 3, rm_domain(domain), domain, (*STYLES, *STYLES))


def rm_domain(name: str) -> str:
    """One of DOMAINS: 'safety-refuse' and 'safety-response' are safety; an unknown name stays."""
    return next((domain for domain in DOMAINS if name.startswith(domain)), name)


PUBLISHED: dict[str, Callable[[Table], Made]] = {
    "rewardbench": _each(_rewardbench),
    "rewardbench2": _each(_rewardbench2),
    "rm-bench": _each(_rm_bench),
}


# --- uniform pair files --------------------------------------------------------------------------------------------


def _uniform(benchmark: str) -> Callable[[Table], Made]:
    return {"rewardbench": _each(_uniform_pair), "rewardbench2": _best_of, "rm-bench": _styles}[benchmark]


def _uniform_pair(cells: Cells, number: int) -> Item:
    answers = [as_text(cells.get(side), f"column {side!r}", may_be_blank=True) for side in ("chosen", "rejected")]
    conversation = prompt_messages(text(cells, "prompt"), "prompt")
    group = cells.get("category") or ""
    return Item(text(cells, "pair_id"), conversation, answers, 1, text(cells, "subset"), str(group))


def _groups(table: Table) -> Iterator[list[tuple[int, Cells]]]:
    """Rows by group_id, in order of first appearance; a row without one is a group of its own."""
    groups: dict[object, list[tuple[int, Cells]]] = {}
    for number, cells in table.rows:
        key = cells.get("group_id")
        groups.setdefault(number if key in (None, "") else str(key), []).append((number, cells))
    yield from groups.values()


def _best_of(table: Table) -> Made:
    """One right answer against the wrong ones of its group."""
    for rows in _groups(table):
        number, first = rows[0]
        try:
            chosen = list(dict.fromkeys(text(cells, "chosen") for _, cells in rows))
            if len(chosen) != 1 or len({str(cells.get("prompt")) for _, cells in rows}) != 1:
                raise CellError(f"the group {first.get('group_id')!r} has several prompts or right answers")
            rejected = [as_text(cells.get("rejected"), "column 'rejected'", may_be_blank=True) for _, cells in rows]
            subset = RENAMED["rewardbench2"].get(text(first, "subset"), text(first, "subset"))
            conversation = prompt_messages(text(first, "prompt"), "prompt")
            yield number, Item(f"{subset}/{first.get('group_id', number)}", conversation, chosen + rejected, 1, subset)
        except CellError as bad:
            yield number, str(bad)


def _styles(table: Table) -> Made:
    """Three styles of each side; a style that no row of the group has is missing."""
    for rows in _groups(table):
        number, first = rows[0]
        try:
            yield number, _style_item(first, [cells for _, cells in rows])
        except CellError as bad:
            yield number, str(bad)


def _style_item(first: Cells, rows: Sequence[Cells]) -> Item:
    sides: dict[str, dict[str, str]] = {"chosen": {}, "rejected": {}}
    for cells in rows:
        for side, found in sides.items():
            style = text(cells, f"{side}_model")
            if style not in STYLES:
                raise CellError(f"column {side}_model holds {style!r}; RM-Bench has the styles {', '.join(STYLES)}")
            if found.setdefault(style, text(cells, side)) != cells[side]:
                raise CellError(f"the group {first.get('group_id')!r} has two {side} answers of the style {style}")
    named = [(side, style) for side, found in sides.items() for style in STYLES if style in found]
    meta = json.loads(str(first.get("meta") or "{}"))
    group = str(meta.get("domain") or text(first, "section"))
    section = {"reasoning": "code"}.get(group, group)
    return Item(
        str(first.get("group_id") or text(first, "pair_id")),
        prompt_messages(text(first, "prompt"), "prompt"),
        [sides[side][style] for side, style in named],
        len(sides["chosen"]),
        rm_domain(section),
        group,
        [style for _, style in named],
    )


# --- any pair file -------------------------------------------------------------------------------------------------


def _from_pairs(source: str) -> BenchmarkItems:
    """Pairs as `core.data` reads them; rows with a fault are listed and left out."""
    config = PairsConfig(source=source, on_bad_rows="skip")
    pairs = load_pairs(config)
    answers = pairs.responses.group_by("pair_index", maintain_order=True).agg("text", "side")
    items = [
        Item(row["pair_id"], row["messages"], texts, sides.count("chosen"), row["domain"], row["category"] or "")
        for row, texts, sides in zip(
            pairs.pairs.iter_rows(named=True), answers["text"].to_list(), answers["side"].to_list(), strict=True
        )
    ]
    return BenchmarkItems("pairs", items, pairs.skipped, {**pairs.origin, "uniform": False})


def _evenly(items: Sequence[Item], limit: int | None) -> list[Item]:
    """At most `limit` units at equal distances; a unit is an item, or everything of one N of Ties."""
    units: dict[object, list[Item]] = {}
    for at, item in enumerate(items):
        key = (TIES, item.item_id.partition(":")[2]) if item.subset == TIES else at
        units.setdefault(key, []).append(item)
    held = list(units.values())
    if limit is not None and limit < len(held):
        held = [held[i * len(held) // limit] for i in range(limit)]
    return [item for unit in held for item in unit]
