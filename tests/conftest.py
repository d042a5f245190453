"""A tiny random checkpoint and short videos, shared by all tests."""

import atexit
import os
import shutil
import tempfile
from fractions import Fraction
from pathlib import Path

os.environ["TMPDIR"] = tempfile.mkdtemp()  # for processes that tests start and sometimes kill
os.environ["TRACKIO_DIR"] = os.environ["TMPDIR"]  # read when trackio is loaded, by whichever test is first
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # TRL's trainers send some, from a thread that may outlive the run
os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is loaded; threads of one small product wait on one another

import av
import numpy as np
import pytest
import torch
from huggingface_hub import constants
from init_model import make_config, make_processor, make_tokenizer
from local_hub import LocalHub
from transformers import LogitsProcessor

from fourdthinker_hf import FourDThinkerForConditionalGeneration, FourDThinkerProcessor
from fourdthinker_hf.data.simulation.rendering import load_mujoco
from fourdthinker_hf.qa import VideoQA

atexit.register(shutil.rmtree, os.environ["TMPDIR"])  # after Trackio, begun later, has closed its runs

# What pip cannot install. A test that needs it names the fixture.


def need(found, what: str, remedy: str):
    """`found`, if it is there. Otherwise the test is skipped with one line. With CI=true it fails: nothing is left out
    there."""
    if not found:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"{what} is not there: {remedy}")
    return found


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of the system's Chromium, or of the one that Playwright downloaded."""
    from playwright.sync_api import sync_playwright  # not there where only lmms-eval is tested

    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
    found = shutil.which("chromium") or shutil.which("chromium-browser") or (os.path.exists(own) and own)
    return need(found, "Chromium", "`playwright install chromium` downloads it without root")


@pytest.fixture(scope="session")
def firefox() -> str:
    """The path of the system's Firefox."""
    return need(shutil.which("firefox-esr") or shutil.which("firefox"), "Firefox", "install firefox-esr")


@pytest.fixture(scope="session")
def egl():
    """EGL, by which MuJoCo renders without a screen on Linux."""
    load_mujoco()
    if os.environ.get("MUJOCO_GL") != "egl":
        return
    try:
        from mujoco.egl import GLContext

        GLContext(8, 8).free()
    except Exception as error:  # of several kinds, by what is missing
        need(False, "EGL", f"install libegl1, libgl1 and libgles2 ({error})")


@pytest.fixture(scope="session")
def compiler():
    """A C++ compiler, by which DeepSpeed builds its parts for the CPU."""
    need(shutil.which(os.environ.get("CXX", "g++")), "a C++ compiler", "install g++, or set CXX")


TEXTS = [
    "In which direction does the red ball move? <think> red ball 7 4, 6 4. it moves to the left. </think>",
    "<answer>to the left</answer> to the right toward the camera away from the camera\nA. \nB. \nC. \nD. ",
]


FIGURES: list[str] = []


@pytest.fixture(scope="session")
def figure():
    """`figure(line)` prints what a test measured at the end of the run."""
    return FIGURES.append


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):  # one of several processes, by pytest-xdist
        session.config.workeroutput["figures"] = FIGURES


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    FIGURES.extend(getattr(node, "workeroutput", {}).get("figures", []))


def pytest_collection_modifyitems(items):
    """The slow tests run first, so that no process is left with one at the end. A test in a browser that fails is run
    once more: on a busy machine a page may be too slow for one of its steps."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    for item in items:
        if {"chromium", "firefox"} & set(item.fixturenames):
            item.add_marker(pytest.mark.flaky(reruns=1))


def pytest_terminal_summary(terminalreporter):
    if FIGURES:
        terminalreporter.section("measured")
        terminalreporter.write_line("\n".join(FIGURES))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """A checkpoint of two layers with random weights, the same in every run. Tests must not write into it."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    tokenizer = make_tokenizer(TEXTS, 400)
    config = make_config(tokenizer)
    config.text_config.num_hidden_layers = 2
    config.text_config.layer_types = config.text_config.layer_types[:2]
    config.vision_config.depth, config.vision_config.fullatt_block_indexes = 2, [0, 1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = FourDThinkerForConditionalGeneration(config)
    model.generation_config.update(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)
    make_processor(tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model(tiny_folder):
    """The model of that checkpoint. Tests must not change it."""
    return FourDThinkerForConditionalGeneration.from_pretrained(tiny_folder).eval()


@pytest.fixture(scope="session")
def processor(tiny_folder):
    """The processor of that checkpoint. Tests must not change it."""
    return FourDThinkerProcessor.from_pretrained(tiny_folder)


@pytest.fixture(scope="session")
def write_video():
    """`write_video(path, frames (T, H, W, 3) uint8, fps=8) -> path`: an H.264 file."""

    def write(path: Path, frames: np.ndarray, fps: int = 8) -> Path:
        with av.open(str(path), "w") as out:
            stream = out.add_stream("libx264", rate=Fraction(fps), options={"crf": "18", "threads": "1"})
            stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
            for frame in frames:
                out.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgb24")))
            out.mux(stream.encode(None))
        return path

    return write


@pytest.fixture(scope="session")
def clip(tmp_path_factory, write_video) -> Path:
    """A clip of four seconds, 112 x 112 pixels, in which a red square moves to the right on grey."""
    frames = np.full((32, 112, 112, 3), 90, np.uint8)
    for i, frame in enumerate(frames):
        frame[40:64, 2 * i : 2 * i + 24] = (220, 20, 20)
    return write_video(tmp_path_factory.mktemp("video") / "clip.mp4", frames)


class Script(LogitsProcessor):
    """Makes a model with random weights write given ids. The tokens inside a mental image are the model's own."""

    def __init__(self, ids: list[int], config, prompt_length: int):
        self.ids, self.prompt_length = ids, prompt_length
        self.own = (config.latent_token_id, config.latent_end_id)

    def __call__(self, input_ids, scores):
        written = sum(token not in self.own for token in input_ids[0, self.prompt_length :].tolist())
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self.ids[min(written, len(self.ids) - 1)]] = 0
        return forced


@pytest.fixture(scope="session")
def script():
    """`script(qa, text)`: from now on `qa` replies `text`, in which `<|latent_start|>` opens a mental image."""

    def force(qa: VideoQA, text: str) -> None:
        ids = qa.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        generate = type(qa.model).generate

        def scripted(**kwargs):
            forced = Script(ids, qa.model.config, kwargs["input_ids"].shape[1])
            return generate(qa.model, **kwargs, logits_processor=[forced])

        qa.model.generate = scripted

    return force


@pytest.fixture(scope="session")
def hub_server():
    with LocalHub() as hub:
        yield hub


@pytest.fixture
def hub(hub_server, monkeypatch):
    """The local server, empty. This process uses it as the Hub, with the token of `me`."""
    hub_server.repositories.clear()
    hub_server.stored.clear()
    hub_server.log.clear()
    template = f"{hub_server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "ENDPOINT", hub_server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_local")
    return hub_server
