"""Merges a PEFT adapter into its base model: a checkpoint that loads without PEFT.

One model is in memory, and the adapter. The base is loaded whole, also where the adapter was trained on a quantized
one, because an adapter cannot be added exactly to rounded weights.
"""

from os import PathLike
from pathlib import Path

from ..checkpoints import find_base, find_model, load_model
from ..output_files import check_new_folder, new_folder


def merge(
    adapter: str | PathLike,
    dest: str | PathLike,
    dtype: str = "auto",
    revision: str | None = None,
    subfolder: str | None = None,
) -> str:
    """Write the checkpoint that `adapter` makes of its base model to DEST, which appears when it is complete.

    Args:
        adapter: folder or Hub id of a PEFT adapter. Its adapter_config.json names the base model.
        dest: a folder that does not exist yet, or an empty one.
        dtype: one of `checkpoints.DTYPES`; "auto" is that of the base model.
        revision, subfolder: of the adapter, as in [`find_model`].

    Returns a line that says what was made. Raises `ValueError` if there is no adapter or its base cannot be found.
    """
    dest = Path(dest).absolute()
    check_new_folder(dest)
    folder = find_model(adapter, revision, subfolder)
    if (base := find_base(folder)) is None:
        raise ValueError(f"{adapter}: this is no adapter, because it has no adapter_config.json; nothing is merged")
    with new_folder(dest) as result:
        network, processor = load_model(folder, "cpu", dtype)
        network.save_pretrained(result)
        processor.save_pretrained(result)
    return f"{dest}: {adapter} merged into {base}, {str(network.dtype).removeprefix('torch.')}"
