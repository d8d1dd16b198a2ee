"""The rules of the house, checked on the syntax tree: what no test enforces decays."""

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("pipeline", "features", "models")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MAX_FILE_LINES = 350
MAX_FUNCTION_LINES = 60
ONLY_IN = {
    # tables.py reads and writes; table_files.py tells a doctor what the log says of the files.
    "deltalake": {"pipeline/tables.py", "pipeline/table_files.py"},
    "distributed": {"pipeline/dask_engine.py"},
    "faiss": {"pipeline/index.py"},
    "fastapi": {"pipeline/serve.py"},
    "lmdb": {"pipeline/feed_lmdb.py"},
    # MLflow runs the served model's own file, so that one imports it too.
    "mlflow": {"pipeline/tracking.py", "pipeline/registry.py", "pipeline/served_model.py"},
    "redis": {"pipeline/feed_redis.py"},
    "sacrebleu": {"pipeline/translation_metrics.py"},
}
FORBIDDEN_IMPORTS = {"pickle", "cloudpickle", "joblib", "pandas", "dill"}
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "factory"}


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def _relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", SOURCES, ids=_relative)
def test_imports_go_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    forbidden = {
        "features": {"pipeline", "models", "torch", "mlflow", "dags"},
        "models": {"pipeline", "features", "polars", "mlflow", "dags"},
        "pipeline": {"dags", "tests", "benchmarks"},
    }[package]
    found = {name.split(".")[0] for name in _imports(path)}
    assert not found & (forbidden | FORBIDDEN_IMPORTS)


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_at_the_edge_is_imported_in_its_own_file_only(library: str) -> None:
    users = {_relative(path) for path in SOURCES if library in {name.split(".")[0] for name in _imports(path)}}
    assert users == ONLY_IN[library]


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_is_loaded_from_this_repository(package: str) -> None:
    found = importlib.util.find_spec(package)
    assert found is not None
    assert found.origin is not None
    assert Path(found.origin).resolve() == (ROOT / package / "__init__.py").resolve()


@pytest.mark.parametrize("path", SOURCES, ids=_relative)
def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < MAX_FUNCTION_LINES, node.name


@pytest.mark.parametrize("path", SOURCES, ids=_relative)
def test_no_call_to_print_no_kwargs_and_no_name_that_says_nothing(path: Path) -> None:
    assert path.stem not in FORBIDDEN_NAMES
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", node.lineno
        if isinstance(node, ast.FunctionDef):
            assert node.args.kwarg is None, node.name


@pytest.mark.parametrize("path", SOURCES, ids=_relative)
def test_no_exception_is_swallowed(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"bare except in line {node.lineno}"
            assert not all(isinstance(statement, ast.Pass) for statement in node.body), node.lineno
