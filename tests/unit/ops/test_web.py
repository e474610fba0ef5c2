"""The HTTP port: who may ask, and what is answered. The real port is tried in `integration/test_lifecycle.py`."""

import httpx
import pytest
from starlette.responses import PlainTextResponse

from kyogo_broker.ops.web import HostCheck


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:1", 200),
        ("LOCALHOST", 200),
        ("10.1.2.3:80", 200),
        ("[::1]:80", 200),
        ("allowed.example", 200),
        ("evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("", 421),
        ("[evil", 421),
        ("[::1].evil.example", 421),
        ("[::1]evil", 421),
        ("127.0.0.1:80evil", 421),
        ("localhost:80@evil.example", 421),
    ],
)
async def test_a_name_that_is_not_ours_gets_nothing(host: str, status: int) -> None:
    check = HostCheck(PlainTextResponse("in"), {"allowed.example"})
    transport = httpx.ASGITransport(app=check)
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        assert (await client.get("/", headers={"host": host})).status_code == status
