"""Settings for every test, also when a single file or notebook is run."""

import os
from pathlib import Path

# Set before torch is imported, and inherited by every process and notebook kernel that a test starts.
os.environ["MRLA_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")      # two test processes on two cores: one thread each
os.environ.setdefault("MPLBACKEND", "Agg")

SANITIZER = Path(__file__).parent / "tests" / "nbval_sanitize.cfg"


def pytest_configure(config):
    """What every run of notebooks (--nbval, --nbval-lax) needs, so that a single one needs no options."""
    if not (config.getoption("nbval", False) or config.getoption("nbval_lax", False)):
        return
    # An inherited Agg would show no figure.
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    config.option.nbval_current_env = True
    config.option.nbval_sanitize_with = config.option.nbval_sanitize_with or str(SANITIZER)


def pytest_collectstart(collector):
    if hasattr(collector, "skip_compare"):          # nbval's file: progress bars on stderr are no result
        collector.skip_compare += ("stderr",)


def pytest_itemcollected(item):
    if hasattr(item, "output_timeout"):             # nbval's cell: 5 seconds is short on a busy machine
        item.output_timeout = 60
