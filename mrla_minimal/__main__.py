"""`mrla` and `python -m mrla_minimal`: the one door from the subject into the lab."""

import sys


def main(arguments=None):
    from mrla_minimal.lab.cli import main as run

    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
