"""Uploaded videos: which are accepted, and the limits on time and memory within which they are decoded."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from launches import free_port

from fourdthinker_hf.demo import uploads
from fourdthinker_hf.demo.uploads import check_upload, open_in_subprocess
from fourdthinker_hf.video_fourdthinker import VideoError, video_size


def test_a_video_opened_in_a_subprocess_is_the_same(processor, clip):
    open_video = open_in_subprocess(processor)
    for span in ((None, None), (1.0, 3.0)):
        for found, expected in zip(open_video(clip, *span), processor.open_video(clip, *span), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_what_is_wrong_is_told_without_the_servers_folders(processor, clip, tmp_path):
    (tmp_path / "cut.mp4").write_bytes(clip.read_bytes()[:-500])
    (tmp_path / "text.mp4").write_text("hello")
    for path, span, message in (
        (tmp_path / "cut.mp4", (), "cut.mp4: is truncated or damaged"),
        (tmp_path / "text.mp4", (), "text.mp4: is not a video file"),
        (clip, (90.0,), "clip.mp4: start=90.0 s is outside the clip, which runs from 0 to 4.000 s"),
    ):
        with pytest.raises(VideoError, match=f"^{message}"):
            open_in_subprocess(processor)(path, *span)


def program(folder, text):
    """A file to run in place of the decoder."""
    path = folder / "decoder.py"
    path.write_text(text)
    return str(path)


def test_decoding_is_killed_when_its_time_is_up(processor, clip, monkeypatch, tmp_path):
    monkeypatch.setattr(uploads, "DECODE_PROGRAM", program(tmp_path, "import time; time.sleep(600)"))
    start = time.monotonic()
    with pytest.raises(VideoError, match="clip.mp4: was not read within 0.5 s: cut it shorter"):
        open_in_subprocess(processor, seconds=0.5)(clip)
    assert time.monotonic() - start < 300  # far below what it would have slept


def test_decoding_is_killed_when_nobody_waits_for_it(processor, clip, monkeypatch, tmp_path):
    monkeypatch.setattr(uploads, "DECODE_PROGRAM", program(tmp_path, "import time; time.sleep(600)"))
    stopped = threading.Event()
    threading.Timer(0.5, stopped.set).start()
    with pytest.raises(VideoError, match="clip.mp4: was not read, it was stopped"):
        open_in_subprocess(processor, seconds=600)(clip, stopped=stopped)
    assert not [child for child in psutil.Process().children() if "-I" in child.cmdline()]


def test_a_decoder_ends_with_its_server_and_nothing_is_left(processor, clip, monkeypatch, tmp_path):
    """A server that was killed is one that is not the decoder's parent any more."""
    started, scratch = [], tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    run = uploads._run
    monkeypatch.setattr(uploads, "_run", lambda command, *rest: started.append(command) or run(command, *rest))
    open_in_subprocess(processor)(clip)
    *program, job = started[0]
    job = json.loads(job)
    assert job["server"] == os.getpid()
    ended = subprocess.run([*program, json.dumps(job | {"server": 0})], capture_output=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, b"", b"")
    with pytest.raises(VideoError):
        open_in_subprocess(processor, seconds=0)(clip)
    assert not list(scratch.iterdir())


def test_a_decoder_that_crashes_ends_its_own_process_alone(processor, clip, monkeypatch, tmp_path):
    monkeypatch.setattr(uploads, "DECODE_PROGRAM", program(tmp_path, "import os; os.abort()"))
    with pytest.raises(VideoError, match="clip.mp4: is damaged, and the decoder failed at it"):
        open_in_subprocess(processor)(clip)


@pytest.mark.parametrize(
    "limit, value, message",
    [("MAX_SECONDS", 3, "lasts 4 s, more than the 3 s"), ("MAX_SIDE", 100, "is 112 x 112 pixels, more than the 100")],
)
def test_what_is_too_long_or_large_is_refused_with_a_remedy(processor, clip, monkeypatch, limit, value, message):
    monkeypatch.setattr(uploads, limit, value)
    with pytest.raises(VideoError, match=f"clip.mp4: {message}.*ffmpeg"):
        open_in_subprocess(processor)(clip)


