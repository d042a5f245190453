"""Makes 4DThinker a model of lmms-eval, which finds `manifest` by its entry point. docs/evaluation.md shows a run.

Prompts, video frames and greedy decoding are those of `fourdthinker evaluate`, so the answers are the same.
"""

from collections.abc import Sequence
from itertools import groupby
from os import PathLike

from tqdm import tqdm

from ..batch_inference import Reply, answer_batch, batch_inputs
from ..checkpoints import BUNDLED, load_model
from ..data.records import Record
from ..distributed import DistributedState
from .runner import DTYPES

try:
    from lmms_eval.api.instance import GenerationResult, TokenCounts
    from lmms_eval.api.model import lmms
except ImportError:  # without lmms-eval this module can be imported, but its model cannot be evaluated
    lmms = object


def manifest():
    """The name of the model and the place of its class, for the registry of lmms-eval."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="fourdthinker", chat_class_path=f"{__name__}.{FourDThinker.__name__}")


def record_from_messages(messages: Sequence[dict]) -> Record:
    """The question in a task's messages, which must be one turn of the user with text and one whole video, given by
    its path. Raises `ValueError` for anything else."""
    parts = [part for message in messages for part in message["content"]]
    videos = [part["url"] for part in parts if part["type"] == "video" and part.keys() <= {"type", "url"}]
    texts = [part["text"] for part in parts if part["type"] == "text"]
    is_path = [isinstance(video, (str, PathLike)) for video in videos]
    if [message["role"] for message in messages] != ["user"] or is_path != [True] or len(parts) != 1 + len(texts):
        shown = [(message["role"], [part["type"] for part in message["content"]]) for message in messages]
        raise ValueError(f"4DThinker takes one turn of the user about one whole video, given by its path; got {shown}")
    return Record(id=str(videos[0]), question="\n".join(texts), answer="", video=str(videos[0]))


class FourDThinker(lmms):
    """The model. A video that cannot be read ends the run with an error that names it.

    Args:
        pretrained: folder or Hub id of the checkpoint.
        batch_size, device: as lmms-eval gives them.
        dtype: "float32" or "bfloat16".
    """

    is_simple = False  # so that lmms-eval gives it messages

    def __init__(self, pretrained: str = str(BUNDLED), batch_size: int | str = 1, device=None, dtype="float32"):
        super().__init__()
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
        self.batch_size, self.device = int(batch_size), device or DistributedState().device
        self.network, self.processor = load_model(pretrained, self.device, dtype)

    def answer(self, records: Sequence[Record], max_new_tokens: int) -> list[Reply]:
        """The greedy replies to one batch."""
        inputs = batch_inputs(self.processor, records).to(self.device)
        return answer_batch(self.network, self.processor, inputs, max_new_tokens)

    def generate_until(self, requests) -> list:
        """A `GenerationResult` for each request, in order. Its text is the whole reply, with `<output_image>` for each
        mental image. Latents are counted as reasoning tokens."""
        results = []
        with tqdm(total=len(requests), unit="question", disable=self.rank != 0) as progress:
            for kwargs, group in groupby(requests, key=lambda request: request.args[2]):
                if kwargs.get("do_sample") or kwargs.get("temperature") or kwargs.get("num_beams", 1) > 1:
                    raise ValueError(f"4DThinker answers greedily in lmms-eval, but the task asks for {kwargs}")
                group = list(group)
                for first in range(0, len(group), self.batch_size):
                    records = [self._record(request) for request in group[first : first + self.batch_size]]
                    replies = self.answer(records, kwargs.get("max_new_tokens", 256))
                    results += [GenerationResult(reply.text, _token_counts(reply)) for reply in replies]
                    progress.update(len(records))
        return results

    def _record(self, request) -> Record:
        _, messages, _, number, task, split = request.args
        return record_from_messages(messages(self.task_dict[task][split][number]))

    def loglikelihood(self, requests):
        raise NotImplementedError("In lmms-eval 4DThinker generates answers and does not score given ones")

    def generate_until_multi_round(self, requests):
        raise NotImplementedError("In lmms-eval 4DThinker answers one question at a time")


def _token_counts(reply: Reply):
    return TokenCounts(output_tokens=reply.num_tokens, reasoning_tokens=sum(map(len, reply.images)))
