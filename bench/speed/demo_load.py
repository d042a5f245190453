"""Measures the demo under load and with damaged files, with the bundled checkpoint. Server and clients run here.

    python bench/speed/demo_load.py [--seconds 120] [--clients 32] [--damaged 200]

Prints JSON with the time to the first streamed text; how many questions were answered while each client asked about a
clip of its own, how long that took, and how many answers differ from those without load; what became of damaged files;
and the server's memory after 20 requests, after the load, and after the damaged files. Needs the extra `sim`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from gradio_client import Client, handle_file

from fourdthinker_hf.data.records import read_records
from fourdthinker_hf.data.simulation.generate_records import simulate
from fourdthinker_hf.qa import VideoQA

ROOT = Path(__file__).resolve().parents[2]
PORT = 7899
URL = f"http://127.0.0.1:{PORT}"


def memory_mb(pid: int) -> float:
    """Resident memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def connect() -> Client:
    deadline = time.monotonic() + 300
    while True:
        try:
            return Client(URL, verbose=False, httpx_kwargs={"timeout": 600})  # the default 5 s are too few under load
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


def ask(client: Client, record) -> dict:
    options = "\n".join(record.options)
    return client.predict(handle_file(record.video), record.question, options, api_name="/answer")


def seconds_to_first_text(client: Client, record) -> float:
    start = time.monotonic()
    job = client.submit(handle_file(record.video), record.question, "\n".join(record.options), api_name="/answer")
    while not any(answer["reasoning"] for answer in job.outputs()):
        time.sleep(0.005)
    seconds = time.monotonic() - start
    job.result()
    return seconds


def ask_until(record, expected: dict, deadline: float) -> list[tuple[float, bool]]:
    """One client's questions: how many seconds each took, and whether the answer was the expected one."""
    client, results = connect(), []
    while time.monotonic() < deadline:
        start = time.monotonic()
        answer = ask(client, record)
        is_same = answer["answer"] == expected["answer"] and answer["reasoning"] == expected["reasoning"]
        results.append((time.monotonic() - start, is_same))
    return results


def damaged_files(source: bytes, num: int, rng: np.random.Generator):
    """Yields `(name, bytes)`: with flipped bits, cut short, with zeroed stretches, and in a wrong container."""
    for i in range(num):
        data = bytearray(source)
        kind = ("flip", "cut", "zero", "wrong")[i % 4]
        if kind == "flip":
            for place in rng.integers(0, len(data), int(rng.integers(1, 60))):
                data[place] ^= 1 << int(rng.integers(8))
        elif kind == "cut":
            data = data[: int(rng.integers(1, len(data)))]
        elif kind == "zero":
            start = int(rng.integers(0, len(data) - 100))
            data[start : start + 100] = bytes(100)
        else:  # the first bytes of another container
            head = (b"\x1a\x45\xdf\xa3", b"RIFF\0\0\0\0AVI LIST", b"OggS\0\2", b"FLV\1\5")[i // 4 % 4]
            data[: len(head)] = head
        yield f"{kind}-{i}.mp4", bytes(data)


def ask_about_damaged_files(client: Client, record, num: int, folder: Path) -> dict:
    """How many were refused with a reason and how many answered; any other outcome in full."""
    outcomes = {"refused": 0, "answered": 0, "other": []}
    for name, data in damaged_files(Path(record.video).read_bytes(), num, np.random.default_rng(0)):
        path = folder / name
        path.write_bytes(data)
        try:
            client.predict(handle_file(path), record.question, "", api_name="/answer")
            outcomes["answered"] += 1
        except Exception as error:
            if any(reason in str(error) for reason in ("cannot be read", "not a video", "415")):
                outcomes["refused"] += 1
            else:
                outcomes["other"].append(f"{name}: {str(error)[:200]}")
        path.unlink()
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=120)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--damaged", type=int, default=200)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        records = read_records(simulate(args.clients, 31, f"{scratch}/split", progress=False))
        qa = VideoQA.from_pretrained()
        expected = [vars(qa.ask(record.video, record.question, record.options)) for record in records]
        env = os.environ | {"GRADIO_SERVER_PORT": str(PORT), "GRADIO_ANALYTICS_ENABLED": "False"}
        env |= {"GRADIO_TEMP_DIR": f"{scratch}/cache", "MALLOC_ARENA_MAX": "2"}  # the second as in `make demo`
        log = Path(scratch) / "log"
        command = [sys.executable, "app.py"]
        server = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log.open("w"), stderr=subprocess.STDOUT)
        try:
            client = connect()
            first_text = [seconds_to_first_text(client, record) for record in records[:5]]
            for i in range(20):
                ask(client, records[i % len(records)])
            memory = {"after_20": round(memory_mb(server.pid))}
            deadline = time.monotonic() + args.seconds
            with ThreadPoolExecutor(args.clients) as pool:
                by_client = pool.map(ask_until, records, expected, [deadline] * len(records))
                results = [result for client_results in by_client for result in client_results]
            memory["after_load"] = round(memory_mb(server.pid))
            outcomes = ask_about_damaged_files(client, records[0], args.damaged, Path(scratch))
            last = ask(client, records[0])
            memory["after_damaged"] = round(memory_mb(server.pid))
        finally:
            if server.poll() is not None:
                print(f"the server ended with {server.returncode}:\n{log.read_text()[-5000:]}", file=sys.stderr)
            server.terminate()
            server.wait()
    seconds = [took for took, _ in results]
    report = {
        "first_text_s": {"first": round(first_text[0], 2), "median": round(float(np.median(first_text)), 2)},
        "load": {
            "clients": args.clients,
            "seconds": args.seconds,
            "answered": len(results),
            "differ": sum(not is_same for _, is_same in results),
            "median_s": round(float(np.median(seconds)), 1),
            "longest_s": round(max(seconds), 1),
        },
        "damaged": outcomes | {"still_serves": last["answer"] == expected[0]["answer"]},
        "memory_mb": memory,
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
