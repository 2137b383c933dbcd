"""The options of `mrla suite` and `mrla compare`: which there are, and which verb takes which."""

import argparse

from mrla_minimal.lab.cli_parser import jobs, positive, whole

OPTIONS = {
    "--records": {"metavar": "FILE",
                  "help": "the JSON-lines file of records (default: data/results/SUITE.jsonl; of a suite in "
                          "FILE.py: runs/SUITE/records.jsonl)"},
    "--variants": {"nargs": "+", "metavar": "VARIANT", "help": "only these variants"},
    "--seeds": {"nargs": "+", "type": whole, "metavar": "SEED",
                "help": "these seeds instead of the suite's; of a report: only these"},
    "--minutes": {"type": positive(float),
                  "help": "for so long: all variants of a seed, then those of the next one, beyond the "
                          "suite's seeds too; nothing is begun that cannot end in time"},
    "--jobs": {"type": jobs,
               "help": "processes side by side, which share out the cores (default: 1); auto: one a core"},
    "--until": {"type": float, "help": argparse.SUPPRESS},      # a helper's: when its minutes are over
    "--steps": {"type": whole, "help": "try the suite with this many steps a run; recorded apart"},
    "--device": {"help": "where to train"},
    "--data-root": {"metavar": "FOLDER", "help": "folder of the data files"},
    "--cuda-graph": {"action": "store_const", "const": True,
                     "help": "on cuda, launch each training step as one CUDA graph: quicker for small nets"},
    "--out": {"metavar": "FIGURE.png", "help": "where to draw the figure (default: runs/SUITE.png)"},
    "--json": {"action": "store_true",
               "help": "print one JSON object in place of the table, and draw only to --out"},
    "--quiet": {"action": "store_true", "help": "print neither progress nor table"},
}
UNASKED = {"records": None, "variants": None, "seeds": None, "minutes": None, "until": None, "jobs": 1,
           "steps": None, "device": None, "data_root": None, "cuda_graph": None, "out": None, "json": False,
           "quiet": False, "files": None}
RUN = ("--records", "--variants", "--seeds", "--steps", "--device", "--data-root", "--cuda-graph")
CHOSEN = ("--records", "--variants", "--seeds")
TIMED = ("--minutes", "--jobs", "--until")
SHOWN = ("--out", "--json", "--quiet")
TAKES = {"plan": (*RUN, "--quiet"), "run": (*RUN, *TIMED, *SHOWN), "report": (*CHOSEN, "--steps", *SHOWN),
         "export": (*CHOSEN, "--data-root", "--json"), "merge": ("--records", "--json")}


def add_options(parser: argparse.ArgumentParser, *flags: str) -> None:
    """Give a parser the options of these names, and to all others what they are when nobody asks."""
    parser.set_defaults(**UNASKED)
    for flag in flags:
        parser.add_argument(flag, **OPTIONS[flag])


def check_taken(arguments: argparse.Namespace, verb: str) -> None:
    """ValueError for an option of `mrla compare --VERB` that the verb does nothing with."""
    for flag in OPTIONS:
        name = flag.removeprefix("--").replace("-", "_")
        if flag not in TAKES[verb] and getattr(arguments, name) != UNASKED[name]:
            why = "which runs nothing" if flag in TIMED else f"as mrla suite {verb} has no such option"
            raise ValueError(f"{flag} does not go with --{verb}, {why}")


def check_out(arguments: argparse.Namespace) -> None:
    """ValueError for an --out that no figure can be drawn to."""
    if arguments.out is not None and not arguments.out.lower().endswith(".png"):
        raise ValueError(f"--out must be a file *.png, not {arguments.out}")
