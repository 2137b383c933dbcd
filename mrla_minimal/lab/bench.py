"""The ratios we promise, each measured in one run against a yardstick that stands in full beside it: `mrla bench`.

Two untimed rounds of all candidates, then rounds in which they take turns; what is printed is the median of the rounds'
ratios, with the smallest and the largest. No absolute times: those belong to a machine.
"""

import os
import statistics
import subprocess
import sys

import torch
from torch.nn import functional as F

from mrla_minimal import MRLABase, MRLALight, cifar_resnet, imagenet_resnet
from mrla_minimal.lab.cost import saved_activation_bytes
from mrla_minimal.lab.device import choose_device, device_name
from mrla_minimal.lab.naive import NaiveMRLABase, NaiveMRLALight
from mrla_minimal.lab.timing import take_turns


def page_faults(function):
    """How many fresh pages of memory the system had to hand out while `function` ran; None where that is not counted (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    function()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def spread(ratios):
    """The median of a list of ratios with its smallest and largest, as text."""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def _stage_round(layers, features, gradients):
    """One forward and backward pass through a bare stage: given feature maps, given gradients, the attention's work alone."""
    def run():
        memory, outputs = None, []
        for layer, x in zip(layers, features, strict=True):
            output, memory = layer(x, memory)
            outputs.append(output)
        torch.autograd.backward(outputs, gradients)
    return run


def run_stage(layers, x):
    """The sum of what each layer's attention gives, every layer reading the same features x: attention's own cost alone."""
    memory, total = None, None
    for layer in layers:
        output, memory = layer(x, memory)
        total = output if total is None else total + output
        x = x + 0.0     # a feature map of its own, as each layer of a stage has
    return total


def bench_base(layers=18, channels=64, size=32, batch=32, progress=True):
    """MRLABase against its naive form: bytes kept for the backward pass, and time forward + backward."""
    torch.manual_seed(0)
    ours = [MRLABase(channels, 16) for _ in range(layers)]
    naive = [NaiveMRLABase(channels, 16) for _ in range(layers)]
    images = torch.randn(batch, channels, size, size)
    print(f"MRLA-base: a stage of {layers} layers, {channels} channels, {size} x {size}, batch {batch}, float32, "
          f"{torch.get_num_threads()} CPU threads")
    kept = {name: saved_activation_bytes(lambda x, stage=stage: run_stage(stage, x), images) / 2**20
            for name, stage in (("ours", ours), ("naive", naive))}
    print(f"  kept for the backward pass: ours {kept['ours']:.0f} MiB, naive {kept['naive']:.0f} MiB, "
          f"ratio {kept['ours'] / kept['naive']:.2f}")
    features = [torch.randn_like(images) for _ in range(layers)]
    gradients = [torch.randn_like(images) for _ in range(layers)]
    candidates = {name: _stage_round(stage, features, gradients) for name, stage in (("ours", ours), ("naive", naive))}
    seconds = take_turns(candidates, progress=progress)
    ratios = [a / b for a, b in zip(seconds["ours"], seconds["naive"], strict=True)]
    print(f"  forward + backward time, ours / naive: {spread(ratios)}")
    faults = {name: page_faults(run) for name, run in candidates.items()}
    if None not in faults.values():
        print("  page faults of one more round: " + ", ".join(f"{name} {count:,}" for name, count in faults.items()))


def _step(model, images, labels, autocast=False):
    def run():
        with torch.autocast(images.device.type, torch.bfloat16, enabled=autocast):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        model.zero_grad(set_to_none=True)
    return run


def bench_light(mode="eager", batch=128, progress=True):
    """Time that light adds to a bottleneck ResNet-20's step, ours against naive; beside them v and its BN alone."""
    images = torch.randn(batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (batch,))
    variants = {"plain": None, "depthwise": "depthwise", "ours": MRLALight, "naive": NaiveMRLALight}
    candidates = {}
    for name, attention in variants.items():
        torch.manual_seed(0)
        model = cifar_resnet(20, block="bottleneck", layer_attention=attention).to(memory_format=torch.channels_last)
        model = torch.compile(model) if mode == "compiled" else model
        candidates[name] = _step(model, images, labels)
    print(f"MRLA-light: bottleneck ResNet-20, batch {batch}, channels last, float32, {torch.get_num_threads()} CPU threads, {mode}")
    print_overheads(take_turns(candidates, progress=progress))


def print_overheads(seconds):
    """The overheads above plain, as ratios: of each round, then their median and range."""
    rounds = range(len(seconds["plain"]))
    over = {name: [seconds[name][r] - seconds["plain"][r] for r in rounds] for name in seconds if name != "plain"}
    typical = {name: statistics.median(values) for name, values in over.items()}
    plain = statistics.median(seconds["plain"])
    print(f"  overhead, ours / naive: {typical['ours'] / typical['naive']:.2f} (of medians); "
          f"round by round {spread([a / b for a, b in zip(over['ours'], over['naive'], strict=True)])}")
    for name in over:
        print(f"  {name + ' over plain':<22} {100 * typical[name] / plain:5.1f} % of the plain step "
              f"({100 * min(over[name]) / plain:.1f} to {100 * max(over[name]) / plain:.1f})")


def profile_light(batch=128, rows=8):
    """Which operations light adds to the step, by the profiler: time of each, light less plain, as a share of the plain step."""
    from torch.profiler import ProfilerActivity, profile

    images = torch.randn(batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (batch,))
    totals = {}
    for name, attention in (("plain", None), ("light", MRLALight)):
        torch.manual_seed(0)
        model = cifar_resnet(20, block="bottleneck", layer_attention=attention).to(memory_format=torch.channels_last)
        step = _step(model, images, labels)
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


