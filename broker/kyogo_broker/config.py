"""What an operator can say, assembled once: flags before `KYOGO_*` before a TOML file before defaults.

Everything below this file is handed frozen settings objects; nothing else reads the environment. A wrong
value is one line that names the setting, what is wrong and what would be right.
"""

import ipaddress
import os
import re
import socket
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

from pydantic import ByteSize, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from kyogo_broker.core.shard import ShardConfig
from kyogo_broker.model.errors import RefusedError
from kyogo_broker.ops.logs import LogFormat, LogLevel, LogSettings
from kyogo_broker.server.limits import Limits

ENV_PREFIX = "KYOGO_"
FILE_VARIABLE = "KYOGO_CONFIG"
DEFAULT_LISTEN = "127.0.0.1:7440"
DEFAULT_HTTP = "127.0.0.1:7441"
HTTP_OFF = "off"
PORT_MAX = 65_535
NODE_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


class ConfigError(Exception):
    """Settings that cannot work; a line for each, with its remedy."""

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A broker's settings, checked, relations included."""

    listen: Address
    http: Address | None
    """None: no HTTP port."""
    http_hosts: frozenset[str]
    """Names, beside addresses and localhost, under which the HTTP port may be asked."""
    data: Path
    """Absolute."""
    ephemeral: bool
    ready_file: Path | None
    node: str
    insecure: bool
    grace_seconds: float
    """For a stop: what consumers have to finish in."""
    memory_limit_bytes: int | None
    """Publishes are refused above it; None: by the machine."""
    min_free_bytes: int | None
    """Publishes are refused below it; None: by the disk."""
    limits: Limits
    shard: ShardConfig
    log: LogSettings


def load_config(flags: Mapping[str, object], file: Path | None = None) -> Config:
    """Assemble the settings.

    Args:
        flags: from the command line, by field name; those not given are left out.
        file: a TOML file; None: what `KYOGO_CONFIG` names, if anything.

    Raises:
        ConfigError: something is wrong or does not go together.
    """
    named = os.environ.get(FILE_VARIABLE)
    chosen = file if file is not None else Path(named) if named else None
    said = _said(flags, chosen)
    listen = _address("listen", said.listen)
    http = None if said.http == HTTP_OFF else _address("http", said.http)
    for setting, address in (("listen", listen), ("http", http)):
        if address is not None and not address.is_loopback and not said.insecure:
            raise ConfigError(
                f"{setting} {address} can be reached by other machines, and this broker has no TLS and no "
                f"authentication yet: use 127.0.0.1, or say --insecure if everybody in that network may use it"
            )
    if said.auto_create and not listen.is_loopback:
        raise ConfigError(
            f"auto_create goes with loopback only, and listen is {listen}: create queues with `kyogo queue create`"
        )
    if not NODE_NAME.fullmatch(said.node):
        raise ConfigError(f"node {said.node!r} is no name: use 1 to 64 characters of A-Z a-z 0-9 . _ -")
    try:
        return _config(said, listen, http)
    except RefusedError as error:
        raise ConfigError(error.refusal.message) from None


def settings_names() -> tuple[str, ...]:
    """Every setting, as a TOML file spells it."""
    return tuple(_Said.model_fields)


def _default_node() -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:64] or "broker"


_LIMITS = Limits()
_SHARD = ShardConfig()


