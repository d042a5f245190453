"""The processes that share the work of one command, as `accelerate launch` starts them on one machine or on several.

They share a file system, and wait for one another only where the work is merged.
"""

import gc
import os
from datetime import timedelta

import torch

from .checkpoints import check_device

PATIENCE = timedelta(days=7)  # the others wait for the slowest process

# What a launcher tells a process about its place. A process without these works alone.
LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


class DistributedState:
    """The processes that share the work: `rank` is the number of this process, `world_size` how many there are.
    Without a launcher there is one. Each uses `device`, by default a GPU if there is one. Raises `ValueError` for a
    `device` that is not there, or if several processes are given one."""

    def __init__(self, device: str | None = None):
        self.rank, self.world_size = 0, 1
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            try:
                from accelerate import PartialState
            except ImportError as error:
                raise ImportError('several processes need accelerate: pip install "fourdthinker-hf[train]"') from error
            self.state = PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
            self.rank, self.world_size = self.state.process_index, self.state.num_processes
            self.device = self.state.device
        if device is not None:
            if self.world_size > 1:
                raise ValueError(f"device {device}: each of {self.world_size} processes chooses its own; leave it out")
            self.device = check_device(device)

    @property
    def is_main_process(self) -> bool:
        return self.rank == 0

    def wait_for_everyone(self) -> None:
        """Raises `OSError` if a process was lost. On CPUs the message of the main process names it."""
        if self.world_size == 1:
            return
        try:
            if torch.distributed.get_backend() == "gloo":
                torch.distributed.monitored_barrier(timeout=PATIENCE)
            else:
                self.state.wait_for_everyone()
        except RuntimeError as error:
            raise OSError(
                f"process {self.rank} of {self.world_size} waited for one that is lost. What is done is on disk: the "
                f"same command continues ({str(error).splitlines()[0]})"
            ) from error


def end_process_group() -> None:
    """Ends this process's group, if it has one. What still refers to the group is freed, because Gloo's threads end
    only with its last reference, and a process whose threads outlive the interpreter ends by SIGABRT in some runs
    (pytorch#190489)."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    gc.collect()
