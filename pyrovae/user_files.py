"""Python files of the user's own: what one defines, and whether it is still as it was.

A run keeps copies of the files that its program is made of, and of their neighbours: the modules
beside a file that it imports while it is loaded. Nothing of them is executed unless the user's own
files are where they were and as they were when they were trained on this machine, or the user says
that the run is trusted.
"""

__all__ = [
    "as_recorded",
    "copy",
    "copy_into",
    "defined_in",
    "describe",
    "digest",
    "failure",
    "held_to",
    "is_as_it_was",
    "is_own_file",
    "load",
    "locate",
    "split",
]

import hashlib
import json
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import invalidate_caches
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path, PurePosixPath
from types import CodeType, ModuleType
from typing import Any

from pyrovae.errors import InputError
from pyrovae.known_files import is_known, remember

_PREFIX = "_pyrovae_user_"
# What a description of a file says of it.
DESCRIBED = ("file", "sha256", "beside")
# Where a run keeps copies of the files that its program is made of.
SOURCE = "source"
# The sha256 of files by their paths from the folder of the file that imports them.
Beside = Mapping[str, str]
# The neighbours that each file imported when it was last loaded.
_BESIDE: dict[Path, Beside] = {}
# What files of the user's are held to, by `as_recorded`.
_RECORDED: dict[Path, Mapping[str, Any]] = {}


def is_own_file(word: str) -> bool:
    """Whether a word names something in a file, `file.py:name`, rather than a part of ours."""
    return ":" in word or word.endswith(".py")


def split(spec: str, default: str) -> tuple[Path, str]:
    """The file and the name that `file.py:name` stands for."""
    file, _, name = spec.partition(":")
    return Path(file).expanduser().resolve(), name or default


class _AsRead(SourceFileLoader):
    """Runs the bytes that were read, and no bytecode that lies beside their file."""

    def __init__(self, name: str, path: str, content: bytes) -> None:
        super().__init__(name, path)

        self.content = content

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.content, self.path)


class _Neighbours(MetaPathFinder):
    """Finds the modules that lie beside a file of the user's, and notes what they hold.

    Args:
        folder: The folder of that file.
        expected: What those may hold that are found; None if they may be any.
    """

    # The modules of all files that were loaded, by the names that others may have too.
    known: set[str] = set()  # noqa: RUF012

    def __init__(self, folder: Path, expected: Beside | None) -> None:
        self.folder = folder
        self.expected = expected
        self.found: dict[str, str] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module, if it lies beside the file or in a package that does.

        Raises:
            InputError: If it may not be run.
        """
        if path is not None and fullname.partition(".")[0] not in self.known:
            return None  # of a library, that may be installed in a folder below
        spec = PathFinder.find_spec(fullname, path or [str(self.folder)])
        if spec is None or (path is None and not spec.has_location and _is_library(fullname)):
            return None  # a folder that holds no code, such as ./datasets, hides no library
        self.known.add(fullname)
        if spec.origin is not None and Path(spec.origin).is_relative_to(self.folder):
            content = self._checked(Path(spec.origin))
            if isinstance(spec.loader, SourceFileLoader):
                spec.loader = _AsRead(fullname, spec.origin, content)
        return spec

    def _checked(self, file: Path) -> bytes:
        content, name = file.read_bytes(), file.relative_to(self.folder).as_posix()
        self.found[name] = _digest_of(content)
        if self.expected is not None and self.expected.get(name) != self.found[name]:
            raise InputError(
                f"{file} is not as it was when the run was trained, so it is not run.",
                "Restore it, or name the program's file now with --program.",
            )
        return content

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Has Python ask here before it looks at its path, and forget what was found before."""
        for name in self.known & sys.modules.keys():
            del sys.modules[name]
        self.known.clear()
        invalidate_caches()
        place = sys.meta_path.index(PathFinder) if PathFinder in sys.meta_path else 0
        sys.meta_path.insert(place, self)
        try:
            yield
        finally:
            sys.meta_path.remove(self)


def _is_library(name: str) -> bool:
    """Whether Python finds more than a folder under a name."""
    found = PathFinder.find_spec(name)
    return found is not None and found.has_location


def load(path: Path, name: str, *, sha256: str | None = None, beside: Beside | None = None) -> Any:
    """What a file defines under a name. It runs the file, and no bytecode that lies beside it.

    Args:
        path: The file.
        name: What it defines.
        sha256: What the file must hold, if it is of a run.
        beside: What the modules beside it that it imports must hold then.

    Raises:
        InputError: If there is no such file or name, it cannot be run, or it or a module beside
            it holds something else.
    """
    if sha256 is None and path in _RECORDED:
        return load(path, name, **held_to(_RECORDED[path]))
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"There is no file {path}.", f"Name it as file.py:{name}.") from error
    if sha256 is not None and _digest_of(content) != sha256:
        raise InputError(f"{path} has changed, so it is not run.", "Restore the file.")

    # The path's own hash tells files of one name apart.
    key = f"{_PREFIX}{path.stem}_{_digest_of(str(path).encode())[:8]}"
    spec = spec_from_file_location(key, path, loader=_AsRead(key, str(path), content))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    # Registered, so that dataclasses and pickling inside the user's file find their module.
    sys.modules[key] = module
    # What lies beside a run's own copy was put there by whoever made the run.
    of_a_run = sha256 is not None or SOURCE in path.parts
    neighbours = _Neighbours(path.parent.absolute(), (beside or {}) if of_a_run else None)
    try:
        with neighbours.at_work():
            spec.loader.exec_module(module)
    except InputError:
        raise
    except Exception as error:
        raise failure(path, error) from error
    _BESIDE[path] = neighbours.found

    found = getattr(module, name, None)
    if not callable(found):
        raise InputError(f"{path} defines no {name!r}.", "Name it as file.py:name.")
    return found


