"""From file, environment and flags to one `Config`, or to the list of all that is wrong."""

import difflib
import math
import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct, inspect

from enginegate.config.rules import RULES
from enginegate.config.settings import Config
from enginegate.config.variables import OTHERS, PREFIX, is_known, nearest, same_letters
from enginegate.errors import ConfigError

_SHOWN_MAX: Final = 80  # of a faulty value, so that a fault stays one line
_TRUTHS: Final = {"true": True, "1": True, "false": False, "0": False}


class _Given(Struct, frozen=True):
    """A value as somebody wrote it, and where; a `text` has yet to be parsed."""

    value: object
    source: str
    text: bool = False


_Found = Iterator[tuple[str, _Given | str]]
"""Dotted keys, each with what was given or with a fault."""


def load(
    path: Path | None,
    environ: Mapping[str, str],
    overrides: Mapping[str, object] | None = None,
) -> Config:
    """Return the settings; `overrides` come from flags, by dotted key, None if not given.

    Raises:
        ConfigError: with every fault found, each naming its key and its source.
    """
    given: dict[str, _Given] = {}
    faults: list[tuple[str, str]] = []
    for layer in (_from_file(path), _from_environment(environ), _from_flags(overrides or {})):
        for key, found in layer:
            if isinstance(found, _Given):
                given[key] = found
            else:
                faults.append((key, found))
    config = _built(given, faults)
    wrong = {key for key, _ in faults}
    for keys, why in _contradictions(config):
        if wrong.isdisjoint({_WHOLE_FILE, *keys}):
            faults.append((keys[0], f"{keys[0]}: {why}"))
    if faults:
        raise ConfigError([why for _, why in faults])
    return config


def _kinds(struct: type[Struct], prefix: str = "") -> Iterator[tuple[str, inspect.Type | None]]:
    """Yield every dotted key with its type, and every section with None."""
    info = inspect.type_info(struct)
    assert isinstance(info, inspect.StructType)
    for field in info.fields:
        key = prefix + field.name
        if isinstance(field.type, inspect.StructType):
            yield key, None
            yield from _kinds(field.type.cls, f"{key}.")
        else:
            yield key, field.type


_KINDS: Final = dict(_kinds(Config))
_VARIABLES: Final = {PREFIX + key.upper().replace(".", "__"): key for key in _KINDS}
_NAMES: Final = (*_VARIABLES, *sorted(OTHERS))
_SECTIONS: Final = (
    f"{PREFIX}DATA_",
    *(f"{name}_" for name, key in _VARIABLES.items() if _KINDS[key] is None),
)
_WHOLE_FILE: Final = ""


def _from_file(path: Path | None) -> _Found:
    if path is None:
        return
    try:
        table = tomllib.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        yield _WHOLE_FILE, f"{path}: cannot be read: {error.strerror}"
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        yield _WHOLE_FILE, f"{path}: is not UTF-8 text (at line {line})"
    except tomllib.TOMLDecodeError as error:
        yield _WHOLE_FILE, f"{path}: is not valid TOML: {error}"
    else:
        yield from _leaves(table, "", str(path))


def _from_environment(environ: Mapping[str, str]) -> _Found:
    for name in sorted(environ):  # a section as a whole comes before its keys
        key = _VARIABLES.get(name)
        if key is None:
            if _is_unread(name, environ[name]) and _is_slip(name):
                yield name, _unread(name)
        elif _KINDS[key] is None:
            yield from _leaves({key: _decoded(environ[name])}, "", name)
        else:
            yield key, _Given(environ[name], name, text=True)


def absent(config: Config) -> list[str]:
    """Return a fault for each place that a server needs and that is not there.

    It is not asked for by `load`: who looks after a journal needs none of them.
    """
    engine = config.engine
    # Docker's daemon may see other files than we do; it refuses what it does not find itself.
    if engine.backend == "docker" or not engine.catalog_dir:
        return []
    if os.path.isdir(engine.catalog_dir):  # noqa: PTH112 - Path's raises where it must not look
        return []
    found = _shown(engine.catalog_dir)
    return [f"engine.catalog_dir: no such directory, or it cannot be looked at (got {found})"]


def unread(environ: Mapping[str, str]) -> list[str]:
    """Return a line for each variable with our prefix that `load` leaves alone, and nobody reads.

    It may belong to whoever deploys us, so it is no fault, but it may be meant for us.
    """
    unknown = (name for name in sorted(environ) if name not in _VARIABLES)
    return [_unread(name) for name in unknown if _is_unread(name, environ[name])]


def _is_unread(name: str, value: str) -> bool:
    return name.startswith(PREFIX) and not is_known(name, value)


def _is_slip(name: str) -> bool:
    """Return whether a name can mean nothing but a setting or a secret of ours."""
    return "__" in name or name.startswith(_SECTIONS) or same_letters(name, _NAMES) is not None


def _unread(name: str) -> str:
    return f"{name}: no such setting{_did_you_mean(nearest(name, _NAMES))}"


def _from_flags(overrides: Mapping[str, object]) -> _Found:
    told = {key: value for key, value in overrides.items() if value is not None}
    for key, found in _leaves(told, "", "the command line"):
        if isinstance(found, _Given) and isinstance(found.value, str):
            yield key, _Given(found.value, found.source, text=True)
        else:
            yield key, found


