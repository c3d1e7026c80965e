"""The wheel, the source archive, and the functions that the package offers."""

import ast
import inspect
import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

import selftrain
from selftrain.flows.cli.main import parser

ROOT = Path(__file__).parent.parent
BUILD = "import setuptools.build_meta as backend, sys; print(getattr(backend, sys.argv[1])(sys.argv[2]))"
SCRIPT = """\
import selftrain

if __name__ == "__main__":  # as in a notebook, whose folder is full of names like ours
    finished = selftrain.run(
        "quickstart",
        ["rounds=1", "teacher.train.steps=20", "round.student.train.steps=20", "runtime.workers=1"],
        workspace="work",
        prefect=False,
    )
    print(finished.info["state"], len(selftrain.labels(finished.id, limit=5, workspace="work")), selftrain.__file__)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel, made from the source archive, as installers make it."""
    folder = tmp_path_factory.mktemp("built")
    archive = folder / _built("build_sdist", ROOT, folder)
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")
    unpacked = folder / archive.name.removesuffix(".tar.gz")
    return {"sdist": archive, "wheel": folder / _built("build_wheel", unpacked, folder)}


def _built(what: str, source: Path, output: Path) -> str:
    words = [sys.executable, "-c", BUILD, what, str(output)]
    done = subprocess.run(words, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_the_wheel_installs_nothing_but_selftrain(built: dict[str, Path]) -> None:
    with zipfile.ZipFile(built["wheel"]) as wheel:
        names = wheel.namelist()
    assert {name.split("/")[0] for name in names} == {"selftrain", "selftrain-0.1.0.dist-info"}
    for needed in ("py.typed", "configs/quickstart.yaml", "ssl_tasks/report/static/page.js", "models/registry.py"):
        assert f"selftrain/{needed}" in names
    here = {
        str(path.relative_to(ROOT))
        for package in ("flows", "ssl_tasks", "models", "configs")
        for path in (ROOT / package).rglob("*")
        if path.suffix in (".py", ".yaml", ".js", ".css", ".html")
    }
    assert {f"selftrain/{name}" for name in here} <= set(names)


@pytest.mark.slow
def test_the_installed_package_works_in_a_folder_with_the_users_own_modules(
    built: dict[str, Path], tmp_path: Path
) -> None:
    """An environment that has our dependencies and the wheel, and no trace of the repository."""
    venv.create(tmp_path / "env", with_pip=False)
    site = next((tmp_path / "env" / "lib").glob("python*/site-packages"))
    (site / "dependencies.pth").write_text(f"{Path(yaml.__file__).parents[1]}\n")
    with zipfile.ZipFile(built["wheel"]) as wheel:
        wheel.extractall(site)
    home = tmp_path / "home"
    for name in ("models", "flows", "configs", "ssl_tasks"):
        (home / name).mkdir(parents=True)
        (home / name / "__init__.py").write_text(f"raise SystemExit('the user's {name} was imported')\n")
    (home / "utils.py").write_text("raise SystemExit('the utils of the user were imported')\n")
    (home / "script.py").write_text(SCRIPT)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "MLFLOW"))}
    done = subprocess.run(
        [tmp_path / "env" / "bin" / "python", "script.py"],
        cwd=home,
        env={**environment, "PYTHONPATH": ".", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    state, labels, place = done.stdout.split()
    assert (state, labels) == ("done", "5")
    assert Path(place).is_relative_to(site)


def test_every_verb_that_shows_or_computes_is_a_function() -> None:
    """Servers, deployments and the completion of a shell are for the terminal only."""
    alone = {"up", "serve", "assist", "deploy", "init-server", "completion"}
    called = {"compare": "compare_runs"}
    actions = next(action for action in parser()._actions if action.dest != "workspace" and action.choices)
    verbs = set(actions.choices or ())
    missing = {verb for verb in verbs - alone if called.get(verb, verb) not in selftrain.__all__}
    assert not missing


def test_every_function_is_documented_and_typed() -> None:
    for name in selftrain.__all__:
        if name == "__version__":
            continue
        function = getattr(selftrain, name)
        assert inspect.getdoc(function), f"selftrain.{name} has no docstring"
        signature = inspect.signature(function)
        assert signature.return_annotation is not inspect.Signature.empty, name
        assert all(one.annotation is not one.empty for one in signature.parameters.values()), name


def test_editors_and_readers_find_the_same_functions() -> None:
    """The imports for type checkers, the table of places and `__all__` name the same."""
    tree = ast.parse(Path(selftrain.__file__).read_text())
    typed = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("selftrain.")
        for alias in node.names
    }
    assert typed == set(selftrain._PLACES) == set(selftrain.__all__) - {"__version__"}
    assert selftrain.__version__.count(".") == 2
    with pytest.raises(AttributeError, match="no attribute 'rum'"):
        selftrain.rum  # noqa: B018 - the look-up is what is tested
