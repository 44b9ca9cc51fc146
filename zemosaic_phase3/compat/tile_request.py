"""One call of ``create_master_tile``, checked and named."""

from __future__ import annotations

import contextlib
import inspect
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from zemosaic_phase3.compat.center_out import CenterOutSpec, Context, center_out_spec
from zemosaic_phase3.compat.parallel_plan import plan_hint
from zemosaic_phase3.compat.parameters import wsc_impl_choice
from zemosaic_phase3.errors import FrameError, StackCancelled
from zemosaic_phase3.progress import Callback, notify
from zemosaic_phase3.settings import as_bool, positive, setting
from zemosaic_phase3.spec import CropSpec, GateSpec, StackSpec

logger = logging.getLogger("ZeMosaicWorker")


Entry = Mapping[str, Any]

EXTREME_GROUP_FRAMES: Final = 1000  # from here on the run is told that the group is extreme
SLOT_POLL_S: Final = 0.5  # a tile that waits for its turn looks this often whether the run was stopped


@dataclass
class TileRequest:
    """One call of ``create_master_tile``, checked and named."""

    entries: Sequence[Entry]
    tile_id: int
    folder: Path
    stack: StackSpec
    crop: CropSpec = field(default_factory=CropSpec)
    gate: GateSpec = field(default_factory=GateSpec)
    workers: int = 0  # 0: as many as this process may use
    progress: Callback | None = None
    abort: Any = None  # an event with is_set()
    heartbeat: Callback | None = None
    extreme_group_frames: int = EXTREME_GROUP_FRAMES
    strategy: object = None  # hints of the run, a mapping or an object with attributes
    center_out: CenterOutSpec | None = None
    context: Context | None = None  # of the centre-out normalisation
    slots: Any = None  # a semaphore: how many tiles are read, aligned and stacked at a time
    cut_later: float = 0.0  # part of a side that the run cuts off each side of a tile after it is saved
    pad_canvas: bool = False  # the tile holds what any frame shows, not only what the reference does
    load_cache: Callable[..., Any] | None = None  # reads a cache in place of this library

    def __post_init__(self) -> None:
        """Accept heartbeats of either form."""
        self.heartbeat = _beat_without_tile(self.heartbeat)

    def tell(self, key: str, level: str = "INFO", **details: Any) -> None:
        """Send one progress key of this tile, and beat; a request to stop is answered here."""
        self.pulse()
        notify(self.progress, f"mastertile_{key}", None, level, tile_id=self.tile_id, **details)

    def say(self, text: str, level: str = "INFO") -> None:
        """Send a text that is no key."""
        notify(self.progress, text, None, level)

    def fail(self, key: str, exc: BaseException) -> None:
        """Log and tell why the tile is lost; a request to stop is no failure and goes on its way."""
        if isinstance(exc, StackCancelled):
            raise exc
        logger.error("tile %d: %s: %s", self.tile_id, key, exc, exc_info=exc)
        n = len(self.entries)
        name = Path(exc.name).name if isinstance(exc, FrameError) else f"{n} {'cache' if n == 1 else 'caches'}"
        self.tell(key, "ERROR", filename=name, error=str(exc) or type(exc).__name__)

    def check_abort(self) -> None:
        """Raise when the run was asked to stop.

        Raises
        ------
        StackCancelled
            The abort event is set.
        """
        if self.abort is not None and self.abort.is_set():
            raise StackCancelled(f"tile {self.tile_id}: stopped on request")

    def pulse(self) -> None:
        """Show that a tile which waits is alive, and end its wait when the run is stopped."""
        self.check_abort()
        notify(self.heartbeat, self.tile_id)

    def step(self, stage: str, done: int, total: int) -> None:
        """Pass on a step of a stage, and beat. Called from several threads."""
        self.pulse()
        notify(self.progress, stage, done, total)

    @contextlib.contextmanager
    def slot(self) -> Iterator[None]:
        """Hold one of the run's slots; given back whatever happens. Waiting for one ends when the run is stopped."""
        slots = self.slots
        if slots is None:
            yield
            return
        while not slots.acquire(timeout=SLOT_POLL_S):
            self.check_abort()
        try:
            yield
        finally:
            slots.release()


