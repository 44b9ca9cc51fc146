"""One tile on the card: its buffers, streams and kernels, and the order in which they are used.

Three streams run side by side. Copies follow each other on the first. Batches that are not samples yet are opened and
resampled on the second. Rejection and the way back to the host are on the third. Events say what waits for what:

    pinned buffer --copy--> staging --open, resample--> samples of a slab --combine--> maps --copy--> pinned maps
    pinned buffer --copy--------------------------->

Samples and maps exist twice, so that one slab is rejected while the next one arrives.
"""

from __future__ import annotations

import functools
import threading
from typing import Any, Final

import numpy as np

from zemosaic_phase3.combine import cuda as combine_cuda
from zemosaic_phase3.engine.gpu_plan import STAGING_BUFFERS, Batch, GpuPlan, Route, Slab
from zemosaic_phase3.engine.job import MAPS, SUMMED, Job, StackResult, channel_sums, maps_of
from zemosaic_phase3.resample.cuda import FRAME_ROWS, drizzle_source
from zemosaic_phase3.resample.cuda import source as resample_source
from zemosaic_phase3.runtime import cuda, cuda_failure

THREADS: Final = 256  # of a block that opens or resamples
BLOCKS: Final = 1024  # such blocks per frame at most; they share its pixels
_TO_DEVICE: Final = 1  # cudaMemcpyKind
_TO_HOST: Final = 2
_NOTHING: Final = np.uint64(0)  # a null pointer

_COMPILING = threading.Lock()


@functools.cache
def compiled_kernel(text: str, name: str, card: int) -> Any:
    """Return a kernel of a CUDA text, compiled once for each card of a process."""
    cupy = cuda.cupy_module()
    kernel = cupy.RawModule(code=text, options=combine_cuda.COMPILE_OPTIONS).get_function(name)
    cuda.leave_alone(kernel.kernel)  # CuPy unloads modules when the process ends, even if CUDA is lost by then
    return kernel


def kernel_of(text: str, name: str) -> Any:
    """Compile a text, once in a process and once on disk (CuPy's cache), and return one of its kernels."""
    with _COMPILING:
        return compiled_kernel(text, name, cuda_failure.card_of_thread())


def device_limits() -> tuple[int, int]:
    """Return (bytes of shared memory a block may ask for, multiprocessors) of the current device."""
    return limits_of(cuda_failure.card_of_thread())


@functools.cache
def limits_of(card: int) -> tuple[int, int]:
    """Return the :func:`device_limits` of a card, which is this thread's."""
    attributes = cuda.cupy_module().cuda.Device().attributes
    return int(attributes["MaxSharedMemoryPerBlockOptin"]), int(attributes["MultiProcessorCount"])


def launch_plan(n_frames: int, n_elements: int, scratch_limit: int) -> combine_cuda.LaunchPlan:
    """Return how rejection is launched on the current device."""
    shared_limit, multiprocessors = device_limits()
    limit = min(scratch_limit, combine_cuda.SCRATCH_BYTES)
    return combine_cuda.launch_plan(
        n_frames, n_elements, shared_limit=shared_limit, multiprocessors=multiprocessors, scratch_limit=limit
    )


def _pointer(array: Any) -> np.uint64:
    """Return the address of a device array, of a pinned one, or a null pointer for None."""
    if array is None:
        return _NOTHING
    return np.uint64(array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr)


