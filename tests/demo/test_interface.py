"""The demo, through its API and through a real browser, with the bundled checkpoint."""

import ast
import asyncio
import base64
import importlib
import json
import os
import re
import shutil
import sys
import time
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

from fourdthinker_hf.demo import answer_html, interface, uploads
from fourdthinker_hf.qa import Answer, MentalImage
from fourdthinker_hf.video_fourdthinker import load_video

ROW = interface.ROWS[0]
VIDEO, OPTIONS = interface.EXAMPLES / ROW["video"], "\n".join(ROW["options"])
WAIT = 120_000  # ms: CI machines are busy
# Every text that is seen, with its contrast and what WCAG 2.2 AA asks of it (1.4.3: 3 of large text, else 4.5).
CONTRASTS = """() => {
  const parts = (color) => { const [r, g, b, a] = color.match(/[\\d.]+/g).map(Number); return [r, g, b, a ?? 1]; };
  const over = (top, under) => under.map((value, i) => top[i] * top[3] + value * (1 - top[3]));
  const light = (color) => color.map((value) => value / 255)
    .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
    .reduce((sum, value, i) => sum + [0.2126, 0.7152, 0.0722][i] * value, 0);
  const rows = [], texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const said = texts.currentNode.textContent.trim(), element = texts.currentNode.parentElement;
    const shown = element.checkVisibility({ opacityProperty: true, visibilityProperty: true });
    if (!said || !shown || element.closest("script, style, noscript")) continue;
    const above = [];
    for (let e = element; e; e = e.parentElement) above.unshift(getComputedStyle(e));
    const back = above.reduce((under, style) => over(parts(style.backgroundColor), under), [255, 255, 255]);
    const style = above.at(-1), [r, g, b, alpha] = parts(style.color);
    const front = over([r, g, b, above.reduce((all, style) => all * style.opacity, alpha)], back);
    const [less, more] = [light(front), light(back)].sort((a, b) => a - b), size = parseFloat(style.fontSize);
    const needed = size >= 24 || (size >= 18.66 && style.fontWeight >= 700) ? 3 : 4.5;
    rows.push([said.slice(0, 60), (more + 0.05) / (less + 0.05), needed]);
  }
  return rows;
}"""


@pytest.fixture(scope="module")
def qa():
    return interface.load(interface.BUNDLED)


@pytest.fixture(scope="module")
def plain(qa):
    """The answer to the first example, asked without the demo."""
    return qa.ask(VIDEO, ROW["question"], ROW["options"])


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
def browser():
    with sync_playwright() as play:
        args = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=args)
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


def choose_first_example(page):
    page.get_by_role("button", name=re.compile(ROW["question"][:-1])).click()
    expect(page.get_by_placeholder("Which way does it move?")).to_have_value(ROW["question"], timeout=WAIT)
    expect(page.get_by_test_id("Video-player")).to_have_attribute("src", re.compile(ROW["video"]), timeout=WAIT)


def upload(page, path):
    page.locator("#video input[type=file]").first.set_input_files(path)


def wait_until(happens):
    deadline = time.monotonic() + WAIT / 1000
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def decoders():
    """Process ids of those that open a video."""
    return [child.pid for child in psutil.Process().children() if "-I" in child.cmdline()]


