"""What git would commit, and the house rules over it, each a function from the tree to its offences."""

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[2]

Tree = Mapping[str, str]
"""Every text file by its path from the root."""

LINES_MAX = 450
LONG_FILES: Mapping[str, str] = {
    "protos/kyogo/v1/broker.proto": "the data plane is one file by contract, half of it comments",
    "protos/kyogo/v1/admin.proto": "the control plane is one file by contract, half of it comments",
    "tests/integration/test_worker_handlers.py": "a table of what handlers may do, a test each",
    "tests/simulation/ledger.py": "what every client knows of every message, checked as one account",
    "tests/support/model.py": "the plain model of a queue is read beside the contract, as one text",
    "tests/unit/support/test_history.py": "a seeded violation of each invariant, side by side",
}
"""The files that may be longer, and why."""

SOURCE_SUFFIXES = {".css", ".html", ".js", ".proto", ".py", ".sh"}
VAGUE_NAMES = {"common", "helper", "helpers", "manager", "managers", "misc", "util", "utils"}
PERSONAL_PATH = re.compile(r"(?<![\w.])/(?:home|root|Users|work)/[\w.-]+")
REGISTRY = re.compile(
    r"\b(?:[\w-]+\.)*(?:pypi\.org|pythonhosted\.org|npmjs\.(?:org|com)|yarnpkg\.com|debian\.org)\b"
    r"|--(?:extra-)?index-url|--(?:registry)\b"
)
GENERATED = re.compile(r"(?:_pb2(?:_grpc)?\.pyi?|^consumer/kyogo/(?:v1|internal)/.*)$")


def committed_paths() -> list[str]:
    """What is tracked, and what would be with the next `git add`; the rules hold before a commit too."""
    command = [
        "git",
        "-c",
        "safe.directory=*",
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return sorted(path for path in listed.split("\0") if path and (ROOT / path).is_file())


def committed_texts() -> Tree:
    """The same with their contents; binary files have no text to hold to a rule, and are left out."""
    texts = {}
    for path in committed_paths():
        try:
            texts[path] = (ROOT / path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
    return texts


def generated_code(tree: Tree) -> list[str]:
    """What protoc makes is built, never committed."""
    return [path for path in tree if GENERATED.search(path)]


def long_files(tree: Tree) -> list[str]:
    """A file has one reason to change. A reason given for a file that is short by now is an offence too."""
    long = {
        path
        for path, text in tree.items()
        if PurePosixPath(path).suffix in SOURCE_SUFFIXES and text.count("\n") > LINES_MAX
    }
    return [f"{path}: over {LINES_MAX} lines" for path in sorted(long - set(LONG_FILES))] + [
        f"{path}: a reason without need" for path in sorted((set(LONG_FILES) & set(tree)) - long)
    ]


def vague_names(tree: Tree) -> list[str]:
    """A folder is a layer, a file is a noun."""
    return [path for path in tree if VAGUE_NAMES & {PurePosixPath(part).stem for part in path.split("/")}]


def personal_paths(tree: Tree) -> list[str]:
    """Nothing in the tree knows whose machine it was written on."""
    return _found(PERSONAL_PATH, tree)


def registry_hosts(tree: Tree) -> list[str]:
    """Where packages come from is the machine's business: the tree names packages only."""
    return _found(REGISTRY, tree)


def _found(pattern: re.Pattern[str], tree: Tree) -> list[str]:
    return [
        f"{path}:{number}: {match[0]}"
        for path, text in tree.items()
        for number, line in enumerate(text.splitlines(), 1)
        if (match := pattern.search(line))
    ]
