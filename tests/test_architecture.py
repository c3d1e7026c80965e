"""The order of imports between rooms, and the size of rooms, files and functions."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("flows", "ssl_tasks", "models", "configs")
ORDER = [  # a room imports from itself and from those above it in this list
    "ssl_tasks/errors.py",
    "ssl_tasks/reading.py",
    "configs",
    "models",
    "ssl_tasks/settings",
    "ssl_tasks/store",
    "ssl_tasks/execution",
    "ssl_tasks/data",
    "ssl_tasks/trained",
    "ssl_tasks/methods",
    "ssl_tasks/training",
    "ssl_tasks/pseudo_labels",
    "ssl_tasks/features",
    "ssl_tasks/evaluation",
    "ssl_tasks/tracking",
    "ssl_tasks/report",
    "ssl_tasks/preload.py",
    "flows/environment.py",
    "flows/tables.py",
    "flows/rounds",
    "flows/prefect",
    "flows/actions",
    "flows/cli",
]
LIGHT = [
    "selftrain",
    "selftrain.flows.cli.main",
    "selftrain.flows.actions.verbs",
    "selftrain.flows.rounds.pipeline",
    "selftrain.flows.rounds.stages",
    "selftrain.ssl_tasks.settings.recipe",
    "selftrain.ssl_tasks.store.runs",
    "selftrain.ssl_tasks.tracking.tracker",
]
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
    "prefect": ("flows/prefect", "flows/actions"),
    "mlflow": ("ssl_tasks/tracking",),
    "albumentations": ("ssl_tasks/data",),
    "duckdb": ("ssl_tasks/pseudo_labels", "ssl_tasks/data", "ssl_tasks/report"),
    "torchvision": ("models",),
    "usearch": ("ssl_tasks/features",),
    "ray": ("ssl_tasks/execution/cluster.py",),
}
MOST_FILES = 15  # in a folder, beside its subfolders
ONE_FILE_A_METHOD = "ssl_tasks/methods"  # the list of its files is the table of the methods
MOST_LINES, MOST_LINES_OF_A_FUNCTION = 400, 80


@cache
def sources() -> dict[str, ast.Module]:
    """Every source file of the package, by its path in the repository."""
    found = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in found}


def imports(tree: ast.Module) -> Iterator[str]:
    """Every module that a file imports, at its top or within functions; imports for types alone are left out."""
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
            yield from (f"{node.module}.{name.name}" for name in node.names)


def rank(path: str) -> int:
    """The place of a file's room in the order; packages that only hold rooms come first."""
    return next((at for at, room in enumerate(ORDER) if path == room or path.startswith(f"{room}/")), -1)


def file_of(module: str) -> str | None:
    """The source file of a module of ours, or of the module that a name is imported from."""
    parts = module.split(".")[1:]
    for end in range(len(parts), 0, -1):
        for path in ("/".join(parts[:end]) + ".py", "/".join([*parts[:end], "__init__.py"])):
            if path in sources():
                return path
    return None


def test_imports_point_down() -> None:
    wrong = []
    for path, tree in sources().items():
        for module in imports(tree):
            top = module.split(".")[0]
            assert top not in PACKAGES, f"{path} imports {module}: ours are named selftrain.{module}"
            if top == "selftrain" and (target := file_of(module)) is not None and rank(target) > rank(path):
                wrong.append(f"{path} imports {module}, which lies above it")
            if top in HOMES and not path.startswith(HOMES[top]):
                wrong.append(f"{path} imports {module}, whose home is {' or '.join(HOMES[top])}")
    assert not wrong, "\n".join(wrong)


def test_files_do_not_import_each_other_in_a_circle() -> None:
    """Imports at the top of files alone: what a function imports when it is called can wait."""
    needs: dict[str, set[str]] = {}
    for path, tree in sources().items():
        top = ast.Module([node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))], [])
        targets = (file_of(module) for module in imports(top))
        needs[path] = {target for target in targets if target is not None and target != path}
    while ready := {path for path, targets in needs.items() if not targets & needs.keys()}:
        needs = {path: targets for path, targets in needs.items() if path not in ready}
    assert not needs, "these files import each other: " + ", ".join(sorted(needs))


def test_training_knows_methods_by_their_base_alone() -> None:
    known = ("selftrain.ssl_tasks.methods.base", "selftrain.ssl_tasks.methods.math")
    for path, tree in sources().items():
        if path.startswith("ssl_tasks/training/"):
            for module in imports(tree):
                name = module.removeprefix("selftrain.ssl_tasks.methods.")
                one_method = module != name and file_of(module) == f"ssl_tasks/methods/{name.split('.')[0]}.py"
                assert not one_method or module.startswith(known), f"{path} names a method: {module}"


