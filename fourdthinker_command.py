"""Starts the `fourdthinker` command, whose commands are in `fourdthinker_hf/cli.py`.

Importing a module of a package imports the package first, and `fourdthinker_hf` imports torch and transformers to
register its classes, which takes seconds. So that help, the version and mistakes in options appear at once, the module
is loaded here as importlib's documentation shows ("Importing a source file directly"). The package is imported when a
command runs.
"""

import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

PACKAGE = "fourdthinker_hf"
NAME = f"{PACKAGE}.cli"


def app() -> None:
    folder = Path(find_spec(PACKAGE).submodule_search_locations[0])
    spec = spec_from_file_location(NAME, folder / "cli.py")
    cli = sys.modules[NAME] = module_from_spec(spec)
    spec.loader.exec_module(cli)
    cli.app()


def skip_package_init() -> None:
    """Makes the modules of the package importable without its `__init__.py`, unless it is imported already. Those of
    the demo then import neither torch nor transformers before a model is loaded."""
    if PACKAGE not in sys.modules:
        sys.modules[PACKAGE] = module_from_spec(find_spec(PACKAGE))


if __name__ == "__main__":
    app()
