"""Addresses in text, and what the environment says."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kyogo.errors import ConfigurationError
from kyogo.target import Target

GOOD = [
    ("kyogo://broker:7000", ("broker:7000",), False),
    ("broker:7000", ("broker:7000",), False),
    ("broker", ("broker:7440",), False),
    ("kyogos://broker.example/", ("broker.example:7440",), True),
    ("kyogo://[::1]:7000", ("[::1]:7000",), False),
    ("[::1]", ("[::1]:7440",), False),
    ("kyogo://a:1,b,c:3", ("a:1", "b:7440", "c:3"), False),
    (" 127.0.0.1:7440 ", ("127.0.0.1:7440",), False),
]


@pytest.mark.parametrize(("url", "addresses", "tls"), GOOD)
def test_good_addresses(url: Any, addresses: Any, tls: Any) -> None:
    target = Target.parse(url)
    assert (target.addresses, target.tls) == (addresses, tls)


@pytest.mark.parametrize(
    "url",
    ["", "http://broker", "kyogo://", "broker:0", "broker:65536", "broker:x", ":7440", "::1", "a b", "kyogo://u:p@h:1"],
)
def test_bad_addresses(url: Any) -> None:
    with pytest.raises(ConfigurationError) as raised:
        Target.parse(url)
    assert "p@" not in str(raised.value)


def test_what_is_given_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_bytes(b"pem")
    monkeypatch.setenv("KYOGO_URL", "kyogo://env:1")
    monkeypatch.setenv("KYOGO_TOKEN", "secret")
    monkeypatch.setenv("KYOGO_CA_FILE", str(ca))
    assert Target.resolve() == Target(("env:1",), token="secret", ca=b"pem")
    assert Target.resolve("given:2", "other") == Target(("given:2",), token="other", ca=b"pem")


def test_without_anything_it_is_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KYOGO_URL", "KYOGO_TOKEN", "KYOGO_CA_FILE"):
        monkeypatch.delenv(name, raising=False)
    assert Target.resolve() == Target(("127.0.0.1:7440",))
    assert Target.resolve().metadata() == ()


def test_a_missing_ca_file_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KYOGO_CA_FILE", "nowhere.pem")
    with pytest.raises(ConfigurationError, match="KYOGO_CA_FILE"):
        Target.resolve()


def test_the_token_is_shown_to_the_broker_and_to_nobody_else() -> None:
    target = Target.parse("h:1", token="secret")
    assert target.metadata() == (("authorization", "Bearer secret"),)
    assert "secret" not in repr(target)
    assert "secret" not in str(target)


def test_importing_the_sdk_reads_no_environment_and_installs_no_handler() -> None:
    code = (
        "import os, logging\n"
        "class Trap(dict):\n"
        "    def get(self, name, default=None):\n"
        "        assert not str(name).startswith('KYOGO_'), name\n"
        "        return default\n"
        "    __getitem__ = get\n"
        "import grpc, grpc.aio, google.protobuf\n"
        "os.environ = Trap()\n"
        "import kyogo, kyogo.sync\n"
        "assert not logging.getLogger().handlers and not logging.getLogger('kyogo').handlers\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
