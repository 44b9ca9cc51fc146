"""``attach`` and ``detach``: an existing ZeMosaic checkout uses this library, without a change to any of its files.

In front of each module that is completed (``zemosaic_worker.py``, ...) goes a folder of the same name, which Python
prefers to the file beside it. The folder holds an ``__init__.py``, which runs the checkout's module under its own name
and file and then hands it to :mod:`compat.attached`, a ``__main__.py`` for ``python -m``, and a ``.gitignore`` that
hides the folder from git. Detaching removes the folders. ``docs/zemosaic.md`` weighs this against other ways.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from zemosaic_phase3.compat.attached import ESSENTIAL, LIBRARY, REPLACED, missing_packages, trouble
from zemosaic_phase3.compat.forwarding import incompatibility
from zemosaic_phase3.errors import OutputError, ZeMosaicError

MARK: Final = '"""Put here by `zemosaic-phase3 attach`, removed by `zemosaic-phase3 detach`.'
LAYOUTS: Final = (".", "src/zemosaic", "zemosaic")  # where a checkout keeps its modules, seen from its root

_NOT_THERE: Final = "the checkout has none"

_FRONT: Final = """\
@MARK@

Runs @MODULE@.py beside this folder as if the folder were not there, then lets zemosaic-phase3 replace functions in it.
\"\"\"

def run_original(namespace):
    import importlib
    import importlib.util
    import logging
    import sys
    from pathlib import Path

    library = @LIBRARY@

    def complete(module):
        try:
            if "zemosaic_phase3" not in sys.modules:
                home = Path(library, "zemosaic_phase3")
                spec = importlib.util.spec_from_file_location(
                    "zemosaic_phase3", home / "__init__.py", submodule_search_locations=[str(home)]
                )
                sys.modules["zemosaic_phase3"] = package = importlib.util.module_from_spec(spec)
                try:
                    spec.loader.exec_module(package)
                except BaseException:
                    del sys.modules["zemosaic_phase3"]
                    raise
            attached = importlib.import_module("zemosaic_phase3.compat.attached")
            attached.complete(module)
        except Exception as exc:  # whatever it is, ZeMosaic must start
            log = logging.getLogger("ZeMosaicWorker")
            if not getattr(log, "told_by_zemosaic_phase3", False):
                log.told_by_zemosaic_phase3 = True  # up to three folders, one reason
                log.warning(
                    "[zemosaic-phase3] not used, the checkout's own code runs: %s: %s", type(exc).__name__, exc
                )

    name = namespace["__name__"]
    source = Path(namespace["__file__"]).parent.with_suffix(".py")
    if not source.is_file():
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    spec = importlib.util.spec_from_file_location(name, source)
    # This very module becomes the one of the file, so that it may be reloaded like any other.
    del namespace["run_original"]
    if sys.argv[:1] != ["-m"] or not {name, "-m" + name}.intersection(sys.orig_argv):
        del namespace["__path__"]  # "python -m" looks for __main__.py in it
    namespace.update(
        __spec__=spec, __loader__=spec.loader, __file__=spec.origin, __cached__=spec.cached, __package__=spec.parent,
        __doc__=None,
    )
    module = sys.modules[name]
    spec._initializing = True  # as the import system has it: other threads wait until the module is complete
    try:
        spec.loader.exec_module(module)
        complete(module)
    finally:
        spec._initializing = False


run_original(globals())
"""

_MAIN: Final = """\
@MARK@

"python -m @MODULE@" runs @MODULE@.py itself, as if the folder were not there.
\"\"\"

import pathlib

__file__ = str(pathlib.Path(__file__).parent.with_suffix(".py"))
__package__ = __package__.rpartition(".")[0]
with open(__file__, "rb") as stream:
    exec(compile(stream.read(), __file__, "exec"))
"""


class CheckoutError(ZeMosaicError):
    """A folder is no ZeMosaic checkout that can be attached; the message says what was looked for."""


