"""The commands for whoever teaches: `mrla check`, `grade` and `assignment`. They lead into the course."""

import argparse

from mrla_minimal.lab.cli_parser import add_command, json_option, positive
from mrla_minimal.lab.plugins import OwnAttention

LIMITS = """Each file runs in a process of its own, in a temporary folder, with limits of time and memory.
The checks run outside of it, on the arrays that it gives: what the code patches, prints or ends is its own
affair. That is no sandbox: the code runs as you, with your files and your network. Where strangers may mean
harm, grade in a container."""


def add_teaching_commands(commands: argparse._SubParsersAction) -> None:
    """Add `mrla check`, `mrla grade` and `mrla assignment` to the commands."""
    check = add_command(commands, "check", "grade a layer attention of your own, or a folder of them",
                        run_check,
                        ("mrla check my_attention.py", "mrla check my_attention.py:LastTwo --json",
                         "mrla check submissions --csv grades.csv --json grades.json"),
                        f"Grade a layer attention of your own, or all Python files of a folder.\n{LIMITS}")
    check.add_argument("file", metavar="FILE", nargs="?",
                       help="a Python file with an nn.Module class built as Class(channels); FILE:CLASS; or "
                            "a folder of such files, of which each gets a line, and can import no other")
    check.add_argument("--class", dest="class_name", metavar="NAME",
                       help="which class, if the file holds several")
    check.add_argument("--json", nargs="?", const=True, default=False, metavar="GRADES",
                       help="print one JSON object, and all else to stderr; of a folder, or into this file")
    check.add_argument("--csv", metavar="GRADES", help="of a folder: write the table into this file, line by "
                                                       "line; the same command goes on with it")
    limit_options(check)

    grade = add_command(commands, "grade", "what students' copies of notebooks have solved", run_grade,
                        ("mrla grade copies --csv grades.csv", "mrla grade my_copy.ipynb --json"),
                        "Run copies of notebooks, beside a copy of the records and data that lessons read, "
                        f"and judge each exercise of each.\n{LIMITS}")
    grade.add_argument("notebooks", metavar="NOTEBOOK", nargs="+",
                       help="a student's copy of a lesson, or a folder of such copies")
    grade.add_argument("--csv", metavar="GRADES", help="write the table into this file")
    json_option(grade)
    limit_options(grade, 600)

    assignment = add_command(commands, "assignment", "a notebook to hand out", run_assignment,
                             ("mrla assignment 04 --out handout",
                              "mrla assignment 04_recurrent_layer_attention --out handout"),
                             "Write a notebook of the course without its hints and solutions, with the marks "
                             "that nbgrader wants.")
    assignment.add_argument("notebook", help="its number, as in 04, or its name")
    assignment.add_argument("--out", required=True, metavar="FOLDER", help="where to write it")


def limit_options(command: argparse.ArgumentParser, seconds: float = 120) -> None:
    """--seconds and --memory, of each file."""
    command.add_argument("--seconds", type=positive(float), default=seconds,
                         help=f"how long each file may take (default {seconds:g})")
    command.add_argument("--memory", type=memory_bytes, default="4", metavar="GIB",
                         help="how much memory each file may take (default 4 GiB; held to on Linux alone)")


def memory_bytes(text: str) -> int:
    """GiB as bytes: more than 0, and less than the 2**63 that a limit can hold."""
    gib = positive(float)(text)
    if gib >= 2**32:
        raise argparse.ArgumentTypeError(f"{text[:20]} GiB is too much memory for any machine")
    return int(gib * 2**30)


def run_grade(arguments: argparse.Namespace) -> tuple[int, dict]:
    """`mrla grade`: a line for each exercise of each copy."""
    from mrla_minimal.course.gradebook import grade_notebooks

    rows = grade_notebooks(arguments.notebooks, arguments.csv, arguments.seconds, arguments.memory)
    return int(any(row["status"] != "passed" for row in rows)), {"exercises": rows}


def run_assignment(arguments: argparse.Namespace) -> int:
    """`mrla assignment`: write it, and say where."""
    from mrla_minimal.course.assignment import make_assignment

    print(make_assignment(arguments.notebook, arguments.out))
    return 0


def run_check(arguments: argparse.Namespace) -> tuple[int, dict]:
    """`mrla check`: one file's findings, or a line for each file of a folder."""
    import sys
    from pathlib import Path

    from mrla_minimal.course.checks.coursework import report
    from mrla_minimal.course.submissions import check_apart, check_folder

    if arguments.file is None and isinstance(arguments.json, str):      # mrla check --json FILE
        arguments.file, arguments.json = arguments.json, True
    if arguments.file is None:
        raise ValueError("name a Python file, or a folder of such files")
    if Path(arguments.file).is_dir():
        if arguments.class_name:
            raise ValueError("--class is for one file, not for a folder")
        json_path = arguments.json if isinstance(arguments.json, str) else None
        rows = check_folder(arguments.file, arguments.csv, json_path, arguments.seconds, arguments.memory)
        failed = any(row["verdict"] != "passed" for row in rows)
        return int(failed), {"folder": arguments.file, "grades": rows}
    if arguments.csv or isinstance(arguments.json, str):
        raise ValueError("--csv FILE and --json FILE are for a folder of submissions")
    named = OwnAttention.parse(arguments.file)
    file, class_name = (named.path, named.class_name) if named else (arguments.file, None)
    results = check_apart(file, arguments.class_name or class_name, arguments.seconds, arguments.memory,
                          show=lambda text: print(text, end="", file=sys.stderr))
    print(report(results))
    failed = any(result["passed"] is False for result in results)
    return int(failed), {"file": file, "passed": not failed, "checks": results}
