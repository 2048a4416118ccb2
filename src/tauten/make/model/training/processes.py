"""Several processes that train one module, each on its share of the batches.

``accelerate`` starts them (``accelerate launch``), finds their devices and carries tensors between them. Gradients are
added up over all processes in one piece, weighted by samples, rather than averaged layer by layer by PyTorch's
``DistributedDataParallel``: so a step is that of one large batch exactly, also where the last batches are fewer than
the processes, and modules need not use all of their parameters. Precision and checkpoints are not left to it:
its precision is one a process, where a search trains in several, and its checkpoints are pickles.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from accelerate import PartialState


class Processes:
    """The processes that train together: one, unless something launched more. Each calls every method."""

    def __init__(self) -> None:
        # Here, since it takes a second that only training should cost.
        from accelerate import PartialState
        from accelerate.utils import parse_flag_from_env

        cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
        self._state: PartialState = PartialState(cpu=cpu)
        self.count: int = self._state.num_processes
        self.index: int = self._state.process_index
        self.device: torch.device = self._state.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes and reports."""
        return bool(self._state.is_main_process)

    def share(self, batches: list[Any]) -> list[Any]:
        """This process' part of the batches of one step."""
        return batches[self.index :: self.count]

    def add(self, *values: float) -> tuple[float, ...]:
        """Each value summed over all processes."""
        if self.count == 1:
            return values
        given = torch.tensor(values, dtype=torch.float64, device=self.device)
        return tuple(self._sum(given).tolist())

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Gradients summed over all processes; one that a process has not counts as zero."""
        if self.count == 1:
            return
        own = list(parameters)
        # Whether anybody has one: who has none everywhere keeps none, and takes no weight decay.
        had = self.add(*(float(parameter.grad is not None) for parameter in own))
        shared = [parameter for parameter, number in zip(own, had, strict=True) if number]
        for parameter in shared:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in shared if parameter.grad is not None]
        flat = self._sum(torch.cat([gradient.float().flatten() for gradient in gradients]))
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view(gradient.shape))

    def average_buffers(self, module: nn.Module) -> None:
        """Floating-point buffers, such as running statistics, become their mean over all processes."""
        if self.count == 1:
            return
        for buffer in module.buffers():
            if buffer.is_floating_point():
                buffer.copy_(self._sum(buffer.clone()) / self.count)

    def follow_main(self, *modules: nn.Module) -> None:
        """Every process takes over the weights and buffers of the main one."""
        if self.count == 1:
            return
        from accelerate.utils import broadcast

        with torch.no_grad():
            for module in modules:
                for tensor in (*module.parameters(), *module.buffers()):
                    tensor.copy_(broadcast(tensor.detach().clone().contiguous()))

    @contextmanager
    def holding(self, *modules: nn.Module) -> Iterator[None]:
        """Modules lie on this process' device meanwhile; with one process they stay where they are."""
        if self.count == 1:
            yield
            return
        homes = [next((tensor.device for tensor in module.parameters()), torch.device("cpu")) for module in modules]
        for module in modules:
            module.to(self.device)
        try:
            yield
        finally:
            for module, home in zip(modules, homes, strict=True):
                module.to(home)

    def _sum(self, tensor: torch.Tensor) -> torch.Tensor:
        from accelerate.utils import reduce

        added: torch.Tensor = reduce(tensor, "sum")
        return added
