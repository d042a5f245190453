"""The demo, through its API and through a real browser, with the bundled checkpoint."""

import asyncio
import base64
import http.client
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import av
import gradio as gr
import httpx
import numpy as np
import psutil
import pytest
import safetensors.torch
from gradio_client import Client, handle_file
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client
from playwright.sync_api import expect, sync_playwright
from transformers import PreTrainedModel

from fourdthinker_hf.checkpoints import BUNDLED
from fourdthinker_hf.demo import answer_html, handlers, interface, stored_answers, uploads
from fourdthinker_hf.demo.checkpoint_facts import describe_checkpoint
from fourdthinker_hf.video_fourdthinker import load_video

EXAMPLE, OTHER = stored_answers.EXAMPLES[:2]
FOLDER = stored_answers.EXAMPLES_FOLDER
VIDEO, OPTIONS = FOLDER / EXAMPLE["video"], "\n".join(EXAMPLE["options"])
ROOT = Path(__file__).parents[2]
WAIT = 120_000  # ms: CI machines are busy
expect.set_options(timeout=WAIT)  # a page opens slowly on a busy machine
# The contrast of each visible text, and the contrast that WCAG 2.2 AA asks for (1.4.3: 3 for large text, else 4.5).
CONTRASTS = """() => {
  const parts = (color) => { const [r, g, b, a] = color.match(/[\\d.]+/g).map(Number); return [r, g, b, a ?? 1]; };
  const over = (top, under) => under.map((value, i) => top[i] * top[3] + value * (1 - top[3]));
  const light = (color) => color.map((value) => value / 255)
    .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
    .reduce((sum, value, i) => sum + [0.2126, 0.7152, 0.0722][i] * value, 0);
  const rows = [], texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const text = texts.currentNode.textContent.trim(), element = texts.currentNode.parentElement;
    const shown = element.checkVisibility({ opacityProperty: true, visibilityProperty: true });
    if (!text || !shown || element.closest("script, style, noscript")) continue;
    const above = [];
    for (let e = element; e; e = e.parentElement) above.unshift(getComputedStyle(e));
    const back = above.reduce((under, style) => over(parts(style.backgroundColor), under), [255, 255, 255]);
    const style = above.at(-1), [r, g, b, alpha] = parts(style.color);
    const front = over([r, g, b, above.reduce((all, style) => all * style.opacity, alpha)], back);
    const [less, more] = [light(front), light(back)].sort((a, b) => a - b), size = parseFloat(style.fontSize);
    const needed = size >= 24 || (size >= 18.66 && style.fontWeight >= 700) ? 3 : 4.5;
    rows.push([text.slice(0, 60), (more + 0.05) / (less + 0.05), needed]);
  }
  return rows;
}"""


# What can be pressed or typed into and is, with the label around it, smaller than the 24 pixels of WCAG 2.2 (2.5.8).
# Not a slider: the field beside it does the same.
SMALL_TARGETS = """() => [...document.querySelectorAll("a, button, input, textarea, select, summary")]
  .filter((part) => part.type !== "range" && part.checkVisibility({ opacityProperty: true, visibilityProperty: true }))
  .map((part) => [part, (part.closest("label") ?? part).getBoundingClientRect()])
  .filter(([, { width, height }]) => width > 1 && height > 1 && Math.min(width, height) < 24)
  .map(([part, { width, height }]) => `${width} x ${height}: ${part.outerHTML.slice(0, 200)}`)"""


@pytest.fixture(scope="module")
def qa():
    return handlers.load_qa(BUNDLED)


@pytest.fixture(scope="module")
def expected(qa):
    """The answer to the first example, asked without the demo."""
    return qa.ask(VIDEO, EXAMPLE["question"], EXAMPLE["options"])


@pytest.fixture(scope="module")
def demo(qa):
    return interface.build_demo(qa=qa)


