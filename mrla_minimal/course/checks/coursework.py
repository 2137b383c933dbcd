"""Grade a layer attention of your own.

By what all of them share (signature.py), and by what training asks of them (as_trained.py).

The file holds one nn.Module class that is built as Class(channels), or several and one is named. `grade` runs
it in this process, where its code may do and change what it likes: it is for your own files. `mrla check`
and submissions.py ask the same of code that runs in a process of its own.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tqdm import tqdm

from mrla_minimal.course.checks import as_trained, signature
from mrla_minimal.course.checks.common import Wrong
from mrla_minimal.course.checks.signature import CHANNELS, Attention
from mrla_minimal.course.quiz import QUESTIONS, train_module_quiz, verdict
from mrla_minimal.course.seeds import seeded
from mrla_minimal.lab.device import plain_defaults
from mrla_minimal.lab.own_files import running_again, where
from mrla_minimal.lab.plugins import load_class

Check = Callable[[Attention], str]


def check_built(attention: Attention) -> str:
    name = attention.__name__
    try:
        attention(CHANNELS)
    except (Exception, SystemExit) as error:
        raise Wrong(f"your class must be built as {name}(channels), further arguments with defaults; "
                    f"{name}({CHANNELS}) raises {where(error, attention)}") from error
    return f"{name}(channels) makes a module"


# Without the first two there is nothing to try the others on.
NEEDED: dict[str, Check] = {"built": check_built, "shapes": signature.check_shapes}
CHECKS: dict[str, Check] = NEEDED | {
    "depth": signature.check_reading,
    "batch": signature.check_batch,
    "calls": signature.check_calls,
    "memory is a value": signature.check_memory_is_a_value,
    "gradients": signature.check_gradients,
    "network": as_trained.check_training_step,
    "transformer": as_trained.check_transformer,
    "channels last": as_trained.check_channels_last,
    "half precision": as_trained.check_half_precision,
    "evaluation": as_trained.check_evaluation,
    "checkpoint": as_trained.check_checkpoint,
    "cost": as_trained.check_cost,
}
REPORTED: dict[str, Check] = {"memory": signature.memory_growth, "several GPUs": as_trained.several_gpus}


def grade(path: str | Path, class_name: str | None = None, quiz: bool = True,
          progress: bool = True) -> list[dict]:
    """All checks on the class in a file: a list of {"check": its name, "passed": ..., "text": the finding}.

    `passed` is True or False, and None where something is only reported. Takes about a minute, nearly
    all of it for the corridor quiz (left out if `quiz` is False); `progress` shows a bar on stderr meanwhile.
    Raises ValueError as `load_class` does; whatever the class itself raises is a failed check.
    """
    with plain_defaults():
        return list(findings(load_class(path, class_name), quiz, progress))


def findings(attention: Attention, quiz: bool = True, progress: bool = True) -> Iterator[dict]:
    """All checks on a class, one after the other, each as `grade` gives it."""
    for name, check in tqdm(CHECKS.items(), desc="checks", leave=False, disable=not progress):
        passed, text = _outcome(check, attention)
        yield {"check": name, "passed": passed, "text": text}
        if name in NEEDED and not passed:
            text = "the other checks were not run: they need what this one asks for"
            yield {"check": "note", "passed": None, "text": text}
            return
    reported = dict(REPORTED)
    if quiz:
        for question in QUESTIONS:
            reported[f"corridor quiz, {question} question"] = partial(
                quiz_verdict, question=question, progress=progress)
    for name, check in reported.items():
        yield {"check": name, "passed": None, "text": _outcome(check, attention)[1]}


def report(results: list[dict]) -> str:
    """The results as text, a line each, and a last line that counts."""
    marks = {True: "[OK]", False: "[FAIL]", None: "[INFO]"}
    lines = [f"{marks[result['passed']]:<7}{result['check']}: {result['text']}" for result in results]
    graded = [result["passed"] for result in results if result["passed"] is not None]
    lines.append(f"{sum(graded)} of {len(graded)} checks passed")
    return "\n".join(lines)


def quiz_verdict(attention: Attention, question: str, progress: bool = False) -> str:
    accuracy = train_module_quiz(attention, question, progress=progress).accuracy
    return f"{verdict(accuracy)} (accuracy {accuracy:.2f}, chance 0.125)"


def _outcome(check, attention):
    """(passed, text) of one check, with random numbers of its own."""
    try:
        with seeded(0), running_again(attention.__module__):
            return True, check(attention)
    except Wrong as wrong:
        return False, str(wrong)
    except (Exception, SystemExit) as error:
        return False, f"your code raises {where(error, attention)}"
