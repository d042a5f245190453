"""Videos of strangers: which are let in, and decoding them where they can do no harm.

A decoder is C code that reads what anyone sent. Here it runs in a process of its own that has bounded time and memory,
and that is killed when its time is up or nobody waits for it any more; a crash ends that process alone.
"""

import contextlib
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import gradio as gr
import numpy as np
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from ..video_fourdthinker import VideoError

MAX_BYTES = 100_000_000
MAX_SECONDS = 600
MAX_SIDE = 4096  # pixels
DECODE_SECONDS = 60
MAX_MESSAGE = 1_000_000  # bytes of a request to the MCP server
LOOK_SECONDS = 0.1  # from one look at whether a decoder is to be killed to the next
# How a file of each kind begins: (offset, bytes). ISO media files (MP4, MOV) name their first box after its length.
KINDS = (
    *((4, box) for box in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide")),
    (0, b"\x1a\x45\xdf\xa3"),  # Matroska, WebM
    (8, b"AVI "),
    (0, b"FLV\x01"),
    (0, b"OggS"),
    (0, b"\x30\x26\xb2\x75"),  # ASF: WMV
    (0, b"\x00\x00\x01\xba"),  # MPEG program stream
)
FILE_INSIDE = re.compile(r'"video": "data:(?:[^"\\]|\\.)*"')  # as json.dumps writes it, nowhere inside a string
DECODER = str(Path(__file__).with_name("decode_upload.py"))
READABLE = "MP4, MOV, WebM, MKV, AVI, FLV, Ogg, WMV or MPEG"


def check_upload(path: str) -> None:
    """VideoError, with what is taken, for a file that is too big or does not begin as a video does."""
    name, size = Path(path).name, Path(path).stat().st_size
    if size > MAX_BYTES:
        raise VideoError(f"{name}: has {size / 1e6:.0f} MB, more than the {MAX_BYTES / 1e6:.0f} that are taken here")
    with open(path, "rb") as file:
        head = file.read(400)
    is_transport_stream = len(head) > 376 and head[0] == head[188] == head[376] == 0x47  # gets a remark when opened
    if not is_transport_stream and not any(head[at : at + len(mark)] == mark for at, mark in KINDS):
        raise VideoError(f"{name}: is not a video file; {READABLE} can be read")


def open_apart(processor, seconds: float = DECODE_SECONDS, memory: int = 6 * 2**30) -> Callable:
    """`processor.open_video(path, start, end)` in a child process that is killed after `seconds`. What it returns also
    takes `stopped`, an event that ends the child too, and also raises VideoError for a video that is too long or too
    large, for one at which the decoder crashes, and for one that was stopped."""
    sampling = {"fps": processor.fps, "max_frames": processor.max_frames}

    def open_video(path, start=None, end=None, stopped=None) -> tuple[np.ndarray, np.ndarray]:
        stopped = stopped or threading.Event()
        with tempfile.TemporaryDirectory(prefix="fourdthinker-") as out:
            job = {
                "path": str(path),
                "out": out,
                "folder": str(Path(__file__).resolve().parents[1]),
                "bytes": memory,
                "seconds": int(seconds),
                "max_seconds": MAX_SECONDS,
                "max_side": MAX_SIDE,
                "sampling": sampling | {"start": start, "end": end},
            }
            name = Path(path).name
            code, told = _run([sys.executable, "-I", DECODER, json.dumps(job)], seconds, stopped)
            if stopped.is_set():
                raise VideoError(f"{name}: was not read, it was stopped")
            if code is None:
                raise VideoError(
                    f"{name}: was not read within {seconds:g} s: cut it shorter or make it smaller, for example with "
                    "`ffmpeg -i IN -t 60 -vf scale=-2:720 OUT.mp4`"
                )
            if code == 0:
                return np.load(f"{out}/frames.npy"), np.load(f"{out}/timestamps.npy")
            cause = told.rpartition("VideoError: ")[2].strip()
            if code != 1 or not cause or "Traceback" in cause:
                raise VideoError(f"{name}: is damaged, and the decoder failed at it; re-encoding it may help")
            cause = cause.removeprefix(f"{path}: ")
            raise VideoError(f"{name}: {cause}")

    return open_video


def _run(command: list[str], seconds: float, stopped: threading.Event) -> tuple[int | None, str]:
    """The exit status of a process, None if its time was up or it was stopped, and what it wrote to stderr."""
    until, pipes = time.monotonic() + seconds, {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, errors="replace", **pipes) as child:
        try:
            while not stopped.is_set() and time.monotonic() < until:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    _, told = child.communicate(timeout=LOOK_SECONDS)
                    return child.returncode, told
        finally:
            child.kill()
    return None, ""


def refuse_addresses(video: gr.Video) -> gr.Video:
    """The component, made to take uploads alone: Gradio would also fetch what a client names by its address. (That a
    path lies among the uploads is checked by Gradio itself.) MCP clients can name an upload only by the address that
    this server gave it; the file is then taken from the uploads, and nothing is fetched."""
    move = video.async_move_resource_to_block_cache

    async def move_upload(path):
        if path is not None and "://" in str(path):
            _, served, path = str(path).partition("/gradio_api/file=")
            if not served or not Path(path).resolve().is_relative_to(Path(video.GRADIO_CACHE).resolve()):
                raise gr.Error("An address is not fetched: upload the video", print_exception=False)
        return await move(path)

    video.async_move_resource_to_block_cache = move_upload
    return video


class OnlyVideos:
    """ASGI middleware: what is uploaded and is not a video is deleted at once and answered with status 415. A file
    inside a request to the MCP server is taken out of it: Gradio would keep it unchecked, and for ever. Then it
    asks for the address of one."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].endswith("/upload"):
            await self._upload(scope, receive, send)
        elif scope["type"] == "http" and scope["method"] == "POST" and "/gradio_api/mcp" in scope["path"]:
            await self._call_tool(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _call_tool(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        async for chunk in Request(scope, receive).stream():
            body += chunk
            if len(body) > MAX_MESSAGE:
                return await PlainTextResponse("Too large: upload the video first", 413)(scope, receive, send)
        try:
            text = FILE_INSIDE.sub('"video": "a file"', json.dumps(json.loads(body)))
        except ValueError:
            return await PlainTextResponse("This is no JSON", 400)(scope, receive, send)
        messages = [{"type": "http.request", "body": text.encode(), "more_body": False}]

        async def replay():
            return messages.pop() if messages else await receive()

        await self.app(scope, replay, send)

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        messages = []

        async def collect(message):
            messages.append(message)

        await self.app(scope, receive, collect)
        body = b"".join(message.get("body", b"") for message in messages)
        if messages[0]["status"] == 200:
            paths = json.loads(body)
            for path in paths:
                try:
                    check_upload(path)
                except VideoError as error:
                    for uploaded in paths:
                        Path(uploaded).unlink(missing_ok=True)
                    return await PlainTextResponse(str(error), status_code=415)(scope, receive, send)
        for message in messages:
            await send(message)
