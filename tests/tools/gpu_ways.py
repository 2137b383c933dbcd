"""Ways to train many small nets on one GPU, timed, and the table by which one is picked.

    python tests/tools/gpu_ways.py DEVICE SUITE MINUTES OUT         # part b of tests/on_a_gpu.sh
"""

import contextlib
import math
import multiprocessing
import os
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tiny import losses_of

from mrla_minimal.lab.data import load_cifar
from mrla_minimal.lab.device import join_world
from mrla_minimal.lab.engine import GraphRun, Run
from mrla_minimal.lab.evidence import SUITES


@dataclass(frozen=True)
class Way:
    """`models` nets at once: "eager" and "graph" in as many processes, "streams" as graphs in one process."""

    kind: str
    models: int


# The table, fixed before any was timed. A way is picked by the time that a block takes: the sum over the
# variants of 1 / (images/s of all models together).
#   * Only ways of this list that were timed with every variant of the suite count.
#   * Graphs count only if with every variant their losses were those of eager steps (AGREE), and are picked
#     only if they take a block in 1 / WORTH of the time of the best eager way: that is the plainer code.
#   * "streams" is timed, and never picked: it tells what trains side by side in one process could gain. The
#     engine trains one run a process, which owns its checkpoints and its signals; several in one loop would
#     be another engine, whose records nobody has tested.
#   * A way counts only if runs begun together, one a process, take no more than FITS of the time that there
#     is, whatever their variant: what is cut off at the end has cost time and leaves no record.
#   * If nothing counts, it is FALLBACK.
WAYS = (Way("eager", 14), Way("graph", 6), Way("eager", 8), Way("graph", 3), Way("streams", 12))
WORTH = 1.3
FITS = 0.75
AGREE = 0.1             # the most by which the mean losses of the steps compared may differ, as a share
FALLBACK = Way("eager", 12)
SECONDS = 40.0          # of timing, all ways and variants together
COMPARED = 30           # steps
WARM_UP = 8             # steps, enough to have captured a graph


def ways_here(cores):
    """The table's ways with at most as many processes as there are cores, each once."""
    return list(dict.fromkeys(Way(way.kind, max(1, min(way.models, cores))) for way in WAYS))


def choose_way(lines, suite, cores, seconds=math.inf):
    """(a way, why), by the table above, of the lines that part b has noted, for so many seconds of runs."""
    lines = [line for line in lines if line.get("suite") == suite.name]
    rates, agreeing = {}, set()
    for line in lines:
        if line["what"] == "rate":
            way = Way(line["way"], line["models"])
            rates.setdefault(way, {})[line["variant"]] = line["images_per_second"]
        elif line["what"] == "losses" and line["difference"] <= AGREE:
            agreeing.add(line["variant"])
    images = images_of_a_run(suite)
    costs = {way: sum(1 / rate for rate in found.values()) for way, found in rates.items()
             if set(found) == set(suite.variants) and way.kind != "streams"
             and way.models * images / min(found.values()) <= FITS * seconds}
    eager = [way for way in costs if way.kind == "eager"]
    graphs = [way for way in costs if way.kind == "graph"] if agreeing >= set(suite.variants) else []
    best = min(eager, key=costs.get, default=None)
    best_graph = min(graphs, key=costs.get, default=None)
    if best is None and best_graph is None:
        way = Way(FALLBACK.kind, min(FALLBACK.models, cores))
        return way, f"{way.models} processes launch by launch: no way that fits was timed with every variant"
    if best_graph and (best is None or costs[best] >= WORTH * costs[best_graph]):
        gain = f", {costs[best] / costs[best_graph]:.2f} times as fast as launch by launch" if best else ""
        return best_graph, f"{best_graph.models} processes, each step one CUDA graph{gain}"
    gain = f"; CUDA graphs: {costs[best] / costs[best_graph]:.2f} times as fast, asked for {WORTH}" \
        if best_graph else "; no CUDA graphs with the same losses were timed with every variant"
    return best, f"{best.models} processes launch by launch{gain}"


def images_of_a_run(suite):
    """Training images that a run of this suite sees, on CIFAR."""
    config = suite.config(next(iter(suite.variants)), 0)
    return config.steps * config.batch_size if config.steps else config.epochs * 50_000


# A process that makes steps

def worker(pipe, suite, device):
    """Answer what is asked through a pipe, until None: each a function of Models with its arguments."""
    torch.set_num_threads(1)
    models = Models(SUITES[suite], device)
    for method, *arguments in iter(pipe.recv, None):
        try:
            pipe.send(getattr(models, method)(*arguments))
        except Exception as error:
            pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))     # of a kind that any pipe carries


