"""`mrla` and `python -m mrla_minimal`: the one door from the subject into the lab."""

import sys


def main(arguments: list[str] | None = None) -> int:
    """Run the command line on sys.argv, or on `arguments`; return its exit status."""
    from mrla_minimal.lab.cli import main as run

    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
