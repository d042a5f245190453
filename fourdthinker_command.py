"""Starts the `fourdthinker` command, whose commands are in `fourdthinker_hf/cli.py`.

Importing a module of a package imports the package first, and `fourdthinker_hf` imports torch and transformers to
register its classes, which takes seconds. So that help, the version and mistakes in what was given appear at once, the
command goes without that part of the package; what a command needs, it imports when it runs.
"""

import sys
from importlib.util import find_spec, module_from_spec

PACKAGE = "fourdthinker_hf"


def app() -> None:
    skip_package_init()
    from fourdthinker_hf import cli

    cli.app()


def skip_package_init() -> None:
    """Makes the modules of the package importable without its `__init__.py`, unless it is imported already. They then
    import neither torch nor transformers before they need them. Whatever loads a model imports `auto_classes`, which
    registers the classes."""
    if PACKAGE not in sys.modules:
        sys.modules[PACKAGE] = module_from_spec(find_spec(PACKAGE))


if __name__ == "__main__":
    app()
