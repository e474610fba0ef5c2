"""Where the broker is and what to show it: `kyogo://host:port` or `host:port`, and a token.

    kyogo://127.0.0.1:7440            in the clear
    kyogos://broker.example:7440      TLS, system roots or `KYOGO_CA_FILE`
    kyogo://a:7440,b:7440             several: the next one is tried when one cannot be reached

The environment is read when a worker or publisher connects, never at import.
"""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from kyogo.errors import ConfigurationError

DEFAULT_PORT = 7440
_DEFAULT_URL = f"kyogo://127.0.0.1:{DEFAULT_PORT}"
_SCHEMES = {"kyogo": False, "kyogos": True}
_URL = re.compile(r"(?:(?P<scheme>[a-z][a-z0-9+.-]*)://)?(?P<hosts>[^/?#\s]+)/?")
_PORTS = range(1, 65_536)


@dataclass(frozen=True, slots=True)
class Target:
    """One broker or cluster, and how to be let in."""

    addresses: tuple[str, ...]
    """Each `host:port`; at least one."""
    tls: bool = False
    token: str | None = field(default=None, repr=False)
    """Sent as `authorization: Bearer`. None: nothing is shown."""
    ca: bytes | None = field(default=None, repr=False)
    """The roots to trust, PEM. None: the system's. Only with TLS."""

    @classmethod
    def resolve(cls, url: str | None = None, token: str | None = None) -> "Target":
        """What was given, else what KYOGO_URL, KYOGO_TOKEN and KYOGO_CA_FILE say, else this machine.

        Raises:
            ConfigurationError: the address cannot be understood, or the CA file cannot be read.
        """
        address = os.environ.get("KYOGO_URL") if url is None else url
        secret = os.environ.get("KYOGO_TOKEN") if token is None else token
        return cls.parse(address if address else _DEFAULT_URL, token=secret, ca=_ca_from_environment())

    @classmethod
    def parse(cls, url: str, *, token: str | None = None, ca: bytes | None = None) -> "Target":
        """The target that an address in text names.

        Raises:
            ConfigurationError: it is none.
        """
        match = _URL.fullmatch(url.strip())
        scheme = match["scheme"] or "kyogo" if match is not None else ""
        if match is None or scheme not in _SCHEMES or "@" in match["hosts"]:
            raise ConfigurationError(
                f"{_without_secret(url)!r} is no broker's address: write kyogo://host:port, kyogos://host:port for"
                " TLS, or host:port; the token goes into KYOGO_TOKEN"
            )
        addresses = tuple(_with_port(host, url) for host in match["hosts"].split(","))
        return cls(addresses=addresses, tls=_SCHEMES[scheme], token=token if token else None, ca=ca)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What goes with every call."""
        return () if self.token is None else (("authorization", f"Bearer {self.token}"),)

    def __str__(self) -> str:
        return f"{'kyogos' if self.tls else 'kyogo'}://{','.join(self.addresses)}"


def _with_port(host: str, url: str) -> str:
    name, colon, port = host.rpartition(":")
    if not colon or host.endswith("]"):  # a bare name, or an IPv6 address in brackets
        name, port = host, str(DEFAULT_PORT)
    if not name or (":" in name and not name.startswith("[")):
        raise ConfigurationError(f"{url!r} names no host: write host:port, an IPv6 address in brackets: [::1]:7440")
    if not port.isdecimal() or int(port) not in _PORTS:
        raise ConfigurationError(f"{port!r} in {url!r} is no port: use 1 to 65535; brokers listen on {DEFAULT_PORT}")
    return f"{name}:{port}"


def _ca_from_environment() -> bytes | None:
    path = os.environ.get("KYOGO_CA_FILE")
    if not path:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigurationError(f"KYOGO_CA_FILE cannot be read: {error}. Name a PEM file with the roots") from error


def _without_secret(url: str) -> str:
    return re.sub(r"//[^@/]*@", "//***@", url)
