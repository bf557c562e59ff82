"""The worker's first file, started by path: `python -I -u …/orchestrator/worker/__main__.py key=value …`.

Nothing of this project is installed in the environment. Here the package is made known under its own name from where
this file lies, and nothing else of `orchestrator` can be reached. Then the keeper forks off, before there are threads. A worker that is
confined comes by here a second time, inside its sandbox.
"""

from __future__ import annotations

import os
import sys
import time
import types
from typing import Dict


def register() -> None:
    """Makes `orchestrator.worker` importable, and nothing beside it."""
    from importlib.util import module_from_spec, spec_from_file_location

    here = os.path.dirname(os.path.abspath(__file__))
    parent = types.ModuleType("orchestrator")
    parent.__path__ = []  # a package without a place: no other module of it is found
    sys.modules["orchestrator"] = parent
    spec = spec_from_file_location(
        "orchestrator.worker", os.path.join(here, "__init__.py"), submodule_search_locations=[here]
    )
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["orchestrator.worker"] = module
    parent.worker = module  # type: ignore[attr-defined]
    spec.loader.exec_module(module)


def main() -> None:
    """Becomes a keeper and, under it, a worker."""
    began = time.monotonic()
    options: Dict[str, str] = {}
    for argument in sys.argv[1:]:
        key, _, value = argument.partition("=")
        options[key] = value
    register()
    if "door" in options:
        from orchestrator.worker.confinement import step_inside

        keeper = step_inside(int(options["door"]), int(options["segments"]))
    else:
        from orchestrator.worker.keeper import fork_worker

        keeper = fork_worker(
            lifeline=int(options["lifeline"]), segments=int(options["segments"]), log=options["log"],
            folder=options["folder"], confine=options.get("confine", ""),
        )  # fmt: skip
    sys.argv = [options["file"]]
    from orchestrator.worker.serve import serve

    serve(options, keeper, began)


if __name__ == "__main__":
    main()
