"""README holds: its snippets run from the top of a checkout, and every file that it names is there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
DECODING = (ROOT / "docs/decoding.md").read_text()


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
    tree = re.search(r"```\n(fourdthinker_hf/\n.*?)```", README, re.DOTALL)[1]
    folder, named = "", set()
    for line in tree.splitlines():
        name = line.split()[0]
        folder = folder if line.startswith(" ") else ""
        path = folder + name
        assert (ROOT / path).exists(), path
        named.add(path.rstrip("/"))
        if name == "fourdthinker_hf/":
            folder = name
    package = {f"fourdthinker_hf/{path.name}" for path in (ROOT / "fourdthinker_hf").glob("*") if path.name[0] != "_"}
    assert package <= named, package - named


@pytest.mark.parametrize("path", re.findall(r"\]\(([^)#:]+)\)", README))
def test_links_lead_somewhere(path):
    assert (ROOT / path).exists()