@pytest.fixture(scope="module")
def url(demo):
    """Address of a running demo."""
    _, address, _ = interface.launch(demo, prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    yield address
    demo.close()


@pytest.fixture(scope="module")
def client(url):
    return Client(url, verbose=False)


@pytest.fixture(scope="module")
def browser(chromium):
    with sync_playwright() as play:
        args = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        browser = play.chromium.launch(executable_path=chromium, args=args)
        yield browser
        browser.close()


@pytest.fixture
def open_page(url, browser):
    pages = []

    def open_(width=1280, **kwargs):
        page = browser.new_context(viewport={"width": width, "height": 900}, **kwargs).new_page()
        pages.append(page)
        page.set_default_timeout(WAIT)
        page.goto(url)
        return page

    yield open_
    for page in pages:
        page.context.close()


def press(page, name):
    page.get_by_role("button", name=name, exact=True).click()


def choose_example(page, example=EXAMPLE):
    page.locator("button.example", has_text=example["question"]).first.click()
    expect(page.get_by_placeholder("Which way does it move?")).to_have_value(example["question"], timeout=WAIT)
    expect(page.get_by_test_id("Video-player")).to_have_attribute("src", re.compile(example["video"]), timeout=WAIT)


def clear_video(page):
    page.locator("#video").get_by_role("button", name="Clear").click()
    expect(page.get_by_test_id("Video-player")).to_have_count(0, timeout=WAIT)


def has_answered(page):
    """Waits for an answer that was asked for: unlike the one that the page opens on, it has a link."""
    expect(page.get_by_role("link", name="Link to this result")).to_be_visible(timeout=WAIT)


def upload(page, path):
    page.locator("#video input[type=file]").first.set_input_files(path)


def wait_until(happens):
    deadline = time.monotonic() + WAIT / 1000
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def start_from(page, second: str):
    """Type into the field that may still be taking its place on the page, until it keeps what was typed."""
    field = page.get_by_role("spinbutton", name="From second")
    for _ in range(20):
        field.fill(second)
        page.wait_for_timeout(300)
        if field.input_value() == second:
            return
    pytest.fail(f"The field does not keep {second}")


def decoders():
    """Process ids of those that open a video."""
    return [child.pid for child in psutil.Process().children() if "-I" in child.cmdline()]


def test_importing_the_demo_loads_no_weights(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(PreTrainedModel, "__init__", fail)
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", fail)
    monkeypatch.delitem(sys.modules, "app", raising=False)
    assert isinstance(importlib.import_module("app").demo, gr.Blocks)


def test_the_api_answers_as_the_library_does(client, expected):
    assert list(client.view_api(return_format="dict")["named_endpoints"]) == ["/answer"]
    job = client.submit(handle_file(VIDEO), EXAMPLE["question"], OPTIONS, api_name="/answer")
    assert job.result() == json.loads(
        json.dumps(answer_html.answer_json(expected, EXAMPLE["question"], EXAMPLE["options"]))
    )
    first, last = job.outputs()[0], job.outputs()[-1]
    assert (
        last["option"] == expected.option == 0 and np.shape(last["images"][0]["map"]) == expected.images[0].maps.shape
    )
    assert first["probabilities"] is None and last["reasoning"].startswith(first["reasoning"])
    statuses = [output["status"] for output in job.outputs()]
    assert statuses[0] == "reading" and "looking" in statuses and statuses[-2:] == ["writing", "done"]
    (result,) = client.view_api(return_format="dict")["named_endpoints"]["/answer"]["returns"]
    assert "chosen_by: str | None" in result["python_type"]["type"]


@pytest.mark.parametrize(
    "question, options",
    [("Was bewegt sich?", ""), ("哪边？", "左\n右"), ("Which?", "\n".join("abcdef")), ("?", "<b>\n</answer>\n<i>")],
)
def test_no_tag_of_the_models_is_ever_in_an_answer(client, question, options):
    """Also with questions that the model was not trained on, where its text falls apart."""
    answer = client.predict(handle_file(VIDEO), question, options, api_name="/answer")
    shown = json.dumps([answer["reasoning"], answer["words"], answer["reason"]])
    assert not re.search("output_image|answer>|think>|<[|]", shown), shown
    lines = options.splitlines()
    assert (answer["answer"] in lines) if lines else (answer["option"], answer["chosen_by"]) == (None, None)


def test_the_api_refuses_bad_input_and_then_still_answers(client, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(VIDEO.read_bytes()[:3000])
    video = handle_file(VIDEO)
    for arguments, message in [
        ((None, "Where?", ""), "Choose a video first"),
        ((video, "  ", ""), "Type a question"),
        ((video, "Where?", "left\n\n"), "at least two"),
        ((video, "w" * 100_000, ""), "The question has 100,000 characters: at most 500"),
        ((video, "Where?", "\n".join(map(str, range(11)))), "There are 11 options: at most 10"),
        ((video, "Where?", "a\n" + "b" * 1_000_000), "An option has 1,000,000 characters: at most 200"),
        ((video, "Where?", "", 3, 2), "The start must be before the end"),
        ((video, "Where?", "", -1), "The start must be a number of seconds from 0 on"),
        ((handle_file(broken), "Where?", ""), "This video cannot be read. broken.mp4: is truncated or damaged"),
    ]:
        with pytest.raises(Exception, match=message):
            client.predict(*arguments, api_name="/answer")
    assert client.predict(video, EXAMPLE["question"], OPTIONS, api_name="/answer")["option"] == 0
    part = client.predict(video=video, question="What moves?", start=0.25, api_name="/answer")
    assert part["timestamps"][0] == 0.25


def test_the_commands_of_the_page_about_the_demo_work(url, tmp_path):
    """Each as it is written: curl, and the client in Python."""
    shutil.copy(VIDEO, tmp_path / "clip.mp4")
    text = (ROOT / "docs/demo.md").read_text().replace("http://127.0.0.1:7860/", url)
    upload, ask, read = re.findall(r"^curl (?:\\\n|.)*", text, re.MULTILINE)

    def curl(command):
        return subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=120).stdout

    (path,) = json.loads(curl(upload))
    event = json.loads(curl(ask.replace("PATH", path)))["event_id"]
    *_, last = re.findall("data: (.*)", curl(read.replace("EVENT_ID", event)))
    assert json.loads(last)[0]["status"] == "done"
    refused = json.loads(curl(ask.replace("PATH", path).replace("How does the camera move?", " ")))
    assert "Type a question" in json.dumps(refused)
    snippet = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", snippet + "\nprint(answer['chosen_by'])"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines()[-1] in ("words", "likelihood"), done.stderr


def test_an_answer_stops_when_its_client_vanishes(url, demo, qa, script, monkeypatch):
    """The client is a process of its own that is killed while the model writes what would never end."""
    generate = qa.model.generate
    script(qa, "<think>")
    passes, hook = [], qa.model.register_forward_hook(lambda *_: passes.append(1))
    try:
        data = {"path": upload_to(url), "meta": {"_type": "gradio.FileData"}}
        asked = httpx.post(f"{url}gradio_api/call/v2/answer", json={"video": data, "question": "What?"})
        event = asked.json()["event_id"]
        curl = subprocess.Popen(["curl", "-sN", f"{url}gradio_api/call/answer/{event}"], stdout=subprocess.PIPE)
        wait_until(lambda: len(passes) > 3)
        curl.kill()
        curl.wait()
        wait_until(lambda: not any(demo._queue.active_jobs) and not qa.model_lock.locked())
        assert len(passes) < 500  # of 512 tokens
    finally:
        hook.remove()
        qa.model.generate = generate


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        str(FOLDER / "real.mp4"),
        "http://127.0.0.1:9/a.mp4",
        "data:video/mp4;base64,aGVsbG8=",
        "http://a/gradio_api/file=/etc/passwd",
        f"http://a/gradio_api/file={FOLDER / 'real.mp4'}",
    ],
)
def test_a_client_cannot_name_a_file_or_an_address(client, url, path):
    data = {"path": path, "meta": {"_type": "gradio.FileData"}}
    event = httpx.post(f"{url}gradio_api/call/answer", json={"data": [data, "What?", ""]})
    assert event.status_code == 400, event.text
    assert httpx.get(f"{url}gradio_api/file={path}").status_code in (403, 404)


