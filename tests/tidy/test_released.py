"""The wire contract breaks nobody: it is compared with the one released last, `protos/released.binpb`."""

import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from tests.tidy.tree import ROOT

BUF = Path(sysconfig.get_path("scripts")) / "buf"


def breaks(root: Path) -> subprocess.CompletedProcess[str]:
    command = [str(BUF), "breaking", "--against", str(ROOT / "protos" / "released.binpb")]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


def test_the_contract_breaks_nothing_that_was_released() -> None:
    done = breaks(ROOT)
    assert done.returncode == 0, (
        f"{done.stdout}{done.stderr}Clients that were built from the last release would break: keep what it had, and add "
        "beside it. (`make released` renews the image, at a release and only then.)"
    )


@pytest.mark.parametrize(
    ("file", "before", "after", "said"),
    [
        ("broker.proto", "string producer_id = 3;", "", "was deleted"),
        ("broker.proto", "string producer_id = 3;", "string producer_id = 4;", "was deleted"),
        ("broker.proto", "string producer_id = 3;", "bytes producer_id = 3;", "changed type"),
        ("broker.proto", "string producer_id = 3;", "string publisher_id = 3;", "changed name"),
        ("broker.proto", "OUTCOME_RELEASE = 3;", "OUTCOME_GIVE_BACK = 3;", "changed name"),
        ("admin.proto", "rpc PurgeQueue(", "rpc EmptyQueue(", "was deleted"),
    ],
)
def test_a_broken_contract_is_caught(file: str, before: str, after: str, said: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "protos", tmp_path / "protos")
    shutil.copy(ROOT / "buf.yaml", tmp_path)
    source = tmp_path / "protos" / "kyogo" / "v1" / file
    text = source.read_text(encoding="utf-8")
    assert before in text
    source.write_text(text.replace(before, after, 1), encoding="utf-8")
    done = breaks(tmp_path)
    assert done.returncode != 0
    assert said in done.stdout, done.stdout + done.stderr


def test_what_is_added_breaks_nothing(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "protos", tmp_path / "protos")
    shutil.copy(ROOT / "buf.yaml", tmp_path)
    source = tmp_path / "protos" / "kyogo" / "v1" / "broker.proto"
    text = source.read_text(encoding="utf-8")
    field = "string producer_id = 3;"
    source.write_text(text.replace(field, f"{field}\n  string more = 900;", 1), encoding="utf-8")
    done = breaks(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
