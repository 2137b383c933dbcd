"""Does it help to look sideways? The records of notebook 17, made by one command, and what they say.

    python -m mrla_minimal.course.sideways_records              # makes data/results/sideways.jsonl, or what
                                                                # is missing of it, and prints its tables
    python -m mrla_minimal.course.sideways_records --minutes 9  # begins no further run after nine minutes

    shift       the shift task: white noise, and noise smoothed by 3 and by 5 pixels; a shift for each seed
    denoiser    five variants of one denoiser on CIFAR-10, real images only; seed by seed
"""

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import fmean

import torch

from mrla_minimal.course import denoising, shift_task
from mrla_minimal.course.made_records import difference_cells, made_with, print_or_refuse, run_id, write_asked
from mrla_minimal.family.sideways import NAMES
from mrla_minimal.lab.cost import count_parameters
from mrla_minimal.lab.data import load_cifar
from mrla_minimal.lab.data.images import Cifar
from mrla_minimal.lab.evidence.intervals import shared_seeds
from mrla_minimal.lab.evidence.provenance import source_commit, versions
from mrla_minimal.lab.evidence.suites import check_seeds
from mrla_minimal.lab.files import replace_file
from mrla_minimal.shapes import check_choice

SEEDS = range(5)
PARTS = ("shift", "denoiser")
# What is asked of the records: the difference a - b in dB. The first is the question, the others controls.
ASKED = (("sideways", "same-layer"), ("sideways", "mean"), ("sideways", "plain"), ("mean", "plain"),
         ("same-layer", "plain"), ("acla", "sideways"))
CLOSE = 0.1         # pixels, rows and columns: a shift found
KEPT = ("plain", "acla")        # whose nets of seed 0 are kept, for pictures


def sideways_records(seeds: Iterable[int] = SEEDS, parts: Iterable[str] = PARTS,
                     steps: dict[str, int] | None = None, known: Iterable[dict] = (),
                     cifar: Cifar | None = None, keep: Path | None = None) -> Iterator[dict]:
    """Yield a plain dict a run, without those that `known` holds: the shift task, then the denoisers.

    steps: of each part, if not the suite's own. cifar: None stands for the real CIFAR-10, and nothing else.
    keep: a folder for two nets of seed 0, in float16, or None. Each record names the commit of the code that
    made it, with "+changes" if that was not committed. Raises ValueError for an unknown part, for seeds
    below 0 or repeated, and (DownloadError) if CIFAR-10 cannot be had.
    """
    settings, known, commit = asked_runs(seeds, parts, steps), list(known), source_commit()
    for setting in settings:
        if made_with(setting, known):
            continue
        if setting["part"] == "denoiser" and cifar is None:
            cifar = load_cifar("cifar10", source="real")
        found = _shift(setting) if setting["part"] == "shift" else _denoiser(setting, cifar, keep)
        yield {"id": run_id(["sideways", setting]), "suite": "sideways", **setting, **found,
               "commit": commit, "versions": versions()}


def asked_runs(seeds: Iterable[int] = SEEDS, parts: Iterable[str] = PARTS,
               steps: dict[str, int] | None = None) -> list[dict]:
    """The settings of the runs that `sideways_records` makes, in its order; it raises what that does."""
    seeds, parts = check_seeds("seed", seeds), tuple(parts)
    for part in parts:
        check_choice("part", part, PARTS)
    steps = {"shift": shift_task.STEPS, "denoiser": denoising.STEPS} | (steps or {})
    runs = {"shift": [dict(name=name, blur=blur, seed=seed)
                      for seed in seeds for name in NAMES for blur in shift_task.BLURS],
            "denoiser": [dict(variant=variant, seed=seed)
                         for seed in seeds for variant in denoising.VARIANTS]}
    return [dict(part=part, **run, steps=steps[part])
            for part in PARTS if part in parts for run in runs[part]]


def _shift(setting):
    run = shift_task.find_shift(setting["name"], setting["blur"], setting["seed"], steps=setting["steps"])
    return {"shift": list(shift_task.shift_of(setting["seed"])), "start": run["loss"][0].item(),
            **shift_task.what_was_found(run)}


def _denoiser(setting, cifar, keep):
    variant, seed = setting["variant"], setting["seed"]
    model = denoising.train_denoiser(cifar, variant, seed, setting["steps"])
    clean, noisy = denoising.images_to_clean(cifar)
    quality = denoising.psnr(denoising.denoise(model, noisy), clean)
    looked = {} if variant in ("plain", "mean") else denoising.look_sideways(model, noisy)
    if keep is not None and variant in KEPT and seed == 0:
        state = {name: tensor.half() for name, tensor in model.state_dict().items()}
        keep.mkdir(parents=True, exist_ok=True)
        replace_file(keep / f"{variant}.pt", lambda file: torch.save(state, file))
    return {"psnr": quality.mean().item(), "noisy": denoising.psnr(noisy, clean).mean().item(),
            "parameters": count_parameters(model), **looked, "images": len(clean), "source": cifar.source,
            "fingerprint": cifar.fingerprint}


