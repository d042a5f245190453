"""Keeps finished answers for a while, so that a visitor can send another one the link, or download a video.

The page is made with the answer. The video is made when it is asked for.
"""

import secrets
import time
from collections import OrderedDict

from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from .answer_video import AnswerVideo

MAX_SECONDS = 3600
MAX_BYTES = 100_000_000  # of all results together; the oldest go first
FOLDER = "result"
# The page runs nothing and fetches nothing.
CONTENT_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class Results:
    """The page of each answer and what its video is made of, by a name that cannot be guessed."""

    def __init__(self):
        self._results: OrderedDict[str, tuple[float, bytes, AnswerVideo]] = OrderedDict()

    def add(self, page: str, video: AnswerVideo) -> str:
        """Keeps a result. Returns the address of its page, relative to that of the demo."""
        name = secrets.token_urlsafe(9)
        self._results[name] = time.monotonic(), page.encode(), video
        while sum(len(page) + video.nbytes for _, page, video in self._results.values()) > MAX_BYTES:
            self._results.popitem(last=False)
        return f"{FOLDER}/{name}"

    def routes(self) -> list[Route]:
        """The routes on which the pages and videos are served."""
        return [
            Route(f"/{FOLDER}/{{name}}", self._serve_page),
            Route(f"/{FOLDER}/{{name}}/answer.mp4", self._serve_video),
        ]

    def _serve_page(self, request: Request) -> Response:
        if (found := self._find(request)) is None:
            return GONE
        return HTMLResponse(found[0], headers={"Content-Security-Policy": CONTENT_POLICY})

    def _serve_video(self, request: Request) -> Response:
        if (found := self._find(request)) is None or not found[1].images:
            return GONE
        return Response(found[1].mp4(), media_type="video/mp4")

    def _find(self, request: Request) -> tuple[bytes, AnswerVideo] | None:
        name = request.path_params["name"]
        made, *result = self._results.get(name, (0.0,))
        if result and time.monotonic() - made <= MAX_SECONDS:
            return tuple(result)
        self._results.pop(name, None)
        return None


GONE = PlainTextResponse("This result is no longer kept: ask the question again.", status_code=404)
