"""One side of bench/speed/reference.py, in a process of its own: `ours`, or `reference`, the public research code,
which needs another version of transformers.

    python bench/speed/reference_worker.py ours MODEL INPUTS
    python bench/speed/reference_worker.py reference MODEL INPUTS FOLDER

A line on stdin, such as `policy 338`, names a part and a prompt; the answer is a line of JSON on stdout: CPU seconds,
the peak of the resident set less what was resident before and less gradients, in bytes, and the log-probabilities.
"""

import ast
import gc
import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch


class Reference:
    """The methods of `FourDThinkerGRPOTrainer` that score replies, compiled from the public code's file, because the
    file imports packages that scoring does not need; and `generate` of its fork of transformers."""

    def __init__(self, model: str, code: str):
        sys.path.insert(0, str(Path(code) / "4drl/transformers_rl/src"))
        from transformers import Qwen2_5_VLForConditionalGeneration

        self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            model, torch_dtype=torch.float32, attn_implementation="sdpa"
        )
        self.model.generation_config.use_cache = True
        self.model.gradient_checkpointing_enable()
        source = (Path(code) / "4drl/src/open-r1-multimodal/open_r1/grpo_4dthinker.py").read_text()
        names = ("_precompute_inputs_embeds", "_get_per_token_logps")
        methods = [
            node
            for group in ast.parse(source).body
            if isinstance(group, ast.ClassDef)
            for node in group.body
            if isinstance(node, ast.FunctionDef) and node.name in names
        ]
        self.methods = {"torch": torch}
        exec(compile(ast.Module(methods, []), "grpo_4dthinker.py", "exec"), self.methods)
        self.trainer = SimpleNamespace(accelerator=SimpleNamespace(unwrap_model=lambda model: model))

    def policy(self, inputs: dict) -> torch.Tensor:
        prompt, replies = inputs["prompt"], inputs["replies"]
        group = len(replies)
        vision = {"pixel_values_videos": inputs["pixels"], "video_grid_thw": inputs["grid"]}
        self.model.train()
        embeds, grids = self.methods["_precompute_inputs_embeds"](
            self.trainer, self.model, prompt, replies, torch.ones_like(prompt), vision, group
        )
        ids = torch.cat([prompt.expand(group, -1), replies], 1)
        return self.methods["_get_per_token_logps"](
            self.trainer,
            self.model,
            ids,
            torch.ones_like(ids),
            inputs_embeds=embeds,
            prompt_length=prompt.shape[1],
            **grids,
        )

    def reference_pass(self, inputs: dict) -> torch.Tensor:
        prompt, replies = inputs["prompt"], inputs["replies"]
        ids = torch.cat([prompt.expand(len(replies), -1), replies], 1)
        vision = {
            "pixel_values_videos": inputs["pixels"].repeat(len(replies), 1),
            "video_grid_thw": inputs["grid"].repeat(len(replies), 1),
        }
        logps = self.methods["_get_per_token_logps"](self.trainer, self.model, ids, torch.ones_like(ids), **vision)
        return logps[:, prompt.shape[1] - 1 :]

    def rollout(self, inputs: dict) -> None:
        from transformers import GenerationConfig

        group = len(inputs["replies"])
        self.model.eval()
        self.model.gradient_checkpointing_disable()
        self.model.generate(
            input_ids=inputs["prompt"].repeat(group, 1),
            attention_mask=torch.ones_like(inputs["prompt"]).repeat(group, 1),
            pixel_values_videos=inputs["pixels"].repeat(group, 1),
            video_grid_thw=inputs["grid"].repeat(group, 1),
            generation_config=GenerationConfig(**inputs["sampling"], output_hidden_states=True),
        )
        self.model.gradient_checkpointing_enable()


