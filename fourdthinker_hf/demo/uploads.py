"""Checks uploaded videos and decodes them in a separate process with limits on time and memory.

A decoder is C code that reads whatever was uploaded. A crash of it ends only its own process (`decode_upload.py`),
which is also killed when its time is up or when nobody waits for it any more.
"""

import ast
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import gradio as gr
import numpy as np
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from ..video_fourdthinker import Timestamps, VideoError

MAX_BYTES = 100_000_000
MAX_SECONDS = 600
MAX_SIDE = 4096  # pixels
MAX_DECODE_SECONDS = 60
MAX_DECODE_BYTES = 6 * 2**30  # of memory
MAX_MCP_BYTES = 1_000_000  # of a request to the MCP server
MAX_TOTAL_BYTES = 5_000_000_000  # of all uploads together; each is deleted after an hour
CHECKED_BYTES = 10_000_000  # between two checks of this total while an upload arrives
POLL_SECONDS = 0.1  # between two checks whether a decoder has to be killed
DECODE_PROGRAM = str(Path(__file__).with_name("decode_upload.py"))
ACCEPTED_FORMATS = "MP4, MOV, WebM, MKV, AVI, FLV, Ogg, WMV, MPEG, GIF or WebP"
# How files of these formats begin: (offset, bytes). An ISO media file (MP4, MOV) has the length of its first box, then
# the box's name.
SIGNATURES = (
    *((4, box) for box in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide")),
    (0, b"\x1a\x45\xdf\xa3"),  # Matroska, WebM
    (8, b"AVI "),
    (8, b"WEBP"),
    (0, b"GIF8"),
    (0, b"FLV\x01"),
    (0, b"OggS"),
    (0, b"\x30\x26\xb2\x75"),  # ASF: WMV
    (0, b"\x00\x00\x01\xba"),  # MPEG program stream
    (0, b"\x00\x00\x01\xb3"),  # MPEG video
)
# A video inside a request to the MCP server, as json.dumps writes it. Within a string its quotes would be escaped.
INLINE_VIDEO = re.compile(r'"video": "data:(?:[^"\\]|\\.)*"')


def check_upload(path: str) -> None:
    """Raises `VideoError` for a file that is too large or does not begin as a video does."""
    name, size = Path(path).name, Path(path).stat().st_size
    if size > MAX_BYTES:
        raise VideoError(f"{name}: has {size / 1e6:.0f} MB, more than the {MAX_BYTES / 1e6:.0f} MB that are accepted")
    with open(path, "rb") as file:
        head = file.read(400)
    is_transport_stream = len(head) > 376 and head[0] == head[188] == head[376] == 0x47
    if not is_transport_stream and not any(head[i : i + len(mark)] == mark for i, mark in SIGNATURES):
        raise VideoError(f"{name}: is not a video file; {ACCEPTED_FORMATS} can be read")


def open_in_subprocess(
    processor, seconds: float = MAX_DECODE_SECONDS, memory_bytes: int = MAX_DECODE_BYTES
) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """Returns a function that does what `processor.open_video(path, start, end)` does, in a process that is killed
    after `seconds`, or when the event `stopped` is set that the function also takes.

    It also raises `VideoError` for a video that is too long or too large, at which the decoder crashes, or that was
    stopped. No message names a folder of the server.
    """
    sampling = {name: getattr(processor, name) for name in ("fps", "max_frames", "pair_seconds")}

    def open_video(path, start=None, end=None, stopped=None) -> tuple[np.ndarray, np.ndarray]:
        stopped = stopped or threading.Event()
        with tempfile.TemporaryFile() as out:  # it has no name, so nothing of it outlives this process
            job = {
                "path": str(path),
                "server": os.getpid(),
                "code_folder": str(Path(__file__).resolve().parents[1]),
                "memory_bytes": memory_bytes,
                "seconds": int(seconds),
                "max_seconds": MAX_SECONDS,
                "max_side": MAX_SIDE,
                "sampling": sampling | {"start": start, "end": end},
            }
            name = Path(path).name
            code, stderr = _run([sys.executable, "-I", DECODE_PROGRAM, json.dumps(job)], out, seconds, stopped)
            if stopped.is_set():
                raise VideoError(f"{name}: was not read, it was stopped")
            if code is None:
                raise VideoError(
                    f"{name}: was not read within {seconds:g} s: cut it shorter or make it smaller, for example with "
                    "`ffmpeg -i IN -t 60 -vf scale=-2:720 OUT.mp4`"
                )
            if code == 0:
                out.seek(0)
                frames, times, known = (np.load(out) for _ in range(3))
                per_frame, end = known.tolist()
                return frames, Timestamps(times, None if np.isnan(per_frame) else per_frame, end)
            cause = stderr.rpartition("VideoError: ")[2].strip()
            if code != 1 or not cause or "Traceback" in cause:
                raise VideoError(f"{name}: is damaged, and the decoder failed at it; re-encoding it may help")
            raise VideoError(f"{name}: {cause.removeprefix(f'{path}: ')}")

    return open_video


def _run(command: list[str], out: IO[bytes], seconds: float, stopped: threading.Event) -> tuple[int | None, str]:
    """Runs a process that writes to `out`. Returns its exit status, or None if it was stopped or its time was up, and
    its stderr."""
    deadline = time.monotonic() + seconds
    pipes = {"stdout": out, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, errors="replace", **pipes) as child:
        try:
            while not stopped.is_set() and time.monotonic() < deadline:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    _, stderr = child.communicate(timeout=POLL_SECONDS)
                    return child.returncode, stderr
        finally:
            child.kill()
    return None, ""


def accept_uploads_only(video: gr.Video) -> gr.Video:
    """Makes the component refuse web addresses, which Gradio would download. (That a path lies among the uploads is
    checked by Gradio itself.) An MCP client can name an upload only by the address that this server gave it: that
    address is accepted and its file is taken from the uploads, without a download."""
    move = video.async_move_resource_to_block_cache

    async def move_upload(path):
        if path is not None and "://" in str(path):
            _, served, path = str(path).partition("/gradio_api/file=")
            if not served or not Path(path).resolve().is_relative_to(Path(video.GRADIO_CACHE).resolve()):
                raise gr.Error("Addresses are not downloaded: upload the video", print_exception=False)
        return await move(path)

    video.async_move_resource_to_block_cache = move_upload
    return video


def uploads_folder() -> Path:
    """Where uploads lie: a folder of this demo alone, unless GRADIO_TEMP_DIR says another."""
    default = Path(tempfile.gettempdir()) / f"fourdthinker-uploads-{os.getuid() if hasattr(os, 'getuid') else 0}"
    return Path(os.environ.setdefault("GRADIO_TEMP_DIR", str(default)))


def delete_old_uploads(seconds: float) -> None:
    """Delete the uploads that are older than this. A server that was killed left them."""
    for path in sorted(uploads_folder().rglob("*"), reverse=True):  # files come before their folders
        with contextlib.suppress(OSError):
            if path.is_dir() and not path.is_symlink():
                path.rmdir()  # if it is empty
            elif time.time() - path.lstat().st_mtime > seconds:
                path.unlink()


def _bytes_held() -> int:
    total = 0
    for path in uploads_folder().rglob("*"):
        with contextlib.suppress(OSError):
            total += 0 if path.is_dir() else path.lstat().st_size
    return total


class UploadMiddleware:
    """ASGI middleware that deletes uploads that are no videos and answers them with status 415.

    Of an upload whose client goes before it is complete nothing is kept. All uploads together hold at most
    `MAX_TOTAL_BYTES`: another one is answered with status 413.

    It also takes files out of requests to the MCP server, which Gradio would keep unchecked and never delete. Gradio
    then asks the client for the address of an upload. The results of that server become JSON.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].endswith("/upload"):
            await self._upload(scope, receive, send)
        elif scope["type"] == "http" and scope["method"] == "POST" and "/gradio_api/mcp" in scope["path"]:
            await self._call_tool(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        messages = []

        async def collect(message):
            messages.append(message)

        await self.app(scope, _receive_within_limits(receive), collect)
        body = b"".join(message.get("body", b"") for message in messages)
        if messages[0]["status"] == 200:
            paths = json.loads(body)
            for path in paths:
                try:
                    check_upload(path)
                except VideoError as error:
                    for uploaded in map(Path, paths):
                        uploaded.unlink(missing_ok=True)
                        with contextlib.suppress(OSError):  # the folder may hold another file of the same content
                            uploaded.parent.rmdir()
                    return await PlainTextResponse(str(error), status_code=415)(scope, receive, send)
        for message in messages:
            await send(message)

    async def _call_tool(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        async for chunk in Request(scope, receive).stream():
            body += chunk
            if len(body) > MAX_MCP_BYTES:
                return await PlainTextResponse("Too large: upload the video first", 413)(scope, receive, send)
        try:
            text = INLINE_VIDEO.sub('"video": "a file"', json.dumps(json.loads(body)))
        except ValueError:
            return await PlainTextResponse("The request is not JSON", 400)(scope, receive, send)
        messages = [{"type": "http.request", "body": text.encode(), "more_body": False}]

        async def replay():
            return messages.pop() if messages else await receive()

        async def send_json(message):
            if message["type"] == "http.response.body":
                lines = message.get("body", b"").split(b"\n")
                message = message | {"body": b"\n".join(map(result_as_json, lines))}
            await send(message)

        await self.app(scope, replay, send_json)


def result_as_json(line: bytes) -> bytes:
    """A line of an answer of the MCP server, in which the result of a tool is JSON. Gradio writes it as Python does.

    >>> result_as_json(b'data: {"result": {"content": [{"type": "text", "text": "{\'option\': None}"}]}}')
    b'data: {"result": {"content": [{"type": "text", "text": "{\\\\"option\\\\": null}"}]}}'
    """
    if not line.startswith(b"data: {") or b'"content"' not in line:
        return line
    message = json.loads(line.removeprefix(b"data: "))
    for part in message.get("result", {}).get("content", ()):
        if part.get("text", "").startswith("{"):
            part["text"] = json.dumps(ast.literal_eval(part["text"]))
    return b"data: " + json.dumps(message).encode()


def _receive_within_limits(receive: Receive) -> Receive:
    """`receive` for Gradio's upload. A `MultiPartException` makes Gradio delete what has arrived; it is raised instead
    of the message that the client has gone, at which Gradio would keep it."""
    unchecked = CHECKED_BYTES

    async def checked():
        nonlocal unchecked
        message = await receive()
        if message["type"] == "http.disconnect":
            raise MultiPartException("The upload was not complete")
        unchecked += len(message.get("body", b""))
        if unchecked >= CHECKED_BYTES:
            unchecked = 0
            if _bytes_held() > MAX_TOTAL_BYTES:
                raise MultiPartException("All uploads together have the maximum allowed size: try again in an hour")
        return message

    return checked
