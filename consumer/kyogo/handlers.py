"""Which function handles which messages, and how it wants to be called.

Everything that can be known from a function's signature is worked out once, at registration, and what cannot work
is refused there.
"""

import functools
import inspect
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from kyogo.codec import Codecs, Decoder
from kyogo.errors import ConfigurationError
from kyogo.message import Message

Function: TypeAlias = Callable[..., Any]

_PARAMETERS_MAX: Final = 2
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True, slots=True)
class HandlerOptions:
    """What is said about a handler beside its function."""

    no_retry: tuple[type[BaseException], ...] = ()
    """Exceptions that dead-letter at once."""
    time_limit: float | None = None
    """Seconds. None: none."""


@dataclass(frozen=True, slots=True)
class Handler:
    """A function and how to call it."""

    queue: str
    type: str | None
    """None: every type that has no handler of its own."""
    function: Function
    options: HandlerOptions
    is_async: bool
    decode: Decoder | None
    """None: it takes the message itself."""
    takes_message: bool
    """Whether the message is its second argument."""
    is_plain: bool
    """Async and without a limit: can be awaited as it is."""

    @property
    def name(self) -> str:
        """For logs."""
        return str(getattr(self.function, "__qualname__", repr(self.function)))

    def arguments(self, message: Message) -> tuple[object, ...]:
        """What the function is called with.

        Raises:
            DecodeError: the body is not what it takes.
        """
        if self.decode is None:
            return (message,)
        body = self.decode(message.body, message.content_type)
        return (body, message) if self.takes_message else (body,)


class Handlers:
    """The handlers of one worker."""

    def __init__(self, codecs: Codecs) -> None:
        self._codecs = codecs
        self._by_queue: dict[str, dict[str | None, Handler]] = {}

    @property
    def queues(self) -> tuple[str, ...]:
        """Every queue that has a handler, in the order of registration."""
        return tuple(self._by_queue)

    def all(self) -> tuple[Handler, ...]:
        """Every handler."""
        return tuple(handler for table in self._by_queue.values() for handler in table.values())

    def add(self, queue: str, type_: str | None, function: Function, options: HandlerOptions) -> Handler:
        """Register a function.

        Raises:
            ConfigurationError: it cannot be called with a message, or the place is taken.
        """
        table = self._by_queue.setdefault(queue, {})
        if type_ in table:
            kind = "every type" if type_ is None else f"type {type_!r}"
            raise ConfigurationError(
                f"queue {queue!r} has a handler for {kind} already: {table[type_].name}. Give one of them another type"
            )
        handler = _inspect(queue, type_, function, options, self._codecs)
        table[type_] = handler
        return handler

    def find(self, message: Message) -> Handler | None:
        """The handler for a message; None: nobody here knows its type."""
        table = self._by_queue[message.queue]
        if len(table) == 1 and None in table:  # the usual case: one handler for all, no need to look at the type
            return table[None]
        handler = table.get(message.type)
        return table.get(None) if handler is None else handler


def _inspect(queue: str, type_: str | None, function: Function, options: HandlerOptions, codecs: Codecs) -> Handler:
    parameters = _parameters(function)
    first = parameters[0]
    is_async = _is_async(function)
    return Handler(
        queue=queue,
        type=type_,
        function=function,
        options=options,
        is_async=is_async,
        decode=None if _is_message(first) else codecs.decoder_for(first),
        takes_message=len(parameters) == _PARAMETERS_MAX,
        is_plain=is_async and options.time_limit is None,
    )


def _parameters(function: Function) -> list[object]:
    """The annotations of the one or two arguments that a handler is called with."""
    name = getattr(function, "__qualname__", repr(function))
    annotations: list[object] = []
    for parameter in inspect.signature(function).parameters.values():
        optional = parameter.default is not inspect.Parameter.empty
        hint = _resolve(function, parameter.annotation)
        if parameter.kind in _POSITIONAL and (not optional or _is_message(hint)):
            annotations.append(hint)
        elif not optional and parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            raise ConfigurationError(f"{name} needs the keyword {parameter.name!r}, which nobody passes: drop it")
    if not 1 <= len(annotations) <= _PARAMETERS_MAX:
        raise ConfigurationError(
            f"{name} takes {len(annotations)} arguments: a handler takes (body) or (body, message)"
        )
    if len(annotations) == _PARAMETERS_MAX and annotations[1] is not Any and not _is_message(annotations[1]):
        raise ConfigurationError(f"the second argument of {name} is the Message, not {annotations[1]}")
    return annotations


def _resolve(function: Function, annotation: object) -> object:
    """The annotation as an object; Any for none, and for a name that only type checkers import."""
    if annotation is inspect.Parameter.empty:
        return Any
    if not isinstance(annotation, str):
        return annotation
    while isinstance(function, functools.partial):
        function = function.func
    target = inspect.unwrap(_callable(function))
    holder = types.SimpleNamespace(__annotations__={"it": annotation})
    try:
        return typing.get_type_hints(holder, globalns=getattr(target, "__globals__", {}))["it"]
    except (NameError, SyntaxError):
        return Any


def _is_message(hint: object) -> bool:
    return hint is Message or Message in typing.get_args(hint)


def _callable(function: Function) -> Function:
    """The function behind an object that can be called."""
    return function if inspect.isroutine(function) else type(function).__call__


def _is_async(function: Function) -> bool:
    candidates = (function, _callable(function))
    if any(inspect.isasyncgenfunction(c) or inspect.isgeneratorfunction(c) for c in candidates):
        raise ConfigurationError(f"{function!r} is a generator: a handler returns, it does not yield")
    return any(inspect.iscoroutinefunction(c) for c in candidates)
