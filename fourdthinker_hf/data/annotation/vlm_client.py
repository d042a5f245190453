"""Client of a (vision-)language model behind an OpenAI-compatible address: vLLM, llama.cpp, Ollama, a paid service."""

import os
import time
from dataclasses import dataclass

import httpx

MAX_TRIES, PAUSE = 4, 2.0  # requests; s before the second request, twice as long before each one after it
MAX_PAUSE = 60.0  # s that a server's Retry-After is followed for
RETRY_STATUSES = (408, 429, 500, 502, 503, 504)  # HTTP statuses of a server that may answer later


class VLMError(ValueError):
    """The server cannot be reached, refuses the request, or does not reply with text. The message says which."""


@dataclass(frozen=True)
class VLMClient:
    """`url` is what comes before `/chat/completions`, for example `http://127.0.0.1:8000/v1`.

    If the environment variable OPENAI_API_KEY is set, its value is sent as the key. Raises `ValueError` if `url` is no
    HTTP address.
    """

    url: str
    model: str
    timeout: float = 120.0  # s

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"The address of a server begins with http:// or https://, but it is {self.url!r}.")

    def complete(self, messages: list[dict], **options: object) -> str:
        """The model's reply to `messages`, in the format of the chat completions API.

        `options` are further fields of the request, such as `temperature` or `seed`. Raises `VLMError`.
        """
        key = os.environ.get("OPENAI_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        body = {"model": self.model, "messages": messages, **options}
        address = f"{self.url.rstrip('/')}/chat/completions"
        wanted_pause = 0.0
        for attempt in range(MAX_TRIES):
            if attempt:
                time.sleep(max(PAUSE * 2 ** (attempt - 1), min(wanted_pause, MAX_PAUSE)))
            wanted_pause = 0.0
            try:
                response = httpx.post(address, json=body, headers=headers, timeout=self.timeout)
            except httpx.TransportError as error:
                cause = str(error) or type(error).__name__
                continue
            if response.is_success:
                try:
                    return _reply_text(response)
                except VLMError as error:
                    cause = str(error)
                    continue
            cause = f"status {response.status_code}: {response.text[:200]}"
            if response.status_code not in RETRY_STATUSES:
                break
            if response.headers.get("Retry-After", "").isdecimal():
                wanted_pause = float(response.headers["Retry-After"])
        tries = f", asked {attempt + 1} times" if attempt else ""
        raise VLMError(f"{address}: {cause}{tries}")


def _reply_text(response: httpx.Response) -> str:
    try:
        text = response.json()["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        raise VLMError(f"the response is no chat completion: {response.text[:200]}") from None
    if not isinstance(text, str) or not text.strip():
        raise VLMError("the reply is empty")
    return text
