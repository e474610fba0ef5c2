"""Makes the Python of the wire contract; the one place that does.

Run by the build hook (`hatch_build.py`), so that every install and every wheel carries the code, and by
`make protos`. `--verify` says whether the tree holds what the .proto files say and changes nothing.

The include root is `protos/`, so generated modules import each other as `kyogo.v1`, and the output goes
below `consumer/`, where that name lives. Generated code refuses to load with a protobuf older than its
generator's, hence the oldest supported grpcio-tools in `pyproject.toml`.
"""

import filecmp
import shutil
import sys
import tempfile
from importlib.metadata import distribution
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

PROTOS = Path(__file__).resolve().parent
CONSUMER = PROTOS.parent / "consumer"
OUTPUTS = ("kyogo/v1", "kyogo/internal")
"""The folders that hold nothing but generated code; made anew each time."""

INIT = '"""Generated from the .proto files by protos/generate.py; not to be edited."""\n'


def generate(target: Path) -> None:
    """Writes all generated packages below `target`, replacing what was there."""
    with tempfile.TemporaryDirectory() as scratch:
        _compile(Path(scratch))
        for output in OUTPUTS:
            _replace(Path(scratch) / output, target / output)


def verify(target: Path) -> list[str]:
    """Returns the generated files below `target` that are missing, left over or out of date."""
    with tempfile.TemporaryDirectory() as scratch:
        _compile(Path(scratch))
        return sorted(
            difference
            for output in OUTPUTS
            for difference in _differences(Path(scratch) / output, target / output, output)
        )


def _compile(out: Path) -> None:
    sources = sorted(PROTOS.rglob("*.proto"))
    messages = [str(source) for source in sources]
    services = [str(source) for source in sources if "\nservice " in source.read_text(encoding="utf-8")]
    _protoc(f"--python_out={out}", f"--mypy_out=quiet:{out}", *messages)
    _protoc(f"--grpc_python_out={out}", f"--mypy_grpc_out=quiet:{out}", *services)
    for folder in {source.relative_to(PROTOS).parent for source in sources}:
        # Each level but `kyogo` itself, which is written by hand.
        for package in (folder, *folder.parents[:-2]):
            (out / package / "__init__.py").write_text(INIT, encoding="utf-8")


def _protoc(*arguments: str) -> None:
    include = files("grpc_tools") / "_proto"
    plugins = [f"--plugin={name}={_script(name)}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")]
    if protoc.main(["protoc", f"-I{PROTOS}", f"-I{include}", *plugins, *arguments]) != 0:
        message = "protoc failed; its complaint is above"
        raise SystemExit(message)


def _script(name: str) -> str:
    """Finds a plugin where its package was installed: in a build environment that is not on the PATH."""
    package = distribution("mypy-protobuf")
    return next(
        str(Path(str(package.locate_file(file))).resolve()) for file in package.files or () if file.stem == name
    )


def _replace(made: Path, place: Path) -> None:
    """Puts a folder in place, leaving alone what is the same: no editor and no cache reloads for it."""
    for difference in _differences(made, place, ""):
        path = difference.removeprefix("/")
        if (made / path).exists():
            (place / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(made / path, place / path)
        else:
            (place / path).unlink()


def _differences(made: Path, place: Path, prefix: str) -> list[str]:
    names = {
        str(path.relative_to(folder))
        for folder in (made, place)
        for path in folder.rglob("*.py*")
        if path.suffix in {".py", ".pyi"}
    }
    return [f"{prefix}/{name}" for name in names if not _same(made / name, place / name)]


def _same(one: Path, other: Path) -> bool:
    return one.is_file() and other.is_file() and filecmp.cmp(one, other, shallow=False)


def main(arguments: list[str]) -> int:
    """Generates into the tree, or with `--verify` only compares; 1 when the tree is out of date."""
    if arguments == ["--verify"]:
        differing = verify(CONSUMER)
        for path in differing:
            print(f"out of date: {path}; run `make protos`")
        return 1 if differing else 0
    if arguments:
        print("usage: generate.py [--verify]")
        return 2
    generate(CONSUMER)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
