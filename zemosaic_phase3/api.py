"""The library as a program calls it: ``zemosaic_phase3.stack`` and the tile it returns."""

from __future__ import annotations

import base64
import contextlib
import html
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from zemosaic_phase3.methods import (
    CombineName,
    DeviceName,
    FlattenName,
    FramingName,
    InterpolationName,
    LineFit,
    NormalizeName,
    RegisterMode,
    RejectName,
    TransformName,
    WeightName,
    WscImpl,
)
from zemosaic_phase3.pipeline import tile as pipeline_tile
from zemosaic_phase3.pipeline.outputs import PREVIEW_SIDE_PX
from zemosaic_phase3.pipeline.presets import preset_of
from zemosaic_phase3.pipeline.stack_files import stack_files
from zemosaic_phase3.progress import Callback
from zemosaic_phase3.report.page import check_page
from zemosaic_phase3.spec import CalibrationSpec, RegisterSpec, SelectSpec, StackSpec

if TYPE_CHECKING:
    from astropy.table import Table

    from zemosaic_phase3.report.preview import PictureSize
    from zemosaic_phase3.report.stretch import StretchName

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
STAGES: Final = ("measure", "register", "stack")
TILE_NAME: Final = "tile.fits"  # what a tile without a file is called
PREVIEW_PX: Final = 720  # longest side of the picture in a notebook


class Tile(pipeline_tile.Tile):
    """A finished tile: ``image``, ``alpha``, ``maps``, ``header``, ``wcs``, ``report``, and what a user does with them.

    See :class:`pipeline.tile.Tile` for shapes, types and units.
    """

    @property
    def frames(self) -> Table:
        """What became of every input: an astropy Table, one row per input, with units."""
        from astropy.table import Table

        from zemosaic_phase3.pipeline.outputs import FRAMES_UNITS, frames_columns

        return Table(frames_columns(self.rows), units={**FRAMES_UNITS, "REJECTED": "%"})

    def save(self, path: str | os.PathLike[str], *, maps: bool = False, overwrite: bool = False) -> Path:
        """Write the tile as FITS, atomically; with ``maps`` also COVERAGE, WEIGHT, REJ_LOW, REJ_HIGH, and ERR if found.

        Raises
        ------
        OutputError
            The file exists and ``overwrite`` is False, its name does not end in .fits, .fit or .fts, or it cannot be
            written.
        """
        from zemosaic_phase3.pipeline.outputs import check_output, check_tile_name, write_tile

        check_output(path, overwrite=overwrite)
        check_tile_name(path)
        return write_tile(self, path, maps=maps, overwrite=overwrite)

    def save_preview(
        self,
        path: str | os.PathLike[str],
        *,
        stretch: StretchName = "unlinked",
        size: PictureSize = PREVIEW_SIDE_PX,
        annotate: bool = False,
    ) -> Path:
        """Write a stretched picture as PNG; with ``annotate`` name, exposure, scale bar and north are on it.

        Raises
        ------
        OutputError
            It cannot be written.
        SpecError
            Marks are wanted and Pillow is missing.
        """
        from zemosaic_phase3.report.preview import write_preview

        return write_preview(self, Path(path), size=size, colours=stretch, annotate=annotate)

    def save_report(self, folder: str | os.PathLike[str], name: str = TILE_NAME) -> Path:
        """Write the page about this tile into a folder, one HTML file called as the file ``name``; returns it.

        Raises
        ------
        OutputError
            It cannot be written.
        SpecError
            A package of the extra ``report`` is missing.
        """
        from zemosaic_phase3.report.page import write_page
        from zemosaic_phase3.report.story import story_of

        return write_page(story_of(self, name), Path(folder))

    def _facts(self) -> list[tuple[str, str]]:
        report, spec = self.report, self.report.spec
        height, width = self.image.shape[:2]
        colour = "colour" if self.image.ndim == 3 else "grey"
        noise = ", ".join(f"{value:.4g}" for value in report.noise_after)
        before = ", ".join(f"{value:.4g}" for value in report.noise_typical)
        facts = [
            ("image", f"{width} x {height} pixels, {colour}, float32, ADU"),
            ("frames", f"{report.n_used} of {report.n_input} stacked"),
            ("reference", Path(report.reference).name),
            ("noise", f"{noise} ADU" + (f" (one frame {before})" if before else "")),
            ("method", f"{spec.get('reject')}, {spec.get('combine')}, normalised {spec.get('normalize')}"),
            ("device", report.device),
            ("time", f"{sum(report.seconds.values()):.1f} s"),
        ]
        facts += [("calibration", line) for line in report.calibration]
        return facts + [("note", note) for note in report.warnings]

    def __repr__(self) -> str:
        """Say in one short paragraph what it is."""
        facts = dict(self._facts())
        left_out = len(self.report.dropped)
        out = f"; {left_out} left out, see .frames" if left_out else ""
        return (
            f"<Tile: {facts['image']}; {facts['frames']} on {facts['reference']}{out}; sky noise {facts['noise']}; "
            f"{facts['method']}; {facts['device']}, {facts['time']}>"
        )

    def _repr_html_(self) -> str:
        """Table and preview, as notebooks show it."""
        from zemosaic_phase3.report.png import encode_png
        from zemosaic_phase3.report.story import shown_bottom_up
        from zemosaic_phase3.report.stretch import shrink, stretch

        rows = [*self._facts(), *(("left out", f"{Path(name).name}: {why}") for name, why in self.report.dropped)]
        table = "".join(
            f"<tr><th style='text-align:left'>{html.escape(label)}</th>"
            f"<td style='text-align:left'>{html.escape(text)}</td></tr>"
            for label, text in rows
        )
        shown = stretch(shrink(self.image, PREVIEW_PX))
        shown = shown[::-1] if shown_bottom_up(self.header, self.wcs) else shown
        picture = base64.b64encode(encode_png(shown)).decode()
        return (
            f"<div><table>{table}</table>"
            "<img alt='the stack, stretched for the screen' style='max-width:100%' "
            f"src='data:image/png;base64,{picture}'/></div>"
        )


