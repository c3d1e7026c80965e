"""A person's own folder, with files named like our packages, and the installed command that is started in it."""

import os
import subprocess
from pathlib import Path

from tests.flows.tiny import command, environment

ROOT = Path(__file__).parents[2]
SCRIPT = "import sys\nfrom selftrain.__main__ import main\nsys.exit(main())\n"  # what an installer makes of `selftrain`


def own_folder(folder: Path) -> Path:
    """It has a models.py, flows.py, utils.py and even a selftrain.py; none has to do with us, and each prints."""
    folder.mkdir()
    for name in ("models", "flows", "configs", "ssl_tasks", "utils", "selftrain"):
        (folder / f"{name}.py").write_text(f"print('the user prints {name}')\n")
    return folder


def installed(workspace: Path, *words: str) -> list[str]:
    """The command line of an installed selftrain: a script, not `-m`, which looks into the current folder first."""
    script = workspace.parent / "bin" / "selftrain"
    script.parent.mkdir(exist_ok=True)
    script.write_text(SCRIPT)
    line = command(workspace, *words)
    return [line[0], str(script), *line[line.index("selftrain") + 1 :]]


def at_home(**changes: str) -> dict[str, str]:
    """The environment in which our packages are found from any folder."""
    return environment(PYTHONPATH=os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(":"), **changes)


def run_in(folder: Path, workspace: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """Runs the installed command there to its end."""
    line = installed(workspace, *words)
    return subprocess.run(line, env=at_home(), cwd=folder, capture_output=True, text=True, timeout=900, check=False)
