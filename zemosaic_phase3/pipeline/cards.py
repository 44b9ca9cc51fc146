"""Which cards of this machine share a stack, and which of them are given up for the rest of a run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from zemosaic_phase3.errors import SpecError
from zemosaic_phase3.pipeline.device_policy import LOCK, DevicePolicy, gpu_is_usable, why_unusable
from zemosaic_phase3.runtime import cuda

if TYPE_CHECKING:
    from zemosaic_phase3.engine.job import GpuFigures
    from zemosaic_phase3.runtime.cuda_failure import Failure


def cards_of(gpus: str | int | Sequence[int] | None) -> tuple[int, ...]:
    """Return the cards that a user asks for, by CUDA's numbers; none where one is enough, or the machine has none.

    Parameters
    ----------
    gpus : str, int, sequence of int, or None
        ``"all"``; how many, ``2`` or ``"2"``, from card 0 on; which ones, ``(0, 2)`` or ``"0,2"`` (card 1 alone:
        ``"1,"``); None: CUDA's current device.

    Raises
    ------
    SpecError
        Neither of these, or more than there are.
    """
    if gpus is None:
        return ()
    wanted = _read(gpus)
    count = cuda.card_count()
    if not count:
        return ()
    cards = wanted if isinstance(wanted, tuple) else tuple(range(count if isinstance(wanted, str) else wanted))
    missing = [card for card in cards if card >= count]
    if missing:
        shown = "card 0" if count == 1 else f"cards 0 to {count - 1}"
        raise SpecError(f"--gpus {gpus}: CUDA shows {shown} here, not {missing[0]}; name those, or use all")
    return cards


def _read(gpus: str | int | Sequence[int]) -> str | int | tuple[int, ...]:
    """Return "all", a number of cards, or cards."""
    text = gpus.strip().lower() if isinstance(gpus, str) else gpus
    try:
        if isinstance(text, int):
            wanted: str | int | tuple[int, ...] = int(text)
        elif not isinstance(text, str):
            wanted = tuple(int(card) for card in text)
        elif text == "all":
            return text
        else:
            wanted = tuple(int(part) for part in text.split(",") if part.strip()) if "," in text else int(text)
    except (TypeError, ValueError):
        wanted = 0
    good = wanted > 0 if isinstance(wanted, int) else len(wanted) > 0 and len({*wanted}) == len(wanted)
    if not good or (isinstance(wanted, tuple) and min(wanted) < 0):
        raise SpecError(f"--gpus {gpus}: give all, how many (2), or which ones (0,2; card 1 alone is 1,)")
    return wanted


def cards_left(asked: Sequence[int], policy: DevicePolicy, logger: logging.Logger) -> tuple[int, ...]:
    """Return the cards that may still be used in this run; the health of each is checked once in it."""
    with LOCK:
        faults: dict[int, str] = policy.state.setdefault("cards", {})
        for card in asked:
            if card not in faults:
                faults[card] = cuda.on_card(card, partial(_illness, logger))
                if faults[card]:
                    logger.warning("[P3][GPU] card %d is not used: %s", card, faults[card])
        left = tuple(card for card in asked if not faults[card])
        if not policy.state.get("health_checked", False):
            policy.state.update(
                health_checked=True,
                healthy=bool(left),
                health_reason="; ".join(f"card {card}: {faults[card]}" for card in asked if faults[card]),
            )
        return left


def may_use_cards(asked: Sequence[int], policy: DevicePolicy, logger: logging.Logger) -> bool:
    """Return True if a tile should try these cards: the GPU is allowed in this run, and one of them is left."""
    left = cards_left(asked, policy, logger)
    return bool(left) and not policy.refusal(plan_allows=True)


def _illness(logger: logging.Logger) -> str:
    """Check the health of this thread's card; return why it cannot be used, empty if it can."""
    return "" if gpu_is_usable(logger) else why_unusable()


def give_up_cards(lost: Sequence[tuple[int, Failure]], policy: DevicePolicy, logger: logging.Logger) -> None:
    """Do without some cards for the rest of a run; says so once for each."""
    with LOCK:
        for card, failure in lost:
            if not policy.state.setdefault("cards", {}).get(card):
                policy.state["cards"][card] = str(failure)
                logger.warning("[P3][GPU] card %d disabled for remaining Phase 3 tiles after repeated failures.", card)


def cards_text(figures: GpuFigures | None) -> str:
    """Return which cards shared a stack, and what became of the others; empty where nobody asked for several."""
    if figures is None or not (figures.cards or figures.lost):
        return ""
    some = ", ".join(map(str, figures.cards))
    lost = "".join(f"; card {card} was given up: {failure}" for card, failure in figures.lost)
    return f"card{'s' if len(figures.cards) > 1 else ''} {some}{lost}"