def upload_to(url, name="a.mp4", data=None):
    """The upload's path on the server."""
    answer = httpx.post(f"{url}gradio_api/upload", files={"files": (name, data or VIDEO.read_bytes())})
    assert answer.status_code == 200, answer.text
    return answer.json()[0]


def test_the_mcp_tool_answers_as_the_library_does(url, demo, expected):
    inside = "data:video/mp4;base64," + base64.b64encode(VIDEO.read_bytes()).decode()
    kept = set(Path(demo.GRADIO_CACHE).rglob("*"))

    NAMES = ("video", "question", "options", "start", "end")

    async def call(video, question=EXAMPLE["question"]):
        async with streamable_http_client(f"{url}gradio_api/mcp/") as (read, write, _):
            async with ClientSession(read, write) as session:
                await session.initialize()
                (tool,) = (await session.list_tools()).tools
                assert (tool.name, [*tool.inputSchema["properties"]]) == ("answer", [*NAMES])
                arguments = {"video": video, "question": question, "options": OPTIONS}
                result = await session.call_tool(tool.name, arguments)
                return result.isError, result.content[0].text

    def call_tool(*arguments):
        return asyncio.run(call(*arguments))

    address = f"{url}gradio_api/file={upload_to(url)}"
    failed, text = call_tool(address)
    assert not failed, text
    assert json.loads(text) == json.loads(
        json.dumps(answer_html.answer_json(expected, EXAMPLE["question"], EXAMPLE["options"]))
    )
    broken = upload_to(url, "broken.mp4", VIDEO.read_bytes()[:3000])
    for arguments, message in [
        ((address, " "), "Type a question"),
        ((f"{url}gradio_api/file={broken}",), "This video cannot be read. broken.mp4: is truncated"),
        ((f"{url}gradio_api/file=/etc/passwd",), "400 Bad Request"),
        (("http://127.0.0.1:9/a.mp4",), "400 Bad Request"),
        ((str(VIDEO),), "provide a url"),
        ((inside,), "provide a url"),
    ]:
        failed, text = call_tool(*arguments)
        assert failed and message in text, text
    new = {path.name for path in set(Path(demo.GRADIO_CACHE).rglob("*")) - kept if path.is_file()}
    assert new <= {"a.mp4", "broken.mp4"}
    large = httpx.post(f"{url}gradio_api/mcp/", content=bytes(uploads.MAX_MCP_BYTES + 1))
    assert large.status_code == 413 and httpx.post(f"{url}gradio_api/mcp/", content=b"{").status_code == 400


