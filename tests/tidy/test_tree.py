"""The house rules over every committed file; each rule is also shown a violation that it must catch."""

from collections.abc import Callable

import pytest

from tests.tidy import tree
from tests.tidy.tree import ROOT, Tree

Rule = Callable[[Tree], list[str]]

# Put together here, so that the seeds do not break the rules themselves.
SEEDS: list[tuple[Rule, str, str]] = [
    (tree.generated_code, "consumer/kyogo/v1/broker_pb2.py", ""),
    (tree.generated_code, "consumer/kyogo/internal/__init__.py", ""),
    (tree.generated_code, "examples/broker_pb2_grpc.pyi", ""),
    (tree.long_files, "broker/kyogo_broker/seeded.py", "x\n" * 451),
    (tree.long_files, "protos/kyogo/v1/broker.proto", "// short\n"),
    (tree.vague_names, "broker/kyogo_broker/server/helpers.py", ""),
    (tree.vague_names, "consumer/kyogo/common/session.py", ""),
    (tree.personal_paths, "README.md", "see /" + "home/someone/kyogo"),
    (tree.personal_paths, "Makefile", "PYTHON = /" + "work/.venv/bin/python"),
    (
        tree.registry_hosts,
        "examples/node/package-lock.json",
        '"resolved": "https://registry.npmjs.' + 'org/x"',
    ),
    (tree.registry_hosts, ".ci/run", "pip install --index-" + "url http://localhost kyogo"),
]
RULES = list(dict.fromkeys(rule for rule, _, _ in SEEDS))


@pytest.fixture(scope="module")
def committed() -> Tree:
    return tree.committed_texts()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_tree_keeps_the_rule(rule: Rule, committed: Tree) -> None:
    assert rule(committed) == []


@pytest.mark.parametrize(("rule", "path", "text"), SEEDS, ids=lambda value: getattr(value, "__name__", None))
def test_the_rule_catches_a_violation(rule: Rule, path: str, text: str) -> None:
    assert rule({path: text, "kyogo/innocent.py": "import json\n"}) != []


def test_the_rules_see_the_tree(committed: Tree) -> None:
    assert {"pyproject.toml", "protos/kyogo/v1/broker.proto", "broker/kyogo_broker/clock.py"} <= set(committed)


def test_the_changelog_has_a_place_for_what_comes_next() -> None:
    assert "\n## [Unreleased]\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_ci_runs_the_test_command_of_the_readme() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    check = makefile.partition("\ncheck:")[2].partition("\n\n")[0]
    assert "make test" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert check.endswith("\t@$(MAKE) test")
    assert (ROOT / ".ci" / "run").read_text(encoding="utf-8").rstrip().endswith('make check PYTHON="$python"')
