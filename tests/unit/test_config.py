"""Settings: flags before environment before file before defaults, and a clear line for what is wrong."""

from pathlib import Path

import pytest

from kyogo_broker.config import Address, ConfigError, load_config, settings_names


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in settings_names():
        monkeypatch.delenv(f"KYOGO_{name.upper()}", raising=False)
    monkeypatch.delenv("KYOGO_CONFIG", raising=False)


def refused(**flags: object) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(flags)
    for line in caught.value.lines:
        assert "\n" not in line
    return str(caught.value)


def test_defaults_are_a_newcomers_broker() -> None:
    config = load_config({})
    assert (str(config.listen), str(config.http)) == ("127.0.0.1:7440", "127.0.0.1:7441")
    assert config.data == Path("data").absolute()
    assert config.shard.auto_create
    assert not config.ephemeral
    assert config.grace_seconds == 10.0
    assert config.node


def test_flags_come_before_the_environment_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "broker.toml"
    file.write_text('node = "from-file"\nhttp = "off"\nmax_streams = 5\nmax_calls = 6\nmemory_limit = "2GiB"\n')
    monkeypatch.setenv("KYOGO_NODE", "from-environment")
    monkeypatch.setenv("KYOGO_MAX_STREAMS", "7")
    config = load_config({"node": "from-flag"}, file)
    assert config.node == "from-flag"
    assert config.limits.max_streams == 7
    assert config.limits.max_calls == 6
    assert config.http is None
    assert config.memory_limit_bytes == 2 << 30


def test_the_file_can_be_named_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "broker.toml"
    file.write_text('node = "here"\n')
    monkeypatch.setenv("KYOGO_CONFIG", str(file))
    assert load_config({}).node == "here"


def test_variables_of_the_client_are_not_the_brokers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KYOGO_URL", "broker:1")
    monkeypatch.setenv("KYOGO_TOKEN", "secret")
    load_config({})


def test_settings_reach_where_they_are_used() -> None:
    config = load_config(
        {
            "max_prefetch_messages": 20_000,
            "max_prefetch_bytes": "128MiB",
            "heartbeat_interval_ms": 500,
            "max_queues": 3,
            "min_free": 5,
            "http_hosts": "Broker.example, other",
        }
    )
    assert config.limits.max_prefetch_messages == config.shard.prefetch_messages_max == 20_000
    assert config.limits.max_prefetch_bytes == config.shard.prefetch_bytes_max == 128 << 20
    assert config.shard.heartbeat_interval_ms == 500
    assert config.shard.queues_max == 3
    assert config.min_free_bytes == 5
    assert config.http_hosts == {"broker.example", "other"}


@pytest.mark.parametrize("address", ["0.0.0.0:7440", "[::]:7440", "192.0.2.7:1", "example.org:7440"])
@pytest.mark.parametrize("setting", ["listen", "http"])
def test_off_loopback_needs_to_be_said(setting: str, address: str) -> None:
    said = refused(**{setting: address})
    assert "--insecure" in said
    assert setting in said
    config = load_config({setting: address, "insecure": True})
    assert not (config.listen.is_loopback and config.http is not None and config.http.is_loopback)


@pytest.mark.parametrize("address", ["127.0.0.1:0", "127.9.9.9:1", "[::1]:7440", "localhost:7440"])
def test_loopback_needs_nothing(address: str) -> None:
    assert load_config({"listen": address}).listen.is_loopback


def test_queues_are_made_by_publishing_on_loopback_only() -> None:
    assert not load_config({"listen": "0.0.0.0:1", "insecure": True}).shard.auto_create
    assert not load_config({"auto_create": False}).shard.auto_create
    assert "auto_create" in refused(listen="0.0.0.0:1", insecure=True, auto_create=True)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"listen": "7440"}, "HOST:PORT"),
        ({"listen": "127.0.0.1:"}, "HOST:PORT"),
        ({"listen": "127.0.0.1:65536"}, "HOST:PORT"),
        ({"listen": ":7440"}, "HOST:PORT"),
        ({"http": "nowhere"}, "http"),
        ({"node": "a b"}, "node"),
        ({"node": ""}, "node"),
        ({"grace_seconds": -1}, "--grace-seconds or KYOGO_GRACE_SECONDS"),
        ({"log_level": "loud"}, "'debug'"),
        ({"log_format": "xml"}, "'json'"),
        ({"max_streams": "many"}, "max_streams"),
        ({"max_streams": 0}, "max_streams is 0"),
        ({"max_message_bytes": "5MiB"}, "max_message_bytes"),
        ({"heartbeat_interval_ms": 70_000}, "max_heartbeat_interval_ms"),
        ({"memory_limit": "lots"}, "memory_limit"),
        ({"lisen": "127.0.0.1:1"}, "did you mean listen?"),
        ({"xyz": 1}, "there are listen, http"),
    ],
)
def test_what_is_wrong_is_one_line_with_a_remedy(flags: dict[str, object], words: str) -> None:
    assert words in refused(**flags)


def test_every_wrong_value_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KYOGO_MAX_CALLS", "x")
    said = refused(max_streams="y", log_level="z")
    assert all(name in said for name in ("max_calls", "max_streams", "log_level"))


@pytest.mark.parametrize(
    ("text", "words"),
    [("listen = ", "broker.toml"), ('lisen = "a:1"', "did you mean listen"), ("max_calls = []", "max_calls")],
)
def test_a_bad_file_is_named(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "broker.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_config({}, file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no\.toml"):
        load_config({}, tmp_path / "no.toml")


def test_addresses_are_written_as_they_are_read() -> None:
    assert str(Address("::1", 5)) == "[::1]:5"
    assert str(Address("127.0.0.1", 5)) == "127.0.0.1:5"