class _Said(BaseSettings):
    """Every setting by its own name, as flags, environment and file spell it."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid")

    listen: str = DEFAULT_LISTEN
    http: str = DEFAULT_HTTP
    http_hosts: str = ""
    data: Path = Path("data")
    ephemeral: bool = False
    ready_file: Path | None = None
    node: str = Field(default_factory=_default_node)
    insecure: bool = False
    auto_create: bool | None = None
    grace_seconds: Annotated[float, Field(ge=0, le=3600)] = 10.0
    log_format: LogFormat = "auto"
    log_level: LogLevel = "info"
    memory_limit: ByteSize | None = None
    min_free: ByteSize | None = None
    max_message_bytes: ByteSize = ByteSize(_LIMITS.max_message_bytes)
    max_request_bytes: ByteSize = ByteSize(_LIMITS.max_request_bytes)
    max_prefetch_messages: int = _LIMITS.max_prefetch_messages
    max_prefetch_bytes: ByteSize = ByteSize(_LIMITS.max_prefetch_bytes)
    max_streams: int = _LIMITS.max_streams
    max_streams_per_client: int = _LIMITS.max_streams_per_client
    max_calls: int = _LIMITS.max_calls
    max_queues: Annotated[int, Field(ge=1, le=100_000)] = _SHARD.queues_max
    max_producers: Annotated[int, Field(ge=1, le=1_000_000)] = _SHARD.producers_max
    heartbeat_interval_ms: int = _SHARD.heartbeat_interval_ms
    min_heartbeat_interval_ms: Annotated[int, Field(ge=10, le=60_000)] = _SHARD.heartbeat_interval_ms_min
    max_heartbeat_interval_ms: Annotated[int, Field(ge=1_000, le=3_600_000)] = _SHARD.heartbeat_interval_ms_max


def _said(flags: Mapping[str, object], file: Path | None) -> _Said:
    if file is not None and not file.is_file():
        raise ConfigError(f"config {file}: there is no such file; name an existing one, or leave --config out")

    class Said(_Said):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  # there is no such file
            file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003  # nor this one
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            sources = (init_settings, env_settings)
            if file is None:
                return sources
            return (*sources, TomlConfigSettingsSource(settings_cls, toml_file=file))

    try:
        return Said(**dict(flags))  # type: ignore[arg-type]  # checked by pydantic
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"config {file}: {error}") from None
    except ValidationError as error:
        raise ConfigError(*(_line(dict(item)) for item in error.errors())) from None


def _line(item: Mapping[str, object]) -> str:
    """One of pydantic's errors as a sentence."""
    place = item["loc"]
    assert isinstance(place, tuple), "pydantic says where"
    name = ".".join(str(part) for part in place)
    if item["type"] == "extra_forbidden":
        near = get_close_matches(name, settings_names(), n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(settings_names())}"
        return f"{name} is no setting; {hint}"
    value = item["input"]
    return f"{name} = {value!r}: {item['msg']} (--{name.replace('_', '-')} or {ENV_PREFIX}{name.upper()})"


def _address(setting: str, text: str) -> Address:
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or int(port) > PORT_MAX:
        raise ConfigError(
            f"{setting} {text!r} is no address: write HOST:PORT with a port up to {PORT_MAX}, such as "
            f"{DEFAULT_LISTEN}; port 0 takes a free one"
        )
    return Address(host, int(port))


def _config(said: _Said, listen: Address, http: Address | None) -> Config:
    shard = ShardConfig(
        auto_create=listen.is_loopback if said.auto_create is None else said.auto_create,
        queues_max=said.max_queues,
        producers_max=said.max_producers,
        prefetch_messages_max=said.max_prefetch_messages,
        prefetch_bytes_max=said.max_prefetch_bytes,
        heartbeat_interval_ms=said.heartbeat_interval_ms,
        heartbeat_interval_ms_min=said.min_heartbeat_interval_ms,
        heartbeat_interval_ms_max=said.max_heartbeat_interval_ms,
    )
    low, high = shard.heartbeat_interval_ms_min, shard.heartbeat_interval_ms_max
    if not low <= shard.heartbeat_interval_ms <= high:
        raise ConfigError(
            f"heartbeat_interval_ms is {shard.heartbeat_interval_ms}; it must lie between "
            f"min_heartbeat_interval_ms ({low}) and max_heartbeat_interval_ms ({high})"
        )
    return Config(
        listen=listen,
        http=http,
        http_hosts=frozenset(filter(None, (host.strip().lower() for host in said.http_hosts.split(",")))),
        data=said.data.expanduser().absolute(),
        ephemeral=said.ephemeral,
        ready_file=None if said.ready_file is None else said.ready_file.absolute(),
        node=said.node,
        insecure=said.insecure,
        grace_seconds=said.grace_seconds,
        memory_limit_bytes=said.memory_limit,
        min_free_bytes=said.min_free,
        limits=Limits(
            max_message_bytes=said.max_message_bytes,
            max_request_bytes=said.max_request_bytes,
            max_prefetch_messages=said.max_prefetch_messages,
            max_prefetch_bytes=said.max_prefetch_bytes,
            max_streams=said.max_streams,
            max_streams_per_client=said.max_streams_per_client,
            max_calls=said.max_calls,
        ),
        shard=shard,
        log=LogSettings(format=said.log_format, level=said.log_level),
    )
