"""Python files that are in no package, as modules."""

import importlib.util


def load_script(path):
    """What the file at `path` defines; what it does as a program is not run."""
    specification = importlib.util.spec_from_file_location(path.stem, path)
    loaded = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(loaded)
    return loaded
