"""Asks a language model behind any OpenAI-compatible address (vLLM, llama.cpp, Ollama, a paid service), over HTTP."""

import os
import time
from dataclasses import dataclass

import httpx

TRIES, PAUSE = 4, 2.0  # requests; s before the second, twice as many before each after it
BUSY = (408, 429, 500, 502, 503, 504)  # statuses that may pass


class ChatError(ValueError):
    """The server is not there, refuses, or answers something else than it should; the message says which."""


@dataclass(frozen=True)
class Chat:
    """`url` is what comes before `/chat/completions`: `http://127.0.0.1:8000/v1`. A key, where the server wants one,
    is read from the environment variable OPENAI_API_KEY."""

    url: str
    model: str
    timeout: float = 120.0  # s

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"a server's address begins with http:// or https://, not {self.url!r}")

    def ask(self, messages: list[dict], **options: object) -> str:
        """The reply to `messages`, as the API has them; `options` of the request, as `temperature` or `seed`."""
        key = os.environ.get("OPENAI_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        body = {"model": self.model, "messages": messages, **options}
        address = f"{self.url.rstrip('/')}/chat/completions"
        for number in range(TRIES):
            if number:
                time.sleep(PAUSE * 2 ** (number - 1))
            try:
                reply = httpx.post(address, json=body, headers=headers, timeout=self.timeout)
            except httpx.TransportError as error:
                cause = str(error) or type(error).__name__
                continue
            if reply.is_success:
                return _text(address, reply)
            cause = f"status {reply.status_code}: {reply.text[:200]}"
            if reply.status_code not in BUSY:
                break
        raise ChatError(f"{address}: {cause}")


def _text(address: str, reply: httpx.Response) -> str:
    try:
        text = reply.json()["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        raise ChatError(f"{address}: answers what is no chat completion: {reply.text[:200]}") from None
    if not isinstance(text, str) or not text.strip():
        raise ChatError(f"{address}: its reply is empty")
    return text
