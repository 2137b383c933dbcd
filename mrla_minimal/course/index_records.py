"""The records of notebook 16: patterns of an index cache, priced on the hunt and on text.

    python -m mrla_minimal.course.index_records         # makes data/results/hunt.jsonl, or what is missing
    python -m mrla_minimal.course.index_records --text      # the same for topics.jsonl
"""

import argparse
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor, nn

from mrla_minimal.course import hunt, topics
from mrla_minimal.course.index_training import (
    Draw,
    distil,
    drawn,
    fresh_indexers,
    measure,
    overlaps,
    price,
    train,
)
from mrla_minimal.course.made_records import made_with, print_or_refuse, run_id, write_missing
from mrla_minimal.course.seeds import seeded
from mrla_minimal.family.index_cache import IndexCacheAttention, set_pattern
from mrla_minimal.family.language_model import (
    CausalSelfAttention,
    CrossLayerAttention,
    LayerIntegratedMemory,
    TinyLanguageModel,
    ValueResidual,
)
from mrla_minimal.family.patterns import every_pattern, greedy_search
from mrla_minimal.lab.evidence.provenance import source_commit, versions
from mrla_minimal.lab.evidence.suites import check_seeds

HUNT = {"k": hunt.K, "steps": 600, "batch": 32, "learning_rate": 5e-3, "distil_steps": 200}
TEXT = {"k": 8, "steps": 300, "batch": 16, "learning_rate": 3e-3, "distil_steps": 100,
        "context": 64, "dim": 48, "heads": 4, "layers": 6}
CONTROLS = ("oracle", "last", "random")
Found = Callable[[TinyLanguageModel, Tensor], object]       # a model and tokens -> what a record can hold
VARIANTS: dict[str, type[nn.Module]] = {
    "none": CausalSelfAttention,
    "value-residual": ValueResidual,
    "cla": CrossLayerAttention,
    "lime": LayerIntegratedMemory,
}


def index_record(model: TinyLanguageModel, draw: Draw, test: Draw, seed: int, recipe: dict,
                 distilled: Iterable[str], found: Found | None = None) -> dict:
    """Train a model densely, then its indexers, and price every pattern: what a line of the records holds.

    Losses and accuracies are on sequences of `test`, also those of the dense model, of the controls in place
    of all indexers, and of `distilled` patterns whose indexers were trained afresh, each for its own layer or
    for all layers that use its sets. The greedy search sees other sequences, of `draw`. `found` says what the
    trained indexers' sets hold, from the model and its tokens; without it the record does not.
    """
    full, generator = "F" * len(model.layers), torch.Generator().manual_seed(seed)
    set_pattern(model, full, "all")
    losses = train(model, draw, recipe["steps"], recipe["batch"], recipe["learning_rate"], generator)
    batches = drawn(test, 4, 2 * recipe["batch"], torch.Generator().manual_seed(1000 + seed))
    calibration = drawn(draw, 2, 2 * recipe["batch"], torch.Generator().manual_seed(2000 + seed))
    made = {"train_loss": fmean(losses[-20:]), "dense": price(model, full, batches, "all")}

    def learn(pattern: str, serves: str) -> None:
        fresh_indexers(model, seed)
        distil(model, draw, pattern, recipe["distil_steps"], recipe["batch"], recipe["learning_rate"],
               torch.Generator().manual_seed(3000 + seed), serves)

    learn(full, "own")
    made["patterns"] = {pattern: price(model, pattern, batches) for pattern in every_pattern(len(full))}
    made["controls"] = {choice: price(model, full, batches, choice) for choice in CONTROLS}
    made["greedy"] = greedy_search(lambda pattern: price(model, pattern, calibration)["loss"], len(full))
    made["overlap"] = overlaps(model, batches[0][0])
    if found is not None:
        made["found"] = found(model, batches[0][0])
    made["distilled"] = {}
    for pattern in distilled:
        of_pattern = made["distilled"].setdefault(pattern, {})
        for serves in ("own", "all"):
            learn(pattern, serves)
            of_pattern[serves] = price(model, pattern, batches)
    return made


def hunt_record(seed: int) -> dict:
    """`index_record` of the hunt of two steps."""
    with seeded(seed):
        model = hunt.hunt_model(partial(IndexCacheAttention, k=HUNT["k"]))
    return index_record(model, hunt.draw_hunts, hunt.draw_hunts, seed, HUNT, ("FSFS", "FFSS"),
                        hunt.found_notes)


def text_record(seed: int) -> dict:
    """`index_record` of the topics' text, one character after the other."""
    encoded, symbols = topics.encode(topics.topics_text())
    learned, held_out = (topics.text_drawer(part, TEXT["context"]) for part in topics.split(encoded))
    with seeded(seed):
        model = TinyLanguageModel(len(symbols), TEXT["context"], TEXT["dim"], TEXT["heads"], TEXT["layers"],
                                  partial(IndexCacheAttention, k=TEXT["k"]))
    return index_record(model, learned, held_out, seed, TEXT, ("FSFSFS", "FSSFSS"))