class Ours:
    """`FourDRLTrainer`. It scores without replay, as the public code does, so that both give the same
    log-probabilities."""

    def __init__(self, model: str):
        from datasets import Dataset

        from fourdthinker_hf import FourDThinkerForConditionalGeneration, FourDThinkerProcessor
        from fourdthinker_hf.checkpoints import BUNDLED
        from fourdthinker_hf.training import FourDRLConfig, FourDRLTrainer

        self.model = FourDThinkerForConditionalGeneration.from_pretrained(model)
        self.trainer = FourDRLTrainer(
            model=self.model,
            args=FourDRLConfig(model, report_to="none", save_strategy="no", use_cpu=True, bf16=False, replay=False),
            train_dataset=Dataset.from_list([{"prompt": ""}]),
            processing_class=FourDThinkerProcessor.from_pretrained(BUNDLED),
        )
        self.model.gradient_checkpointing_enable()

    @torch.no_grad()
    def features(self, inputs: dict) -> torch.Tensor:
        return self.model.model.get_video_features(inputs["pixels"], inputs["grid"]).pooler_output[0]

    def policy(self, inputs: dict) -> torch.Tensor:
        from fourdthinker_hf.training.grpo_trainer import SampledReply

        self.model.train()
        prompt, replies = inputs["prompt"], inputs["replies"]
        features = inputs["features"]
        sampled = []
        for reply in replies:
            num_latents = int((reply[:-1] == self.model.config.latent_token_id).sum())
            latents = torch.zeros(num_latents, features.shape[1])
            sampled.append(SampledReply(0, features, inputs["grid"][0], torch.tensor(1.0), latents))
        ids = torch.cat([prompt.expand(len(replies), -1), replies], 1)
        return self.trainer.replay_and_score(self.model, ids, torch.ones_like(ids), replies.shape[1], sampled)[0]

    reference_pass = policy

    @torch.no_grad()
    def rollout(self, inputs: dict) -> None:
        from transformers import GenerationConfig

        from fourdthinker_hf.batch_inference import generate_with, prefill

        self.model.eval()
        prompt = {
            "input_ids": inputs["prompt"],
            "attention_mask": torch.ones_like(inputs["prompt"]),
            "video_grid_thw": inputs["grid"],
            "second_per_grid_ts": torch.ones(1),
        }
        positions, _ = self.model.model.get_rope_index(**prompt)
        prompt["position_ids"] = torch.cat([torch.arange(positions.shape[-1]).view(1, 1, -1), positions])
        reply_to = torch.zeros(len(inputs["replies"]), dtype=torch.long)
        repeated = prefill(self.model, prompt, [self.features(inputs)], reply_to)
        generate_with(self.model, GenerationConfig(**inputs["sampling"]), repeated)


def status(name: str) -> int:
    """A size from /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{name}:"))) * 1024


def measure(side, part: str, inputs: dict) -> dict:
    """Runs a part: `policy` forward and backward, the others without gradients."""
    side.model.zero_grad(set_to_none=True)
    gc.collect()
    base = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    start = time.process_time()
    with torch.set_grad_enabled(part == "policy"):
        logps = getattr(side, part)(inputs)
    if part == "policy":
        (-(logps * inputs["mask"]).sum(-1) / inputs["mask"].sum(-1)).mean().backward()
    seconds = time.process_time() - start
    gradients = sum(p.grad.nbytes for p in side.model.parameters() if p.grad is not None)
    scored = None if logps is None else logps[inputs["mask"]].tolist()
    return {"seconds": seconds, "bytes": status("VmHWM") - base - gradients, "logps": scored}


def main() -> None:
    kind, model, path, *code = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the libraries print goes elsewhere
    side = Reference(model, *code) if kind == "reference" else Ours(model)
    inputs = torch.load(path)
    if kind == "ours":
        for one in inputs.values():
            one["features"] = side.features(one)  # a rollout keeps them for the scoring
    for line in sys.stdin:
        part, prompt = line.split()
        print(json.dumps(measure(side, part, inputs[int(prompt)])), file=answers, flush=True)


if __name__ == "__main__":
    main()
