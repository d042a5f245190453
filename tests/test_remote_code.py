"""A checkpoint folder loads and answers in a process where this package cannot be imported."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fourdthinker_hf
from fourdthinker_hf import FourDThinkerForConditionalGeneration, FourDThinkerProcessor
from fourdthinker_hf.checkpoints import BUNDLED
from fourdthinker_hf.configuration_fourdthinker import TESTED

PROGRAM = """
import json, sys
folder, clip, out = sys.argv[1:]
try:
    import fourdthinker_hf
except ImportError:
    pass
else:
    raise SystemExit("the package is importable here")
import torch
from transformers import (AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor,
                          pipeline)

trust = {"trust_remote_code": True}
config = AutoConfig.from_pretrained(folder, **trust)
processor = AutoProcessor.from_pretrained(folder, **trust)
messages = [{"role": "user", "content": [{"type": "video", "video": clip}, {"type": "text", "text": "which way"}]}]
inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt",
                                       add_generation_prompt=True)
result = {"type": config.model_type, "processor": type(processor).__name__, "ids": inputs["input_ids"].tolist()}
logits = []
for auto in (AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM):
    model, info = auto.from_pretrained(folder, output_loading_info=True, **trust)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    with torch.no_grad():
        logits.append(model.eval()(**inputs).logits)
assert torch.equal(logits[0], logits[1]) and torch.equal(logits[0], logits[2])
torch.save(logits[0], out)
result["generated"] = model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, -4:].tolist()
pipe = pipeline("image-text-to-text", model=folder, **trust)
replies = pipe(text=messages, max_new_tokens=4, do_sample=False, return_full_text=False)
result["pipeline"] = replies[0]["generated_text"]
print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """A working folder and an environment without the checkout on the path, with its own cache of remote code."""
    folder = tmp_path_factory.mktemp("elsewhere")
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return folder, env


def test_bare_process(tiny_folder, clip, elsewhere):
    folder, env = elsewhere
    program, out = folder / "program.py", folder / "logits.pt"
    # An editable install would be importable anywhere: shadow it with a module that is not.
    (folder / "fourdthinker_hf.py").write_text("raise ImportError('not installed here')\n")
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, str(program), str(tiny_folder), str(clip), str(out)],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])

    processor = FourDThinkerProcessor.from_pretrained(tiny_folder)
    model = FourDThinkerForConditionalGeneration.from_pretrained(tiny_folder).eval()
    inputs = processor.apply_chat_template(
        processor.conversation(str(clip), "which way"),
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
    )
    assert result["type"] == "fourdthinker" and result["processor"] == "FourDThinkerProcessor"
    assert result["ids"] == inputs["input_ids"].tolist()
    with torch.no_grad():
        assert torch.equal(torch.load(out), model(**inputs).logits)
    tokens = model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, -4:]
    assert result["generated"] == tokens.tolist()
    assert result["pipeline"] == processor.tokenizer.decode(tokens, skip_special_tokens=True)


def test_the_bundled_checkpoint_carries_this_code():
    package = Path(fourdthinker_hf.__file__).parent
    copies = list(BUNDLED.glob("*.py"))
    code = {path.name for path in package.glob("*_fourdthinker.py")}
    if not (BUNDLED / "imagery_decoder").exists():
        code.remove("imagery_decoder_fourdthinker.py")
    assert {path.name for path in copies} == code
    for path in copies:
        assert path.read_bytes() == (package / path.name).read_bytes(), f"refresh {path}"
    assert sum(path.stat().st_size for path in BUNDLED.rglob("*")) < 20e6


UNSUPPORTED = """
import importlib.metadata as metadata
real = metadata.version
metadata.version = lambda name: {name!r} == name and {version!r} or real(name)
import fourdthinker_hf
"""


@pytest.mark.parametrize(("name", "version"), [("transformers", "5.22.2"), ("torch", "2.10.0+cpu")])
def test_an_older_version_is_refused_with_the_range(name, version):
    done = subprocess.run(
        [sys.executable, "-c", UNSUPPORTED.format(name=name, version=version)], capture_output=True, text=True
    )
    assert done.returncode == 1
    message = " ".join(done.stderr.split())
    assert f"but found {name}=={version}. 4DThinker is tested with {' and '.join(TESTED)}." in message


@pytest.mark.parametrize(("name", "version"), [("transformers", "5.99.0"), ("torch", "9.0.0")])
def test_a_newer_version_gets_a_warning_with_the_range(name, version):
    done = subprocess.run(
        [sys.executable, "-c", UNSUPPORTED.format(name=name, version=version)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    requirement = next(line for line in TESTED if line.startswith(name))
    assert f"was not tested with this version: {requirement} is required" in done.stderr


def test_the_remote_code_names_the_ranges_of_the_requirements():
    lines = (Path(fourdthinker_hf.__file__).parent.parent / "requirements.txt").read_text().splitlines()
    assert set(TESTED) == {line for line in lines if line.startswith(("transformers", "torch>"))}