def test_what_was_uploaded_is_deleted_in_time(qa, monkeypatch):
    monkeypatch.setattr(interface, "DELETE_UPLOADS", (1, 1))
    demo = interface.build_demo(qa=qa)
    _, url, _ = interface.launch(demo, prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    try:
        client = Client(url, verbose=False)
        example = client.predict(handle_file(VIDEO), EXAMPLE["question"], OPTIONS, api_name="/answer")
        assert example["option"] == 0
        mine = upload_to(url, "mine.mp4")
        assert os.path.exists(mine)
        wait_until(lambda: not list(Path(demo.GRADIO_CACHE).rglob("mine.mp4")))
        assert list(Path(demo.GRADIO_CACHE).rglob(EXAMPLE["video"]))  # the example stays
    finally:
        demo.close()


def test_only_videos_are_kept_of_what_is_uploaded(url, demo):
    page = b"<script>alert(1)</script>" * 40
    before = set(demo.upload_file_set)
    answer = httpx.post(f"{url}gradio_api/upload", files={"files": ("page.mp4", page)})
    assert answer.status_code == 415 and "page.mp4: is not a video file" in answer.text
    assert not any(os.path.exists(path) for path in set(demo.upload_file_set) - before)
    answer = httpx.post(f"{url}gradio_api/upload", files={"files": ("a.mp4", VIDEO.read_bytes())})
    assert answer.status_code == 200 and os.path.exists(answer.json()[0])
    large = VIDEO.read_bytes() + bytes(uploads.MAX_BYTES)
    assert httpx.post(f"{url}gradio_api/upload", files={"files": ("a.mp4", large)}).status_code == 413


def test_a_visitor_has_one_question_running_and_one_waiting(url, demo, qa):
    client = Client(url, verbose=False)
    arguments = (handle_file(VIDEO), EXAMPLE["question"], OPTIONS)
    with qa.model_lock:  # so that the first cannot end
        jobs = [client.submit(*arguments, api_name="/answer") for _ in range(2)]
        wait_until(lambda: handlers.num_jobs(demo, client) == 2)  # a client has a session_hash, as a request has
        with pytest.raises(Exception, match="one question running and one waiting"):
            client.submit(*arguments, api_name="/answer").result(timeout=60)
        other = Client(url, verbose=False).submit(*arguments, api_name="/answer")
    assert [job.result()["option"] for job in (*jobs, other)] == [0, 0, 0]


@pytest.mark.parametrize(
    "settings",
    [
        (-1, 1, 0, 16),
        (3, 1, 0, 16),
        (float("nan"), 1, 0, 16),
        (1, 0, 0, 16),
        (1, 1, 2**70, 16),
        (1, 1, 0, 10**9),
        (1, 1, 0, None),
        ("hot", 1, 0, 16),
    ],
    ids=str,
)
def test_a_setting_out_of_range_reaches_no_model(url, qa, monkeypatch, settings):
    """The page's own endpoint has no name, but whoever looks can call it by its number."""
    monkeypatch.setattr(qa.model, "generate", lambda *args, **kwargs: pytest.fail("the model is asked"))
    config = httpx.get(f"{url}config").json()["dependencies"]
    number = next(dependency["id"] for dependency in config if len(dependency["inputs"]) == 9)
    data = [{"path": upload_to(url), "meta": {"_type": "gradio.FileData"}}, EXAMPLE["question"], OPTIONS, 0, None]
    body = {"data": [*data, *settings], "fn_index": number, "session_hash": "abc"}
    asked = httpx.post(f"{url}gradio_api/queue/join", content=json.dumps(body))
    if asked.status_code == 200:
        with httpx.stream("GET", f"{url}gradio_api/queue/data?session_hash=abc", timeout=WAIT) as events:
            text = next(line for line in events.iter_lines() if "process_completed" in line)
        assert '"success":false' in text.replace(" ", "")
    else:
        assert asked.status_code == 422


def test_the_stored_answers_are_those_of_the_bundled_model(qa):
    stored, found = json.loads(stored_answers.ANSWERS.read_text()), stored_answers.store(qa)
    assert [row["text"] for row in found["answers"]] == [row["text"] for row in stored["answers"]]
    for row, other in zip(found.pop("answers"), stored.pop("answers"), strict=True):
        np.testing.assert_allclose(row.pop("probabilities"), other.pop("probabilities"), atol=1e-3)
        for image, stored_image in zip(row.pop("images"), other.pop("images"), strict=True):
            np.testing.assert_allclose(image.pop("maps"), stored_image.pop("maps"), atol=2e-3)
            assert image == stored_image
        assert row == other
    assert found == stored


@pytest.mark.parametrize("width, height", [(1440, 900), (390, 844)])
def test_the_page_opens_on_a_finished_playing_result_with_ask_in_view(open_page, width, height):
    page = open_page(width)
    page.set_viewport_size({"width": width, "height": height})
    expect(page.locator("#answer .verdict")).to_have_text("A. to the left")
    expect(page.locator("#answer .truth")).to_have_text("Right answer: A. to the left \u2013 the model had it.")
    expect(page.locator("#limits")).to_contain_text(describe_checkpoint(BUNDLED))
    expect(page.locator(".picture:visible")).to_have_count(1)
    expect(page.locator(".timeline-ends")).to_have_text("0.0 s4.0 s")  # the clip lasts 4 s
    page.wait_for_function("document.querySelector('#video video')?.currentTime > 0")
    assert page.locator("#ask").evaluate("button => button.getBoundingClientRect().bottom") <= height
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_person_sees_what_was_pictured_and_asks_what_if(open_page, expected, browser, tmp_path):
    page = open_page()
    choose_example(page)
    page.get_by_role("button", name="Ask", exact=True).dblclick()  # asks once
    has_answered(page)
    expect(page.locator("#answer .verdict")).to_have_text("A. to the left")
    expect(page.locator("#announcer")).to_contain_text("Answer: A. to the left Its words say so")
    expect(page.locator("#answer .probabilities li")).to_have_count(4)
    tile = page.locator("#reasoning button.tile")
    expect(tile).to_have_count(1)
    expect(page.locator(".timeline .mark")).to_have_count(1)
    tile.focus()
    page.keyboard.press("Enter")
    picture = page.locator(".picture:visible")
    expect(picture).to_have_count(1)
    picture.locator("img").first.evaluate("image => image.decode()")  # fails if there is none
    now = page.locator("#video video").evaluate("player => player.currentTime")
    assert now == pytest.approx(expected.steps[expected.images[0].best_step][1][0], abs=0.05)
    assert page.locator("img:not([alt])").count() == 0

    with page.expect_download() as download:
        page.get_by_role("link", name="Latents (safetensors)").click()
    latents = safetensors.torch.load_file(download.value.path())
    assert latents["image_1"].equal(expected.images[0].latents)
    with page.expect_download() as download:
        page.get_by_role("link", name="Answer (JSON)").click()
    assert json.loads(download.value.path().read_text())["answer"] == expected.answer
    with page.expect_download() as download:
        page.get_by_role("link", name="Video (MP4)").click()
    download.value.save_as(tmp_path / "answer.mp4")
    assert len(load_video(tmp_path / "answer.mp4", fps=2)[0]) == len(expected.frames)  # beside the one mental image
    with page.expect_download() as download:
        page.get_by_role("link", name="Page (HTML)").click()
    download.value.save_as(tmp_path / "answer.html")
    link = page.get_by_role("link", name="Link to this result").evaluate("link => link.href")
    for address in (link, (tmp_path / "answer.html").as_uri()):
        other = browser.new_context().new_page()  # another visitor
        other.goto(address)
        expect(other.get_by_text("A. to the left").first).to_be_visible()
        other.context.close()

    for label in ("not picture at all", "are blank", "another video"):
        page.get_by_label(re.compile(label)).check()
        press(page, "Answer again without")
        expect(page.locator("#comparison .verdict").first).to_have_text(
            re.compile("The answer (stays|changes)|The text falls apart"), timeout=WAIT
        )
        expect(page.locator(".comparison > div")).to_have_count(2)
        expect(page.locator(".comparison img")).to_have_count(0)
        expect(page.locator("#comparison .changes").first.locator("tbody tr")).to_have_count(4)
        expect(page.locator("#comparison .changes").last).to_contain_text("Over 400 simulated questions")
        page.locator("#comparison").evaluate("box => box.querySelector('.verdict').remove()")


def test_three_quick_clicks_ask_once(open_page, demo, qa, monkeypatch):
    asked, stream = [], demo.handlers.stream
    monkeypatch.setattr(demo.handlers, "stream", lambda **kwargs: asked.append(1) or stream(**kwargs))
    page = open_page()
    with qa.model_lock:
        page.get_by_role("button", name="Ask", exact=True).click(click_count=3)
        expect(page.locator("#answer .waiting")).to_have_text(handlers.STATUS["looking"], timeout=WAIT)
    has_answered(page)
    assert asked == [1]


def test_reload_back_and_forward(open_page, demo, qa):
    """A page that is loaded anew is as at first, nobody waits for what it asked before, and it can ask again."""
    page = open_page()
    with qa.model_lock:
        press(page, "Ask")
        expect(page.locator("#answer .waiting")).to_have_text(handlers.STATUS["looking"], timeout=WAIT)
        page.reload()
        expect(page.locator("#answer .truth")).to_be_visible()
    wait_until(lambda: not any(demo._queue.active_jobs))
    press(page, "Ask")
    has_answered(page)
    page.goto(page.get_by_role("link", name="Link to this result").evaluate("link => link.href"))
    page.go_back()
    expect(page.locator("#answer .truth")).to_be_visible()
    expect(page.locator("#answer .waiting")).to_have_count(0)
    page.go_forward()
    expect(page.get_by_role("heading", level=1)).to_have_text(EXAMPLE["question"])


def test_two_tabs_do_not_touch_each_other(open_page):
    page = open_page()
    other = page.context.new_page()
    other.set_default_timeout(WAIT)
    other.goto(page.url)
    choose_example(other, OTHER)
    press(other, "Ask")
    press(page, "Ask")
    for tab, example in ((page, EXAMPLE), (other, OTHER)):
        has_answered(tab)
        expect(tab.locator("#answer .truth")).to_contain_text(example["answer"])
        expect(tab.get_by_placeholder("Which way does it move?")).to_have_value(example["question"])
        expect(tab.get_by_text(interface.STALE)).to_be_hidden()


def test_who_wants_no_motion_sees_none(open_page, qa):
    page = open_page(reduced_motion="reduce")
    page.wait_for_function("document.querySelector('#video video')?.readyState > 1")
    with qa.model_lock:
        press(page, "Ask")
        expect(page.locator("#answer .waiting")).to_have_text(handlers.STATUS["looking"], timeout=WAIT)
        assert page.evaluate("document.getAnimations().filter((a) => a.playState === 'running').length") == 0
    has_answered(page)
    player = page.locator("#video video")
    assert player.evaluate("player => [player.paused, player.currentTime]") == [True, 0]


class Proxy(BaseHTTPRequestHandler):
    """Serves the demo at `port` of this machine under the path /demo, as nginx does with `location /demo/`."""

    port: int

    def do_GET(self):
        if not self.path.startswith("/demo/"):
            return self.send_error(404)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        connection.request(self.command, self.path.removeprefix("/demo"), body, dict(self.headers))
        answer = connection.getresponse()
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection"):
                self.send_header(name, value)
        self.end_headers()
        while data := answer.read1(65536):
            self.wfile.write(data)

    do_POST = do_GET

    def log_message(self, *arguments):
        pass


def test_behind_a_proxy_with_a_path_nothing_is_missing(qa, browser):
    for path in uploads.uploads_folder().rglob("*.jpg"):
        os.utime(path, (0, 0))  # as if a server of another day had left them
    demo = interface.build_demo(qa=qa)
    interface.launch(demo, prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", root_path="/demo")
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), type("DemoProxy", (Proxy,), {"port": demo.server_port}))
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    address, answers = f"http://127.0.0.1:{proxy.server_port}", []
    page = browser.new_context().new_page()
    try:
        page.set_default_timeout(WAIT)
        page.on("response", lambda answer: answers.append((answer.status, answer.url)))
        page.goto(f"{address}/demo/")
        page.wait_for_function("document.querySelector('#video video')?.readyState > 1")
        page.wait_for_function("document.images.length && [...document.images].every((img) => img.naturalWidth)")
        choose_example(page, OTHER)
        press(page, "Ask")
        has_answered(page)
        with page.expect_download() as download:
            page.get_by_role("link", name="Video (MP4)").click()
        assert download.value.failure() is None
        page.goto(page.get_by_role("link", name="Link to this result").evaluate("link => link.href"))
        expect(page.get_by_role("heading", level=1)).to_have_text(OTHER["question"])
        ours = [row for row in answers if row[1].startswith(address)]
        assert len(ours) > 20 and [row for row in ours if row[0] >= 400 or "/demo/" not in row[1]] == []
    finally:
        page.context.close()
        proxy.shutdown()
        demo.close()


