"""A training step as one CUDA graph: captured once, then replayed as a whole.

A small net keeps a GPU waiting: every step launches hundreds of short kernels one by one, and the launches
take longer than the kernels. A graph launches all of them at once. What it does is fixed when it is
captured, tensors by their address included, so whatever changes from step to step is read out of buffers.
"""

from pathlib import Path

import torch

from mrla_minimal.lab.data import Cifar, EpochPlan
from mrla_minimal.lab.data.scenes import Scenes
from mrla_minimal.lab.device import World
from mrla_minimal.lab.engine.config import TrainConfig
from mrla_minimal.lab.engine.detection import DetectionRun
from mrla_minimal.lab.engine.model import build_optimizer
from mrla_minimal.lab.engine.run import Run

STEPS_BEFORE = 3        # steps made launch by launch, in which libraries choose kernels and take memory


class GraphRun(Run):
    """A Run whose steps are replays of one CUDA graph, the augmentation of the batch included.

    The same steps as those of a Run, but for the order of sums: the optimiser is the fused one, which reads
    the learning rate on the device. On a device other than cuda nothing is captured, and each step is made
    out of the same buffers launch by launch. Raises ValueError for several processes, and on a GPU that
    would compute in float16, whose gradients' scale no graph adapts here.
    """

    def __init__(self, config: TrainConfig, world: World, run_dir: Path | None = None,
                 data: Cifar | None = None):
        if world.parallel:
            raise ValueError("cuda_graph must be False with several processes: each of them waits for the "
                             "others within a step")
        super().__init__(config, world, run_dir, data)
        if self.scaler.is_enabled():
            raise ValueError("cuda_graph must be False on a GPU without bfloat16, or amp be False too")
        self.optimizer = build_optimizer(config, self.model, fused=True)
        self._now = torch.zeros((), device=world.device)        # the learning rate of the step
        plan, start, stop = self.place()
        self._drawn = EpochPlan(*(part[start:stop].clone() for part in (plan.order, plan.shift, plan.flip)),
                                plan.padding)
        self._eager_steps = STEPS_BEFORE if world.device.type == "cuda" else None
        self._graph, self._outcome, self._stream = None, None, None

    def train_step(self) -> None:
        """One optimiser step: the buffers are filled, and the graph is replayed."""
        self._now.fill_(self.rate(self.step))
        for group in self.optimizer.param_groups:       # anew, for a restored optimiser has a copy
            group["lr"] = self._now
        plan, start, stop = self.place()
        for name in ("order", "shift", "flip"):
            getattr(self._drawn, name).copy_(getattr(plan, name)[start:stop])
        outcome = self._replayed() if self._eager_steps == 0 else self._launched()
        self._unread.append(outcome.clone())            # the next replay overwrites it
        self.step += 1

    def _step_on_buffers(self):
        return self.update(*self.take(self._drawn, 0, len(self._drawn.order)))

    def _launched(self):
        """The step launch by launch; on a GPU on the stream that will capture one, as capturing asks for."""
        if self._eager_steps is None:
            return self._step_on_buffers()
        self._eager_steps -= 1
        self._stream = self._stream or torch.cuda.Stream(self.world.device)
        current = torch.cuda.current_stream(self.world.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            outcome = self._step_on_buffers()
        current.wait_stream(self._stream)
        return outcome

    def _replayed(self):
        if self._graph is None:
            self.optimizer.zero_grad(set_to_none=True)      # gradients are to lie in the graph's own memory
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, stream=self._stream):
                self._outcome = self._step_on_buffers()     # written down, not computed
        self._graph.replay()
        return self._outcome


def open_run(config: TrainConfig, world: World, run_dir: Path | None = None,
             data: Cifar | Scenes | None = None) -> Run:
    """The Run of a configuration: of a detector, or a GraphRun if it asks for that and its device is a GPU.

    `data` is a `Scenes` for a detector.
    """
    if config.detects:
        return DetectionRun(config, world, run_dir, data)
    kind = GraphRun if config.cuda_graph and world.device.type == "cuda" else Run
    return kind(config, world, run_dir, data)
