"""The processes that share the work of one command, as `accelerate launch` starts them."""

import gc
import os
from datetime import timedelta

import torch

# What a launcher tells a process about its place. A process without these works alone.
LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


class DistributedState:
    """The processes that share the work: `rank` is the number of this process, `world_size` how many there are.
    Without a launcher there is one. Each uses `device`."""

    def __init__(self):
        self.rank, self.world_size = 0, 1
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            try:
                from accelerate import PartialState
            except ImportError as error:
                raise ImportError('several processes need accelerate: pip install "fourdthinker-hf[train]"') from error
            cpu = not torch.cuda.is_available()
            self.state = PartialState(cpu=cpu, timeout=timedelta(days=7))  # the others wait for the slowest process
            self.rank, self.world_size = self.state.process_index, self.state.num_processes
            self.device = self.state.device

    @property
    def is_main_process(self) -> bool:
        return self.rank == 0

    def wait_for_everyone(self) -> None:
        if self.world_size > 1:
            self.state.wait_for_everyone()


def end_process_group() -> None:
    """Ends this process's group, if it has one. What still refers to the group is freed, because Gloo's threads end
    only with its last reference, and a process whose threads outlive the interpreter ends by SIGABRT in some runs
    (pytorch#190489)."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    gc.collect()