def test_an_answer_is_dimmed_once_the_page_asks_something_else(open_page):
    page = open_page()
    notice, question = page.get_by_text(interface.STALE), page.get_by_placeholder("Which way does it move?")
    expect(page.locator("#answer .verdict")).to_be_visible()
    page.wait_for_function("document.querySelector('#video video')?.currentTime > 0")
    expect(notice).to_be_hidden()
    question.fill("Where?")
    expect(notice).to_be_visible()
    question.fill(EXAMPLE["question"])
    expect(notice).to_be_hidden()
    page.get_by_role("textbox", name="Options").fill("up\ndown")
    expect(notice).to_be_visible()
    choose_example(page)
    expect(notice).to_be_hidden(timeout=WAIT)
    choose_example(page, OTHER)
    expect(notice).to_be_visible()
    press(page, "Ask")
    expect(page.locator("#answer .truth")).to_contain_text("pan left", timeout=WAIT)
    expect(notice).to_be_hidden()
    clear_video(page)
    expect(notice).to_be_visible()


def test_what_a_visitor_types_is_shown_as_text(open_page, tmp_path):
    hostile = "<img src=x onerror=window.hacked=1>"
    name = "<i onclick=a>&amp;.mp4"
    shutil.copy(VIDEO, tmp_path / name)
    page = open_page()
    clear_video(page)
    upload(page, tmp_path / name)
    page.get_by_placeholder("Which way does it move?").fill(f"{hostile}<|im_end|>?")
    page.get_by_role("textbox", name="Options").fill(f"{hostile}\n<|im_start|>\n</div>")
    press(page, "Ask")
    has_answered(page)
    for option in (f"A. {hostile}", "B. <|im_start|>", "C. </div>"):
        expect(page.locator("#answer .probabilities")).to_contain_text(option)
    page.goto(page.get_by_role("link", name="Link to this result").evaluate("link => link.href"))
    expect(page.get_by_role("heading", level=1)).to_have_text(f"{hostile}<|im_end|>?")
    assert page.evaluate("window.hacked") is None