class Models:
    """The runs of one process: of a variant, so many of a kind, on the built-in images."""

    def __init__(self, suite, device):
        self.suite, self.world = suite, join_world(device)
        self.data = load_cifar(source="synthetic")
        self.runs, self.streams = [], []

    def open(self, kind, variant, seed):
        changes = {"device": str(self.world.device), "source": "synthetic", "cuda_graph": kind is GraphRun}
        return kind(self.suite.config(variant, seed, **changes), self.world, data=self.data)

    def prepare(self, way, variant):
        """Runs at a step where nothing has to be set up any more."""
        self.runs = []      # frees the memory of those before
        count = way.models if way.kind == "streams" else 1
        kind = Run if way.kind == "eager" else GraphRun
        on_gpu = self.world.device.type == "cuda"
        self.streams = [torch.cuda.stream(torch.cuda.Stream()) if on_gpu and way.kind == "streams"
                        else contextlib.nullcontext() for _ in range(count)]
        for number, stream in enumerate(self.streams):
            with stream:
                self.runs.append(self.open(kind, variant, number))
                for _ in range(WARM_UP if on_gpu else 1):
                    self.runs[-1].train_step()
                self.runs[-1].read_losses()

    def steps(self, seconds):
        """(steps of all runs together, seconds that they took), about as many seconds as are asked for."""
        began, steps = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            for run, stream in zip(self.runs, self.streams, strict=True):
                with stream:
                    run.train_step()
            steps += len(self.runs)
            if steps // len(self.runs) % 20 == 0:       # not too far ahead of the device
                self.wait()
        self.wait()
        return steps, time.perf_counter() - began

    def wait(self):
        for run, stream in zip(self.runs, self.streams, strict=True):
            with stream:
                run.read_losses()

    def losses(self, variant, steps):
        """{kind: the first losses}, launch by launch and of graphs."""
        found = {}
        for name, kind in (("eager", Run), ("graph", GraphRun)):
            found[name] = losses_of(self.open(kind, variant, 0), steps)
        return found


class Workers:
    """The processes: `ask` the first so many at once."""

    def __init__(self, count, suite, device):
        context = multiprocessing.get_context("spawn")
        self.pipes, self.processes = [], []
        for _ in range(count):
            here, there = context.Pipe()
            process = context.Process(target=worker, args=(there, suite, device), daemon=True)
            process.start()
            there.close()
            self.pipes.append(here)
            self.processes.append(process)

    def ask(self, count, *question):
        for pipe in self.pipes[:count]:
            pipe.send(question)
        answers = [pipe.recv() for pipe in self.pipes[:count]]      # EOFError if one has ended
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    def end(self):
        for pipe in self.pipes:
            pipe.send(None)
        for process in self.processes:
            process.join()


def main(device, suite, minutes, out):
    from on_a_gpu import Notes

    suite, notes, began = SUITES[suite], Notes(out, device), time.monotonic()
    ways = ways_here(os.cpu_count())
    each = min(SECONDS, 60 * float(minutes) / 3) / len(ways) / len(suite.variants)
    workers = Workers(max(way.models for way in ways if way.kind != "streams"), suite.name, device)
    failed = False
    for variant in suite.variants:      # first, for without it no graph counts
        try:
            losses = workers.ask(1, "losses", variant, COMPARED if device != "cpu" else 4)[0]
            eager, graph = (statistics.fmean(losses[kind]) for kind in ("eager", "graph"))
            difference = abs(graph - eager) / eager
            notes.add("b", what="losses", suite=suite.name, variant=variant, difference=difference, **losses)
            print(f"{variant:<20} losses launch by launch {eager:.4f}, of graphs {graph:.4f}")
        except RuntimeError as error:
            failed = True
            notes.add("b", what="failure", suite=suite.name, variant=variant, problem=str(error))
            print(f"{variant:<20} losses: {error}")
    for way in ways:
        for variant in suite.variants:
            failed |= not time_way(workers, way, suite, variant, each, notes)
    workers.end()
    print(f"{time.monotonic() - began:.0f} s; {choose_way(notes.of_part('b'), suite, os.cpu_count())[1]}")
    return int(failed)


def time_way(workers, way, suite, variant, seconds, notes):
    """Note the rate of one way with one variant, and whether that went well."""
    count = 1 if way.kind == "streams" else way.models
    about = {"suite": suite.name, "way": way.kind, "models": way.models, "variant": variant}
    try:
        workers.ask(count, "prepare", way, variant)
        answers = workers.ask(count, "steps", seconds)
    except RuntimeError as error:
        notes.add("b", what="failure", problem=str(error), **about)
        print(f"{variant:<20} {way.models:>3} {way.kind:<8} failed: {error}")
        return False
    config = suite.config(variant, 0)
    rate = sum(steps * config.batch_size / took for steps, took in answers)
    notes.add("b", what="rate", batch_size=config.batch_size, steps=sum(steps for steps, _ in answers),
              seconds=statistics.fmean(took for _, took in answers), images_per_second=rate,
              milliseconds_a_step=1000 * way.models * config.batch_size / rate, **about)
    print(f"{variant:<20} {way.models:>3} {way.kind:<8} {rate:>9.0f} images/s")
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4])))