def request_of(call: SimpleNamespace, slots: Any) -> TileRequest:
    """Check a call of ``create_master_tile`` and name what it asks for.

    Parameters
    ----------
    call : SimpleNamespace
        The arguments by name.
    slots : semaphore or None
        See :class:`TileRequest`.

    Raises
    ------
    SpecError
        A method name or a limit is not allowed.
    """
    stack = StackSpec(
        normalize=call.stack_norm_method,
        weight=call.stack_weight_method,
        reject=call.stack_reject_algo,
        wsc_impl=wsc_impl_choice(call.zconfig),  # type: ignore[arg-type]
        kappa_low=call.stack_kappa_low,
        kappa_high=call.stack_kappa_high,
        winsor_limits=call.parsed_winsor_limits,
        combine=call.stack_final_combine or "mean",
        equalize_rgb=as_bool(call.poststack_equalize_rgb, True),
        radial_weight=as_bool(call.apply_radial_weight, False),
        radial_feather=call.radial_feather_fraction,
        radial_power=call.radial_shape_power,
        radial_floor=call.min_radial_weight_floor,
        spare_stars=False,  # ZeMosaic's results are what they were
        flatten="off",  # the same, and neighbours would get backgrounds of their own
        bounded_by_stars=True,  # of a field with little structure the percentiles follow the noise, up to 10 % wrong
    )
    crop = CropSpec(
        quality_crop=as_bool(call.quality_crop_enabled, False),
        band_px=call.quality_crop_band_px,
        k_sigma=call.quality_crop_k_sigma,
        margin_px=call.quality_crop_margin_px,
        min_run=call.quality_crop_min_run,
        altaz_cleanup=as_bool(call.altaz_cleanup_enabled, False),
        altaz_margin_percent=call.altaz_margin_percent,
        altaz_decay=call.altaz_decay,
        altaz_nanize=as_bool(call.altaz_nanize, True),
    )
    gate = GateSpec(
        enabled=as_bool(call.quality_gate_enabled, False),
        threshold=call.quality_gate_threshold,
        edge_band_px=call.quality_gate_edge_band_px,
        k_sigma=call.quality_gate_k_sigma,
        erode_px=call.quality_gate_erode_px,
        move_rejects=as_bool(call.quality_gate_move_rejects, True),
    )
    thresholds = [
        positive(setting(source, "extreme_group_threshold")) for source in (call.resource_strategy, call.zconfig)
    ]
    return TileRequest(
        entries=list(call.seestar_stack_group_info or []),
        tile_id=int(call.tile_id),
        folder=Path(call.output_temp_dir),
        stack=stack,
        crop=crop,
        gate=gate,
        workers=plan_hint(call.parallel_plan, "cpu_workers") or 0,
        progress=call.progress_callback,
        abort=call.abort_event,
        heartbeat=call.heartbeat_callback,
        extreme_group_frames=thresholds[0] or thresholds[1] or EXTREME_GROUP_FRAMES,
        strategy=call.resource_strategy,
        center_out=center_out_spec(call.center_out_settings),
        context=call.center_out_context,
        slots=slots,
        pad_canvas=as_bool(call.pad_canvas, False),
        cut_later=0.0 if crop.quality_crop else _cut_later(call.zconfig),
    )


def _cut_later(config: object) -> float:
    """Return the part of a side that existing runs cut off each side of a tile when they assemble it."""
    if not as_bool(setting(config, "apply_master_tile_crop"), False):
        return 0.0
    try:
        percent = float(setting(config, "master_tile_crop_percent") or 0.0)
    except (TypeError, ValueError):
        return 0.0
    return min(max(percent, 0.0), 25.0) / 100.0 if math.isfinite(percent) else 0.0


def _beat_without_tile(heartbeat: Callback | None) -> Callback | None:
    """Let a heartbeat that takes no argument be called with the number of the tile."""
    if heartbeat is None:
        return None
    try:
        inspect.signature(heartbeat).bind(0)
    except TypeError:
        return lambda _tile_id: heartbeat()
    except ValueError:  # built in, without a signature to look at
        return heartbeat
    return heartbeat