def stack(
    inputs: str | os.PathLike[str] | Sequence[Any],
    output: str | os.PathLike[str] | None = None,
    *,
    reject: RejectName | None = None,
    normalize: NormalizeName | None = None,
    weight: WeightName | None = None,
    combine: CombineName | None = None,
    kappa_low: float | None = None,
    kappa_high: float | None = None,
    wsc_impl: WscImpl | None = None,
    winsor_limits: tuple[float, float] | None = None,
    line_fit: LineFit | None = None,
    interpolation: InterpolationName | None = None,
    equalize_rgb: bool | None = None,
    radial_weight: bool | None = None,
    flatten: bool | FlattenName | None = None,
    spare_stars: bool | None = None,
    drizzle: float | None = None,
    pixfrac: float | None = None,
    framing: FramingName | None = None,
    spec: StackSpec | None = None,
    preset: str | None = None,
    register: RegisterMode | RegisterSpec | None = None,
    transform: TransformName | None = None,
    max_fwhm: float | str | None = None,
    max_eccentricity: float | str | None = None,
    max_background: float | str | None = None,
    min_stars: int | str | None = None,
    drop_worst: float | None = None,
    select: SelectSpec | None = None,
    bayer: str = "auto",
    dark: Paths | None = None,
    flat: Paths | None = None,
    bias: Paths | None = None,
    dark_flat: Paths | None = None,
    calibration: str | os.PathLike[str] | CalibrationSpec | None = None,
    cosmetic: str | os.PathLike[str] | None = None,
    reference: str | os.PathLike[str] | None = None,
    filter: str | None = None,  # noqa: A002 - as the option and the header card are called
    recursive: bool = False,
    min_frames: int | str | None = None,
    comet: str | Sequence[str] | None = None,
    device: DeviceName = "auto",
    require_gpu: bool = False,
    gpus: str | int | Sequence[int] | None = None,
    memory: str | int | None = None,
    workers: int | None = None,
    maps: bool = False,
    overwrite: bool = False,
    self_check: bool = True,
    series: str | int | None = None,
    targets: str | os.PathLike[str] | None = None,
    resume: bool = True,
    fresh: bool = False,
    cache: str | os.PathLike[str] | None = None,
    report: str | os.PathLike[str] | None = None,
    progress: bool | Callback = True,
) -> Tile:
    """Register and stack frames into one tile; write it if ``output`` is given.

    Single keywords win over ``spec``, ``register`` and ``select``; what is not given is as on the command line.

    Parameters
    ----------
    inputs : path or sequence
        A file, a folder or a pattern, or several; arrays (H, W) or (H, W, 3) in ADU are frames as well.
    output : path, optional
        FITS file to write.
    reject, normalize, weight, combine, kappa_low, kappa_high, wsc_impl, winsor_limits, line_fit, interpolation,
    equalize_rgb, radial_weight, flatten, spare_stars, framing, drizzle, pixfrac
        Fields of :class:`StackSpec`, see ``docs/algorithms.md``; limits in sigma.
    spec : StackSpec, optional
        All of them at once.
    preset : str, optional
        "seestar", "dwarf", "quick", "best" or "zemosaic": keywords under one name, over which single ones win, see
        ``docs/choices.md``.
    register, transform
        Fields ``mode`` and ``transform`` of :class:`RegisterSpec`, or a whole one as ``register``.
    max_fwhm, max_eccentricity, max_background, min_stars, drop_worst
        Fields of :class:`SelectSpec`: pixels, 0 to 1, ADU, stars, percent. Limits may also be text: "3s" is three
        sigmas of the session beyond its median, "2x" twice the median, "none" no limit.
    select : SelectSpec, optional
        All of them at once.
    bayer : str
        "auto" (header), "none", or a pattern such as "GRBG".
    dark, flat, bias, dark_flat : path or sequence of paths, optional
        Calibration frames or masters of them: files, folders, patterns. See ``docs/calibration.md``.
    calibration : path or CalibrationSpec, optional
        Folder with any of these, told apart by header or name; or a whole specification.
    cosmetic : str or path, optional
        "auto" (the default) finds defective photosites in the frames, "off", or the file of a defect map.
    reference : path, optional
        Frame the others are registered on; None chooses the best.
    filter : str, optional
        Stack only frames of this filter; None: of that of most frames.
    recursive : bool
        A folder stands for the folders below it too.
    min_frames : int or str, optional
        Frames, or a share such as "80%" of those that were to be stacked, below which nothing is stacked: an error.
        None: fewer than half are a warning in the report.
    comet : str or sequence of str, optional
        A moving target that the stack holds still for: two of ``"FRAME:X,Y"``, or the path of a table with its times,
        RA and DEC; None: the sky.
    device : {"auto", "cpu", "gpu"}
        "auto" uses a GPU if there is a healthy one; the bits are the same.
    require_gpu : bool
        Turn every fall back to the CPU into an error.
    gpus : str, int or sequence of int, optional
        Cards that share the stack: "all", how many, or which ones, e.g. (0, 2); None: CUDA's current device.
    memory : int or str, optional
        Bytes, or text such as "4GB" or "50%"; default: half of what is available, in small containers up to 1 GB.
    workers : int, optional
        Threads; as many as this process may use.
    maps : bool
        Write COVERAGE, WEIGHT, REJ_LOW and REJ_HIGH too, and ERR, the error of each pixel of a mean or median.
    overwrite : bool
        Replace an existing output.
    self_check : bool
        Make some pixels of the result again from the files, by plain definitions, and compare them.
    series : str or int, optional
        Many stacks in time beside the output, from one registration: "5min", or so many frames each.
    targets : path, optional
        Table of positions (``ra, dec`` or ``x, y``, and ``name``) whose light curve is measured in the series.
    resume, fresh, cache
        Go on where an earlier run was, and keep a journal for the next one, in the folder ``cache`` or beside the
        output; ``fresh`` forgets what it holds. Without output and cache there is none.
    report : path, optional
        Folder for a page about the stack, one HTML file; needs the extra ``report``.
    progress : bool or callable
        True shows bars in a terminal and in a notebook, and nothing elsewhere; a callable is called as
        ``progress(stage, done, total)``, from several threads, and may raise :class:`StackCancelled`.

    Returns
    -------
    Tile

    Raises
    ------
    ZeMosaicError
        Nothing could be stacked, an option is not allowed, or the output cannot be written; the message says what
        helps. A frame that cannot be used is left out and named in ``tile.frames``.
    """
    from zemosaic_phase3.engine.warmup import kernels_compiled_beside

    chosen = preset_of(preset).values if preset is not None else ()
    maps = maps or ("maps", True) in chosen
    stack_spec = _with_given(spec or StackSpec(), **_fields_of(StackSpec, chosen))
    stack_spec = _with_given(
        stack_spec, reject=reject, normalize=normalize, weight=weight, combine=combine, kappa_low=kappa_low,
        kappa_high=kappa_high, wsc_impl=wsc_impl, winsor_limits=winsor_limits, line_fit=line_fit,
        interpolation=interpolation, equalize_rgb=equalize_rgb, radial_weight=radial_weight, flatten=flatten,
        spare_stars=spare_stars, framing=framing, drizzle=drizzle, pixfrac=pixfrac,
    )  # fmt: skip
    if report is not None:
        check_page(Path(report), Path(output or TILE_NAME), overwrite=overwrite)
    given = register if isinstance(register, RegisterSpec) else RegisterSpec()
    mode = None if isinstance(register, RegisterSpec) else register
    registers = (mode or given.mode) != "none"
    with kernels_compiled_beside(stack_spec, registers=registers), _shown(progress) as callback:
        made = stack_files(
            [inputs] if isinstance(inputs, str | os.PathLike) else list(inputs),
            output,
            stack=stack_spec,
            register=_with_given(given, mode=mode, transform=transform),
            select=_with_given(
                _with_given(select or SelectSpec(), **_fields_of(SelectSpec, chosen)),
                max_fwhm=max_fwhm,
                max_eccentricity=max_eccentricity,
                max_background=max_background,
                min_stars=min_stars,
                drop_worst=drop_worst,
            ),
            bayer=bayer,
            calibration=_with_given(
                calibration if isinstance(calibration, CalibrationSpec) else CalibrationSpec(library=calibration),
                dark=dark,
                flat=flat,
                bias=bias,
                dark_flat=dark_flat,
                cosmetic=cosmetic,
            ),  # fmt: skip
            reference=None if reference is None else os.fspath(reference),
            filter=filter,
            recursive=recursive,
            min_frames=min_frames,
            comet=comet,
            device=device,
            require_gpu=require_gpu,
            gpus=gpus,
            memory=memory,
            workers=workers,
            maps=maps,
            overwrite=overwrite,
            self_check=self_check,
            series=series,
            targets=targets,
            resume=resume,
            fresh=fresh,
            cache=cache,
            progress=callback,
        )
    tile = Tile(**vars(made))
    if report is not None:
        tile.save_report(report, Path(output or TILE_NAME).name)
    return tile


