"""A page on this machine that shows a stack while it grows: the picture, what is in it, and how its noise falls.

The server answers this machine alone, and gives away three things: the page, the picture and a few numbers.
"""

from __future__ import annotations

import json
import math
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from zemosaic_phase3.pipeline.tile import Tile

HOST: Final = "127.0.0.1"
NAMES: Final = ("127.0.0.1", "localhost")
MOST_POINTS: Final = 2000  # of the curve
MOST_DROPS: Final = 20  # frames left out that are shown


@dataclass
class State:
    """What the page shows. Written by the passes, read by the server; each field is replaced whole."""

    folder: str
    output: str
    passes: int = 0
    frames: int = 0
    found: int = 0
    exposure: float = 0.0  # seconds
    noise: float = math.nan  # of the stack, ADU
    one: float = math.nan  # of one frame
    fwhm: float = math.nan
    fault: str = ""
    dropped: list[tuple[str, str]] = field(default_factory=list)
    curve: list[tuple[int, float]] = field(default_factory=list)  # frames, noise

    def take(self, tile: Tile) -> None:
        """Note what a pass has made."""
        report = tile.report
        exposures = [row.scan.exposure.live for row in tile.rows if row.used and row.scan is not None]
        self.exposure = sum(seconds for seconds in exposures if math.isfinite(seconds))
        self.frames, self.found = report.n_used, report.n_input
        self.noise = _mean(report.noise_after)
        self.one = _mean(report.noise_typical)
        self.fwhm = report.fwhm_px
        self.fault = ""
        self.dropped = [(Path(name).name, why) for name, why in report.dropped][-MOST_DROPS:]
        self.curve = [*self.curve, (self.frames, self.noise)][-MOST_POINTS:]
        self.passes += 1

    def line(self) -> str:
        """Say it in one line."""
        gain = self.one / self.noise if self.noise > 0 else math.nan
        better = f", {gain:.1f} times less noise than one frame" if self.frames > 1 and math.isfinite(gain) else ""
        exposure = f", {self.exposure:.0f} s" if self.exposure else ""
        left = self.found - self.frames
        out = f", {left} left out" if left else ""
        frames = "1 frame" if self.frames == 1 else f"{self.frames} frames"
        return f"{frames}{exposure}{better}{out} -> {self.output}"

    def as_json(self) -> str:
        """Return what the page asks for; unknown numbers are null."""
        values = {name: _known(value) for name, value in vars(self).items()}
        values["curve"] = [(n, _known(noise)) for n, noise in self.curve]
        return json.dumps({**values, "line": self.line()})


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _mean(values: Any) -> float:
    numbers = [float(value) for value in values]
    return sum(numbers) / len(numbers) if numbers else math.nan


class LivePage:
    """The server, in a thread of its own."""

    def __init__(self, state: State, preview: Path | None, port: int) -> None:
        self._state, self._preview = state, preview
        self._server = _bound(self._handler(), port)
        self._thread = threading.Thread(target=self._server.serve_forever, name="zemosaic-page", daemon=True)

    def start(self) -> str:
        """Begin to answer; returns the address."""
        self._thread.start()
        return f"http://{HOST}:{self._server.server_address[1]}/"

    def stop(self) -> None:
        """End it."""
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        state, preview = self._state, self._preview

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:  # noqa: N802 - the server calls it
                if (self.headers.get("Host") or "").rpartition(":")[0] not in NAMES:  # another site's page, rebound
                    self.send_error(403)
                    return
                path = self.path.partition("?")[0]
                if path == "/":
                    self._answer(PAGE.encode(), "text/html; charset=utf-8")
                elif path == "/state.json":
                    self._answer(state.as_json().encode(), "application/json")
                elif path == "/preview.png" and preview is not None and preview.is_file():
                    self._answer(preview.read_bytes(), "image/png")
                else:
                    self.send_error(404)

            def _answer(self, body: bytes, kind: str) -> None:
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Cache-Control", "no-store")
                self.send_header("Content-Security-Policy", "default-src 'self'; style-src 'unsafe-inline'; "
                                 "script-src 'unsafe-inline'; frame-ancestors 'none'")  # fmt: skip
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name of the server's
                """Say nothing: a request a second is no news."""

        return Handler


def _bound(handler: type[BaseHTTPRequestHandler], port: int) -> ThreadingHTTPServer:
    """Return a server at a port, or at any free one where another program has it."""
    try:
        return ThreadingHTTPServer((HOST, port), handler)
    except OSError:
        return ThreadingHTTPServer((HOST, 0), handler)


PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>zemosaic-phase3 watch</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { margin: 0; background: #111; color: #ddd; font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1100px; margin: auto; padding: 1rem; }
img { width: 100%; background: #000; }
svg { width: 100%; height: 160px; background: #181818; }
table { border-collapse: collapse; font-size: 14px; } td { padding: 0 1rem 0 0; vertical-align: top; }
.fault { color: #fb6; }
</style></head><body><main>
<h1 id="line">waiting for the first frames</h1>
<p class="fault" id="fault"></p>
<img id="preview" alt="the stack so far" hidden>
<p>noise of the stack over the number of frames</p>
<svg id="curve" viewBox="0 0 1000 160" preserveAspectRatio="none" role="img" aria-label="noise over frames"></svg>
<p id="more"></p>
<table id="dropped"></table>
</main><script>
let passes = -1;
const text = (id, value) => { document.getElementById(id).textContent = value; };
function draw(points) {
  const svg = document.getElementById("curve");
  svg.replaceChildren();
  const known = points.filter(p => p[1] !== null);
  if (!known.length) return;
  const most = Math.max(...known.map(p => p[0])), top = Math.max(...known.map(p => p[1]));
  const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
  line.setAttribute("points", known.map(p => `${990 * p[0] / most},${155 - 145 * p[1] / top}`).join(" "));
  line.setAttribute("fill", "none"); line.setAttribute("stroke", "#6cf"); line.setAttribute("stroke-width", "2");
  svg.append(line);
}
async function look() {
  try {
    const state = await (await fetch("state.json")).json();
    text("fault", state.fault);
    if (state.passes !== passes) {
      passes = state.passes;
      if (passes) {
        text("line", state.line); document.title = state.frames + " frames";
        const picture = document.getElementById("preview");
        picture.src = "preview.png?" + passes; picture.hidden = false;
        picture.onerror = () => { picture.hidden = true; };
        text("more", state.fwhm ? "stars " + state.fwhm.toFixed(2) + " px wide" : "");
        draw(state.curve);
        document.getElementById("dropped").replaceChildren(...state.dropped.map(pair => {
          const row = document.createElement("tr");
          pair.forEach(cell => { const td = document.createElement("td"); td.textContent = cell; row.append(td); });
          return row;
        }));
      }
    }
  } catch (error) { text("fault", "the program has ended"); }
  setTimeout(look, 1500);
}
look();
</script></body></html>
"""
