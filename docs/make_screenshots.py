"""Makes docs/demo.jpg, demo-dark.jpg and demo-phone.jpg from the real page, after an answer of the bundled model.

python docs/make_screenshots.py
"""

import os
import shutil
from pathlib import Path

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

from playwright.sync_api import sync_playwright

from fourdthinker_hf.demo.interface import build_demo, launch

SIZES = {
    "demo": {"viewport": {"width": 1440, "height": 900}},
    "demo-dark": {"viewport": {"width": 1440, "height": 900}, "color_scheme": "dark"},
    "demo-phone": {"viewport": {"width": 390, "height": 844}},
}


def main() -> None:
    demo = build_demo()
    _, address, _ = launch(demo, prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        for name, settings in SIZES.items():
            page = browser.new_context(**settings, reduced_motion="reduce").new_page()
            page.set_default_timeout(300_000)
            page.goto(address)
            page.get_by_role("button", name="Ask", exact=True).click()
            page.get_by_role("link", name="Link to this result").wait_for()
            page.get_by_role("button", name="Answer again without").click()
            page.locator(".comparison > div").last.wait_for()
            page.mouse.move(0, 0)
            page.wait_for_timeout(2000)  # colours fade in
            path = Path(__file__).with_name(f"{name}.jpg")
            page.screenshot(path=path, type="jpeg", quality=85, full_page=True)
            print(path)
        browser.close()
    demo.close()


if __name__ == "__main__":
    main()
