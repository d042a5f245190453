"""Names: what the model is given, which replies are accepted, and what is kept if none is."""

import base64
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from fourdthinker_hf.data.annotation import vlm_client
from fourdthinker_hf.data.annotation.object_naming import MAX_TRIES, name_tracks, parse_name
from fourdthinker_hf.data.annotation.shots import Shot
from fourdthinker_hf.data.annotation.tracking import Track
from fourdthinker_hf.data.annotation.vlm_client import VLMClient, VLMError


@pytest.fixture
def server():
    """A server with the API: it gives `replies` in turn, of which an int is an HTTP status, and keeps the requests."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            listening.requests.append((self.path, json.loads(body)))
            reply = listening.replies.pop(0)
            choice = {"message": {"role": "assistant", "content": reply}}
            text = json.dumps({"choices": [choice]}).encode()
            self.send_response(reply if isinstance(reply, int) else 200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_):
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listening.replies, listening.requests = [], []
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    yield listening
    listening.shutdown()
    listening.server_close()
    thread.join()


@pytest.fixture
def client(server):
    return VLMClient(f"http://127.0.0.1:{server.server_port}/v1", "some-vlm")


def make_shot():
    """Eight frames in orange, and two tracks: a block that is largest in frame 5, and a small one."""
    frames = np.full((8, 40, 60, 3), (250, 120, 10), np.uint8)
    first, second = np.zeros((2, 8, 40, 60), bool)
    first[2:7, 8:24, 8:24] = True
    first[5, 8:32, 8:40] = True
    second[:, 32:, 48:] = True
    tracks = [
        Track(first, "the large orange object on the left", 0.9, True),
        Track(second, "the small orange object", 0.8, False),
    ]
    return Shot("a.mp4", 0.0, 1.0, frames, np.arange(8) / 8), tracks


def test_tracks_get_names_and_keep_their_position_phrases(server, client):
    shot, tracks = make_shot()
    server.replies += ["A red car.", "Traffic cone"]
    named = name_tracks(shot, tracks, client)
    assert [track.description for track in named] == ["the red car on the left", "the traffic cone"]
    assert [(track.confidence, track.moving) for track in named] == [(0.9, True), (0.8, False)]
    assert all(new.masks is old.masks for new, old in zip(named, tracks, strict=True))


def test_the_model_is_given_the_frame_that_shows_most_with_all_else_grey(server, client):
    shot, tracks = make_shot()
    server.replies.append("box")
    name_tracks(shot, tracks[:1], client)
    ((path, body),) = server.requests
    assert path == "/v1/chat/completions" and body["model"] == "some-vlm" and body["temperature"] == 0
    image, text = body["messages"][0]["content"]
    head, data = image["image_url"]["url"].split(",")
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).astype(int)
    assert head == "data:image/jpeg;base64" and picture.shape == (40, 60, 3) and "Name it" in text["text"]
    coloured = picture.max(-1) - picture.min(-1) > 100
    assert (coloured == tracks[0].masks[5]).mean() > 0.97


def test_after_a_strange_reply_the_model_is_asked_again_and_finally_the_description_is_kept(server, client):
    shot, tracks = make_shot()
    server.replies += ["I see 2 things here: a car, and a person who stands beside it.", "car", *["???"] * MAX_TRIES]
    named = name_tracks(shot, tracks, client)
    assert [track.description for track in named] == ["the car on the left", "the small orange object"]
    assert len(server.requests) == 2 + MAX_TRIES
    assert [body["temperature"] for _, body in server.requests[:2]] == [0, 0.7]


def test_a_name_that_two_tracks_would_share_is_not_used(server, client):
    shot, tracks = make_shot()
    tracks[0] = Track(tracks[0].masks, "the orange object", 0.9, True)
    server.replies += ["car", "car"]
    assert name_tracks(shot, tracks, client) == tracks


def test_a_server_that_refuses_is_an_error_with_its_cause(server, client):
    shot, tracks = make_shot()
    server.replies.append(401)
    with pytest.raises(VLMError, match="status 401"):
        name_tracks(shot, tracks, client)


def test_a_server_that_is_not_there_is_an_error(server, monkeypatch):
    monkeypatch.setattr(vlm_client, "PAUSE", 0.0)
    shot, tracks = make_shot()
    with pytest.raises(VLMError, match="127.0.0.1:9/v1"):
        name_tracks(shot, tracks, VLMClient("http://127.0.0.1:9/v1", "some-vlm"))


@pytest.mark.parametrize(
    "reply, name",
    [
        ("red car", "red car"),
        ("The Red Car.", "red car"),
        (' "an apple"\n', "apple"),
        ("**bus**", "bus"),
        ("woman in a blue coat", "woman in a blue coat"),
        ("t-shirt", "t-shirt"),
        ("", None),
        ("a", "a"),
        ("one two three four five six", None),
        ("It is a car, I think", None),
        ("car\nperson", None),
        ("7up can", None),
        ("машина", None),
    ],
)
def test_replies(reply, name):
    assert parse_name(reply) == name
