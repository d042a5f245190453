"""The wheel works where this checkout is not."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from fourdthinker_hf.checkpoints import BUNDLED

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT]
    subprocess.run(build, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> Path:
    """A fresh environment in which the wheel is installed, and which sees the packages of the running environment.
    A path in a .pth file is only searched for modules, so an editable installation there is not seen."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    paths = {"base": str(folder), "platbase": str(folder)}
    packages = Path(sysconfig.get_path("purelib", vars=paths))
    (packages / "running.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = folder / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel]
    subprocess.run(install, check=True, capture_output=True)
    return folder


def run(environment: Path, folder: Path, program: str, *arguments, quiet: bool = True) -> str:
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [environment / "bin" / program, *arguments]
    done = subprocess.run(
        command, cwd=folder, env=kept | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert not quiet or done.stderr == ""
    return done.stdout


@pytest.mark.slow
def test_the_wheel_has_every_file_of_the_package_and_what_it_ships(wheel):
    def files(path: Path) -> set[str]:
        found = [path] if path.is_file() else path.rglob("*")
        return {file.relative_to(ROOT).as_posix() for file in found if file.is_file() and file.suffix != ".pyc"}

    names = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("fourdthinker_hf/")}
    shipped = {name.removeprefix("fourdthinker_hf/shipped/") for name in names if "/shipped/" in name}
    assert names - {f"fourdthinker_hf/shipped/{name}" for name in shipped} == files(ROOT / "fourdthinker_hf")
    assert shipped == files(ROOT / "model_card.md") | files(ROOT / "examples") | files(BUNDLED)


@pytest.mark.usefixtures("egl")
@pytest.mark.slow
def test_an_installed_wheel_answers_and_writes_a_card_outside_the_checkout(environment, tmp_path):
    place = run(environment, tmp_path, "python", "-c", "import fourdthinker_hf; print(fourdthinker_hf.__file__)")
    assert Path(place).is_relative_to(environment)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert run(environment, tmp_path, "fourdthinker", "--version") == f"fourdthinker {version}\n"

    shutil.copy(ROOT / "examples" / "sim_direction.mp4", tmp_path / "clip.mp4")
    options = ["--option", "to the left", "--option", "to the right"]
    lines = run(environment, tmp_path, "fourdthinker", "ask", "clip.mp4", "How does it move?", *options).splitlines()
    assert lines[0].startswith("Reasoning: ") and any(line.startswith("Answer: ") for line in lines)

    arguments = ["simulate", "--num", "1", "--seed", "0", "--out", "data"]
    assert run(environment, tmp_path, "fourdthinker", *arguments, quiet=False) == f"{tmp_path}/data/records.jsonl\n"
    arguments = ["evaluate", "--benchmark", "data", "--out", "outputs"]
    assert "micro (pooled)" in run(environment, tmp_path, "fourdthinker", *arguments, quiet=False)

    shutil.copytree(BUNDLED, tmp_path / "checkpoint", ignore=shutil.ignore_patterns("README.md"))
    arguments = ["card", "checkpoint", "--license", "apache-2.0", "--from-scratch"]
    assert run(environment, tmp_path, "fourdthinker", *arguments) == "checkpoint/README.md\n"
    assert "## Citation" in (tmp_path / "checkpoint" / "README.md").read_text()  # a heading of the template
