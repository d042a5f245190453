"""Reasoning: its parts and their order, how varied it is, and which replies of a language model are accepted."""

import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourdthinker_hf.data.annotation import reasoning, vlm_client
from fourdthinker_hf.data.annotation.questions import ANSWERS, AnnotatedQuestion
from fourdthinker_hf.data.annotation.reasoning import (
    ReasoningError,
    check_reasoning,
    rewrite_reasoning,
    write_reasoning,
)
from fourdthinker_hf.data.annotation.vlm_client import VLMClient, VLMError

IMAGE = "<output_image>"
LEFT = AnnotatedQuestion(
    task="object_direction",
    question="Seen from where the camera is at 0.5 s, in which direction does the red object move from 0.5 s to 3 s?",
    answer="to the left",
    start=0.5,
    end=3.0,
    targets=((1, 4), (1, 24)),
    target_times=(0.5, 3.0),
    measurements=((0.7, 0.5, 0.1), (0.304, 0.5, 0.104)),
    tracks=(1,),
    names=("red object",),
    camera_compensated=False,
    words={},
)
SIDE = AnnotatedQuestion(
    "spatial_description",
    "On which side?",
    "left, then right",
    0.0,
    4.0,
    ((0, 0), (0, 32), (2, 0), (2, 32)),
    (0.0, 4.0, 0.0, 4.0),
    ((0.2, 0.5, 0.1), (0.8, 0.5, 0.1), (0.5, 0.6, 0.2), (0.5, 0.6, 0.2)),
    (0, 2),
    ("red object", "grey box"),
    True,
    {},
)
PAN = AnnotatedQuestion(
    "camera_motion",
    "How does the camera move?",
    "pan left",
    0.0,
    2.0,
    ((None, 0), (None, 16)),
    (0.0, 2.0),
    ((0.336, -0.032, 0.05),),
    (),
    (),
    False,
    {},
)
GOOD = f"From 0.5 s to 3 s. At 0.5 s the red object: {IMAGE}. At 3 s: {IMAGE}. It goes left. So it is to the left."


def any_question(task, answer):
    """A question of a task, with as many objects as the task has."""
    if task.startswith("camera"):
        return replace(PAN, task=task, answer=answer)
    two = task in ("faster_object", "spatial_description")
    targets = ((0, 0), (0, 16), (1, 0), (1, 16)) if two else ((0, 0), (0, 16))
    measurements = ((0.1, 0.2, 0.3),) * len(targets)
    names = ("red object", "blue object")[: 1 + two]
    target_times = (0.0, 2.0) * (1 + two)
    return AnnotatedQuestion(
        task, "?", answer, 0.0, 2.0, targets, target_times, measurements, (0, 1)[: 1 + two], names, not two, {}
    )


def test_reasoning_follows_the_evidence():
    text = write_reasoning(LEFT, np.random.default_rng(0))
    before, middle, after = text.split(IMAGE)
    assert "from 0.5 s to 3 s" in before and "red object" in before and "0.5 s" in before and "3 s" in middle
    assert "70% across, 50% down and 10% large, then 30% across, 50% down and 10% large" in after
    assert after.rstrip(".").endswith("to the left") and "camera" not in after


def test_a_camera_is_told_by_the_background():
    text = write_reasoning(PAN, np.random.default_rng(0))
    assert "shifts 34% of the picture to the right and 3% up and grows by 5%" in text.rsplit(IMAGE, 1)[1]
    still = write_reasoning(
        replace(PAN, answer="static", measurements=((0.004, 0.0, 0.01),)), np.random.default_rng(0)
    )
    assert "stays where it is" in still and "%" not in still


def test_each_of_two_objects_has_its_measurements():
    text = write_reasoning(SIDE, np.random.default_rng(1))
    assert text.count(IMAGE) == 4
    after = text.rsplit(IMAGE, 1)[1]
    assert after.index("20% across") < after.index("80% across") < after.index("50% across")
    assert any(phrase in text for phrase in reasoning.COMPENSATION_PHRASES)
    assert after.rstrip(".").endswith("left, then right")


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([(task, answer) for task, answers in ANSWERS.items() for answer in answers]), st.integers(0, 99)
)
def test_every_answer_has_a_reasoning_that_passes_the_check(case, seed):
    question = any_question(*case)
    text = write_reasoning(question, np.random.default_rng(seed))
    check_reasoning(question, text)
    assert "{" not in text and "  " not in text


