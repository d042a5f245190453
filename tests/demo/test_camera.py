"""The camera button of the demo in Chromium and in Firefox, each with its fake camera."""

import os
import re
import time

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import av
import numpy as np
import pytest
from marionette_driver import By, Wait
from marionette_driver.marionette import Marionette
from playwright.sync_api import expect, sync_playwright

from fourdthinker_hf.checkpoints import BUNDLED
from fourdthinker_hf.demo import handlers, interface

SECONDS, WAIT = 3, 120  # of a recording, and until something happens on a busy machine
RECORD = "[aria-label='start recording']"  # the same label while it records, when its text is "Stop"
PREVIEW = "document.querySelector(\"[data-testid='webcam-video']\")"
PLAYS = f"{PREVIEW}.readyState >= 2 && {PREVIEW}.videoWidth > 0"
# Gradio shows the button once it has the camera, but cannot record until the browser has named its devices to it.
# A page's requests for them are answered in order: once this later one is, Gradio's is.
DEVICES = "navigator.mediaDevices.enumerateDevices()"
# Gradio keeps of a recording what the browser has encoded when it is stopped, in chunks of 0.2 s. This counts them.
COUNT_CHUNKS = """document.head.appendChild(Object.assign(document.createElement("script"), {textContent: `{
    const {start} = MediaRecorder.prototype, {dataset} = document.documentElement;
    MediaRecorder.prototype.start = function (milliseconds) {
        dataset.chunks = 0;
        this.addEventListener("dataavailable", () => dataset.chunks++);
        start.call(this, milliseconds);
    };
}`})) && null"""
RECORDED = f"document.documentElement.dataset.chunks > {5 * SECONDS}"
QUESTION = "How does the camera move?"
DONE = "#answer a[download='answer.html'], #answer .notice"  # an answer that was asked for has a link
SEEN = re.compile(r"The model looks at (\d+) frames from 0.0 to (\d+\.\d) s")


@pytest.fixture(scope="module")
def demo():
    """A running demo, and of each clip that its model was shown the frames, the times, and the number of sounds."""
    qa, clips = handlers.load_qa(BUNDLED), []
    open_video = qa.open_video

    def keep(path, *args, **kwargs):
        with av.open(str(path)) as file:
            num_sounds = len(file.streams.audio)
        clip = open_video(path, *args, **kwargs)
        clips.append((*clip, num_sounds))
        return clip

    qa.open_video = keep
    demo = interface.build_demo(qa=qa)
    _, url, _ = interface.launch(demo, prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    yield url, clips
    demo.close()


def record_in_chromium(url, chromium) -> tuple[str, float]:
    """Records, asks, and returns what the page says about the frames, and the seconds between the two clicks."""
    fakes = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    args = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", *fakes]
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=args)
        page = browser.new_page()
        page.set_default_timeout(1000 * WAIT)
        page.goto(url)
        page.locator("#video").get_by_role("button", name="Clear").click()  # the video that the page opens on
        page.get_by_role("button", name="Capture from camera").click()
        page.get_by_text("Click to Access Webcam").click()
        page.wait_for_function(PLAYS)
        page.evaluate(f"{DEVICES}.then(() => null)")
        page.evaluate(COUNT_CHUNKS)
        start = time.monotonic()
        page.locator(RECORD).click()
        expect(page.locator(RECORD)).to_have_text("Stop", timeout=1000 * WAIT)
        page.wait_for_function(RECORDED)
        page.locator(RECORD).click()
        elapsed = time.monotonic() - start
        page.get_by_test_id("Video-player").wait_for()
        page.get_by_placeholder("Which way does it move?").fill(QUESTION)
        page.get_by_role("button", name="Ask", exact=True).click()
        expect(page.locator(DONE)).to_be_visible(timeout=1000 * WAIT)
        return page.inner_text("body"), elapsed


def record_in_firefox(url, binary) -> tuple[str, float]:
    """The same. (Playwright needs a Firefox of its own; Marionette is Mozilla's.)"""
    fakes = {"media.navigator.streams.fake": True, "media.navigator.permission.disabled": True}
    firefox = Marionette(bin=binary, headless=True, prefs=fakes, gecko_log=os.environ["TMPDIR"])
    firefox.start_session()
    firefox.timeout.script = WAIT
    try:
        wait = Wait(firefox, timeout=WAIT, ignored_exceptions=Exception)

        def find(selector):
            return wait.until(lambda _: firefox.find_element(By.CSS_SELECTOR, selector))

        def click(selector):
            wait.until(lambda _: find(selector).click() is None)

        def until(condition):
            wait.until(lambda _: firefox.execute_script(f"return {condition}"))

        firefox.navigate(url)
        click("#video [aria-label='Clear']")  # the video that the page opens on
        click("[aria-label='Capture from camera']")
        click("[title='grant webcam access'] button")
        until(PLAYS)
        firefox.execute_async_script(f"{DEVICES}.then(() => arguments[0]())")
        firefox.execute_script(f"return {COUNT_CHUNKS}")
        start = time.monotonic()
        click(RECORD)
        wait.until(lambda _: find(RECORD).text == "Stop")
        until(RECORDED)
        click(RECORD)
        elapsed = time.monotonic() - start
        find("[data-testid='Video-player']")
        find("textarea[placeholder='Which way does it move?']").send_keys(QUESTION)
        (ask,) = [one for one in firefox.find_elements(By.TAG_NAME, "button") if one.text == "Ask"]
        ask.click()
        find(DONE)
        return find("body").text, elapsed
    finally:
        firefox.quit()


@pytest.mark.parametrize(("record", "binary"), [(record_in_chromium, "chromium"), (record_in_firefox, "firefox")])
def test_a_question_about_what_the_camera_sees(demo, record, binary, request):
    url, clips = demo
    text, elapsed = record(url, request.getfixturevalue(binary))
    frames, times, num_sounds = clips[-1]
    seen = SEEN.search(text)
    assert seen, text
    num_frames, last = seen.groups()
    assert (int(num_frames), float(last)) == (len(frames), round(float(times[-1]), 1))
    assert frames.shape[1:] == (480, 640, 3) and num_sounds == 0 and 1 < times[-1] < elapsed
    assert len(frames) >= 4 and np.abs(np.diff(frames.astype(int), axis=0)).max() > 50  # both fakes move