@dataclass
class Attachment:
    """What :func:`attach` or :func:`detach` did to a checkout.

    ``folders`` are those put there or removed; ``replaced`` and, with the reason, ``kept`` are names such as
    ``zemosaic_worker.create_master_tile``; ``missing`` are packages this interpreter lacks, ``trouble`` says why
    stacking would not work with it, and the checkout's own code would run.
    """

    checkout: Path
    folders: list[Path] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    trouble: str = ""


def attach(checkout: str | Path) -> Attachment:
    """Make a ZeMosaic checkout use this library from its next start on; doing it again renews the attachment.

    Parameters
    ----------
    checkout : path
        Root of the checkout, or the folder of its modules.

    Returns
    -------
    Attachment

    Raises
    ------
    CheckoutError
        The folder is not understood; nothing was written then.
    OutputError
        A folder could not be written; what was written before is removed again.
    """
    root = Path(checkout)
    done = Attachment(root, missing=missing_packages(), trouble=trouble())
    modules: list[Path] = []
    for home in _homes(root):
        modules += _understand(home, done)
    written: list[Path] = []
    try:
        for module in modules:
            written.append(_put_front(module))
    except OSError as exc:
        for folder in written:
            shutil.rmtree(folder)
        raise OutputError(f"{root}: cannot be attached ({exc}); make the folder writable for you") from exc
    done.folders = written
    return done


def _homes(root: Path) -> list[Path]:
    """Folders that hold the modules of a checkout.

    Raises
    ------
    CheckoutError
        There is none, or the folder is this library itself.
    """
    if not root.is_dir():
        raise CheckoutError(f"{root}: is no folder; name the folder of a ZeMosaic checkout")
    module, function = ESSENTIAL
    homes = [home for layout in LAYOUTS if (home := root / layout) and (home / f"{module}.py").is_file()]
    if any((home / "zemosaic_phase3" / "compat").is_dir() for home in homes):
        raise CheckoutError(f"{root}: is zemosaic-phase3 itself; name the folder of a ZeMosaic checkout")
    if not homes:
        looked = ", ".join(f"{Path(layout, module)}.py" for layout in LAYOUTS)
        raise CheckoutError(f"{root}: is no ZeMosaic checkout: it has none of {looked}")
    return homes


def _understand(home: Path, done: Attachment) -> list[Path]:
    """List the modules to complete in one folder, and note what will be replaced in them.

    Raises
    ------
    CheckoutError
        ``create_master_tile`` is missing or takes other arguments, or something stands in the way.
    OutputError
        An earlier attachment holds something that is not ours.
    """
    modules = []
    for stem, names in REPLACED.items():
        module = home / f"{stem}.py"
        if not module.is_file():
            continue
        front = home / stem
        if front.exists() and not is_front(front):
            raise CheckoutError(f"{front}: is in the way and not of our making; this checkout is not understood")
        if front.exists():
            _refuse_strangers(front)
        reasons = _compare(module, names)
        essential = reasons.get(ESSENTIAL[1]) if stem == ESSENTIAL[0] else None
        if essential:
            raise CheckoutError(f"{module}: {ESSENTIAL[1]} cannot be replaced: {essential}")
        fitting = [f"{stem}.{name}" for name, reason in reasons.items() if not reason]
        done.kept |= {f"{stem}.{name}": why for name, why in reasons.items() if why and why != _NOT_THERE}
        done.replaced += fitting
        if fitting:
            modules.append(module)
    return modules


def _compare(module: Path, names: tuple[str, ...]) -> dict[str, str]:
    """Tell for each name why it cannot be replaced; empty text where it can.

    Raises
    ------
    CheckoutError
        The file cannot be read as Python.
    """
    try:
        tree = ast.parse(module.read_bytes(), filename=str(module))
    except (OSError, SyntaxError, ValueError) as exc:
        raise CheckoutError(f"{module}: cannot be read as Python ({exc}); repair the checkout first") from exc
    theirs = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}  # the last definition counts
    try:
        ours = importlib.import_module(module.stem)
    except ModuleNotFoundError as exc:
        if exc.name != module.stem:
            raise
        return dict.fromkeys(names, "this version of zemosaic-phase3 has none")
    reasons = {}
    for name in names:
        mine = getattr(ours, name, None)
        if name not in theirs:
            reasons[name] = _NOT_THERE
        elif mine is None:
            reasons[name] = "this version of zemosaic-phase3 has none"
        else:
            reasons[name] = incompatibility(_signature(theirs[name]), inspect.signature(mine))
    return reasons


