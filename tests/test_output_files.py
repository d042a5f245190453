"""A command's output is continued by the same work alone, by one process at a time."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from fourdthinker_hf.output_files import append_lines, claim, file_hash, new_folder, read_lines


def test_other_work_is_refused_with_what_differs(tmp_path):
    path = tmp_path / "out" / "work.json"
    with claim(path, {"seed": 5, "tasks": ("a", "b")}):
        assert json.loads(path.read_text()) == {"seed": 5, "tasks": ["a", "b"]}
    with claim(path, {"seed": 5, "tasks": ("a", "b")}):
        pass
    with pytest.raises(ValueError, match=r"out holds another run \(seed was 5, now 77; num was None, now 2\)"):
        with claim(path, {"seed": 77, "tasks": ["a", "b"], "num": 2}):
            pass
    path.write_text('{"command": "sft.py", "seed": 5}')
    with pytest.raises(ValueError, match=r"out holds another run \(command was sft.py, now grpo.py\): choose"):
        with claim(path, {"command": "grpo.py", "num": 2}):
            pass
    path.write_text('{"seed": 5')
    with pytest.raises(ValueError, match="work.json: it should say of what the files beside it were made, but"):
        with claim(path, {"seed": 5}):
            pass


def test_results_of_unknown_work_are_refused_and_nothing_is_written(tmp_path):
    (tmp_path / "records.jsonl").touch()
    with pytest.raises(ValueError, match="records.jsonl is there without a work.json"):
        with claim(tmp_path / "work.json", {}, [tmp_path / "images", tmp_path / "records.jsonl"]):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["records.jsonl"]


HOLD = """
import os, sys, time
from pathlib import Path
from fourdthinker_hf.output_files import claim
with claim(Path(sys.argv[1]), {"seed": 5}):
    if os.fork() == 0:
        time.sleep(3)  # lives on, like the worker of a killed run
        os._exit(0)
    print("claimed", flush=True)
    time.sleep(100)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs fcntl")
def test_a_claim_ends_with_its_process_and_not_before(tmp_path):
    path = tmp_path / "work.json"
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "claimed\n"
    with pytest.raises(ValueError, match="work.json: another process is at this work"):
        with claim(path, {"seed": 5}):
            pass
    other.send_signal(signal.SIGKILL)
    other.wait()
    with claim(path, {"seed": 5}):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="needs fcntl")
def test_a_new_folder_is_made_by_one_process_and_replaces_what_a_kill_left(tmp_path):
    dest, (reader, writer) = tmp_path / "dest", os.pipe()
    if (child := os.fork()) == 0:
        with new_folder(dest) as folder:
            (folder / "half").touch()
            os.write(writer, b"!")
            time.sleep(100)
    os.read(reader, 1)
    with pytest.raises(ValueError, match="another process is at this work"), new_folder(dest):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert [path.name for path in tmp_path.iterdir()] == [".dest.part"]
    dest.mkdir()
    with new_folder(dest) as folder:
        (folder / "whole").touch()
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["dest", "dest/whole"]
    with pytest.raises(ValueError, match="dest: exists already and is not an empty folder"), new_folder(dest):
        pass
    with pytest.raises(OSError, match="full"), new_folder(tmp_path / "other"):
        raise OSError("full")
    assert [path.name for path in tmp_path.iterdir()] == ["dest"]


def test_a_line_that_a_kill_cut_is_replaced(tmp_path):
    path = tmp_path / "lines"
    assert read_lines(path) == []
    path.write_bytes(b"one\ntw")
    assert read_lines(path) == ["one"]
    append_lines(path, ["two", "three"])
    assert path.read_bytes() == b"one\ntwo\nthree\n"


def test_the_hash_of_a_file_follows_its_content(tmp_path):
    path = tmp_path / "file"
    path.write_text("a")
    first = file_hash(path)
    path.write_text("b")
    os.utime(path, ns=(0, time.time_ns()))
    assert first.startswith("ca978112") and file_hash(path).startswith("3e23e816")
