"""The cost is counted from the requests themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from core.features.labels.cost import MESSAGE_TOKENS, estimate, token_counter
from core.features.labels.prompts import LABEL_SCHEMA


def words(text: str) -> int:
    return len(text.split())


def request(*texts: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text} for text in texts]


def test_tokens_of_every_message_and_schema_are_added_and_priced() -> None:
    found = estimate([request("a b c", "d"), request("e")], words, "words", max_tokens=50, price_in=2, price_out=10)
    schema = words(json.dumps(LABEL_SCHEMA))
    assert (found.requests, found.completion_tokens) == (2, 100)
    assert found.prompt_tokens == 5 + 3 * MESSAGE_TOKENS + 2 * schema
    assert found.price == pytest.approx((found.prompt_tokens * 2 + 1000) / 1e6)


@given(st.sampled_from([(None, None), (1.0, None), (None, 1.0)]))
def test_without_both_prices_there_is_no_price(prices: tuple[float | None, float | None]) -> None:
    found = estimate([request("a")], words, "words", max_tokens=1, price_in=prices[0], price_out=prices[1])
    assert found.price is None


def test_the_runs_own_tokenizer_counts_where_it_is(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    count, what = token_counter({"name": str(tmp_path)})
    assert (count("a b c d"), what) == (4, "the run's own tokenizer")
    (tmp_path / "tokenizer.json").write_text("{", encoding="utf-8")
    assert token_counter({"name": str(tmp_path)})[1].endswith("bytes a token")
    assert token_counter({"name": "no such model"})[0]("x" * 35) == 10
