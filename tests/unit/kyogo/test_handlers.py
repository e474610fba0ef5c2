"""What can be a handler, and which one is found."""

import functools
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from kyogo.codec import Codecs
from kyogo.errors import ConfigurationError
from kyogo.handlers import HandlerOptions, Handlers
from kyogo.message import Message
from tests.support.sdk_sessions import attached_session, deliver

if TYPE_CHECKING:
    from decimal import Decimal


def add(function: Any, type_: Any = None, queue: Any = "orders", handlers: Any = None) -> Any:
    handlers = Handlers(Codecs()) if handlers is None else handlers
    return handlers.add(queue, type_, function, HandlerOptions())


def message(body: Any = b'{"a":1}', type_: Any = "") -> Any:
    session = attached_session()
    (delivery,) = deliver(session, 1)
    delivery._wire.body, delivery._wire.type = body, type_
    return delivery


class Called:
    async def __call__(self, body: dict[str, Any]) -> None: ...

    def method(self, body: bytes, message: Message) -> None: ...


def plain(body: Any) -> None: ...
def text(body: str) -> None: ...
def late_hint(body: "Decimal", message: "Message") -> None: ...
def optional(body: bytes, message: Message | None = None) -> None: ...
def defaulted(body: bytes, retries: int = 3) -> None: ...
def only_message(message: Message) -> None: ...
async def coroutine(body: list[Any], message: Any) -> None: ...


MESSAGE = object()
CALLED = [
    (plain, False, ({"a": 1},)),
    (text, False, ('{"a":1}',)),
    (late_hint, False, ({"a": 1}, MESSAGE)),
    (optional, False, (b'{"a":1}', MESSAGE)),
    (defaulted, False, (b'{"a":1}',)),
    (only_message, False, (MESSAGE,)),
    (Called(), True, ({"a": 1},)),
    (Called().method, False, (b'{"a":1}', MESSAGE)),
    (functools.partial(optional), False, (b'{"a":1}', MESSAGE)),
    (lambda body: None, False, ({"a": 1},)),
]


@pytest.mark.parametrize(("function", "is_async", "arguments"), CALLED)
def test_how_it_is_called(function: Any, is_async: Any, arguments: Any) -> None:
    handler = add(function)
    delivery = message()
    assert handler.is_async is is_async
    expected = tuple(delivery if argument is MESSAGE else argument for argument in arguments)
    assert handler.arguments(delivery) == expected


def nothing() -> None: ...
def three(a: Any, b: Any, c: Any) -> None: ...
def keyword(body: Any, *, needed: Any) -> None: ...
def second_is_not_message(body: Any, other: int) -> None: ...
def generator(body: Any) -> Iterator[Any]:
    yield


async def async_generator(body: Any) -> AsyncIterator[Any]:
    yield


@pytest.mark.parametrize("function", [nothing, three, keyword, second_is_not_message, generator, async_generator])
def test_what_cannot_be_called_is_refused_at_registration(function: Any) -> None:
    with pytest.raises(ConfigurationError):
        add(function)


def test_async_is_seen() -> None:
    assert add(coroutine).is_async


def find(handlers: Any, type_: Any) -> Any:
    found = handlers.find(message(type_=type_))
    return found and found.function


def test_the_type_decides_and_the_catch_all_takes_the_rest() -> None:
    handlers = Handlers(Codecs())
    add(plain, "a", handlers=handlers)
    assert find(handlers, "a") is plain
    assert find(handlers, "b") is None
    add(text, None, handlers=handlers)
    assert find(handlers, "a") is plain
    assert find(handlers, "b") is text
    assert find(handlers, "") is text


def test_a_lone_catch_all_takes_everything() -> None:
    handlers = Handlers(Codecs())
    add(plain, None, handlers=handlers)
    assert find(handlers, "anything") is plain


@pytest.mark.parametrize("type_", [None, "a"])
def test_a_place_can_be_taken_once(type_: Any) -> None:
    handlers = Handlers(Codecs())
    add(plain, type_, handlers=handlers)
    with pytest.raises(ConfigurationError, match="already"):
        add(text, type_, handlers=handlers)


def test_queues_keep_the_order_of_registration() -> None:
    handlers = Handlers(Codecs())
    for queue in ("z", "a", "z"):
        add(plain, f"{len(handlers.all())}", queue, handlers)
    assert handlers.queues == ("z", "a")


def test_annotations_of_any_are_by_content_type() -> None:
    def handler(body: Any) -> None: ...

    assert add(handler).arguments(message(b"[1]")) == ([1],)
