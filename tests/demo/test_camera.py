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


def record_in_chromium(url, chromium) -> str:
    """Records, asks, and returns what the page says about the frames."""
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
        page.get_by_role("button", name="start recording").click()
        page.wait_for_timeout(1000 * SECONDS)
        page.get_by_role("button", name="start recording").click()  # its text is "Stop" now
        page.get_by_test_id("Video-player").wait_for()
        page.get_by_placeholder("Which way does it move?").fill(QUESTION)
        page.get_by_role("button", name="Ask", exact=True).click()
        expect(page.locator(DONE)).to_be_visible(timeout=1000 * WAIT)
        return page.inner_text("body")


def record_in_firefox(url, binary) -> str:
    """The same. (Playwright needs a Firefox of its own; Marionette is Mozilla's.)"""
    fakes = {"media.navigator.streams.fake": True, "media.navigator.permission.disabled": True}
    firefox = Marionette(bin=binary, headless=True, prefs=fakes, gecko_log=os.environ["TMPDIR"])
    firefox.start_session()
    try:
        wait = Wait(firefox, timeout=WAIT, ignored_exceptions=Exception)

        def find(selector):
            return wait.until(lambda _: firefox.find_element(By.CSS_SELECTOR, selector))

        def click(selector):
            wait.until(lambda _: find(selector).click() is None)

        firefox.navigate(url)
        click("#video [aria-label='Clear']")  # the video that the page opens on
        click("[aria-label='Capture from camera']")
        click("[title='grant webcam access'] button")
        click("[aria-label='start recording']")
        time.sleep(SECONDS)
        click("[aria-label='start recording']")
        find("[data-testid='Video-player']")
        find("textarea[placeholder='Which way does it move?']").send_keys(QUESTION)
        (ask,) = [one for one in firefox.find_elements(By.TAG_NAME, "button") if one.text == "Ask"]
        ask.click()
        find(DONE)
        return find("body").text
    finally:
        firefox.quit()


@pytest.mark.parametrize(("record", "binary"), [(record_in_chromium, "chromium"), (record_in_firefox, "firefox")])
def test_a_question_about_what_the_camera_sees(demo, record, binary, request):
    url, clips = demo
    text = record(url, request.getfixturevalue(binary))
    frames, times, num_sounds = clips[-1]
    seen = SEEN.search(text)
    assert seen, text
    num_frames, last = seen.groups()
    assert (int(num_frames), float(last)) == (len(frames), round(float(times[-1]), 1))
    assert frames.shape[1:] == (480, 640, 3) and num_sounds == 0 and 1 < times[-1] < SECONDS + 2
    assert len(frames) >= 4 and np.abs(np.diff(frames.astype(int), axis=0)).max() > 50  # both fakes move
