"""What the command line needs done before torch is imported; the package's door imports this first.

`python -m mrla_minimal` puts the working directory first on the path, where a random.py would stand in for
Python's own. And in a working directory that is gone, torch's libraries end the process with a riddle.
"""

import os
import sys
from pathlib import Path

_module = sys.argv[:1] == ["-m"]        # what sys.argv[0] is while a package is imported for -m
_command = _module or (sys.argv[:1] != [] and Path(sys.argv[0]).stem in ("mrla", "__main__"))

try:
    _here = os.getcwd()
except OSError as error:
    message = "the working directory is gone: change to one that exists"
    if not _command:
        raise OSError(message) from error
    print(f"mrla: {message}", file=sys.stderr)
    raise SystemExit(2) from None

if _module and sys.path[:1] == [_here] and not sys.flags.safe_path:
    del sys.path[0]
