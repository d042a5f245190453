"""The demo under load and under damaged files, with the bundled checkpoint, server and visitors on this machine.

    python bench/speed/demo_load.py [--seconds 120] [--clients 32] [--mutants 200]

Prints, as JSON: the time to the first streamed word; how many questions the clients, each with a clip and a question
of its own, had answered, how long they waited, and how many answers differ from those of asking one after another;
what became of the damaged files; and the server's memory after it all against that after 20 requests. Needs `[sim]`.
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
from fourdthinker_hf.data.simulation.generation import simulate
from fourdthinker_hf.qa import VideoQA

ROOT = Path(__file__).resolve().parents[2]
PORT = 7899
URL = f"http://127.0.0.1:{PORT}"


def memory(pid: int) -> float:
    """Resident MB."""
    line = next(x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def connect() -> Client:
    deadline = time.monotonic() + 300
    while True:
        try:
            return Client(URL, verbose=False, httpx_kwargs={"timeout": 600})  # 5 s are too few on a busy machine
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


def ask(client: Client, record) -> dict:
    options = "\n".join(record.options)
    return client.predict(handle_file(record.video), record.question, options, api_name="/answer")


def first_word(client: Client, record) -> float:
    start = time.monotonic()
    job = client.submit(handle_file(record.video), record.question, "\n".join(record.options), api_name="/answer")
    while not any(answer["reasoning"] for answer in job.outputs()):
        time.sleep(0.005)
    seconds = time.monotonic() - start
    job.result()
    return seconds


def visit(record, expected: dict, until: float) -> list[tuple[float, bool]]:
    """One client's questions until then: how long each took, and whether the answer was the expected one."""
    client, done = connect(), []
    while time.monotonic() < until:
        start = time.monotonic()
        answer = ask(client, record)
        same = answer["answer"] == expected["answer"] and answer["reasoning"] == expected["reasoning"]
        done.append((time.monotonic() - start, same))
    return done


def mutants(source: bytes, num: int, rng: np.random.Generator):
    """Damaged files, each `(name, bytes)`: flipped bits, cut short, zeroed stretches, and in a wrong container."""
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
        else:  # another container's first bytes before this one's
            head = (b"\x1a\x45\xdf\xa3", b"RIFF\0\0\0\0AVI LIST", b"OggS\0\2", b"FLV\1\5")[i // 4 % 4]
            data[: len(head)] = head
        yield f"{kind}-{i}.mp4", bytes(data)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=120)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--mutants", type=int, default=200)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        records = read_records(simulate(args.clients, 31, f"{scratch}/split", progress=False))
        qa = VideoQA.from_pretrained()
        expected = [vars(qa.ask(r.video, r.question, r.options)) for r in records]
        env = os.environ | {"GRADIO_SERVER_PORT": str(PORT), "GRADIO_ANALYTICS_ENABLED": "False"}
        env["MALLOC_ARENA_MAX"] = "2"  # as `make demo` sets it
        log = Path(scratch) / "log"
        server = subprocess.Popen(
            [sys.executable, "app.py"],
            cwd=ROOT,
            env=env | {"GRADIO_TEMP_DIR": f"{scratch}/cache"},
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
        )
        try:
            client = connect()
            words = [first_word(client, record) for record in records[:5]]
            for i in range(20):
                ask(client, records[i % len(records)])
            before = memory(server.pid)
            until = time.monotonic() + args.seconds
            with ThreadPoolExecutor(args.clients) as pool:
                visits = list(pool.map(visit, records, expected, [until] * len(records)))
            loaded = memory(server.pid)
            took = [seconds for visits_ in visits for seconds, _ in visits_]
            wrong = sum(not same for visits_ in visits for _, same in visits_)
            fates = {"refused": 0, "answered": 0, "other": []}
            for name, data in mutants(Path(records[0].video).read_bytes(), args.mutants, np.random.default_rng(0)):
                path = Path(scratch) / name
                path.write_bytes(data)
                try:
                    client.predict(handle_file(path), records[0].question, "", api_name="/answer")
                    fates["answered"] += 1
                except Exception as error:
                    told = "cannot be read" in str(error) or "not a video" in str(error) or "415" in str(error)
                    if told:
                        fates["refused"] += 1
                    else:
                        fates["other"].append(f"{name}: {str(error)[:200]}")
                path.unlink()
            last = ask(client, records[0])
            after = memory(server.pid)
        finally:
            if server.poll() is not None:
                print(f"the server ended with {server.returncode}:\n{log.read_text()[-5000:]}", file=sys.stderr)
            server.terminate()
            server.wait()
    print(
        json.dumps(
            {
                "first_word_s": {"first": round(words[0], 2), "median": round(float(np.median(words)), 2)},
                "load": {
                    "clients": args.clients,
                    "seconds": args.seconds,
                    "answered": len(took),
                    "differ": wrong,
                    "median_s": round(float(np.median(took)), 1),
                    "longest_s": round(max(took), 1),
                },
                "mutants": fates | {"still_serves": last["answer"] == expected[0]["answer"]},
                "memory_mb": {"after_20": round(before), "after_load": round(loaded), "after_mutants": round(after)},
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