def _fields_of(spec: type, values: Iterable[tuple[str, Any]]) -> Mapping[str, Any]:
    """Return what a preset says of the fields of a specification."""
    return {name: value for name, value in values if name in spec.__dataclass_fields__}  # type: ignore[attr-defined]


def _with_given(spec: Any, **given: Any) -> Any:
    """Return a specification with what was given in the place of its own; None was not given.

    Limits of an earlier rejection method are not those of another one: they are chosen anew with the method.
    """
    named = {name: value for name, value in given.items() if value is not None}
    if {"reject", "wsc_impl"} & named.keys():
        named = {"kappa_low": None, "kappa_high": None, **named}
    return replace(spec, **named) if named else spec


@contextlib.contextmanager
def _shown(progress: bool | Callback) -> Iterator[Callback | None]:
    """Show progress where somebody sees it: in a terminal or a notebook."""
    if not isinstance(progress, bool):
        yield progress
        return
    from zemosaic_phase3.app.console import announce_compilation, make_console, shown_progress

    console = make_console(sys.stderr) if progress and sys.stderr is not None else None
    if console is None or not (console.is_terminal or console.is_jupyter):
        yield None
        return
    cold = announce_compilation(console, quiet=False)
    with shown_progress(console, STAGES, cold=cold) as callback:
        yield callback
