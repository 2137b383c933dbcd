"""MRLA-base and MRLA-light against their naive forms, in time and memory: `mrla bench attention`.

Two untimed rounds of all candidates, then rounds in which they take turns. What is printed is the median of
the rounds' ratios, with the smallest and the largest. No absolute times: those belong to a machine.
"""

import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from mrla_minimal import MRLABase, MRLALight, cifar_resnet, imagenet_resnet
from mrla_minimal.lab.cost import saved_activation_bytes
from mrla_minimal.lab.device import choose_device, device_name
from mrla_minimal.lab.engine.precision import autocast, choose_precision
from mrla_minimal.lab.naive import NaiveMRLABase, NaiveMRLALight
from mrla_minimal.lab.processes import ROOT
from mrla_minimal.lab.timing import take_turns


def page_faults(function: Callable) -> int | None:
    """How many fresh pages of memory the system handed out while `function` ran.

    None where that is not counted (Windows).
    """
    try:
        import resource
    except ImportError:
        return None
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    function()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def spread(ratios: Iterable[float]) -> str:
    """The median of a list of ratios with its smallest and largest, as text."""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def _stage_round(
    layers: Sequence[nn.Module], features: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor],
) -> Callable[[], None]:
    """One forward and backward pass through a bare stage, between given feature maps and given gradients."""
    def run() -> None:
        memory, outputs = None, []
        for layer, x in zip(layers, features, strict=True):
            output, memory = layer(x, memory)
            outputs.append(output)
        torch.autograd.backward(outputs, gradients)
    return run


def run_stage(layers: Sequence[nn.Module], x: torch.Tensor) -> torch.Tensor:
    """The sum of what each layer's attention gives; every layer reads the same features x.

    So nothing but the attention's own cost is in it.
    """
    memory, total = None, None
    for layer in layers:
        output, memory = layer(x, memory)
        total = output if total is None else total + output
        x = x + 0.0     # a feature map of its own, as each layer of a stage has
    return total


def bench_base(
    layers: int = 18, channels: int = 64, size: int = 32, batch: int = 32, progress: bool = True,
) -> None:
    """MRLABase against its naive form: bytes kept for the backward pass, and time forward + backward."""
    torch.manual_seed(0)
    ours = [MRLABase(channels, 16) for _ in range(layers)]
    naive = [NaiveMRLABase(channels, 16) for _ in range(layers)]
    images = torch.randn(batch, channels, size, size)
    print(f"MRLA-base: a stage of {layers} layers, {channels} channels, {size} x {size}, batch {batch}, "
          f"float32, {torch.get_num_threads()} CPU threads")
    kept = {name: saved_activation_bytes(lambda x, stage=stage: run_stage(stage, x), images) / 2**20
            for name, stage in (("ours", ours), ("naive", naive))}
    print(f"  kept for the backward pass: ours {kept['ours']:.0f} MiB, naive {kept['naive']:.0f} MiB, "
          f"ratio {kept['ours'] / kept['naive']:.2f}")
    features = [torch.randn_like(images) for _ in range(layers)]
    gradients = [torch.randn_like(images) for _ in range(layers)]
    candidates = {name: _stage_round(stage, features, gradients)
                  for name, stage in (("ours", ours), ("naive", naive))}
    seconds = take_turns(candidates, progress=progress)
    ratios = [a / b for a, b in zip(seconds["ours"], seconds["naive"], strict=True)]
    print(f"  forward + backward time, ours / naive: {spread(ratios)}")
    faults = {name: page_faults(run) for name, run in candidates.items()}
    if None not in faults.values():
        counts = ", ".join(f"{name} {count:,}" for name, count in faults.items())
        print(f"  page faults of one more round: {counts}")


def step_of(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, precision: str = "float32",
) -> Callable[[], None]:
    """One forward and backward pass of a model, without a step of an optimiser."""
    def run() -> None:
        with autocast(images.device, precision):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        model.zero_grad(set_to_none=True)
    return run


def bench_light(mode: str = "eager", batch: int = 128, progress: bool = True) -> None:
    """Time that light adds to a bottleneck ResNet-20's step, ours against naive; v and its BN beside them.

    mode: "eager" or "compiled".
    """
    images = torch.randn(batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (batch,))
    variants = {"plain": None, "depthwise": "depthwise", "ours": MRLALight, "naive": NaiveMRLALight}
    candidates = {}
    for name, attention in variants.items():
        torch.manual_seed(0)
        model = cifar_resnet(20, block="bottleneck", layer_attention=attention)
        model = model.to(memory_format=torch.channels_last)
        model = torch.compile(model) if mode == "compiled" else model
        candidates[name] = step_of(model, images, labels)
    print(f"MRLA-light: bottleneck ResNet-20, batch {batch}, channels last, float32, "
          f"{torch.get_num_threads()} CPU threads, {mode}")
    print_overheads(take_turns(candidates, progress=progress))