@pytest.mark.parametrize("task", ANSWERS)
def test_wording_varies(task):
    question = any_question(task, ANSWERS[task][0])
    texts = {write_reasoning(question, np.random.default_rng(seed)) for seed in range(200)}
    assert len(texts) > 180
    assert len({text.split(".")[0] for text in texts}) == len(reasoning.SPAN_PHRASES)


BAD = {
    "one picture": (GOOD.replace(f" At 3 s: {IMAGE}.", " At 3 s."), "it has 1 <output_image>, it must have 2"),
    "another tag": (GOOD.replace("It goes", "<b>It</b> goes"), "it has a <b>"),
    "an answer tag": (f"{GOOD}</think>", "it has a </think>"),
    "a time is missing": (GOOD.replace("At 3 s:", "Later:").replace("to 3 s", "on"), "3 s is missing before"),
    "another time": (GOOD.replace("At 3 s:", "At 13 s:"), "3 s is missing before"),
    "another answer": (GOOD.replace("it is to the left", "it is to the right"), "must end with the answer"),
    "too long": (GOOD.replace("It goes", "It goes " + "on and on " * 150), "characters"),
}


def test_a_good_reasoning_passes():
    check_reasoning(LEFT, GOOD)


@pytest.mark.parametrize("name", BAD)
def test_check_refuses(name):
    text, reason = BAD[name]
    with pytest.raises(ReasoningError, match=reason):
        check_reasoning(LEFT, text)


# A server that speaks the protocol


class Server:
    """Answers requests with `replies` in turn (texts, or HTTP statuses), and keeps the requests."""

    def __init__(self, *replies):
        self.replies, self.requests, self.headers = list(replies), [], []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append((self.path, body))
                outer.headers.append(self.headers)
                reply = outer.replies.pop(0)
                status = reply if isinstance(reply, int) else 200
                content = {"choices": [{"message": {"role": "assistant", "content": reply}}]}
                data = reply if isinstance(reply, bytes) else json.dumps(content).encode()
                self.send_response(status)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def __enter__(self):
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()

    def client(self):
        return VLMClient(self.url, "some-model")


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(vlm_client, "PAUSE", 0.0)


def test_rewrite_takes_a_good_reply():
    with Server(f"  {GOOD}\n") as server:
        assert rewrite_reasoning(LEFT, "the template", server.client(), seed=7) == GOOD
    ((path, body),) = server.requests
    assert path == "/v1/chat/completions" and body["model"] == "some-model" and body["seed"] == 7
    (message,) = body["messages"]
    assert LEFT.question in message["content"] and "the template" in message["content"]


def test_rewrite_says_what_is_wrong_and_tries_again():
    bad = BAD["one picture"][0]
    with Server(bad, GOOD) as server:
        assert rewrite_reasoning(LEFT, "the template", server.client()) == GOOD
    roles = [message["role"] for message in server.requests[1][1]["messages"]]
    assert roles == ["user", "assistant", "user"]
    assert "it has 1 <output_image>" in server.requests[1][1]["messages"][2]["content"]


def test_rewrite_gives_up():
    bad = BAD["another answer"][0]
    with (
        Server(bad, bad, bad) as server,
        pytest.raises(ReasoningError, match="some-model wrote .* in 3 tries.*to the left"),
    ):
        rewrite_reasoning(LEFT, "the template", server.client())


def test_a_busy_server_is_asked_again():
    with Server(503, 429, b'{"choices": [', GOOD) as server:
        assert rewrite_reasoning(LEFT, "the template", server.client()) == GOOD


@pytest.mark.parametrize(
    ("replies", "reason"),
    [
        ((404,), "status 404"),
        ((503,) * 4, "status 503: .*, asked 4 times"),
        ((b"<html>",) * 4, "is no chat completion"),
        ((" ",) * 4, "reply is empty"),
    ],
)
def test_a_server_that_does_not_answer_is_named(replies, reason):
    with Server(*replies) as server, pytest.raises(VLMError, match=f"{server.url}/chat/completions: .*{reason}"):
        server.client().complete([])
    assert server.replies == []


def test_no_server_there():
    with Server() as server:
        pass
    with pytest.raises(VLMError, match="chat/completions: "):
        server.client().complete([])
    with pytest.raises(ValueError, match="begins with http"):
        VLMClient("localhost:8000", "some-model")


def test_the_key_is_sent_if_there_is_one(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    with Server(GOOD, GOOD) as server:
        server.client().complete([])
        monkeypatch.delenv("OPENAI_API_KEY")
        server.client().complete([])
    assert [headers["Authorization"] for headers in server.headers] == ["Bearer k", None]