def _leaves(table: Mapping[str, object], prefix: str, source: str) -> _Found:
    """Yield what a table gives by dotted key, and a fault for each unknown one."""
    for name, value in table.items():
        key = prefix + name
        if key not in _KINDS:
            close = difflib.get_close_matches(key, _KINDS, n=1)
            hint = _did_you_mean(*close)
            yield key, f"{key}: no such setting (from {source}){hint}"
        elif _KINDS[key] is not None:
            yield key, _Given(value, source)
        elif isinstance(value, dict):
            yield from _leaves(value, f"{key}.", source)
        else:
            yield key, f"{key}: must be a table (from {source})"


def _did_you_mean(name: str | None = None) -> str:
    return f"; did you mean {name}?" if name else ""


def _built(given: Mapping[str, _Given], faults: list[tuple[str, str]]) -> Config:
    """Return the settings, with the default in place of each value found faulty."""
    tree: dict[str, Any] = {}
    for key, one in given.items():
        kind = _KINDS[key]
        assert kind is not None
        value = _parsed(kind, str(one.value)) if one.text else one.value
        wrong = list(_faults(key, kind, value))
        if wrong:
            source = f"({_got(kind, value)}from {one.source})"
            faults += [(key, f"{key}: {why} {source}") for why in wrong]
            continue
        *sections, name = key.split(".")
        branch = tree
        for section in sections:
            branch = branch.setdefault(section, {})
        branch[name] = value
    return msgspec.convert(tree, Config)


def _faults(key: str, kind: inspect.Type, value: object) -> Iterator[str]:
    """Yield in what ways a value is wrong; a list or table is looked at to its end."""
    why = _misfit(kind, value)
    if why:
        yield why
    if key in RULES and (why is None or _has_members(kind, value)):
        yield from RULES[key](value)


def _has_members(kind: inspect.Type, value: object) -> bool:
    """Return whether a value is a list or a table where one is wanted, whatever is in it."""
    match kind:
        case inspect.VarTupleType():
            return isinstance(value, list | tuple)
        case inspect.DictType():
            return isinstance(value, dict)
        case _:
            return False


def _got(kind: inspect.Type, value: object) -> str:
    """Return what was got, but for lists and tables: engines' secrets may be in them."""
    if isinstance(kind, inspect.VarTupleType | inspect.DictType):
        return ""
    return f"got {_shown(value)}, "


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= _SHOWN_MAX else shown[:_SHOWN_MAX] + "…"


def _parsed(kind: inspect.Type, text: str) -> object:
    """Return what a text stands for, or the text itself where that cannot be seen."""
    try:
        match kind:
            case inspect.BoolType():
                return _TRUTHS.get(text.lower(), text)
            case inspect.IntType():
                return int(text)
            case inspect.FloatType():
                return float(text)
            case inspect.VarTupleType() | inspect.DictType():
                return _decoded(text)
            case _:
                return text
    except ValueError:
        return text


def _decoded(text: str) -> object:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text


def _misfit(kind: inspect.Type, value: object) -> str | None:
    """Return how a value misses its type or its limits, if it does."""
    match kind:
        case inspect.BoolType():
            fits, wanted = isinstance(value, bool), "true or false"
        case inspect.IntType() | inspect.FloatType():
            return _misfit_number(kind, value)
        case inspect.LiteralType(values=choices):
            fits, wanted = value in choices, " or ".join(repr(choice) for choice in choices)
        case inspect.VarTupleType():
            fits = isinstance(value, list | tuple) and _texts(value)
            wanted = "a list of strings"
        case inspect.DictType():
            fits = isinstance(value, dict) and _texts(value.values())
            wanted = "a table of strings"
        case inspect.UnionType():
            fits = isinstance(value, str | int) and not isinstance(value, bool)
            wanted = "text or a whole number"
        case _:
            fits, wanted = isinstance(value, str), "text"
    return None if fits else f"must be {wanted}"


def _texts(values: Iterable[object]) -> bool:
    return all(isinstance(value, str) for value in values)


def _misfit_number(kind: inspect.IntType | inspect.FloatType, value: object) -> str | None:
    whole = isinstance(kind, inspect.IntType)
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        return "must be a whole number" if whole else "must be a number"
    if isinstance(value, float) and not math.isfinite(value):
        return "must be a finite number"
    if kind.gt is not None and value <= kind.gt:
        return f"must be greater than {kind.gt}"
    if kind.ge is not None and value < kind.ge:
        return f"must be at least {kind.ge}"
    if kind.le is not None and value > kind.le:
        return f"must be at most {kind.le}"
    return None


def _contradictions(config: Config) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield what cannot be true together, with the keys that say it."""
    engine, ports, restart = config.engine, config.ports, config.restart
    keys: tuple[str, ...]
    if ports.min > ports.max:
        got = f"(got {ports.min} and {ports.max})"
        yield ("ports.min", "ports.max"), f"must not be greater than ports.max {got}"
    elif config.pool.size > ports.max - ports.min + 1:
        got = f"(got {config.pool.size})"
        keys = ("pool.size", "ports.min", "ports.max")
        yield keys, f"must not be greater than the number of ports {got}"
    if restart.backoff_base_s > restart.backoff_max_s:
        got = f"(got {restart.backoff_base_s} and {restart.backoff_max_s})"
        keys = ("restart.backoff_base_s", "restart.backoff_max_s")
        yield keys, f"must not be greater than restart.backoff_max_s {got}"
    if engine.backend == "docker" and not engine.image:
        yield ("engine.image", "engine.backend"), "must be given for the docker backend"
    if engine.backend == "process" and engine.url_mode == "network":
        yield ("engine.url_mode", "engine.backend"), "must be 'host' for the process backend"
    for name in engine.env_passthrough:
        if name in engine.env:
            keys = ("engine.env_passthrough", "engine.env")
            yield keys, f"{name} is set in engine.env as well"