def test_a_person_stops_an_answer_and_asks_again(open_page, qa):
    page = open_page()
    choose_example(page)
    try_again = page.get_by_role("button", name="Try again")
    expect(try_again).to_have_count(0)  # at temperature 0 it would be the same again
    for stop in ("Stop", "Escape"):
        with qa.model_lock:
            press(page, "Ask")
            expect(page.locator("#answer .waiting")).to_have_text(handlers.STATUS["looking"], timeout=WAIT)
            press(page, "Stop") if stop == "Stop" else page.keyboard.press("Escape")
            expect(page.locator("#answer").get_by_text("Stopped. Ask again.")).to_be_visible(timeout=WAIT)
        page.wait_for_timeout(2000)  # Gradio loses what is asked in the moment in which a stopped step ends
    page.get_by_text("How words are chosen").click()
    page.get_by_role("spinbutton", name="Tokens at most").fill("32")  # at this temperature the text hardly ends
    page.get_by_role("spinbutton", name="Temperature").fill("2")
    page.keyboard.press("Tab")
    expect(try_again).to_be_visible(timeout=WAIT)
    try_again.click()
    has_answered(page)
    assert page.get_by_role("spinbutton", name="Seed").input_value() == "1"


@pytest.mark.parametrize("leave", [False, True])
def test_who_stops_or_leaves_while_the_video_is_decoded_ends_the_decoder(
    open_page, demo, qa, monkeypatch, leave, tmp_path
):
    page = open_page()
    choose_example(page)
    page.get_by_text("Only a part of the video").click()
    start_from(page, str(1.0 + leave / 2))  # a part of its own
    monkeypatch.setattr(qa, "open_video", uploads.open_in_subprocess(qa.processor, seconds=600))
    (tmp_path / "sleep.py").write_text("import time; time.sleep(600)")
    monkeypatch.setattr(uploads, "DECODE_PROGRAM", str(tmp_path / "sleep.py"))
    press(page, "Ask")
    expect(page.locator("#answer .waiting")).to_have_text(handlers.STATUS["reading"], timeout=WAIT)
    wait_until(decoders)
    (decoder,) = decoders()
    if leave:
        page.close()
    else:
        press(page, "Stop")
        expect(page.locator("#answer").get_by_text("Stopped. Ask again.")).to_be_visible(timeout=WAIT)
    wait_until(lambda: not psutil.pid_exists(decoder) and not any(demo._queue.active_jobs))
    if not leave:
        monkeypatch.undo()
        press(page, "Ask")
        has_answered(page)


