"""Tells an error of too little memory from others. Needs no PyTorch, so that a command can ask at any time."""

OUT_OF_MEMORY = ("out of memory", "can't allocate memory")  # of PyTorch: on a GPU, on a CPU


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, or PyTorch on a GPU or a CPU, says by this error that memory does not suffice."""
    text = str(error)
    told = isinstance(error, RuntimeError) and any(words in text for words in OUT_OF_MEMORY)
    return isinstance(error, MemoryError) or told
