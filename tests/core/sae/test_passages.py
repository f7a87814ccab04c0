"""Which tokens train an SAE."""

from __future__ import annotations

import re

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from core.sae.passages import (
    Passage,
    conversation_passages,
    delimiter_ids,
    leading_tokens,
    sentence_passages,
    sentences,
    sharing_groups,
    token_passages,
)

WORDS = ["<s>", "?u", *"abcdefghijklmnopqrstuvwxyz", ",", "--", ";", "!", "?", '"', ".", "A", "B", "end"]


def word_tokenizer(*, bos: bool) -> PreTrainedTokenizerFast:
    """One token a word or mark; with or without a BOS of its own."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="?u"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?u")


def ids(text: str) -> list[int]:
    return [WORDS.index(word) for word in text.replace(".", " .").split()]


def test_leading_tokens_are_the_tokenizers_own() -> None:
    assert leading_tokens(word_tokenizer(bos=True)) == [0]
    assert leading_tokens(word_tokenizer(bos=False)) == []


@pytest.mark.parametrize("bos", [True, False])
def test_token_level_keeps_all_but_the_first_position(bos: bool) -> None:
    text = " ".join("abcdefghijklmnopqrstuvwxyz" * 2)
    passages = list(token_passages([text, "z"], word_tokenizer(bos=bos), chunk_tokens=20))
    start = [0] if bos else []
    step = 20 - len(start)
    whole = ids(text)
    chunks = [start + whole[at : at + step] for at in range(0, 52, step)]
    if bos:
        chunks.append([0, *ids("z")])  # one token after BOS is kept; without BOS nothing is left of it
    assert [passage.sequences[0] for passage in passages] == chunks
    assert all(len(chunk) <= 20 for chunk in chunks)
    assert [list(passage.keep[0]) for passage in passages] == [list(range(1, len(chunk))) for chunk in chunks]


def test_sentence_level_keeps_the_last_token_of_each_sentence_alone() -> None:
    ten = "A b c d e f g h end."
    nine = "B c d e f g h end."
    text = f"{ten} {nine} {ten}"
    assert sentences(text) == [ten, nine, ten]
    passages = list(sentence_passages([text], word_tokenizer(bos=False)))
    assert passages == [Passage([ids(ten)], [[9]])] * 2  # 9 tokens are too few, 10 are enough
    with_bos = list(sentence_passages([text], word_tokenizer(bos=True)))
    assert [passage.sequences[0] for passage in with_bos] == [[0, *ids(ten)], [0, *ids(nine)], [0, *ids(ten)]]


def test_sentences_longer_than_96_tokens_are_dropped() -> None:
    texts = ["A " + "b " * 94 + ".", "A " + "b " * 95 + "."]
    assert [len(passage.sequences[0]) for passage in sentence_passages(texts, word_tokenizer(bos=False))] == [96]


def test_paper_delimiters_add_their_tokens() -> None:
    tokenizer = word_tokenizer(bos=False)
    assert delimiter_ids(tokenizer) == frozenset(ids(', -- ; ! ? "'))
    text = "A b , c -- d ; e f g h i ."
    (passage,) = sentence_passages([text], tokenizer, paper_delimiters=True)
    assert [passage.sequences[0][at] for at in passage.keep[0]] == ids(", -- ; .")
    (passage,) = sentence_passages([text], tokenizer)
    assert [passage.sequences[0][at] for at in passage.keep[0]] == ids(".")


def test_sentences_are_not_cut_at_abbreviations() -> None:
    text = "Dr. Smith met Mr. Jones at 3.5 p.m. on Monday. They spoke! Did they?\n\nA new paragraph"
    assert sentences(text) == [
        "Dr. Smith met Mr. Jones at 3.5 p.m. on Monday.",
        "They spoke!",
        "Did they?",
        "A new paragraph",
    ]
    assert sentences(" \n\n ") == []
    assert re.sub(r"\s", "", "".join(sentences(text))) == re.sub(r"\s", "", text)


SYSTEM = [1, 2, 3]


def conversation(prompt: list[int], answer: list[int]) -> list[int]:
    return [*SYSTEM, *prompt, 9, *answer, 8]


def test_conversations_share_what_their_answers_have_in_common() -> None:
    long = list(range(20, 40))
    one, two = conversation(long, [5, 6]), conversation(long, [7])
    three = conversation([50], [5])
    passages = list(conversation_passages([one, two, three], "token"))
    assert [list(passage.sequences) for passage in passages] == [[one, two], [three]]
    first, second = passages[0].keep
    assert list(first) == list(range(1, len(one)))
    assert list(second) == list(range(24, len(two)))  # the common prompt is kept once
    assert list(passages[1].keep[0]) == list(range(1, len(three)))


def test_at_sequence_level_a_conversation_gives_its_last_token() -> None:
    passages = list(conversation_passages([conversation([50], [5, 6]), conversation([50], [7])], "sequence"))
    kept = [s[at] for p in passages for s, keep in zip(p.sequences, p.keep, strict=True) for at in keep]
    assert kept == [8, 8]


def test_groups_keep_the_order_and_stay_small() -> None:
    sequences = [conversation([i // 3], [i]) for i in range(100)]
    groups = list(sharing_groups(sequences))
    assert [sequence for group in groups for sequence in group] == sequences
    assert max(map(len, groups)) <= 16
    assert list(sharing_groups([])) == []


def test_an_answer_that_begins_another_gives_no_vector_twice() -> None:
    (passage,) = conversation_passages([[1, 2, 3], [1, 2, 3, 4], [1, 2, 3]], "token")
    assert [list(keep) for keep in passage.keep] == [[1, 2], [3], []]
