"""`python app.py` as a process: its options, and what it says about those that cannot be honoured."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[2]

# Starts app.py. When torch or transformers is first imported, it writes "first PACKAGE STATUS" with the status of the
# page at that moment, or "no page".
PROGRAM = """
import runpy, sys, urllib.request

class Finder:
    def find_spec(name, path, target=None):
        if name in ("torch", "transformers"):
            sys.meta_path.remove(Finder)
            try:
                answer = urllib.request.urlopen("http://127.0.0.1:" + sys.argv[sys.argv.index("--port") + 1]).status
            except (OSError, ValueError):
                answer = "no page"
            print("first", name, answer, flush=True)

sys.meta_path.insert(0, Finder)
sys.argv = ["app.py", *sys.argv[1:]]
runpy.run_path("app.py", run_name="__main__")
"""


def app(*arguments: object, **settings) -> subprocess.Popen:
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **settings
    )


def test_help_names_every_option():
    output, _ = app("--help").communicate()
    options = set(re.findall(r"--[a-z-]+", output)) - {"--help"}
    assert options == {
        *("--model", "--revision", "--subfolder", "--dtype", "--device"),
        *("--host", "--port", "--share", "--auth", "--root-path"),
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--auth", "name:"], "--auth must be NAME:PASSWORD"),
        (["--model", "no/thing"], "app.py: no/thing: there is no such folder. the Hub is not asked"),
        (["--dtype", "float8"], "app.py: dtype must be one of auto, float32, bfloat16, float16, got 'float8'"),
        (["--subfolder", "4drl"], "it has one in its uppermost folder: leave subfolder out"),
    ],
)
def test_what_cannot_be_honoured_is_refused_before_torch_is_imported(arguments, words):
    process = app(*arguments)
    output, error = process.communicate()
    assert (process.returncode, output) == (2, "") and words in error and "Traceback" not in error


def test_it_serves_where_it_is_told_before_torch_is_imported_and_asks_for_the_password():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = app("--host", "127.0.0.1", "--port", port, "--auth", "me:word", "--root-path", "/demo")
    try:
        page, deadline = None, time.monotonic() + 300
        while page is None and process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(httpx.HTTPError):
                page = httpx.get(f"http://127.0.0.1:{port}/")
            time.sleep(0.2)
        assert page.status_code == 200 and "/demo" in page.text
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
            assert client.get("/config").status_code == 401
            assert client.post("/login", data={"username": "me", "password": "word"}).status_code == 200
            assert client.get("/config").json()["root"].endswith("/demo")
        assert any(line.split()[0::2] == ["first", "200"] for line in process.stdout)
    finally:
        process.kill()
        process.communicate()