def write_sideways_records(path: str | Path, minutes: float | None = None, seeds: Iterable[int] = SEEDS,
                           parts: Iterable[str] = PARTS, steps: dict[str, int] | None = None,
                           cifar: Cifar | None = None, keep: Path | None = None) -> list[dict]:
    """Make the records in one file of JSON lines; go on where an earlier call stopped.

    Returns those that were asked for, as far as they are made. After `minutes` no further run is begun.
    Raises ValueError, and changes nothing, as `sideways_records` does, if the file holds something that is no
    record, and for minutes that are no positive number.
    """
    seeds, parts = tuple(seeds), tuple(parts)
    return write_asked(path, asked_runs(seeds, parts, steps),
                       lambda known: sideways_records(seeds, parts, steps, known, cifar, keep), minutes)


def is_found(record: dict) -> bool:
    """Whether the heaviest key of a run of the shift task lies within CLOSE of the answer, in layer 1."""
    return record["layer"] == 1 and all(abs(given - wanted) < CLOSE for given, wanted
                                        in zip(record["place"], record["shift"], strict=True))


def shift_table(records: Iterable[dict]) -> str:
    """The shift task as text: how often the shift was found, and lowest and highest of what was measured."""
    records = [record for record in records if record["part"] == "shift"]
    lines = [f"{'keys':<10}{'maps':<20}{'found':<10}{'weight on layer 1':<20}{'squared error'}"]
    for name in NAMES:
        for blur in shift_task.BLURS:
            runs = [record for record in records if (record["name"], record["blur"]) == (name, blur)]
            if runs:
                maps = "white noise" if blur == 1 else f"smoothed by {blur}"
                found = f"{sum(map(is_found, runs))} of {len(runs)}"
                lines.append(f"{name:<10}{maps:<20}{found:<10}{_span(runs, 'earlier', 2):<20}"
                             f"{_span(runs, 'loss', 3)}")
    return "\n".join(lines)


def _span(runs, what, digits):
    values = [run[what] for run in runs]
    return f"{min(values):.{digits}f}-{max(values):.{digits}f}"


def denoisers_of(records: Iterable[dict]) -> dict[str, dict[int, dict]]:
    """{variant: {seed: record}} of the denoisers."""
    found = {variant: {} for variant in denoising.VARIANTS}
    for record in records:
        if record["part"] == "denoiser":
            found[record["variant"]][record["seed"]] = record
    return found


def denoisers_table(records: Iterable[dict]) -> str:
    """The denoisers as text: PSNR in dB, mean over seeds, lowest and highest; parameters."""
    lines = [f"{'denoiser':<14}{'mean PSNR':<12}{'lowest-highest':<18}{'parameters':<14}{'seeds'}"]
    for variant, runs in denoisers_of(records).items():
        if runs:
            each = list(runs.values())
            lines.append(f"{variant:<14}{fmean(run['psnr'] for run in each):<12.3f}"
                         f"{_span(each, 'psnr', 3):<18}{each[0]['parameters']:<14,}{len(each)}")
    return "\n".join(lines)


def differences(records: Iterable[dict], a: str, b: str) -> list[float]:
    """PSNR of variant a minus that of b, in dB, a seed each, for the seeds that both have."""
    runs = denoisers_of(records)
    return [runs[a][seed]["psnr"] - runs[b][seed]["psnr"]
            for seed in shared_seeds([runs[a], runs[b]])]


def differences_table(records: Iterable[dict]) -> str:
    """What is asked, as text: mean differences in dB over the seeds, 95 % intervals (Student's t)."""
    records = list(records)
    lines = [f"{'difference':<24}{'mean, dB':<12}{'95 % interval':<22}{'seeds'}"]
    for a, b in ASKED:
        found = differences(records, a, b)
        if found:
            mean, ends = difference_cells(found, 3)
            lines.append(f"{f'{a} - {b}':<24}{mean:<12}{ends:<22}{len(found)}")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make the records of notebook 17, or those still missing, "
                                                 "and print what they say.")
    parser.add_argument("--minutes", type=float,
                        help="begin no further run after so many (default: no limit)")
    parser.add_argument("--out", default="data/results/sideways.jsonl",
                        help="file of JSON lines (default: %(default)s)")
    parser.add_argument("--keep", default="data/denoisers", type=Path,
                        help="folder for the two nets that the notebook shows (default: %(default)s)")
    given = parser.parse_args()
    torch.set_num_threads(1)

    def tables() -> str:
        made = write_sideways_records(given.out, given.minutes, keep=given.keep)
        return f"{shift_table(made)}\n\n{denoisers_table(made)}\n\n{differences_table(made)}"

    print_or_refuse(parser, tables)
