"""Calls of one function handed to another one that does the same under its own signature."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from typing import Any, Final

logger = logging.getLogger("ZeMosaicWorker")

_VARIADIC: Final = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
Handed = dict[str, Any]


def _named(signature: inspect.Signature) -> dict[str, inspect.Parameter]:
    return {name: p for name, p in signature.parameters.items() if p.kind not in _VARIADIC}


def _is_private_option(parameter: inspect.Parameter) -> bool:
    """Tell a parameter by which a function of the checkout talks to itself, such as ``_depth=0``."""
    return parameter.name.startswith("_") and parameter.default is not inspect.Parameter.empty


def _takes_any(signature: inspect.Signature, kind: Any) -> str:
    """Name of the ``*args`` or ``**keywords`` of a signature; empty where it has none."""
    return next((p.name for p in signature.parameters.values() if p.kind is kind), "")


def incompatibility(theirs: inspect.Signature, ours: inspect.Signature) -> str:
    """Return why calls of one function cannot be handed to the other; empty if they can.

    Calls are bound to the checkout's own signature and passed on by name, so order and defaults may differ, but every
    parameter of theirs must be one of ours, and whatever ours requires must be one of theirs. Where theirs takes any
    number of positional arguments, those it names must be our first ones in our order.
    """
    given, known = _named(theirs), _named(ours)
    unknown = [name for name, p in given.items() if name not in known and not _is_private_option(p)]
    if unknown:
        return f"it has parameters that are unknown here: {', '.join(unknown)}"
    if _takes_any(theirs, inspect.Parameter.VAR_POSITIONAL):
        first = [name for name, p in given.items() if p.kind is not inspect.Parameter.KEYWORD_ONLY]
        return "" if first == list(known)[: len(first)] else "its positional arguments are in another order"
    missing = [name for name, p in known.items() if p.default is inspect.Parameter.empty and name not in given]
    if missing and not _takes_any(theirs, inspect.Parameter.VAR_KEYWORD):
        return f"it lacks parameters that are needed here: {', '.join(missing)}"
    return ""


def _handed_on(
    theirs: inspect.Signature, ours: inspect.Signature, args: tuple[Any, ...], keywords: dict[str, Any]
) -> inspect.BoundArguments:
    """Bind a call of theirs to our signature.

    Raises
    ------
    TypeError
        It carries what is unknown here, or lacks what is needed.
    """
    known = _named(ours)
    private = {name for name, p in _named(theirs).items() if name not in known and _is_private_option(p)}
    if _takes_any(theirs, inspect.Parameter.VAR_POSITIONAL):
        return ours.bind(*args, **{name: value for name, value in keywords.items() if name not in private})
    bound = theirs.bind(*args, **keywords)
    bound.apply_defaults()
    arguments = dict(bound.arguments)
    arguments |= arguments.pop(_takes_any(theirs, inspect.Parameter.VAR_KEYWORD), {})
    return ours.bind(**{name: value for name, value in arguments.items() if name not in private})


def forwarding(
    theirs: Callable[..., Any],
    ours: Callable[..., Any],
    *,
    is_our_fault: Callable[[Exception], bool] = lambda exc: isinstance(exc, ImportError),
    prepare: Callable[[Handed], None] = lambda _arguments: None,
) -> Callable[..., Any]:
    """Return a function with the signature of theirs that calls ours.

    A call that does not fit ours (where theirs takes any keyword, say), or that ours cannot serve, goes to theirs. A
    warning says so, once for each reason.

    Parameters
    ----------
    theirs, ours : callable
    is_our_fault : callable
        Tells the errors after which theirs takes the call. The others are answers, and raised.
    prepare : callable
        Given the arguments of ours by name before the call; may change them.
    """
    signature, own = inspect.signature(theirs), inspect.signature(ours)
    told: set[str] = set()

    def back(reason: str, exc: Exception) -> None:
        if reason not in told:
            told.add(reason)
            logger.warning("[zemosaic-phase3] %s: %s; the checkout's own code runs", theirs.__name__, reason)
            logger.debug("[zemosaic-phase3] %s", theirs.__name__, exc_info=exc)

    @functools.wraps(theirs)
    def call(*args: Any, **keywords: Any) -> Any:
        try:
            bound = _handed_on(signature, own, args, keywords)
        except TypeError as exc:
            back(str(exc), exc)
            return theirs(*args, **keywords)
        prepare(bound.arguments)
        try:
            return ours(*bound.args, **bound.kwargs)
        except Exception as exc:
            if not is_our_fault(exc):
                raise
            back(f"{type(exc).__name__}: {exc}", exc)
        return theirs(*args, **keywords)

    return call


def taking(function: Callable[..., Any], positional: int, keywords: tuple[str, ...]) -> Callable[..., Any] | None:
    """Return a function that may be called with so many positional arguments and any of the keywords.

    Keywords that the given one does not know are left out. None if it cannot be called so.
    """
    try:
        signature = inspect.signature(function)
    except ValueError:  # built in, without a signature to look at
        return function
    known = keywords if _takes_any(signature, inspect.Parameter.VAR_KEYWORD) else tuple(
        name for name in keywords if name in signature.parameters
    )  # fmt: skip
    try:
        signature.bind(*[None] * positional, **dict.fromkeys(known))
    except TypeError:
        return None

    @functools.wraps(function)
    def call(*args: Any, **given: Any) -> Any:
        return function(*args, **{name: value for name, value in given.items() if name in known})

    return call
