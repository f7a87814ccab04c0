"""The client against a real server on this machine: what it asks, what it tries again, what it calls missing."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import pytest

from core.errors import EndpointError
from core.features.labels.endpoint import Endpoint, EndpointSettings, Reply
from core.features.labels.prompts import NUMBERS_SCHEMA
from tests.core.features.labels.planted import Server, completion, serving

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "?"}]
AT_ONCE = {"Retry-After-Ms": "1"}


def ask(server: Server, n: int = 1, **settings: Any) -> list[Reply]:
    async def work() -> list[Reply]:
        async with Endpoint(EndpointSettings(server.url, "m", **{"retries": 2, **settings})) as endpoint:
            return [await endpoint.ask(MESSAGES, "numbers", NUMBERS_SCHEMA) for _ in range(n)]

    return asyncio.run(work())


def refuse(message: str, status: int = 400) -> tuple[int, str, dict[str, str]]:
    return status, json.dumps({"error": {"message": message}}), AT_ONCE


def test_a_request_carries_model_messages_schema_limit_and_key() -> None:
    with serving(lambda _: "fine") as server:
        [reply] = ask(server, key="sk-secret", max_tokens=77)
        body = server.bodies[0]
        assert reply == Reply("fine", None, True, 100, 10)
        assert (body["model"], body["messages"], body["temperature"], body["max_tokens"]) == ("m", MESSAGES, 0, 77)
        assert body["response_format"]["json_schema"]["schema"] == NUMBERS_SCHEMA
        assert server.headers[0]["authorization"] == "Bearer sk-secret"


def test_busy_and_failing_servers_are_asked_again() -> None:
    answers = iter([refuse("slow down", 429), refuse("oops", 500), "fine"])
    with serving(lambda _: next(answers)) as server:
        [reply] = ask(server)
        assert reply.content == "fine"
        assert len(server.bodies) == 3


def test_a_request_that_keeps_failing_is_missing_and_says_why() -> None:
    with serving(lambda _: refuse("out of memory", 503)) as server:
        [reply] = ask(server)
        assert (reply.content, reply.answered, reply.prompt_tokens) == (None, False, None)
        assert reply.problem is not None
        assert "out of memory" in reply.problem
        assert len(server.bodies) == 3


@pytest.mark.parametrize("status", [400, 422])
def test_a_server_without_schemas_is_asked_in_words_from_then_on(status: int) -> None:
    def answer(body: dict[str, Any]) -> Any:
        return refuse("unknown field", status) if "response_format" in body else "fine"

    with serving(answer) as server:
        assert [reply.content for reply in ask(server, 3)] == ["fine"] * 3
        assert ["response_format" in body for body in server.bodies] == [True, False, False, False]


def test_a_server_may_want_other_words_for_several_things() -> None:
    def answer(body: dict[str, Any]) -> Any:
        if "max_tokens" in body:
            return refuse("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        if "temperature" in body:
            return refuse("Unsupported value: 'temperature' does not support 0.")
        if body["messages"][0]["role"] == "system":
            return refuse("System role not supported")
        return "fine"

    with serving(answer) as server:
        assert [reply.content for reply in ask(server, 2, max_tokens=9)] == ["fine", "fine"]
        last = server.bodies[-1]
        assert (last["max_completion_tokens"], len(server.bodies)) == (9, 5)
        assert last["messages"] == [{"role": "user", "content": "Be brief.\n\n?"}]
        assert "response_format" in last  # what was never refused is kept


def test_a_request_refused_for_itself_does_not_change_how_others_are_asked() -> None:
    answers = iter([refuse("too long"), refuse("too long"), "fine"])
    with serving(lambda _: next(answers)) as server:
        first, second = ask(server, 2)
        assert (first.content, first.answered, second.content) == (None, False, "fine")
        assert first.problem is not None
        assert "too long" in first.problem
        assert "response_format" in server.bodies[-1]


@pytest.mark.parametrize(
    "garbage",
    [
        (200, "<html>hello</html>", {"Content-Type": "text/html"}),
        (200, "not json", {}),
        (200, "[]", {}),
        (200, "{}", {}),
        (200, '{"choices": []}', {}),
        (200, '{"choices": [{"message": null}]}', {}),
        (200, '{"choices": "many"}', {}),
        (200, '{"choices": [{"message": {"content": 7}}]}', {}),
        (200, '{"choices": [{"message": {"content": null, "refusal": "no"}}]}', {}),
        (200, completion("   "), {}),
        (200, completion('{"numbers": [1', finish="length"), {}),
        (200, "null", {}),
    ],
)
def test_garbage_is_missing(garbage: tuple[int, str, dict[str, str]]) -> None:
    with serving(lambda _: garbage) as server:
        [reply] = ask(server, retries=0)
        assert reply.content is None
        assert reply.problem


def test_a_silent_server_is_given_up() -> None:
    answers = iter(["fine", 0.6])
    with serving(lambda _: next(answers)) as server:
        _, reply = ask(server, 2, timeout=0.2, retries=0)
        assert (reply.content, reply.answered) == (None, False)
        assert reply.problem is not None
        assert "no reply in 0.2 seconds" in reply.problem


def test_no_token_count_is_no_zero() -> None:
    with serving(lambda _: "fine") as server:
        server.usage = None
        assert ask(server) == [Reply("fine", None, True, None, None)]


@pytest.mark.parametrize(
    ("status", "says"), [(401, "refuses the key"), (403, "refuses the key"), (404, "knows no model")]
)
def test_what_would_fail_every_time_stops_at_once_and_never_shows_the_key(status: int, says: str) -> None:
    with serving(lambda _: refuse("Incorrect API key provided: sk-secret", status)) as server:
        with pytest.raises(EndpointError, match=says) as caught:
            ask(server, key="sk-secret")
        assert "sk-secret" not in str(caught.value)
        assert len(server.bodies) == 1


def test_nobody_there_is_said_in_one_sentence() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        server = Server(lambda _: "")
        server.url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(EndpointError, match="cannot be reached"):
        ask(server, retries=0)


def test_settings_do_not_show_the_key() -> None:
    assert "sk-secret" not in repr(EndpointSettings("http://x/v1", "m", "sk-secret"))
