"""The pages hold: their snippets run, their commands exist with those options, their links lead somewhere."""

import dataclasses
import re
import shlex
import subprocess
import sys
from pathlib import Path

import grpo
import pytest
import sft
import typer
from trl import ModelConfig

from fourdthinker_hf.cli import app
from fourdthinker_hf.training import DIFTConfig, FourDRLConfig

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
DECODING = (ROOT / "docs/decoding.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
LAUNCHERS = {
    "train/sft.py": (sft.ScriptArguments, DIFTConfig, ModelConfig),
    "train/grpo.py": (grpo.ScriptArguments, FourDRLConfig, ModelConfig),
}


def run(text, number):
    """Lines printed by a snippet of `text`."""
    snippet = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[number]
    done = subprocess.run([sys.executable, "-c", snippet], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("number", [0, 1], ids=["qa", "auto"])
def test_snippets_run(number):
    lines = run(README, number)
    assert "<output_image>" in lines[0]
    assert len(lines) >= 2


def test_a_second_turn_runs():
    assert run(DECODING, 0)


def test_the_decoding_table_names_tests_that_exist():
    named = set(re.findall(r"`(test_\w+)`", DECODING))
    source = (ROOT / "tests/test_generation.py").read_text()
    assert named and named == set(re.findall(r"^def (test_\w+)", source, re.MULTILINE))


def test_the_tree_is_the_disk():
    tree = re.search(r"```\n(fourdthinker_hf/ .*?)```", README, re.DOTALL)[1]
    named = {line.split()[0] for line in tree.splitlines()}
    assert all((ROOT / name).is_dir() for name in named), named
    packages = {f"fourdthinker_hf/{path.parent.name}/" for path in (ROOT / "fourdthinker_hf").glob("*/__init__.py")}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    folders = {path.split("/")[0] + "/" for path in tracked if "/" in path and path[0] != "."}
    assert packages | folders == named


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        assert link.startswith("https://") or (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_a_page_is_short(page):
    assert len(page.read_text().split()) <= (900 if page.name == "README.md" and page.parent == ROOT else 1200)


def commands():
    """Every command in a page's blocks, without the environment variables before it, as words."""
    for page in PAGES:
        for language, block in re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
            for line in block.replace("\\\n", " ").splitlines() * (language in ("", "bash", "sh")):
                words = shlex.split(line, comments=True)
                while words and (re.fullmatch(r"[A-Z_]+=\S*", words[0]) or words[0] == "accelerate"):
                    words = words[1:]
                if words:
                    yield str(page.relative_to(ROOT)), line, words


FOUND = list(commands())


def test_pages_have_commands():
    assert len(FOUND) > 40


@pytest.mark.parametrize(
    "line, words", [found[1:] for found in FOUND], ids=[f"{found[0]}: {found[1]}" for found in FOUND]
)
def test_a_command_exists_with_its_options(line, words):
    before, _, after = (" ".join(words)).partition("fourdthinker ")
    if after and (not before or before.endswith("--no_python ")):
        name, *arguments = words[words.index("fourdthinker") + 1 :]
        command = typer.main.get_command(app).commands[name]
        command.make_context(name, arguments)  # parses, and runs nothing
    for launcher, settings in LAUNCHERS.items():
        if launcher in words:
            known = {field.name for part in settings for field in dataclasses.fields(part)} | {"config"}
            given = {word.removeprefix("--") for word in words[words.index(launcher) :] if word.startswith("--")}
            assert given <= known, given - known
    for word in words:
        if re.fullmatch(r"(train|bench|tests|examples|fourdthinker_hf)/\S+|app\.py", word):
            assert (ROOT / word).exists(), word


def test_a_command_that_is_wrong_is_noticed():
    with pytest.raises(Exception, match="No such option: --number"):  # typer brings its own copy of click
        test_a_command_exists_with_its_options("", ["fourdthinker", "simulate", "--number", "3"])
    with pytest.raises(AssertionError):
        test_a_command_exists_with_its_options("", ["launch", "train/sft.py", "--record", "a.jsonl"])
    with pytest.raises(AssertionError):
        test_a_command_exists_with_its_options("", ["python", "train/nothing.py"])
