"""The SDK's front door opens lazily, and to everything that stands on it."""

import subprocess
import sys

import pytest

import kyogo


@pytest.mark.parametrize("name", kyogo.__all__)
def test_a_public_name_can_be_imported(name: str) -> None:
    assert getattr(kyogo, name).__name__ == name


def test_every_public_name_has_one_home() -> None:
    assert sorted(kyogo._HOMES) == sorted(kyogo.__all__) == dir(kyogo)


def test_an_unknown_name_is_an_ordinary_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Broker'"):
        _ = kyogo.Broker


def test_the_wire_contract_alone_does_not_load_workers() -> None:
    code = "import sys; import kyogo.v1.broker_pb2; print([m for m in sys.modules if m.startswith('kyogo.w')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