def _signature(function: ast.FunctionDef) -> inspect.Signature:
    """Signature of a function that was parsed and not imported; a default is there or not, its value is unknown."""
    arguments, kind = function.args, inspect.Parameter
    plain: list[tuple[str, Any]] = [(a.arg, kind.POSITIONAL_ONLY) for a in arguments.posonlyargs]
    plain += [(a.arg, kind.POSITIONAL_OR_KEYWORD) for a in arguments.args]
    first_default = len(plain) - len(arguments.defaults)
    parameters = [
        kind(name, how, default=None if i >= first_default else kind.empty) for i, (name, how) in enumerate(plain)
    ]
    if arguments.vararg:
        parameters.append(kind(arguments.vararg.arg, kind.VAR_POSITIONAL))
    for a, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        parameters.append(kind(a.arg, kind.KEYWORD_ONLY, default=kind.empty if default is None else None))
    if arguments.kwarg:
        parameters.append(kind(arguments.kwarg.arg, kind.VAR_KEYWORD))
    return inspect.Signature(parameters)


def is_front(folder: Path) -> bool:
    """Tell whether a folder is one that :func:`attach` has put there."""
    try:
        return (folder / "__init__.py").read_text(encoding="utf-8", errors="replace").startswith(MARK)
    except OSError:
        return False


def _put_front(module: Path) -> Path:
    """Put the folder in front of a module, whole or not at all."""
    front = module.with_suffix("")
    values = {"@MARK@": MARK, "@MODULE@": module.stem, "@LIBRARY@": ascii(str(LIBRARY))}
    files = {"__init__.py": _FRONT, "__main__.py": _MAIN, ".gitignore": "*\n"}
    made = Path(tempfile.mkdtemp(prefix=".zemosaic_phase3_", dir=module.parent))
    try:
        made.chmod(0o755)  # mkdtemp makes it for this user alone; others may run the checkout
        for name, text in files.items():
            for key, value in values.items():
                text = text.replace(key, value)
            (made / name).write_text(text, encoding="utf-8", newline="\n")
        if front.exists():
            shutil.rmtree(front)
        made.rename(front)
    except OSError:
        shutil.rmtree(made, ignore_errors=True)
        raise
    return front


def _refuse_strangers(folder: Path) -> None:
    """Raise OutputError for a folder of ours that holds something else: it cannot be removed."""
    strangers = sorted(
        {path.name for path in folder.iterdir()} - {"__init__.py", "__main__.py", ".gitignore", "__pycache__"}
    )
    if strangers:
        raise OutputError(f"{folder}: holds {', '.join(strangers)}, which is not of our making; move it away first")


def detach(checkout: str | Path) -> Attachment:
    """Undo :func:`attach`; the checkout is byte for byte what it was.

    Raises
    ------
    CheckoutError
        Nothing is attached there.
    OutputError
        A folder cannot be removed, or holds something that is not ours; nothing is removed then.
    """
    root = Path(checkout)
    fronts = [front for layout in LAYOUTS for stem in REPLACED if is_front(front := root / layout / stem)]
    if not fronts:
        raise CheckoutError(f"{root}: zemosaic-phase3 is not attached here")
    try:
        for front in fronts:
            _refuse_strangers(front)
        for front in fronts:
            shutil.rmtree(front)
    except OSError as exc:
        raise OutputError(f"{root}: cannot be detached ({exc}); close ZeMosaic, or make it writable for you") from exc
    return Attachment(root, folders=fronts)
