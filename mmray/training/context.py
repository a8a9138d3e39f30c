"""What the training loop knows of the processes around it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def _report_to_nobody(metrics: dict[str, float]) -> None:
    pass


@dataclass(frozen=True)
class Context:
    """One of `world_size` data-parallel processes.

    With more than one, `torch.distributed` is set up already. `report` takes the metrics of each finished epoch; it is
    called by every rank. `stopping` says whether this process is to stop soon, as its machine is about to go.
    """

    run_dir: Path
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    world_size: int = 1
    report: Callable[[dict[str, float]], None] = _report_to_nobody
    stopping: Callable[[], bool] | None = None

    def sum(self, *values: float) -> list[float]:
        """Each value summed over all ranks."""
        if self.world_size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        totals: list[float] = tensor.tolist()
        return totals

    def ask_to_stop(self) -> Callable[[], bool]:
        """Begin to ask all ranks whether one of them is to stop; what is returned waits for the answer, which is one.

        The question travels between the machines' CPUs, beside whatever else the caller does meanwhile.
        """
        if self.stopping is None:
            return lambda: False
        anyone = torch.tensor(int(self.stopping()))
        if self.world_size == 1:
            return lambda: bool(anyone)
        asked = dist.all_reduce(anyone, op=dist.ReduceOp.MAX, async_op=True)

        def answer() -> bool:
            assert asked is not None  # as it is of one of the ranks
            asked.wait()
            return bool(anyone)

        return answer

    def wait_for_all(self) -> None:
        """Return when every rank has come here: one that takes its connections down early can abort the others."""
        if self.world_size > 1:
            dist.barrier()

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, on rank 0; an empty list elsewhere."""
        if self.world_size == 1:
            return [value]
        values: list[Any] | None = [None] * self.world_size if self.rank == 0 else None
        dist.gather_object(value, values)
        return values or []

    def equalise(self, tensors: Iterable[torch.Tensor]) -> None:
        """Overwrite tensors of this rank with those of rank 0."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]
