"""README holds: its snippets run from the top of a checkout, and every file that it names is there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=["qa", "auto"])
def test_snippets_run(snippet):
    done = subprocess.run([sys.executable, "-c", snippet], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "<output_image>" in lines[0]
    assert len(lines) >= 2


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
