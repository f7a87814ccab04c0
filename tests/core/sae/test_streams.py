"""Passages taken up again anywhere, without reading again what came before."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.sae import streams
from core.sae.passages import Passage
from core.sae.streams import Interleaved, KnownPassages, TrainingText
from core.sae.texts import DatasetTexts, FileTexts, open_texts
from tests.core.sae.test_passages import word_tokenizer

TEXTS = [f"Text {i}, mit ä und 漢字.\n\nSecond paragraph of {i}. " + "more words " * (i % 7) for i in range(40)]


def write_source(folder: Path, kind: str) -> str:
    """A source of the kind; `dataset` is a folder only `datasets` reads, streamed as one from the Hub is."""
    folder.mkdir()
    if kind == "txt":
        (folder / "a.txt").write_text("\n\n".join(TEXTS) * 200, encoding="utf-8")
    elif kind == "jsonl":
        for name, texts in (("a", TEXTS[:15]), ("b", TEXTS[15:])):
            rows = "\n".join(json.dumps({"text": text}) for text in texts)
            (folder / f"{name}.jsonl").write_text(rows + "\n\n", encoding="utf-8")
    else:
        where = folder / "data" if kind == "dataset" else folder
        where.mkdir(exist_ok=True)
        pl.DataFrame({"text": TEXTS[:25]}).write_parquet(where / "train-0.parquet", row_group_size=10)
        pl.DataFrame({"text": TEXTS[25:]}).write_parquet(where / "train-1.parquet", row_group_size=4)
    return str(folder)


@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet", "dataset"])
def test_a_source_goes_on_where_it_was_left(tmp_path: Path, kind: str) -> None:
    source = write_source(tmp_path / "s", kind)
    assert isinstance(open_texts(source), DatasetTexts if kind == "dataset" else FileTexts)
    whole = list(open_texts(source))
    if kind == "txt":
        assert len(whole) > 5
    else:
        assert whole == TEXTS
    for n in {0, 1, len(whole) // 3, 25, len(whole) - 1, len(whole)}:
        reader = open_texts(source)
        before = list(islice(reader, n))
        position = json.loads(json.dumps(reader.position))
        assert before + list(open_texts(source, position)) == whole


def test_a_file_before_the_position_is_not_read_again(tmp_path: Path) -> None:
    source = write_source(tmp_path / "s", "jsonl")
    reader = open_texts(source)
    list(islice(reader, 20))
    (tmp_path / "s" / "a.jsonl").write_text("damaged")
    b = tmp_path / "s" / "b.jsonl"
    b.write_bytes(b"#" * 200 + b.read_bytes()[200:])
    assert list(open_texts(source, reader.position)) == TEXTS[20:]


def test_a_dataset_goes_on_from_its_own_state(tmp_path: Path) -> None:
    source = write_source(tmp_path / "s", "dataset")
    reader = open_texts(source)
    list(islice(reader, 30))
    position = reader.position
    assert position["row"] == 30
    assert position["state"]
    pl.DataFrame({"text": ["other"]}).write_parquet(tmp_path / "s" / "data" / "train-0.parquet")  # not counted again
    assert list(open_texts(source, position)) == TEXTS[30:]


def test_a_dataset_without_a_state_is_gone_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_source(tmp_path / "s", "dataset")
    monkeypatch.setattr("datasets.IterableDataset.state_dict", lambda _: (_ for _ in ()).throw(NotImplementedError))
    reader = open_texts(source)
    list(islice(reader, 30))
    assert reader.position == {"row": 30, "state": None}
    assert list(open_texts(source, reader.position)) == TEXTS[30:]


def passages(sizes: list[int], first: int) -> list[Passage]:
    return [Passage([[first + number]], [range(size)]) for number, size in enumerate(sizes)]


def test_interleaving_draws_evenly_by_vectors() -> None:
    big, small = passages([10] * 3, 0), passages([2] * 8, 100)
    order = [p.sequences[0][0] for p in Interleaved([KnownPassages(big), KnownPassages(small)])]
    assert order == [0, 100, 101, 102, 103, 104, 1, 105, 106, 107, 2]
    assert list(Interleaved([])) == []


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, 9), max_size=12), min_size=1, max_size=3), st.integers(0, 36))
def test_interleaving_goes_on_where_it_was_left(sizes: list[list[int]], n: int) -> None:
    known = [passages(own, 100 * number) for number, own in enumerate(sizes)]
    whole = list(Interleaved([KnownPassages(own) for own in known]))
    running = Interleaved([KnownPassages(own) for own in known])
    before = list(islice(running, n))
    at = json.loads(json.dumps(running.position))
    reopened = [KnownPassages(own, position) for own, position in zip(known, at["streams"], strict=True)]
    assert before + list(Interleaved(reopened, at["given"])) == whole


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_training_text_goes_on_where_it_was_left(tmp_path: Path, level: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "TEXTS_AT_ONCE", 3)
    rng = np.random.default_rng(0)
    sentence = "A b c, d e f g h i j k l m n {}. "
    texts = [(sentence.format("o p " * int(n)) * 3) for n in rng.integers(1, 8, 40)]
    for name in "ab":
        rows = "\n".join(json.dumps({"text": text}) for text in texts)
        (tmp_path / f"{name}.jsonl").write_text(rows)
    conversations = [rng.integers(2, 30, 12).tolist() for _ in range(30)]
    sources = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    text = TrainingText(conversations, sources, word_tokenizer(bos=True), level, context_length=24)

    def plain(found: Iterator[Passage]) -> list[Any]:
        return [([list(s) for s in p.sequences], [list(k) for k in p.keep]) for p in found]

    whole = plain(text.open())
    held_out = plain(text.open(held_out=True))
    assert len(held_out) == -(-(len(whole) + len(held_out)) // 20)
    assert len(whole) > 100
    for n in (0, 1, 37, len(whole) - 1, len(whole)):
        running = text.open()
        before = plain(islice(running, n))
        assert before + plain(text.open(json.loads(json.dumps(running.position)))) == whole


def test_sentences_beyond_latin1_can_be_left_out(tmp_path: Path) -> None:
    plain, other = "A b c d e f g h i j é.", "B b c d e f g h i “j”."
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": f"{plain} {other}"}))

    def kept(latin1: bool) -> int:
        source = [str(tmp_path / "a.jsonl")]
        text = TrainingText([], source, word_tokenizer(bos=True), "sequence", latin1=latin1)
        return len([*text.open(), *text.open(held_out=True)])

    assert (kept(False), kept(True)) == (2, 1)