def failure(path: Path, error: Exception) -> InputError:
    """What to raise where a file of the user's own raises an error, with the line that did."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    place = f", in line {lines[-1]}" if lines else ""
    return InputError(
        f"{path} cannot be run ({type(error).__name__}: {error}{place}).", "Mend the file."
    )


@contextmanager
def as_recorded(described: Iterable[Mapping[str, Any]]) -> Iterator[None]:
    """Holds files that are named within the block to their descriptions, as those of a run."""
    _RECORDED.update({Path(str(config["file"])): config for config in described})
    try:
        yield
    finally:
        _RECORDED.clear()


def describe(path: Path) -> dict[str, Any]:
    """A file that was loaded: where it is, and what it and the modules beside it held."""
    beside = _BESIDE.get(path, {})
    return {
        "file": str(path),
        "sha256": digest(path),
        **({"beside": dict(sorted(beside.items()))} if beside else {}),
    }


def held_to(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `load` that hold a file, and those beside it, to their description."""
    return {"sha256": str(config["sha256"]), "beside": _beside_of(config)}


def is_as_it_was(config: Mapping[str, Any], run: Path | None) -> bool:
    """Whether a described file is the user's own, where and as it was when it was trained here.

    A file that lies in the run itself is no file of the user's, whatever the run says.
    """
    path = Path(str(config["file"]))
    is_own = path.is_absolute() and not (run and path.resolve().is_relative_to(run.resolve()))
    return is_own and _holds(path, config) and is_known(path, _name_in(config), _seal(config))


def locate(config: Mapping[str, Any], run: Path | None, *, trusted: bool = False) -> Path:
    """The file of a description, `file`, `sha256` and `beside`, as it was.

    Args:
        config: The description.
        run: The folder of the run that holds it, if there is one.
        trusted: Whether the run's own copy may be run.

    Raises:
        InputError: If the file is gone or has changed, and its copy is not trusted or damaged.
    """
    path = Path(str(config["file"]))
    if is_as_it_was(config, run):
        return path
    if run is None or not trusted:
        changed = _first_other(path, config) or path
        raise InputError(
            f"The run's file {changed} is gone, has changed since or was not trained by you on "
            "this machine, so it is not run.",
            "Restore it, name the program's file now with --program, or run the copy in the run "
            "with --trust-source.",
        )
    copied = _copy_of(path, config, run)
    if changed := _first_other(copied, config):
        raise InputError(
            f"The run's copy {changed} of {path} is gone or has changed.", "Restore the file."
        )
    return copied


def copy(path: Path, config: Mapping[str, Any], run: Path) -> None:
    """Copies a described file of the user's, and the modules beside it, into a run."""
    place = _copy_of(path, config, run)
    for name in (path.name, *_beside_of(config)):
        (place.parent / name).parent.mkdir(parents=True, exist_ok=True)
        (place.parent / name).write_bytes((path.parent / name).read_bytes())


def _first_other(path: Path, config: Mapping[str, Any]) -> Path | None:
    """The first of a file and the modules beside it that does not hold what was described."""
    expected = {path.name: config.get("sha256"), **_beside_of(config)}
    files = ((path.parent / name, sha256) for name, sha256 in expected.items())
    return next((file for file, sha256 in files if digest(file) != sha256), None)


def _holds(path: Path, config: Mapping[str, Any]) -> bool:
    return _first_other(path, config) is None


def _beside_of(config: Mapping[str, Any]) -> Beside:
    """What a description says of the modules beside a file.

    Raises:
        InputError: If it names one that does not lie there.
    """
    beside = config.get("beside", {})
    names = [PurePosixPath(str(name)) for name in beside]
    if any(name.is_absolute() or ".." in name.parts or not name.parts for name in names):
        raise InputError(
            f"The configuration names files beside {config['file']} that are elsewhere.",
            "Restore the run's config.json.",
        )
    return {str(name): str(sha256) for name, sha256 in beside.items()}


def _seal(config: Mapping[str, Any]) -> str:
    """One sha256 for a file and the modules beside it; its own where there are none."""
    own, beside = str(config.get("sha256")), _beside_of(config)
    return _digest_of(json.dumps([own, sorted(beside.items())]).encode()) if beside else own


def _name_in(config: Mapping[str, Any]) -> str:
    """What is taken out of the file of a description."""
    return str(config.get("function") or config.get("part") or config.get("name"))


def copy_into(run: Path, config: Any) -> None:
    """Copies every file that a tree of descriptions names into a run, and remembers it."""
    if isinstance(config, list):
        for item in config:
            copy_into(run, item)
    if isinstance(config, Mapping):
        if "file" in config and _holds(path := Path(config["file"]), config):
            remember(path, _name_in(config), _seal(config))
            copy(path, config, run)
        for item in config.values():
            copy_into(run, item)


def _copy_of(path: Path, config: Mapping[str, Any], run: Path) -> Path:
    return run / SOURCE / _seal(config)[:8] / path.name


def defined_in(cls: type) -> Path | None:
    """The user's file that `load` took a class from, or None."""
    if not cls.__module__.startswith(_PREFIX):
        return None
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return None if file is None else Path(file)


def digest(path: Path) -> str:
    """What a file holds, as a sha256; the empty string where there is no file."""
    return _digest_of(path.read_bytes()) if path.is_file() else ""


def _digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
