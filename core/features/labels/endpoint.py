"""Asks a model behind an OpenAI-compatible endpoint. A request ends with a reply or with a problem in words."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field, replace
from typing import Any

import openai
from openai import AsyncOpenAI

from core.errors import EndpointError
from core.features.labels.prompts import Messages
from core.features.labels.replies import printable

NO_KEY = "none"
"""Sent where no key is set: the client insists on one, servers on this machine do not."""
LONGEST_PROBLEM = 200


@dataclass(frozen=True)
class EndpointSettings:
    """Where and how to ask.

    Attributes:
        base_url: of the API, with its /v1.
        key: never stored and never printed.
        concurrency: requests under way at once.
        retries: of the client, with growing pauses, after 408, 409, 429, 5xx, and connections that fail.
        timeout: seconds for one try.
    """

    base_url: str
    model: str
    key: str | None = field(default=None, repr=False)
    max_tokens: int = 300
    concurrency: int = 8
    retries: int = 4
    timeout: float = 120.0


@dataclass(frozen=True)
class Reply:
    """How a request ended.

    Attributes:
        content: what the model wrote; None = nothing that could be used.
        problem: why there is no content.
        answered: a reply came (its content may be unusable); False = the request failed and is worth trying again.
        prompt_tokens, completion_tokens: as counted by the server; None where it did not say.
    """

    content: str | None = None
    problem: str | None = None
    answered: bool = True
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


@dataclass(frozen=True)
class _Dialect:
    """What this server takes; each part is given up when the server refuses it (400 or 422) and works without it."""

    schema: bool = True
    system: bool = True
    temperature: bool = True
    limit: str | None = "max_tokens"

    def without(self, message: str) -> list[_Dialect]:
        """What to try instead, the likeliest first, judging by the server's words."""
        other = replace(self, limit="max_completion_tokens" if self.limit == "max_tokens" else self.limit)
        ways = {
            r"max_completion_tokens": other,
            r"temperature": replace(self, temperature=False),
            r"system": replace(self, system=False),
            r"response_format|json_schema|schema|structured|grammar|guided": replace(self, schema=False),
        }
        named = [way for words, way in ways.items() if re.search(words, message, re.IGNORECASE)]
        return [way for way in dict.fromkeys([*named, replace(self, schema=False)]) if way != self]


class Endpoint:
    """One model behind one endpoint; use it as an async context manager.

    Attributes:
        requests: requests asked so far (retries of the client are part of their request).
    """

    def __init__(self, settings: EndpointSettings) -> None:
        self.settings = settings
        self.requests = 0
        self._client = AsyncOpenAI(
            base_url=settings.base_url,
            api_key=settings.key or NO_KEY,
            max_retries=settings.retries,
            timeout=settings.timeout,
        )
        self._turn = asyncio.Semaphore(settings.concurrency)
        self._dialect = _Dialect()
        self._reached = False

    async def __aenter__(self) -> Endpoint:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def ask(self, messages: Messages, name: str, schema: dict[str, Any]) -> Reply:
        """Asks once and waits.

        Args:
            name, schema: JSON schema of the reply, for servers that can hold the model to it.

        Raises:
            EndpointError: nothing else will work either: the key is refused, there is no such model, or nobody was ever
                reached.
        """
        async with self._turn:
            self.requests += 1
            dialect = self._dialect
            tried: set[_Dialect] = set()
            while True:
                tried.add(dialect)
                try:
                    found = await self._create(messages, name, schema, dialect)
                except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                    self._reached = True
                    others = [way for way in dialect.without(self._words(error)) if way not in tried]
                    if not others:
                        return Reply(problem=f"the server refused the request: {self._words(error)}", answered=False)
                    dialect = others[0]
                    continue
                except (openai.OpenAIError, ValueError, OSError) as error:
                    return self._failed(error)
                self._reached, self._dialect = True, dialect
                return _read(found)

    async def _create(self, messages: Messages, name: str, schema: dict[str, Any], dialect: _Dialect) -> Any:
        options: dict[str, Any] = {}
        if dialect.schema:
            form = {"name": name, "strict": True, "schema": schema}
            options["response_format"] = {"type": "json_schema", "json_schema": form}
        if dialect.temperature:
            options["temperature"] = 0
        if dialect.limit:
            options[dialect.limit] = self.settings.max_tokens
        if not dialect.system:
            text = "\n\n".join(message["content"] for message in messages)
            messages = [{"role": "user", "content": text}]
        create: Any = self._client.chat.completions.create
        return await create(model=self.settings.model, messages=messages, **options)

    def _failed(self, error: Exception) -> Reply:
        where, words = self.settings.base_url, self._words(error)
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            raise EndpointError(f"{where} refuses the key ({words}); check the variable that holds it.") from None
        if isinstance(error, openai.NotFoundError):
            raise EndpointError(
                f"{where} knows no model {self.settings.model!r}, or is not the address of an API ({words})."
            ) from None
        if isinstance(error, openai.APIConnectionError) and not self._reached:
            kind = "does not answer in time" if isinstance(error, openai.APITimeoutError) else "cannot be reached"
            raise EndpointError(f"{where} {kind}; check --base-url and that the server runs.") from None
        if isinstance(error, openai.APITimeoutError):
            return Reply(problem=f"the request failed: no reply in {self.settings.timeout:g} seconds", answered=False)
        return Reply(problem=f"the request failed: {words}", answered=False)

    def _words(self, error: Exception) -> str:
        """What an error says, on one line, without the key."""
        text = str(getattr(error, "message", "") or error)
        if self.settings.key:
            text = text.replace(self.settings.key, "***")
        line = printable(text[: 4 * LONGEST_PROBLEM])
        return line if len(line) <= LONGEST_PROBLEM else line[:LONGEST_PROBLEM] + "…"


def _read(found: Any) -> Reply:
    """The client does not check what servers send, so nothing about it is taken for granted."""
    usage = getattr(found, "usage", None)
    choices = getattr(found, "choices", None)
    first = choices[0] if isinstance(choices, list) and choices else None
    content, problem = _content(first)
    prompt, completion = (getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens"))
    return Reply(content, problem, True, _count(prompt), _count(completion))


def _content(choice: Any) -> tuple[str | None, str | None]:
    """What the model wrote, or why it cannot be used."""
    message = getattr(choice, "message", None)
    content, refusal = getattr(message, "content", None), getattr(message, "refusal", None)
    if message is None:
        return None, "the server's reply is no chat completion"
    if isinstance(refusal, str) and refusal.strip():
        return None, f"the model refused: {printable(refusal)[:LONGEST_PROBLEM]}"
    if getattr(choice, "finish_reason", None) == "length":
        return None, "the reply was cut off; raise --max-tokens"
    if not isinstance(content, str) or not content.strip():
        return None, "the reply is empty"
    return content, None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