class Card:
    """What one tile holds of the card, from the first copy to the last.

    A context: leaving it waits for everything in flight, so that no copy runs in memory that is given back. Its
    buffers come from CuPy's pools, device and pinned, and return there: the next tile finds them ready.

    Parameters
    ----------
    job, route, plan
        What is stacked, how it travels, how it is cut.
    scratch_limit : int
        Bytes the rejection kernel may take besides.
    """

    def __init__(self, job: Job, route: Route, plan: GpuPlan, scratch_limit: int) -> None:
        self._cupy = cuda.cupy_module()
        self._runtime = self._cupy.cuda.runtime
        self._job, self._route, self._plan = job, route, plan
        self._scratch_limit = scratch_limit
        self._kernel_arguments = job.kernel_arguments()
        self._in_flight = min(2, plan.n_slabs)
        self.maps = maps_of(job)
        self._sent = 0  # batches
        self.bytes_h2d = 0
        try:
            with cuda_failure.noticing_sticky_errors():
                self._prepare()
        finally:
            self._leave_alone_if_lost()

    def _prepare(self) -> None:
        self._copying, self._opening, self._combining = (self._cupy.cuda.Stream(non_blocking=True) for _ in range(3))
        self._allocate_samples()
        self._allocate_way_there()
        self._allocate_way_back()
        self._upload_numbers()
        self._cupy.cuda.get_current_stream().synchronize()  # what was zeroed and uploaded is there for all streams

    def _empty(self, count: int, dtype: Any) -> Any:
        return self._cupy.empty(max(1, int(count)), dtype)

    def _pinned(self, size: int) -> np.ndarray:
        return np.frombuffer(self._cupy.cuda.alloc_pinned_memory(size), np.uint8, size)

    def _events(self, count: int) -> list[Any]:
        # Waiting threads sleep: the cores they would turn on gather the next batch.
        return [self._cupy.cuda.Event(block=True, disable_timing=True) for _ in range(count)]

    def _allocate_samples(self) -> None:
        route, plan = self._route, self._plan
        elements = plan.rows_per_slab * route.row_elements
        self._samples = [self._empty(route.n_frames * elements, np.float32) for _ in range(self._in_flight)]
        per_frame = elements if route.has_sample_weights else elements // route.channels if route.has_radial else 0
        self._sample_weights = [
            self._empty(route.n_frames * per_frame, np.float32) if per_frame else None for _ in range(self._in_flight)
        ]
        held = self._in_flight if route.has_tolerance else 0
        self._tolerances = [self._empty(elements, np.float32) for _ in range(held)]
        self._pinned_tolerances = [self._pinned(4 * elements) for _ in range(held)]
        self._tolerances_sent = self._events(held)
        self._samples_free = self._events(self._in_flight)
        launch = launch_plan(route.n_frames, elements, self._scratch_limit)
        self._scratch = self._empty(launch.scratch_bytes // 4, np.float32)

    def _allocate_way_there(self) -> None:
        plan, staged = self._plan, 0 if self._route.is_direct else STAGING_BUFFERS
        self.pinned = [self._pinned(plan.batch_bytes) for _ in range(plan.pinned_buffers)]
        self._pinned_free = self._events(plan.pinned_buffers)
        self._staging = [self._empty(plan.batch_bytes, np.uint8) for _ in range(staged)]
        self._staged, self._staging_free = self._events(staged), self._events(staged)
        self._blocks = self._empty(plan.block_bytes // 4, np.float32)
        size = FRAME_ROWS.itemsize * self._route.n_frames
        self._pinned_frames = [self._pinned(size) for _ in range(self._in_flight)]
        self._frames = [self._empty(size, np.uint8) for _ in range(self._in_flight)]
        self._frames_sent = self._events(self._in_flight)

    def _allocate_way_back(self) -> None:
        elements = self._plan.rows_per_slab * self._route.row_elements
        self._maps = [self._empty(len(self.maps) * elements, np.float32) for _ in range(self._in_flight)]
        self._pinned_maps = [self._pinned(4 * len(self.maps) * elements) for _ in range(self._in_flight)]
        # The bounds of what pixels keep, from which their errors are found at once.
        self._kept = self._empty(2 * elements, np.float32) if self._route.has_errors else None
        self._arrived, self._maps_ready = self._events(1)[0], self._events(self._in_flight)
        self._counts = self._cupy.zeros(3 * self._route.n_frames, np.uint64)
        self._all_rejected = self._cupy.zeros(1, np.uint64)

    def _upload_numbers(self) -> None:
        from zemosaic_phase3.resample.interpolation import needs_clamp, weight_table
        from zemosaic_phase3.resample.warp import radial_weight_table

        spec, chosen = self._job.spec, self._kernel_arguments
        self._clamp = needs_clamp(spec.interpolation)
        radial = radial_weight_table(spec.radial_feather, spec.radial_power, spec.radial_floor)
        self._nodes = radial.size - 2
        self._tables = [self._cupy.asarray(table) for table in (weight_table(spec.interpolation), radial)]
        fields = self._job.table.distortion
        self._fields = self._cupy.asarray(np.concatenate([f.reshape(-1) for f in fields])) if fields else None
        self._field_columns = max((f.shape[1] for f in fields), default=0)
        self._numbers = [self._cupy.asarray(a) for a in (chosen.parameters, chosen.critical, chosen.weights)]

    def wait_for_buffer(self, buffer: int) -> None:
        """Wait until the last batch in a pinned buffer has left it."""
        self._pinned_free[buffer].synchronize()

    def begin(self, slab: Slab) -> None:
        """Make room for a slab; call before its first batch is sent."""
        k = slab.number % self._in_flight
        self._copying.wait_event(self._samples_free[k])
        self._opening.wait_event(self._samples_free[k])
        if self._job.sample_weight is not None:
            weights = np.ascontiguousarray(self._job.sample_weight[:, slab.rows], np.float32)
            self._copy_there(self._sample_weights[k], weights.reshape(-1).view(np.uint8))
            self._copying.synchronize()
        if self._job.tolerance is not None:
            self._tolerances_sent[k].synchronize()
            tolerance = np.ascontiguousarray(self._job.tolerance[slab.rows], np.float32).reshape(-1).view(np.uint8)
            pinned = self._pinned_tolerances[k][: tolerance.size]
            pinned[:] = tolerance
            self._copy_there(self._tolerances[k], pinned)
            self._tolerances_sent[k].record(self._copying)
        if not self._route.is_direct:
            self._frames_sent[k].synchronize()
            self._pinned_frames[k][:] = slab.frames.view(np.uint8).reshape(-1)
            self._copy_there(self._frames[k], self._pinned_frames[k])
            self._frames_sent[k].record(self._copying)

    def _copy_there(self, target: Any, source: np.ndarray, offset: int = 0) -> None:
        self._runtime.memcpyAsync(
            int(target.data.ptr) + offset, source.ctypes.data, source.nbytes, _TO_DEVICE, self._copying.ptr
        )
        self.bytes_h2d += source.nbytes

    def send(self, slab: Slab, batch: Batch, buffer: int) -> None:
        """Send a batch that has been gathered, and have it opened and resampled."""
        payload = self.pinned[buffer][: batch.size]
        if self._route.is_direct:
            frame_bytes = 4 * (slab.rows.stop - slab.rows.start) * self._route.row_elements
            self._copy_there(self._samples[slab.number % self._in_flight], payload, batch.first * frame_bytes)
        else:
            k = self._sent % STAGING_BUFFERS
            self._copying.wait_event(self._staging_free[k])
            self._copy_there(self._staging[k], payload)
            self._staged[k].record(self._copying)
            self._opening.wait_event(self._staged[k])
            self._open(slab, batch, self._staging[k])
            self._staging_free[k].record(self._opening)
            self._sent += 1
        self._pinned_free[buffer].record(self._copying)

    def _open(self, slab: Slab, batch: Batch, staged: Any) -> None:
        """Launch what turns a batch as stored into samples."""
        route, k = self._route, slab.number % self._in_flight
        pixels = (slab.rows.stop - slab.rows.start) * route.width
        frames = slab.frames[batch.first : batch.last]
        common = (
            _pointer(self._frames[k]), np.int32(batch.first), np.int32(route.frame_height),
            np.int32(route.frame_width), np.int32(route.channels),
        )  # fmt: skip
        samples = (_pointer(self._samples[k]), np.int64(pixels * route.channels))
        highest = int((frames["last"] - frames["first"]).max(initial=0))
        if highest > 0:
            kernel = kernel_of(self._way_there(), "open_rows")
            arguments = (_pointer(staged), *common, _pointer(self._blocks), *samples)
            self._launch(kernel, len(frames), highest * route.frame_width, arguments)
        if not route.in_place[batch.first : batch.last].all():
            put_on_grid = self._drizzle if self._job.spec.drizzle > 0.0 else self._resample
            put_on_grid(slab, len(frames), pixels, common, samples)

    def _way_there(self) -> str:
        """Return the text of what turns a batch as stored into samples."""
        return drizzle_source() if self._job.spec.drizzle > 0.0 else resample_source()

    def _drizzle(
        self, slab: Slab, n_frames: int, pixels: int, common: tuple[Any, ...], samples: tuple[Any, ...]
    ) -> None:
        cube, stride = samples
        weights = self._sample_weights[slab.number % self._in_flight]
        arguments = (
            _pointer(self._blocks), *common, _pointer(self._fields), np.int32(self._field_columns),
            np.float64(self._job.spec.pixfrac), np.int32(slab.rows.start), np.int32(slab.rows.stop - slab.rows.start),
            np.int32(self._route.width), cube, _pointer(weights), stride,
        )  # fmt: skip
        self._launch(kernel_of(self._way_there(), "drizzle_rows"), n_frames, pixels, arguments)

    def _resample(
        self, slab: Slab, n_frames: int, pixels: int, common: tuple[Any, ...], samples: tuple[Any, ...]
    ) -> None:
        table, radial_table = self._tables
        radial = self._sample_weights[slab.number % self._in_flight] if self._route.has_radial else None
        rows = np.int32(slab.rows.stop - slab.rows.start)
        numbers = _pointer(self._fields), np.int32(self._field_columns), _pointer(table), np.int32(self._clamp)
        arguments = (
            _pointer(self._blocks), *common, *numbers, np.int32(slab.rows.start), rows,
            np.int32(self._route.width), *samples, _pointer(radial), np.int64(pixels), _pointer(radial_table),
            np.int32(self._nodes),
        )  # fmt: skip
        self._launch(kernel_of(resample_source(), "resample_rows"), n_frames, pixels, arguments)

    def _launch(self, kernel: Any, n_frames: int, pixels: int, arguments: tuple[Any, ...]) -> None:
        grid = (min(-(-pixels // THREADS), BLOCKS), n_frames)
        with self._opening:
            kernel(grid, (THREADS,), arguments)

    def combine(self, slab: Slab) -> None:
        """Reject and combine a slab whose batches have all been sent, and start its maps on their way back.

        The maps of the slab before the last must have been collected.
        """
        route, chosen, k = self._route, self._kernel_arguments, slab.number % self._in_flight
        size = (slab.rows.stop - slab.rows.start) * route.row_elements
        launch = launch_plan(route.n_frames, size, self._scratch_limit)
        text = combine_cuda.source(
            chosen.method,
            chosen.combine,
            rewinsor=chosen.rewinsor,
            spares=route.has_tolerance and chosen.may_spare,
            in_shared=launch.in_shared,
            n_frames=route.n_frames,
        )
        kernel = kernel_of(text, combine_cuda.KERNEL)
        if launch.shared_bytes > 48 << 10:  # the most there is: tiles in other threads launch the same kernel with more
            kernel.max_dynamic_shared_size_bytes = device_limits()[0]
        self._arrived.record(self._copying if route.is_direct else self._opening)
        self._combining.wait_event(self._arrived)
        parameters, critical, weights = map(_pointer, self._numbers)
        base, maps, kept = _pointer(self._maps[k]), len(self.maps), _pointer(self._kept)
        bounds = (_NOTHING, _NOTHING) if self._kept is None else (kept, kept + np.uint64(4 * size))
        step = 1 if route.has_sample_weights else route.channels
        arguments = (
            _pointer(self._samples[k]), np.int64(size), np.int32(route.n_frames), np.int64(size),
            np.int32(route.channels), parameters, critical, weights, _pointer(self._sample_weights[k]),
            np.int64(size // step), np.int32(step), np.int32(chosen.uniform),
            _pointer(self._tolerances[k] if self._tolerances else None),
            *(base + np.uint64(4 * size * m) for m in range(len(MAPS))), *bounds,
            _pointer(self._counts), _pointer(self._all_rejected), _pointer(self._scratch),
        )  # fmt: skip
        with self._combining:
            kernel((launch.blocks,), (launch.threads,), arguments, shared_mem=launch.shared_bytes)
            if self._kept is not None:
                self._find_errors(size, step, k, bounds, base + np.uint64(4 * size * len(MAPS)))
        self._samples_free[k].record(self._combining)
        self._runtime.memcpyAsync(
            self._pinned_maps[k].ctypes.data, int(base), 4 * maps * size, _TO_HOST, self._combining.ptr
        )
        self._maps_ready[k].record(self._combining)

    def _find_errors(self, size: int, step: int, k: int, bounds: tuple[np.uint64, ...], errors: np.uint64) -> None:
        """Launch what finds the errors of the pixels that were combined before."""
        route, chosen = self._route, self._kernel_arguments
        kernel = kernel_of(combine_cuda.spread_source(chosen.combine), combine_cuda.SPREAD)
        threads = combine_cuda.SPREAD_THREADS
        arguments = (
            _pointer(self._samples[k]), np.int64(size), np.int32(route.n_frames), np.int64(size),
            np.int32(route.channels), _pointer(self._numbers[2]), _pointer(self._sample_weights[k]),
            np.int64(size // step), np.int32(step), *bounds, errors,
        )  # fmt: skip
        kernel((-(-size // threads),), (threads,), arguments)

    def collect(self, slab: Slab, name: str, result: StackResult) -> tuple[str, np.ndarray]:
        """Wait for the maps of a slab and copy one of them into the rows of the result.

        Returns
        -------
        name : str
        sums : ndarray (C,) int64
            Of the rows, if the metadata need them, else zeros: they are in the cache now.
        """
        k, m = slab.number % self._in_flight, self.maps.index(name)
        target = getattr(result, name)[slab.rows]
        with cuda_failure.noticing_sticky_errors():
            cuda_failure.check_not_lost()
            self._maps_ready[k].synchronize()
        source = self._pinned_maps[k][m * target.nbytes : (m + 1) * target.nbytes]
        np.copyto(target, source.view(target.dtype).reshape(target.shape))
        channels = self._route.channels
        if name not in SUMMED:
            return name, np.zeros(channels, np.int64)
        return name, channel_sums(target, self._route.n_frames, channels)

    def counts(self) -> tuple[np.ndarray, int]:
        """Return the counts of every frame, ``(N, 3) int64``, and how many elements lost all samples."""
        self._combining.synchronize()
        counts = self._cupy.asnumpy(self._counts).astype(np.int64)
        return counts.reshape(-1, 3), int(self._cupy.asnumpy(self._all_rejected)[0])

    def __enter__(self) -> Card:
        """Return the card."""
        return self

    def __exit__(self, *error: object) -> None:
        """Wait for all streams; after a sticky error touch nothing, and never free anything."""
        cause = error[1]
        try:
            if isinstance(cause, BaseException) and cuda_failure.classify_failure(cause) == "sticky":
                cuda_failure.mark_sticky()
            if not cuda_failure.is_poisoned():
                with cuda_failure.noticing_sticky_errors():  # a launch failed, and shows only now
                    for stream in (self._copying, self._opening, self._combining):
                        stream.synchronize()
        finally:
            self._leave_alone_if_lost()

    def _leave_alone_if_lost(self) -> None:
        if cuda_failure.is_poisoned():
            cuda.leave_alone(self)
