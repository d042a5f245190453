"""The demo, through its API and through a real browser, on a scripted reply of random weights."""

import importlib
import json
import os
import re
import shutil
import sys

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
import numpy as np
import pytest
from gradio_client import Client, handle_file
from playwright.sync_api import expect, sync_playwright
from transformers import PreTrainedModel

import app
from fourdthinker_hf.qa import Answer, MentalImage, VideoQA
from fourdthinker_hf.show import reasoning_html
from fourdthinker_hf.video_fourdthinker import load_video

REPLY = "<think>red <b>ball</b> <|latent_start|> moves left.</think><answer>to the left</answer><|im_end|>"
OPTIONS = "to the left\nto the right\n\ntoward the camera\n"


@pytest.fixture(scope="module")
def url(tiny_folder, script):
    """Address of a running demo."""
    qa = VideoQA.from_pretrained(tiny_folder, device="cpu")
    script(qa, REPLY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VideoQA, "from_pretrained", lambda model: qa)
        demo = app.build_demo(tiny_folder)
        _, address, _ = demo.launch(**app.LAUNCH, prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
        yield address
        demo.close()


@pytest.fixture(scope="module")
def client(url):
    return Client(url, verbose=False)


@pytest.fixture
def page(url):
    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.goto(url)
        yield page
        browser.close()


def choose_first_example(page):
    first = json.loads((app.EXAMPLES / "examples.json").read_text())[0]
    page.locator("table tbody tr").first.click()
    expect(page.get_by_placeholder("Which way does it move?")).to_have_value(first["question"])
    expect(page.get_by_test_id("Video-player")).to_have_attribute("src", re.compile(first["video"]))


def test_importing_the_demo_loads_no_weights(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(PreTrainedModel, "__init__", fail)
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", fail)
    monkeypatch.delitem(sys.modules, "app")
    assert isinstance(importlib.import_module("app").demo, gr.Blocks)


def test_the_api_answers(client, clip):
    assert list(client.view_api(return_format="dict")["named_endpoints"]) == ["/answer"]
    job = client.submit(handle_file(clip), "Where does it move?", OPTIONS, api_name="/answer")
    answer, chances, reasoning = job.result()
    assert answer.startswith("A. to the left (") and answer.endswith("%)")
    assert {item["label"] for item in chances["confidences"]} == {"to the left", "to the right", "toward the camera"}
    assert "red &lt;b&gt;ball&lt;/b&gt;<figure>" in reasoning and "</figure>moves left." in reasoning
    assert reasoning.count("<img class='best'") == 1 and reasoning.count("<div class='step") == 4
    assert reasoning.count("<img ") == reasoning.count("alt='") == 5
    assert len(job.outputs()) > 3


def test_the_api_refuses_bad_input_and_then_still_answers(client, clip, tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("hello")
    video = handle_file(clip)
    for arguments, message in [
        ((None, "Where?", ""), "Choose a video first"),
        ((video, "  ", ""), "Type a question"),
        ((video, "Where?", "left\n\n"), "at least two"),
        ((handle_file(tmp_path / "empty.mp4"), "Where?", ""), "empty.mp4: is empty"),
        ((handle_file(tmp_path / "text.mp4"), "Where?", ""), "text.mp4: is not a video"),
    ]:
        with pytest.raises(Exception, match=message):
            client.predict(*arguments, api_name="/answer")
    assert client.predict(video, "Where?", "", api_name="/answer")[0] == "to the left"


def test_a_person_picks_an_example_and_sees_what_was_pictured(page, tmp_path):
    choose_first_example(page)
    page.get_by_role("button", name="Ask").click()
    chosen = re.compile(r"A\. to the left \(\d+%\)")
    expect(page.get_by_role("textbox", name="Answer")).to_have_value(chosen, timeout=30000)
    best = page.locator(".reasoning img.best")
    expect(best).to_have_count(1)
    assert best.evaluate("image => image.complete && image.naturalWidth > 0")
    expect(page.locator(".reasoning .step")).to_have_count(4)
    expect(page.locator(".reasoning .step.most")).to_contain_text("most alike")
    page.screenshot(path=tmp_path / "answer.png", full_page=True)


def test_a_person_who_errs_is_told_and_can_go_on(page, clip, tmp_path):
    ask = page.get_by_role("button", name="Ask")
    ask.click()
    expect(page.get_by_text("Choose a video first")).to_be_visible()
    expect(page.get_by_text("Type a question")).to_be_visible()
    (tmp_path / "text.mp4").write_text("hello")
    page.locator("input[type=file]").first.set_input_files(tmp_path / "text.mp4")
    page.get_by_placeholder("Which way does it move?").fill("Where?")
    expect(page.get_by_test_id("Video-player")).to_be_attached()
    ask.click()
    expect(page.get_by_text("text.mp4: is not a video file")).to_be_visible(timeout=30000)
    choose_first_example(page)
    ask.click()
    expect(page.locator(".reasoning img.best")).to_have_count(1, timeout=30000)


def test_every_example_can_be_asked():
    for row in json.loads((app.EXAMPLES / "examples.json").read_text()):
        frames, _ = load_video(app.EXAMPLES / row["video"])
        assert len(frames) >= 8 and len(row["options"]) >= 2 and row["question"]
        assert row["video"].partition("_")[0] in (app.EXAMPLES / "ORIGIN.md").read_text()


def test_a_mental_image_stands_where_it_was_pictured_even_if_the_reply_is_odd():
    image = MentalImage(np.zeros((0, 4)))
    answer = Answer(np.zeros((2, 8, 8, 3)), np.arange(2), reasoning="a <output_image> b", images=[image, image])
    shown = reasoning_html(answer, [])
    assert shown.count("<figure>") == 2 and shown.index("<figure>") < shown.index("b<figure>")
    answer.reasoning, answer.images = "a <output_image> b <output_image> c", []
    assert reasoning_html(answer, []) == "<div class='reasoning'>abc</div>"


def test_the_verdict_says_why_no_option_was_chosen():
    nothing = Answer(None, None, answer="up", reason="'up' is neither an option's letter nor its text")
    assert app.verdict(nothing, ["left", "right"]) == "up ('up' is neither an option's letter nor its text)"
