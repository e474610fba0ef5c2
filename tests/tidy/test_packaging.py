"""What a user installs: built from a clean export, complete, and no larger than asked for."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from email import message_from_bytes
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.tidy.tree import ROOT, committed_paths

CLIENT_DEPENDENCIES = {"grpcio", "grpcio-status", "protobuf", "rich", "typer"}

GENERATED = {
    "kyogo/v1/__init__.py",
    "kyogo/v1/broker_pb2.py",
    "kyogo/v1/broker_pb2.pyi",
    "kyogo/v1/broker_pb2_grpc.py",
    "kyogo/v1/admin_pb2.py",
    "kyogo/v1/admin_pb2_grpc.pyi",
    "kyogo/internal/v1/views_pb2.py",
}

IMPORT_WITHOUT = """
import importlib, json, pkgutil, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in missing:
            raise ModuleNotFoundError(f"{name} is not among the client's dependencies", name=name)

missing = set(json.loads(sys.argv[1]))
sys.meta_path.insert(0, Missing())
import kyogo
names = [found.name for found in pkgutil.walk_packages(kyogo.__path__, "kyogo.")]
for name in names:
    # The in-memory broker for users' tests is the one part that needs kyogo[broker].
    if not name.startswith("kyogo.testing"):
        importlib.import_module(name)
print(kyogo.__file__, len(names))
"""


@dataclass(frozen=True, slots=True)
class Built:
    """The two artifacts, and the wheel unpacked, as pip would lay it out."""

    sdist: list[str]
    wheel: list[str]
    installed: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Builds a source distribution from what git would commit, and the wheel from that distribution."""
    export, out = tmp_path_factory.mktemp("export"), tmp_path_factory.mktemp("dist")
    for path in committed_paths():
        (export / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, export / path)
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(export)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    [sdist], [wheel] = out.glob("*.tar.gz"), out.glob("*.whl")
    with tarfile.open(sdist) as archive:
        sdist_names = [name.partition("/")[2] for name in archive.getnames()]
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(out / "installed")  # noqa: S202 - built just above
        return Built(sdist_names, packed.namelist(), out / "installed")


@pytest.mark.slow
def test_a_wheel_from_a_clean_export_carries_generated_code(built: Built) -> None:
    assert set(built.wheel) >= GENERATED | {"kyogo/py.typed", "kyogo_broker/py.typed"}


@pytest.mark.slow
def test_a_wheel_carries_the_two_packages_and_nothing_else(built: Built) -> None:
    assert {name.partition("/")[0] for name in built.wheel} == {
        "kyogo",
        "kyogo_broker",
        "kyogo-0.1.0.dist-info",
    }
    assert not [name for name in built.wheel if "__pycache__" in name]


@pytest.mark.slow
def test_a_source_distribution_can_generate_again(built: Built) -> None:
    generated = {f"consumer/{name}" for name in GENERATED}
    assert set(built.sdist) >= generated | {
        "protos/generate.py",
        "protos/kyogo/v1/broker.proto",
        "hatch_build.py",
    }


@pytest.mark.slow
def test_a_bare_install_brings_the_client_dependencies_only(built: Built) -> None:
    assert set(bare_requirements(built)) == CLIENT_DEPENDENCIES


@pytest.mark.slow
def test_the_sdk_imports_nothing_beyond_the_client_dependencies(built: Built) -> None:
    done = import_without(built, missing_modules(built))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(built.installed))


@pytest.mark.slow
def test_an_import_beyond_the_client_dependencies_is_caught(built: Built) -> None:
    seeded = built.installed / "kyogo" / "seeded.py"
    for module in ("structlog", "kyogo_broker", "numpy"):
        seeded.write_text(f"import {module}\n", encoding="utf-8")
        done = import_without(built, missing_modules(built))
        seeded.unlink()
        assert f"{module} is not among the client's dependencies" in done.stderr


def bare_requirements(built: Built) -> Iterator[str]:
    """The names of the distributions that `pip install kyogo` asks for, without any extra."""
    [metadata] = built.installed.glob("*.dist-info/METADATA")
    required = message_from_bytes(metadata.read_bytes()).get_all("Requires-Dist", [])
    return applying(required)


def applying(requirements: list[str]) -> Iterator[str]:
    for requirement in map(Requirement, requirements):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield canonicalize_name(requirement.name)


def missing_modules(built: Built) -> list[str]:
    """The top-level modules of this environment that a machine with `pip install kyogo` would not have."""
    present: set[str] = set()
    waiting = set(bare_requirements(built))
    while waiting:
        name = waiting.pop()
        present.add(name)
        try:
            waiting |= set(applying(requires(name) or [])) - present
        except PackageNotFoundError:
            continue  # for another platform
    return [
        module
        for module, distributions in packages_distributions().items()
        if module != "kyogo" and not present & {canonicalize_name(name) for name in distributions}
    ] + ["kyogo_broker"]


def import_without(built: Built, missing: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", IMPORT_WITHOUT, json.dumps(missing)],
        env={**os.environ, "PYTHONPATH": str(built.installed)},
        cwd=built.installed,
        capture_output=True,
        text=True,
        check=False,
    )