def test_what_may_be_uploaded(clip, tmp_path, monkeypatch):
    check_upload(clip)
    (tmp_path / "page.mp4").write_text("<html>")
    with pytest.raises(VideoError, match="page.mp4: is not a video file; MP4"):
        check_upload(tmp_path / "page.mp4")
    monkeypatch.setattr(uploads, "MAX_BYTES", 1000)
    with pytest.raises(VideoError, match="more than the 0 MB that are accepted"):
        check_upload(clip)


INPUTS = Path(__file__).parents[1] / "video_inputs"


@pytest.mark.parametrize(
    "name", ["mpegps_shifted.mpg", "mediarecorder_chromium.webm", "theora_noaudio.ogv", "hdr_hlg.mov"]
)
def test_an_upload_is_read_as_everything_else_is(processor, name):
    check_upload(str(INPUTS / name))
    apart, here = (read(INPUTS / name) for read in (open_in_subprocess(processor), processor.open_video))
    np.testing.assert_array_equal(apart[0], here[0])
    assert apart[1].tolist() == here[1].tolist() and apart[1].seconds_per_frame == here[1].seconds_per_frame


@pytest.mark.parametrize(
    "name", ["mpegps_shifted.mpg", "mediarecorder_chromium.webm", "theora_noaudio.ogv", "hdr_hlg.mov"]
)
def test_damaged_uploads_are_read_or_refused(tmp_path, name):
    """Bytes are changed anywhere and the end is cut: the decoder does not crash, and raises nothing but VideoError."""
    data, random = (INPUTS / name).read_bytes(), np.random.default_rng(0)
    program = (
        "import sys; sys.path.insert(0, 'fourdthinker_hf'); from video_fourdthinker import VideoError, load_video\n"
        "for path in sys.argv[1:]:\n"
        "    try: load_video(path)\n"
        "    except VideoError: pass\n"
    )
    for number in range(25):
        damaged = np.frombuffer(data, np.uint8).copy()
        places = random.integers(0, len(data), random.integers(1, 60))
        damaged[places] = random.integers(0, 256, len(places))
        (tmp_path / f"{number}.bin").write_bytes(damaged[: random.integers(1, len(data) + 1)].tobytes())
    command = [sys.executable, "-c", program, *sorted(map(str, tmp_path.glob("*.bin")))]
    done = subprocess.run(command, cwd=INPUTS.parents[1], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_size_of_a_video(clip):
    assert video_size(clip) == (4.0, 112, 112)


HEAD = b'--B\r\nContent-Disposition: form-data; name="files"; filename="a.mp4"\r\nContent-Type: video/mp4\r\n\r\n'
SERVE = """
from fourdthinker_hf.demo import uploads
from fourdthinker_hf.demo.interface import build_demo, launch
demo = build_demo()
uploads.MAX_TOTAL_BYTES = uploads._bytes_held() + 3_000_000  # beside the examples
launch(demo, prevent_thread_lock=True, quiet=True)
print("ready", flush=True)
input()
"""


def begin_upload(port):
    """A connection over which 600 kB of an upload of 1 MB have been sent."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    request = b"POST /gradio_api/upload HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=B\r\n"
    connection.sendall(request + b"Content-Length: 1000000\r\n\r\n" + HEAD + bytes(600_000))
    return connection


def test_aborted_uploads_leave_nothing_and_all_together_are_bounded(tmp_path):
    """A real server. An upload that an earlier one left is deleted at its start."""
    folder, port = tmp_path / "uploads", free_port()
    (folder / "old").mkdir(parents=True)
    (folder / "old" / "left").touch()
    for path in (folder / "old" / "left", folder / "old"):
        os.utime(path, (0, 0))
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(folder), "GRADIO_SERVER_PORT": str(port)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    server = subprocess.Popen([sys.executable, "-c", SERVE], env=environment, text=True, **pipes)
    while server.stdout.readline() != "ready\n":
        assert server.poll() is None, server.stderr.read()
    kept = set(folder.rglob("*"))  # the examples
    assert not [path for path in kept if path.name in ("left", "old")]
    size = sum(path.stat().st_size for path in kept)
    connections = [begin_upload(port) for _ in range(3)]
    while sum(path.stat().st_size for path in folder.rglob("*")) < size + 1_500_000:
        time.sleep(0.05)
    for connection in connections:
        connection.close()
    while set(folder.rglob("*")) != kept:
        time.sleep(0.05)
    (folder / "large").write_bytes(bytes(4_000_000))
    assert b" 413 " in begin_upload(port).recv(100)
    _, errors = server.communicate("\n")
    assert "Traceback" not in errors