def test_who_waits_sees_the_place_in_the_queue(open_page, qa):
    pages = [open_page() for _ in range(3)]
    for page in pages:
        choose_example(page)
    with qa.model_lock:
        for page in pages:
            press(page, "Ask")
            expect(page.locator("#answer")).to_contain_text(re.compile("Looking|queue"), timeout=WAIT)
        expect(pages[1].locator("#answer")).to_contain_text("queue: 1/", timeout=WAIT)
        expect(pages[2].locator("#answer")).to_contain_text("queue: 2/2", timeout=WAIT)
    for page in pages:
        has_answered(page)


def test_a_person_who_errs_is_told_and_can_go_on(open_page, tmp_path):
    page = open_page()
    clear_video(page)
    page.get_by_placeholder("Which way does it move?").fill("")
    press(page, "Ask")
    expect(page.get_by_text("Choose a video first")).to_be_visible(timeout=WAIT)
    expect(page.get_by_text("Type a question")).to_be_visible()
    (tmp_path / "text.mp4").write_text("hello")
    upload(page, tmp_path / "text.mp4")
    expect(page.get_by_text("text.mp4: is not a video file").first).to_be_visible(timeout=WAIT)
    choose_example(page)
    page.get_by_text("Only a part of the video").click()
    start_from(page, "90")
    press(page, "Ask")
    alert = page.get_by_role("alert").filter(has_text="outside the clip, which runs from 0 to 4.000 s")
    expect(alert).to_be_visible(timeout=WAIT)
    page.get_by_role("spinbutton", name="To second").fill("1")
    press(page, "Ask")
    expect(page.get_by_text("The start must be before the end")).to_be_visible(timeout=WAIT)
    page.get_by_role("spinbutton", name="To second").fill("")
    start_from(page, "1")
    press(page, "Ask")
    has_answered(page)
    expect(page.get_by_text("frames from 1.0 to 3.5 s")).to_be_visible()


def test_what_the_browser_cannot_play_is_answered_anyway(open_page, tmp_path):
    frames, _ = load_video(VIDEO, fps=8)
    path = tmp_path / "clip.avi"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=8, options={"bf": "0"})
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        for frame in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        out.mux(stream.encode(None))
    page = open_page()
    clear_video(page)
    upload(page, path)
    expect(page.get_by_text("Your browser cannot play this format")).to_be_visible(timeout=WAIT)
    page.get_by_placeholder("Which way does it move?").fill(EXAMPLE["question"])
    page.get_by_role("textbox", name="Options").fill(OPTIONS)
    press(page, "Ask")
    has_answered(page)


