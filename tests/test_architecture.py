"""Who may import whom, held by walking the imports; and the size of files and functions."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("flows", "ssl_tasks", "models")
LIGHT = ["ssl_tasks.recipes", "ssl_tasks.runs", "ssl_tasks.stages", "ssl_tasks.tracking.tracker", "flows.cli"]
HEAVY = {"torch", "torchvision", "mlflow", "prefect", "albumentations", "cv2", "sklearn"}
NOT_ON_A_GPU_MACHINE = [
    "prefect",
    "mlflow",
    "duckdb",
    "sklearn",
    "safetensors",
    "rich",
    "psutil",
    "fastapi",
    "sqlalchemy",
    "fsspec",
]
HOMES = {  # a foreign library → the folders that may import it
    "prefect": ("flows",),
    "mlflow": ("ssl_tasks/tracking",),
    "albumentations": ("ssl_tasks/data",),
    "duckdb": ("ssl_tasks/pseudo_labels", "ssl_tasks/data", "ssl_tasks/report"),
    "torchvision": ("models",),
    "ray": ("ssl_tasks/cluster.py",),
}


def sources() -> list[Path]:
    """Every source file of the packages."""
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, at its top or within functions; imports for types alone are left out."""
    tree = ast.parse(path.read_text())
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def name_of(path: Path) -> str:
    """The file's path within the repository."""
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_layers_point_downwards(path: Path) -> None:
    name = name_of(path)
    for module in imports(path):
        top = module.split(".")[0]
        if name.startswith("models/"):
            below = top not in ("flows", "ssl_tasks") or module == "ssl_tasks.errors"  # one tree of errors for all
            assert below, f"{name} imports {module}: models know nothing of their users"
        if name.startswith("ssl_tasks/"):
            assert top != "flows", f"{name} imports {module}: stages know nothing of flows"
        if name.startswith("ssl_tasks/training/"):
            known = {"ssl_tasks.methods", "ssl_tasks.methods.base", "ssl_tasks.methods.settings"}
            assert not module.startswith("ssl_tasks.methods.") or module in known, f"{name} names a method: {module}"
            assert not module.startswith("ssl_tasks.tracking"), f"{name}: training needs no tracker"
        if name.startswith("ssl_tasks/methods/"):
            assert not module.startswith(("ssl_tasks.training.", "ssl_tasks.tracking")) or module.endswith("settings")
        if top in HOMES:
            assert name.startswith(HOMES[top]), f"{name} imports {module}, whose home is {HOMES[top]}"


@pytest.mark.parametrize("module", LIGHT)
def test_reading_recipes_and_records_imports_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert not HEAVY & set(loaded.split())


def test_a_bare_gpu_machine_can_train() -> None:
    """With no more than `benchmarks/gpu.py` says that it needs."""
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({NOT_ON_A_GPU_MACHINE})); import benchmarks.gpu, models\n"
        "models.build_model(models.ModelSettings(name='mlp'), 10, 1, 8); print('it trains')"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert ended.stdout == "it trains\n", ended.stderr


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_files_and_functions_stay_readable(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 400, f"{name_of(path)} is too long to hold one idea"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert (node.end_lineno or 0) - node.lineno <= 80, f"{name_of(path)}:{node.name} does not fit the screen"


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_every_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), f"{name_of(path)} has no docstring"
    assert path.stem not in ("utils", "helpers", "common", "misc")


def test_nothing_is_unpickled() -> None:
    for path in sources():
        text = path.read_text()
        assert "pickle.load" not in text, name_of(path)
        for call in (part.split(")")[0] for part in text.split("torch.load(")[1:]):
            assert "weights_only=True" in call, name_of(path)
