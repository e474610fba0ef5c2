"""What all tests share."""

import asyncio

from hypothesis import settings

# How long one example takes says more of the machine than of the code.
settings.register_profile("kyogo", deadline=None)
settings.load_profile("kyogo")


def pytest_configure() -> None:
    # pytest-asyncio asks for "the current event loop" before there is one, and asyncio would make one that nobody
    # closes: a ResourceWarning at the end, which is an error here. Once told that there is none, it makes none.
    asyncio.set_event_loop(None)