def variants_record(seed: int) -> dict:
    """The hunt by models that hand on something else, or nothing: each attends densely, trained alike."""
    test = drawn(hunt.draw_hunts, 4, 64, torch.Generator().manual_seed(1000 + seed))
    made = {}
    for name, attention in VARIANTS.items():
        with seeded(seed):
            model = hunt.hunt_model(attention)
        generator = torch.Generator().manual_seed(seed)
        train(model, hunt.draw_hunts, HUNT["steps"], HUNT["batch"], HUNT["learning_rate"], generator)
        made[name] = measure(model, test)
    return {"variants": made}


def write_index_records(path: str | Path, suite: str, make: Callable[[int], dict], recipe: dict,
                        seeds: Iterable[int] = range(5)) -> list[dict]:
    """Make a suite's records, one line a seed, or those that the file lacks.

    Returns all of the suite that were made by this recipe, also of other seeds: none of another recipe.
    A line's `id` is the first 12 hex digits of the SHA-256 of suite, seed and recipe; `commit` is that of the
    code. Raises ValueError, and changes nothing, if the file holds something that is no record, or for seeds
    that are no integers from 0 on, each once.
    """
    seeds = check_seeds("seed", seeds)

    def missing(known: tuple[dict, ...]) -> Iterator[dict]:
        for seed in seeds:
            setting = {"suite": suite, "seed": seed, **recipe}
            if not made_with(setting, known):
                start, commit = time.process_time(), source_commit()
                yield {"id": run_id(setting), **setting, **_rounded(make(seed)), **versions(),
                       "commit": commit, "cpu_seconds": round(time.process_time() - start)}

    return made_with({"suite": suite, **recipe}, write_missing(path, missing))


def prices_table(records: Iterable[dict], what: str = "accuracy") -> str:
    """Every pattern, the cheapest first, with the lowest and the highest of the seeds; `what` or "loss".

    Below, the dense model, and the controls in place of all indexers.
    """
    records = list(records)
    rows = {pattern: [record["patterns"][pattern][what] for record in records]
            for pattern in sorted(records[0]["patterns"], key=lambda pattern: (pattern.count("F"), pattern))}
    rows["dense"] = [record["dense"][what] for record in records]
    rows |= {choice: [record["controls"][choice][what] for record in records] for choice in CONTROLS}
    return "\n".join([f"pattern   indexers   lowest  highest  seeds  ({what})"] + [
        f"{name:<10}{name.count('F') or '':>8}   {min(seeds):6.2f}   {max(seeds):6.2f}  {len(seeds):>5}"
        for name, seeds in rows.items()])


def variants_table(records: Iterable[dict]) -> str:
    """Lowest and highest accuracy of the seeds, by what a layer hands on."""
    records = list(records)
    lines = ["handed on         lowest  highest  seeds  (accuracy)"]
    for name in VARIANTS:
        seeds = [record["variants"][name]["accuracy"] for record in records]
        lines.append(f"{name:<16}  {min(seeds):6.2f}   {max(seeds):6.2f}  {len(seeds):>5}")
    return "\n".join(lines)


def _rounded(value):
    """Floats to four decimals, in dicts and lists too: more would differ between machines anyway."""
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(part) for part in value]
    return round(value, 4) if isinstance(value, float) else value


def main(arguments: list[str] | None = None) -> None:
    """The command: make what is missing, print the tables. Wrong arguments end it with one line, status 2."""
    parser = argparse.ArgumentParser(description="Make the index cache's records, or those still missing, "
                                                 "and print what they say.")
    parser.add_argument("--text", action="store_true", help="those of the text, in place of the hunt's")
    parser.add_argument("--seeds", type=int, nargs="+",
                        help="default: 0 to 4; of text, and of models that hand on something else, 0 and 1")
    parser.add_argument("--out", help="file of JSON lines (default: data/results/hunt.jsonl, with --text "
                                      "topics.jsonl there)")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)            # the same sums wherever it runs
    out = given.out or f"data/results/{'topics' if given.text else 'hunt'}.jsonl"
    seeds, few = given.seeds or range(5), given.seeds or range(2)

    def tables() -> str:
        if given.text:
            recipe = TEXT | {"text": topics.fingerprint(topics.topics_text())}
            return prices_table(write_index_records(out, "topics", text_record, recipe, few), "loss")
        prices = prices_table(write_index_records(out, "hunt", hunt_record, HUNT, seeds))
        others = variants_table(write_index_records(out, "hunt-variants", variants_record, HUNT, few))
        return f"{prices}\n{others}"

    print_or_refuse(parser, tables)


if __name__ == "__main__":
    main()