def bench_cuda(progress=True):
    """The same ratios for ResNet-50 at 224 x 224 in bf16 on a GPU, eager and compiled, with peak memory."""
    device = choose_device("cuda")
    batch = 128
    images = torch.randn(batch, 3, 224, 224, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(1000, (batch,), device=device)
    pairs = {"mrla-base": (MRLABase, NaiveMRLABase), "mrla-light": (MRLALight, NaiveMRLALight)}
    for mode in ("eager", "compiled"):
        for family, (ours, naive) in pairs.items():
            candidates, peaks = {}, {}
            for name, attention in (("plain", None), ("depthwise", "depthwise"), ("ours", ours), ("naive", naive)):
                torch.manual_seed(0)
                model = imagenet_resnet(50, layer_attention=attention).to(device, memory_format=torch.channels_last)
                model = torch.compile(model) if mode == "compiled" else model
                candidates[name] = _step(model, images, labels, autocast=True)
                candidates[name]()
                torch.cuda.reset_peak_memory_stats()
                candidates[name]()
                peaks[name] = torch.cuda.max_memory_allocated() / 2**30
            print(f"{family}: ResNet-50, 224 x 224, batch {batch}, bf16, channels last, {mode}, {device_name(device)}")
            print_overheads(take_turns(candidates, device=device, progress=progress))
            print("  peak memory: " + ", ".join(f"{name} {peak:.2f} GiB" for name, peak in peaks.items()))


def without_page_faults(benchmark):
    """Run one of the benchmarks above in a process whose allocator keeps what is freed: what is left is arithmetic and its traffic.

    By default the C library gives large blocks back to the system and gets them again, page by page, at the next round. The
    settings are glibc's: elsewhere this says so and runs nothing.
    """
    if not sys.platform.startswith("linux"):
        print("freed memory kept: needs glibc's allocator, so Linux; left out")
        return
    print("the same with freed memory kept, so without page faults:")
    keep = {"MALLOC_TRIM_THRESHOLD_": str(2**33), "MALLOC_MMAP_THRESHOLD_": str(2**33)}
    code = f"from mrla_minimal.lab import bench; bench.{benchmark.__name__}()"
    subprocess.run([sys.executable, "-c", code], env=os.environ | keep, check=True)


def bench_attention():
    """`mrla bench attention`: base and light against their naive forms; on a GPU, in ResNet-50 as well."""
    for benchmark in (bench_base, bench_light):
        benchmark()
        sys.stdout.flush()      # another process prints next
        without_page_faults(benchmark)
    profile_light()
    bench_light("compiled")
    if torch.cuda.is_available():
        bench_cuda()
    else:
        print("no CUDA device here: the ResNet-50 ratios in bf16 are left out")


def bench_data(batch=128, steps=20):
    """`mrla bench data`: images/s of the data side alone (crop, flip, normalise, batch), and of a plain ResNet-20's step."""
    from mrla_minimal.lab.data import load_cifar, plan_epoch, take_batch

    data = load_cifar("cifar10")
    plan = plan_epoch(len(data.train), seed=0, epoch=0)
    model = cifar_resnet(20).to(memory_format=torch.channels_last)

    def batches(count=200):
        for number in range(count):
            take_batch(data.train, plan, number % 50 * batch, (number % 50 + 1) * batch)

    images, labels = take_batch(data.train, plan, 0, batch)
    step = _step(model, images.contiguous(memory_format=torch.channels_last), labels)

    def train_steps():
        for _ in range(steps):
            step()

    seconds = take_turns({"data": batches, "step": train_steps}, rounds=5, progress=True)
    rates = {"data": [200 * batch / s for s in seconds["data"]], "step": [steps * batch / s for s in seconds["step"]]}
    ratios = [a / b for a, b in zip(rates["data"], rates["step"], strict=True)]
    print(f"{data.source}, batch {batch}, {torch.get_num_threads()} CPU threads")
    for name, text in (("data", "data side alone (crop, flip, normalise, batch)"), ("step", "plain ResNet-20, forward + backward")):
        print(f"  {text:<48} {statistics.median(rates[name]):8.0f} images/s")
    print(f"  data / step: {spread(ratios)}")


def bench_engine(steps=15):
    """`mrla bench engine`: images/s of the training engine over those of a bare forward-backward-step loop on one batch in memory."""
    from mrla_minimal.lab.engine import TrainConfig

    for attention in (None, "mrla-light"):
        config = TrainConfig(layer_attention=attention, batch_size=128, augment="on")
        device = choose_device(config.device)
        seconds = take_turns(_engine_and_bare_loop(config, device, steps), device=device, progress=True)
        ratios = [b / e for e, b in zip(seconds["engine"], seconds["bare"], strict=True)]
        rate = steps * config.batch_size / statistics.median(seconds["engine"])
        print(f"ResNet-20, {attention or 'plain'}, batch {config.batch_size}, {device_name(device)}: engine / bare loop {spread(ratios)}; "
              f"engine {rate:.0f} images/s, so 200 epochs take about {200 * 50_000 / rate / 3600:.1f} h of steps")


def _engine_and_bare_loop(config, device, steps):
    from mrla_minimal.lab.device import World
    from mrla_minimal.lab.engine import Run, build_model, build_optimizer

    run = Run(config, World(0, 1, device))
    images, labels = run.batch()
    model = build_model(config, 10).to(device, memory_format=torch.channels_last)
    optimizer = build_optimizer(config, model)

    def bare():
        for _ in range(steps):
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    def engine():
        for _ in range(steps):
            run.train_step()
            if device.type == "cpu":
                run.read_losses()
        run.read_losses()

    return {"engine": engine, "bare": bare}


BENCHMARKS = {"data": bench_data, "attention": bench_attention, "engine": bench_engine}