def test_importing_the_demo_loads_no_weights(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(PreTrainedModel, "__init__", fail)
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", fail)
    monkeypatch.delitem(sys.modules, "app")
    assert isinstance(importlib.import_module("app").demo, gr.Blocks)


def test_the_api_answers_as_the_library_does(client, plain):
    assert list(client.view_api(return_format="dict")["named_endpoints"]) == ["/answer"]
    job = client.submit(handle_file(VIDEO), ROW["question"], OPTIONS, api_name="/answer")
    assert job.result() == json.loads(json.dumps(answer_html.as_json(plain, ROW["question"], ROW["options"])))
    first, last = job.outputs()[0], job.outputs()[-1]
    assert last["option"] == plain.option == 0 and np.shape(last["images"][0]["map"]) == plain.images[0].maps.shape
    assert first["probabilities"] is None and last["reasoning"].startswith(first["reasoning"])


def test_the_api_refuses_bad_input_and_then_still_answers(client, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(VIDEO.read_bytes()[:3000])
    video = handle_file(VIDEO)
    for arguments, message in [
        ((None, "Where?", ""), "Choose a video first"),
        ((video, "  ", ""), "Type a question"),
        ((video, "Where?", "left\n\n"), "at least two"),
        ((handle_file(broken), "Where?", ""), "This video cannot be read. broken.mp4: is truncated or damaged"),
    ]:
        with pytest.raises(Exception, match=message):
            client.predict(*arguments, api_name="/answer")
    assert client.predict(video, ROW["question"], OPTIONS, api_name="/answer")["option"] == 0


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        str(interface.EXAMPLES / "real.mp4"),
        "http://127.0.0.1:9/a.mp4",
        "data:video/mp4;base64,aGVsbG8=",
        "http://a/gradio_api/file=/etc/passwd",
        f"http://a/gradio_api/file={interface.EXAMPLES / 'real.mp4'}",
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


def test_the_mcp_tool_answers_as_the_library_does(url, demo, plain):
    inside = "data:video/mp4;base64," + base64.b64encode(VIDEO.read_bytes()).decode()
    kept = set(Path(demo.GRADIO_CACHE).rglob("*"))

    async def call(video, question=ROW["question"]):
        async with streamable_http_client(f"{url}gradio_api/mcp/") as (read, write, _):
            async with ClientSession(read, write) as session:
                await session.initialize()
                (tool,) = (await session.list_tools()).tools
                assert (tool.name, [*tool.inputSchema["properties"]]) == ("answer", ["video", "question", "options"])
                arguments = {"video": video, "question": question, "options": OPTIONS}
                result = await session.call_tool(tool.name, arguments)
                return result.isError, result.content[0].text

    def tell(*arguments):
        return asyncio.run(call(*arguments))

    address = f"{url}gradio_api/file={upload_to(url)}"
    failed, text = tell(address)
    assert not failed, text
    assert ast.literal_eval(text) == json.loads(
        json.dumps(answer_html.as_json(plain, ROW["question"], ROW["options"]))
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
        failed, text = tell(*arguments)
        assert failed and message in text, text
    new = {path.name for path in set(Path(demo.GRADIO_CACHE).rglob("*")) - kept if path.is_file()}
    assert new <= {"a.mp4", "broken.mp4"}
    large = httpx.post(f"{url}gradio_api/mcp/", content=bytes(uploads.MAX_MESSAGE + 1))
    assert large.status_code == 413 and httpx.post(f"{url}gradio_api/mcp/", content=b"{").status_code == 400


def test_what_was_uploaded_is_deleted_in_time(qa, monkeypatch):
    monkeypatch.setattr(interface, "KEPT", (1, 1))
    demo = interface.build_demo(qa=qa)
    _, url, _ = interface.launch(demo, prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    try:
        client = Client(url, verbose=False)
        example = client.predict(handle_file(VIDEO), ROW["question"], OPTIONS, api_name="/answer")
        assert example["option"] == 0
        mine = upload_to(url, "mine.mp4")
        assert os.path.exists(mine)
        wait_until(lambda: not list(Path(demo.GRADIO_CACHE).rglob("mine.mp4")))
        assert list(Path(demo.GRADIO_CACHE).rglob(ROW["video"]))  # the example stays
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
    arguments = (handle_file(VIDEO), ROW["question"], OPTIONS)
    with qa.model_lock:  # so that the first cannot end
        jobs = [client.submit(*arguments, api_name="/answer") for _ in range(2)]
        wait_until(lambda: interface.jobs_of(demo, client) == 2)  # a client has a session_hash, as a request has
        with pytest.raises(Exception, match="one question running and one waiting"):
            client.submit(*arguments, api_name="/answer").result(timeout=60)
        other = Client(url, verbose=False).submit(*arguments, api_name="/answer")
    assert [job.result()["option"] for job in (*jobs, other)] == [0, 0, 0]


def test_a_person_sees_what_was_pictured_and_asks_what_if(open_page, plain):
    page = open_page()
    choose_first_example(page)
    press(page, "Ask")
    expect(page.locator("#answer .said")).to_have_text(answer_html.verdict(plain, ROW["options"]), timeout=WAIT)
    expect(page.locator("#answer .chances li")).to_have_count(4)
    tile = page.locator(".words button.tile")
    expect(tile).to_have_count(1)
    expect(page.locator(".timeline .mark")).to_have_count(1)
    tile.focus()
    page.keyboard.press("Enter")
    picture = page.locator(".picture:visible")
    expect(picture).to_have_count(1)
    assert picture.locator("img").first.evaluate("image => image.complete && image.naturalWidth > 0")
    expect(picture.locator(".most")).to_contain_text("most alike")
    now = page.locator("#video video").evaluate("film => film.currentTime")
    assert now == pytest.approx(2 * plain.images[0].best_step / 2, abs=0.05)
    assert page.locator("img:not([alt])").count() == 0

    with page.expect_download() as download:
        page.get_by_role("link", name="Latents (safetensors)").click()
    latents = safetensors.torch.load_file(download.value.path())
    assert latents["image_1"].equal(plain.images[0].latents)
    with page.expect_download() as download:
        page.get_by_role("link", name="Answer (JSON)").click()
    assert json.loads(download.value.path().read_text())["answer"] == plain.answer

    cuts = (("not picture at all", "The answer changes"), ("are blank", "The answer"), ("another video", "The answer"))
    for label, said in cuts:
        page.get_by_label(re.compile(label)).check()
        press(page, "Answer again without")
        expect(page.locator("#versus .said").first).to_contain_text(said, timeout=WAIT)
        expect(page.locator(".versus > div")).to_have_count(2)
        expect(page.locator(".versus img")).to_have_count(0)
        page.locator("#versus").evaluate("box => box.querySelector('.said').remove()")


def test_a_person_stops_an_answer_and_asks_again(open_page, qa):
    page = open_page()
    choose_first_example(page)
    with qa.model_lock:
        press(page, "Ask")
        expect(page.get_by_text("Watching the video.")).to_be_visible(timeout=WAIT)
        press(page, "Stop")
        expect(page.get_by_text("Stopped. Ask again.")).to_be_visible(timeout=WAIT)
    page.wait_for_timeout(2000)  # Gradio loses what is asked in the moment in which a stopped step ends
    press(page, "Try again")
    expect(page.locator("#answer .said")).to_contain_text("to the left", timeout=WAIT)
    page.get_by_text("How words are chosen").click()
    assert page.get_by_role("spinbutton", name="Seed").input_value() == "1"


@pytest.mark.parametrize("leave", [False, True])
def test_who_stops_or_leaves_while_the_video_is_decoded_ends_the_decoder(
    open_page, demo, qa, monkeypatch, leave, tmp_path
):
    page = open_page()
    choose_first_example(page)
    page.get_by_text("Only a part of the video").click()
    page.get_by_role("spinbutton", name="From second").fill(str(1.0 + leave / 2))  # a part of its own
    monkeypatch.setattr(qa, "open_video", uploads.open_apart(qa.processor, seconds=600))
    (tmp_path / "sleep.py").write_text("import time; time.sleep(600)")
    monkeypatch.setattr(uploads, "DECODER", str(tmp_path / "sleep.py"))
    press(page, "Ask")
    expect(page.get_by_text("Watching the video.")).to_be_visible(timeout=WAIT)
    wait_until(decoders)
    (decoder,) = decoders()
    if leave:
        page.close()
    else:
        press(page, "Stop")
        expect(page.get_by_text("Stopped. Ask again.")).to_be_visible(timeout=WAIT)
    wait_until(lambda: not psutil.pid_exists(decoder) and not any(demo._queue.active_jobs))
    if not leave:
        monkeypatch.undo()
        press(page, "Ask")
        expect(page.locator("#answer .said")).to_contain_text("to the left", timeout=WAIT)


def test_who_waits_sees_the_place_in_the_queue(open_page, qa):
    pages = [open_page() for _ in range(3)]
    for page in pages:
        choose_first_example(page)
    with qa.model_lock:
        for page in pages:
            press(page, "Ask")
            expect(page.locator("#answer")).to_contain_text(re.compile("Watching|queue"), timeout=WAIT)
        expect(pages[1].locator("#answer")).to_contain_text("queue: 1/", timeout=WAIT)
        expect(pages[2].locator("#answer")).to_contain_text("queue: 2/2", timeout=WAIT)
    for page in pages:
        expect(page.locator("#answer .said")).to_contain_text("to the left", timeout=WAIT)


def test_a_person_who_errs_is_told_and_can_go_on(open_page, tmp_path):
    page = open_page()
    press(page, "Ask")
    expect(page.get_by_text("Choose a video first")).to_be_visible(timeout=WAIT)
    expect(page.get_by_text("Type a question")).to_be_visible()
    (tmp_path / "text.mp4").write_text("hello")
    upload(page, tmp_path / "text.mp4")
    expect(page.get_by_text("text.mp4: is not a video file").first).to_be_visible(timeout=WAIT)
    choose_first_example(page)
    page.get_by_text("Only a part of the video").click()
    page.get_by_role("spinbutton", name="From second").fill("90")
    press(page, "Ask")
    alert = page.get_by_role("alert").filter(has_text="outside the clip, which runs from 0 to 4.000 s")
    expect(alert).to_be_visible(timeout=WAIT)
    page.get_by_role("spinbutton", name="From second").fill("1")
    press(page, "Ask")
    expect(page.locator("#answer .said")).to_be_visible(timeout=WAIT)
    expect(page.get_by_text("frames from 1.0 to 3.5 s")).to_be_visible()


def test_what_the_browser_cannot_play_is_answered_anyway(open_page, tmp_path):
    frames, _ = load_video(VIDEO, fps=8)
    path = tmp_path / "film.avi"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=8, options={"bf": "0"})
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        for frame in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        out.mux(stream.encode(None))
    page = open_page()
    upload(page, path)
    expect(page.get_by_text("Your browser cannot play this format")).to_be_visible(timeout=WAIT)
    page.get_by_placeholder("Which way does it move?").fill(ROW["question"])
    page.get_by_role("textbox", name="Options").fill(OPTIONS)
    press(page, "Ask")
    expect(page.locator("#answer .said")).to_contain_text("to the left", timeout=WAIT)


@pytest.mark.parametrize("kwargs", [{"width": 390}, {"color_scheme": "dark"}])
def test_on_a_phone_and_in_the_dark(open_page, kwargs):
    page = open_page(**kwargs)
    choose_first_example(page)
    press(page, "Ask")
    said = page.locator("#answer .said")
    expect(said).to_be_visible(timeout=WAIT)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    if "width" not in kwargs:
        levels = [int(n) for n in re.findall(r"\d+", said.evaluate("e => getComputedStyle(e).color"))[:3]]
        assert page.evaluate("document.body.classList.contains('dark')") and min(levels) > 180, levels


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(open_page, scheme):
    page = open_page(color_scheme=scheme)
    before = page.evaluate(CONTRASTS)
    choose_first_example(page)
    press(page, "Ask")
    expect(page.locator("#answer .said")).to_be_visible(timeout=WAIT)
    for name in ("Only a part of the video", "How words are chosen"):
        page.get_by_text(name).click()
    press(page, "Answer again without")
    expect(page.locator(".versus > div")).to_have_count(2, timeout=WAIT)
    page.mouse.move(0, 0)
    page.wait_for_timeout(1000)  # colours fade in
    after = page.evaluate(CONTRASTS)
    page.get_by_role("spinbutton", name="From second").fill("90")
    press(page, "Ask")
    expect(page.locator("#answer .notice")).to_be_visible(timeout=WAIT)
    rows = before + after + page.evaluate(CONTRASTS)
    assert {"Seed", "mental image 1", "What if it could not picture?"} <= {said for said, *_ in rows}
    assert [row for row in rows if row[1] < row[2]] == []


def test_the_whole_path_by_keyboard(open_page, plain):
    page = open_page()

    def go_to(name):
        """Tab on to the element of that name, and see that it shows that it is reached."""
        for _ in range(60):
            page.keyboard.press("Tab")
            said, outline = page.evaluate("""() => {
              const reached = document.activeElement, around = reached.closest("label, button, a");
              return [`${reached.ariaLabel} ${around?.innerText}`, getComputedStyle(reached).outlineStyle];
            }""")
            if name in said:
                assert outline == "solid", name
                return
        raise AssertionError(f"{name} is not reached")

    go_to(ROW["question"])
    page.keyboard.press("Enter")
    expect(page.get_by_placeholder("Which way does it move?")).to_have_value(ROW["question"], timeout=WAIT)
    expect(page.get_by_test_id("Video-player")).to_have_attribute("src", re.compile(ROW["video"]), timeout=WAIT)
    go_to("Ask")
    page.keyboard.press("Enter")
    expect(page.locator("#answer .said")).to_have_text(answer_html.verdict(plain, ROW["options"]), timeout=WAIT)
    go_to("mental image 1")
    page.locator("#video video").evaluate("film => { film.currentTime = 0; }")
    page.keyboard.press("Enter")
    now = page.locator("#video video").evaluate("film => film.currentTime")
    assert now == pytest.approx(2 * plain.images[0].best_step / 2, abs=0.05)
    go_to("Its mental images are blank")
    page.keyboard.press("Space")  # Gradio's radio buttons are no group to the arrow keys
    expect(page.get_by_label("Its mental images are blank")).to_be_checked(timeout=WAIT)
    go_to("Answer again without")
    page.keyboard.press("Enter")
    expect(page.locator(".versus > div")).to_have_count(2, timeout=WAIT)


def test_every_example_can_be_asked():
    for row in interface.ROWS:
        frames, _ = load_video(interface.EXAMPLES / row["video"])
        assert len(frames) >= 8 and len(row["options"]) >= 2 and row["question"]
        assert row["video"].partition("_")[0] in (interface.EXAMPLES / "ORIGIN.md").read_text()


def test_a_long_video_is_described_as_seen_sparsely(qa):
    assert "for more detail" not in interface.describe(qa.open(VIDEO).timestamps, 2.0)
    assert "they lie 2.0 s apart: for more detail, ask about a part of it" in interface.describe(
        np.arange(8) * 2.0, 2.0
    )


def test_a_mental_image_stands_where_it_was_pictured_even_if_the_reply_is_odd():
    image = MentalImage(np.zeros((0, 4)))
    answer = Answer(np.zeros((2, 8, 8, 3)), np.arange(2), reasoning="a <output_image> b", images=[image, image])
    shown = answer_html.reasoning_html(answer, [])
    assert shown.count("<figure>") == 2 and shown.index("<figure>") < shown.index("b<figure>")
    answer.reasoning, answer.images = "a <output_image> b <output_image> c", []
    assert answer_html.reasoning_html(answer, []) == "<div class='reasoning'>abc</div>"


def test_text_of_the_model_and_of_the_visitor_is_never_markup():
    hostile = "<img src=x onerror=alert(1)>'\""
    answer = Answer(np.zeros((2, 8, 8, 3), np.uint8), np.arange(2), reasoning=hostile, answer=hostile)
    answer.probabilities = [0.5, 0.5]
    shown = answer_html.words_html(answer, []) + answer_html.verdict_html(answer, [hostile, "b"])
    shown += answer_html.links_html(answer, hostile, [hostile, "b"]) + answer_html.versus_html(
        "", answer, [hostile, "b"], "x", True
    )
    assert "<img" not in shown and "'\"" not in shown.replace("&#x27;&quot;", "")


def test_the_verdict_says_why_no_option_was_chosen():
    nothing = Answer(None, None, answer="up", reason="'up' is neither an option's letter nor its text")
    assert answer_html.verdict(nothing, ["left", "right"]) == "up ('up' is neither an option's letter nor its text)"