def print_overheads(seconds: dict[str, list[float]]) -> None:
    """The overheads above plain, as ratios: of each round, then their median and range.

    seconds: of "plain", "ours", "naive" and any others, each round's time.
    """
    rounds = range(len(seconds["plain"]))
    over = {name: [seconds[name][r] - seconds["plain"][r] for r in rounds]
            for name in seconds if name != "plain"}
    typical = {name: statistics.median(values) for name, values in over.items()}
    plain = statistics.median(seconds["plain"])
    print(f"  overhead, ours / naive: {typical['ours'] / typical['naive']:.2f} (of medians); "
          f"round by round {spread([a / b for a, b in zip(over['ours'], over['naive'], strict=True)])}")
    for name in over:
        print(f"  {name + ' over plain':<22} {100 * typical[name] / plain:5.1f} % of the plain step "
              f"({100 * min(over[name]) / plain:.1f} to {100 * max(over[name]) / plain:.1f})")


def profile_light(batch: int = 128, rows: int = 8) -> None:
    """Which operations light adds to the step, by the profiler.

    The time of each, light less plain, as a share of the plain step; the `rows` largest.
    """
    from torch.profiler import ProfilerActivity, profile

    images = torch.randn(batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (batch,))
    totals = {}
    for name, attention in (("plain", None), ("light", MRLALight)):
        torch.manual_seed(0)
        model = cifar_resnet(20, block="bottleneck", layer_attention=attention)
        step = step_of(model.to(memory_format=torch.channels_last), images, labels)
        for _ in range(2):
            step()
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            for _ in range(3):
                step()
        totals[name] = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    plain_total = sum(totals["plain"].values())
    added = {key: value - totals["plain"].get(key, 0.0) for key, value in totals["light"].items()}
    print("  where light's overhead goes (profiler, self time, share of the plain step):")
    for key, value in sorted(added.items(), key=lambda item: -item[1])[:rows]:
        print(f"    {key:<44} {100 * value / plain_total:5.1f} %")


def bench_resnet50(device: torch.device, modes: Sequence[str] = ("eager", "compiled"), batch: int = 128,
                   size: int = 224, rounds: int = 7, progress: bool = True) -> Iterator[dict]:
    """The same ratios for ResNet-50 as it trains on a device, a GPU as a rule: with peak memory there.

    Prints each of base and light, and yields it: what was measured, "seconds" of each variant's rounds, and
    on a GPU the "peak_bytes" of one more. size: pixels a side; modes: "eager", "compiled".
    """
    precision = choose_precision(device)
    images = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(1000, (batch,), device=device)
    pairs = {"mrla-base": (MRLABase, NaiveMRLABase), "mrla-light": (MRLALight, NaiveMRLALight)}
    for mode in modes:
        for family, (ours, naive) in pairs.items():
            candidates, peaks = {}, {}
            variants = {"plain": None, "depthwise": "depthwise", "ours": ours, "naive": naive}
            for name, attention in variants.items():
                torch.manual_seed(0)
                model = imagenet_resnet(50, layer_attention=attention)
                model = model.to(device, memory_format=torch.channels_last)
                model = torch.compile(model) if mode == "compiled" else model
                candidates[name] = step_of(model, images, labels, precision)
                candidates[name]()
                if device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats(device)
                    candidates[name]()
                    peaks[name] = torch.cuda.max_memory_allocated(device)
            print(f"{family}: ResNet-50, {size} x {size}, batch {batch}, {precision}, channels last, {mode}, "
                  f"{device_name(device)}")
            seconds = take_turns(candidates, rounds, device=device, progress=progress)
            print_overheads(seconds)
            if peaks:
                print("  peak memory: " + ", ".join(f"{name} {peak / 2**30:.2f} GiB"
                                                    for name, peak in peaks.items()), flush=True)
            yield {"attention": family, "mode": mode, "batch_size": batch, "pixels": size,
                   "precision": precision, "seconds": seconds, "peak_bytes": peaks}


def without_page_faults(benchmark: Callable) -> None:
    """Run one of the benchmarks above in a process whose allocator keeps what is freed.

    By default the C library gives large blocks back to the system and gets them again, page by page, at the
    next round. Without that, arithmetic and its traffic are left. The settings are glibc's: elsewhere this
    says so and runs nothing. Raises OSError if that process fails; it has said why.
    """
    if not sys.platform.startswith("linux"):
        print("freed memory kept: needs glibc's allocator, so Linux; left out")
        return
    print("the same with freed memory kept, so without page faults:")
    # a file in the working directory must not hide a module that Python brings along
    keep = {"MALLOC_TRIM_THRESHOLD_": str(2**33), "MALLOC_MMAP_THRESHOLD_": str(2**33), "PYTHONSAFEPATH": "1"}
    code = (f"import sys; sys.path.append({ROOT!r}); from mrla_minimal.lab import bench_attention; "
            f"bench_attention.{benchmark.__name__}()")
    status = subprocess.run([sys.executable, "-c", code], env=os.environ | keep).returncode
    if status:
        raise OSError(f"the process that keeps freed memory failed, with exit status {status}")


def bench_attention() -> None:
    """`mrla bench attention`: base and light against their naive forms; on a GPU, in ResNet-50 as well."""
    for benchmark in (bench_base, bench_light):
        benchmark()
        sys.stdout.flush()      # another process prints next
        without_page_faults(benchmark)
    profile_light()
    bench_light("compiled")
    if torch.cuda.is_available():
        for _ in bench_resnet50(choose_device("cuda")):
            pass        # each is printed as it is measured
    else:
        print("no CUDA device here: the ResNet-50 ratios in half precision are left out")