@pytest.mark.parametrize("kwargs", [{"width": 390}, {"color_scheme": "dark"}])
def test_on_a_phone_and_in_the_dark(open_page, kwargs):
    page = open_page(**kwargs)
    choose_example(page)
    press(page, "Ask")
    has_answered(page)
    verdict = page.locator("#answer .verdict")
    expect(verdict).to_be_in_viewport()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for name in ("Only a part of the video", "How words are chosen"):
        page.get_by_text(name).click()
    expect(page.get_by_role("spinbutton", name="Seed")).to_be_visible()
    assert page.evaluate(SMALL_TARGETS) == []
    if "width" not in kwargs:
        levels = [int(n) for n in re.findall(r"\d+", verdict.evaluate("e => getComputedStyle(e).color"))[:3]]
        assert page.evaluate("document.body.classList.contains('dark')") and min(levels) > 180, levels


@pytest.fixture(scope="module")
def axe(tmp_path_factory):
    """The source of axe-core, which npm installs."""
    folder = tmp_path_factory.mktemp("axe")
    command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", "axe-core@4.11"]
    done = shutil.which("npm") and subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    if not done or done.returncode:
        reason = "axe-core is not installed: this test needs npm and its registry"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    return (folder / "node_modules/axe-core/axe.min.js").read_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_can_be_used_by_everyone(open_page, axe, scheme):
    """axe-core finds no serious fault, and all text stands out from what is behind it, before and after an answer."""
    page = open_page(color_scheme=scheme)
    expect(page.locator("#answer .verdict")).to_be_visible()
    page.add_script_tag(content=axe)

    def faults():
        page.mouse.move(0, 0)
        page.wait_for_timeout(1000)  # colours fade in
        found = page.evaluate("axe.run()")["violations"]
        return [
            (fault["id"], fault["help"], node["html"][:200])
            for fault in found
            for node in fault["nodes"]
            if fault["impact"] in ("serious", "critical")
        ]

    found, rows = faults(), page.evaluate(CONTRASTS)
    for name in ("Only a part of the video", "How words are chosen"):
        page.get_by_text(name).click()
    press(page, "Ask")
    has_answered(page)
    press(page, "Answer again without")
    expect(page.locator(".comparison > div")).to_have_count(2, timeout=WAIT)
    found, rows = found + faults(), rows + page.evaluate(CONTRASTS)
    page.get_by_placeholder("Which way does it move?").fill("")
    start_from(page, "90")
    press(page, "Ask")
    expect(page.get_by_text("Type a question")).to_be_visible(timeout=WAIT)
    found, rows = found + faults(), rows + page.evaluate(CONTRASTS)
    assert {"Seed", "mental image 1", "What if it could not picture?"} <= {text for text, *_ in rows}
    assert found == [] and [row for row in rows if row[1] < row[2]] == []


def test_the_whole_path_by_keyboard(open_page, expected):
    page = open_page()

    def go_to(name, key="Tab"):
        """Tab on to the element of that name, and see that it shows that it is reached."""
        for _ in range(60):
            page.keyboard.press(key)
            text, outline = page.evaluate("""() => {
              const reached = document.activeElement, around = reached.closest("label, button, a");
              return [`${reached.ariaLabel} ${around?.innerText}`, getComputedStyle(reached).outlineStyle];
            }""")
            if name in text:
                assert outline == "solid", name
                return
        raise AssertionError(f"{name} is not reached")

    go_to(EXAMPLE["question"])
    page.keyboard.press("Enter")
    expect(page.get_by_placeholder("Which way does it move?")).to_have_value(EXAMPLE["question"], timeout=WAIT)
    expect(page.get_by_test_id("Video-player")).to_have_attribute("src", re.compile(EXAMPLE["video"]), timeout=WAIT)
    go_to("Ask", "Shift+Tab")
    page.keyboard.press("Enter")
    has_answered(page)
    go_to("Link to this result")
    go_to("mental image 1")
    page.locator("#video video").evaluate("player => { player.currentTime = 0; }")
    page.keyboard.press("Enter")
    now = page.locator("#video video").evaluate("player => player.currentTime")
    assert now == pytest.approx(expected.steps[expected.images[0].best_step][1][0], abs=0.05)
    go_to("Its mental images are blank")
    page.keyboard.press("Space")  # Gradio's radio buttons are no group to the arrow keys
    expect(page.get_by_label("Its mental images are blank")).to_be_checked(timeout=WAIT)
    go_to("Answer again without")
    page.keyboard.press("Enter")
    expect(page.locator(".comparison > div")).to_have_count(2, timeout=WAIT)


def test_every_example_can_be_asked():
    for row in stored_answers.EXAMPLES:
        frames, _ = load_video(FOLDER / row["video"])
        assert len(frames) >= 8 and row["answer"] in row["options"] and row["question"]
        assert Path(stored_answers.thumbnail(row)).stat().st_size < 10_000
        assert row["video"].partition("_")[0] in (FOLDER / "ORIGIN.md").read_text()


def test_a_long_video_is_described_as_seen_sparsely(qa):
    assert "for more detail" not in handlers.describe_sampling(qa.open(VIDEO).timestamps, 2.0)
    assert "they lie 2.0 s apart: for more detail, ask about a part of it" in handlers.describe_sampling(
        np.arange(8) * 2.0, 2.0
    )