def test_models_know_nothing_of_their_users() -> None:
    for path, tree in sources().items():
        if path.startswith("models/"):
            ours = [module for module in imports(tree) if module.startswith("selftrain.")]
            below = ("selftrain.models", "selftrain.ssl_tasks.errors")
            assert all(module.startswith(below) for module in ours), f"{path} imports {ours}"


def test_reading_recipes_and_records_imports_nothing_heavy() -> None:
    """One process imports them one after another and says after each what is loaded."""
    code = f"import importlib, sys\nfor name in {LIGHT}: importlib.import_module(name); print(name, *sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert len(said.splitlines()) == len(LIGHT)
    for line in said.splitlines():
        module, *loaded = line.split()
        assert not HEAVY & set(loaded), f"{module} imports {HEAVY & set(loaded)}"


def test_a_bare_gpu_machine_can_train() -> None:
    """With no more than `benchmarks/gpu.py` says that it needs."""
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({NOT_ON_A_GPU_MACHINE})); import benchmarks.gpu\n"
        "from selftrain import models\n"
        "models.build_model(models.ModelSettings(name='mlp'), 10, 1, 8); print('it trains')"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert ended.stdout == "it trains\n", ended.stderr


def test_rooms_files_and_functions_stay_readable() -> None:
    folders: dict[str, int] = {}
    for path, tree in sources().items():
        folder, _, name = path.rpartition("/")
        folders[folder] = folders.get(folder, 0) + (name != "__init__.py")
        lines = (ROOT / path).read_text().count("\n")
        assert lines <= MOST_LINES, f"{path} has {lines} lines: too long to hold one idea"
        assert ast.get_docstring(tree), f"{path} has no docstring"
        assert name not in ("utils.py", "helpers.py", "common.py", "misc.py"), f"{path}: name it by what it holds"
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = (node.end_lineno or 0) - node.lineno
                assert length <= MOST_LINES_OF_A_FUNCTION, f"{path}:{node.name} has {length} lines"
    crowded = {folder: count for folder, count in folders.items() if count > MOST_FILES and folder != ONE_FILE_A_METHOD}
    assert not crowded, f"folders with more than {MOST_FILES} files: {crowded}"


def test_nothing_is_unpickled() -> None:
    for path in sources():
        text = (ROOT / path).read_text()
        assert "pickle.load" not in text, path
        for call in (part.split(")")[0] for part in text.split("torch.load(")[1:]):
            assert "weights_only=True" in call, path


def test_the_answers_to_where_is_it_are_true() -> None:
    """Each file of the table in docs/architecture.md exists and defines what the table says."""
    table = (ROOT / "docs" / "architecture.md").read_text().split("## Where is …?")[1]
    rows = [line.split("|") for line in table.splitlines() if line.startswith("| ") and "`" in line]
    assert len(rows) >= 20
    for _, question, files, names, _ in rows:
        paths = [word for word in files.split("`") if word.endswith(".py")]
        defined = {
            getattr(node, "name", None) or getattr(target, "id", None)
            for node in ast.walk(sources()[paths[0]])
            if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Assign))
            for target in getattr(node, "targets", [node])
        }
        asked = {name.split(".")[-1] for name in names.split("`")[1::2]}
        assert asked <= defined, f"{question.strip()}: {paths[0]} lacks {asked - defined}"


def test_the_ways_through_the_code_are_as_short_as_documented() -> None:
    """Each function is in its file and is tied to an earlier one of its way, and the table counts the files."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    section = text.split("## Ways through the code")[1].split("\n## ")[0]
    counted = [int(line.split("|")[2]) for line in section.splitlines() if re.match(r"\| .* \| \d+ \|", line)]
    ways = [re.findall(r"`([\w/]+\.py)`\s+`(\w+)`", way) for way in section.split("\n- ")[1:]]
    step, threshold, rerun, image = ways
    assert counted == [4, len(step), len(threshold), len(rerun), len(image)]
    assert len(step) <= 10
    assert len(threshold) <= 9
    assert len(rerun) <= 12
    assert len(image) <= 9
    for way in ways:
        assert len({path for path, _ in way}) == len(way)
        names, passed = [], ""
        for path, name in way:
            source = (ROOT / path).read_text()
            assert re.search(rf"^\s*(def|class) {name}\b", source, re.MULTILINE), f"{path} does not define {name}"
            called = re.search(rf"\b({name}|{Path(path).stem})\b", passed)
            refers = any(re.search(rf"\b{one}\b", source) for one in names)
            assert not names or called or refers, f"{path} and the files before it do not name one another"
            passed += source
            names.append(name)
