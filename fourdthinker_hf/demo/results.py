"""Keeps the pages of finished answers for a while, so that a visitor can send another one the link."""

import secrets
import time
from collections import OrderedDict

from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

MAX_SECONDS = 3600
MAX_BYTES = 50_000_000  # of all pages together; the oldest go first
FOLDER = "result"
# The page runs nothing and fetches nothing.
CONTENT_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class ResultPages:
    """The pages, by a name that cannot be guessed."""

    def __init__(self):
        self._pages: OrderedDict[str, tuple[float, bytes]] = OrderedDict()

    def add(self, page: str) -> str:
        """Keeps a page. Returns its address, relative to that of the demo."""
        name = secrets.token_urlsafe(9)
        self._pages[name] = time.monotonic(), page.encode()
        while sum(len(data) for _, data in self._pages.values()) > MAX_BYTES:
            self._pages.popitem(last=False)
        return f"{FOLDER}/{name}"

    def route(self) -> Route:
        """The route on which the pages are served."""
        return Route(f"/{FOLDER}/{{name}}", self._serve)

    def _serve(self, request: Request) -> Response:
        made, page = self._pages.get(request.path_params["name"], (0.0, b""))
        if not page or time.monotonic() - made > MAX_SECONDS:
            self._pages.pop(request.path_params["name"], None)
            return PlainTextResponse("This result is no longer kept: ask the question again.", status_code=404)
        return HTMLResponse(page, headers={"Content-Security-Policy": CONTENT_POLICY})
