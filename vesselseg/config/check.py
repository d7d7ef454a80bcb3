"""Check every ``dict(type=X, ...)`` of a config against the signature of X, and complete it with X's defaults.

Nothing is built. A class may list in ``config_targets`` which class or function its dict arguments are passed to, by
relative path, as an object or a dotted name (``{"loss": "package.module.Loss", "sa2va.lora": Lora}``). Their keys are
then checked as well. Arguments annotated with a dataclass or a pydantic model need no entry there.
"""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from vesselseg.config.settings import SECTIONS, read_section, section_fields
from vesselseg.registry import resolve
from vesselseg.suggest import did_you_mean

Names = dict[str, Any]  # argument name -> class or function that its dict is passed to, or None


def check_types(values: Any, where: str = "") -> list[str]:
    """Unknown arguments and types that cannot be imported, one sentence each, for all dicts below `values`.

    A class may check its arguments together: its static method ``config_problems(arguments)`` returns one sentence per
    problem, each beginning with the argument's path.
    """
    problems: list[str] = []
    for path, node, target in _typed(values, where):
        if isinstance(target, Exception):
            problems.append(f"{path}.type: cannot import {node['type']!r}: {target}")
            continue
        problems += [f"{path}.{problem}" for problem in getattr(target, "config_problems", _none)(node)]
        names = accepted_names(target)
        if names is None:
            continue
        for key in node:
            if key != "type" and key not in names:
                problems.append(f"{path}.{key}: {_name(target)} takes no {key!r}{did_you_mean(key, names)}")
    return problems


def check_sections(values: Mapping[str, Any]) -> list[str]:
    """Unknown names and invalid values in the plain sections, one sentence each."""
    problems = []
    for section in SECTIONS:
        given = values.get(section)
        if given is None:
            continue
        if not isinstance(given, Mapping):
            problems.append(f"{section} must be a dict, found {given!r}")
            continue
        names = section_fields(section)
        unknown = [key for key in given if key not in names]
        problems += [f"{section}.{key}: no such setting{did_you_mean(key, names)}" for key in unknown]
        if not unknown:
            problems += [f"{section}.{problem}" for problem in read_section(values, section).problems()]
    return problems


def complete(values: Mapping[str, Any], without: Iterable[str] = ()) -> None:
    """Add the defaults of our own and the user's signatures to every dict that is passed to one, in place.

    A written config then shows all values that a run used, also after a default has changed. without: dotted paths that
    are not settings of a config. Third-party settings, which pydantic or mmengine define, are left as they are.
    """
    excluded = set(without)
    for path, node, target in list(_typed(values, "")):
        for name, default in own_defaults(target).items():
            if f"{path}.{name}" not in excluded and isinstance(node, dict):
                node.setdefault(name, default)


def own_defaults(target: Any) -> dict[str, Any]:
    """Arguments of a class or function, inherited ones excluded, whose default is a plain value."""
    target = resolve(target)
    if isinstance(target, Exception) or hasattr(target, "model_fields"):
        return {}
    function = vars(target).get("__init__") if inspect.isclass(target) else target
    parameters = inspect.signature(function).parameters.values() if function else ()
    return {parameter.name: parameter.default for parameter in parameters if _is_plain(parameter.default)}


def typed_nodes(values: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any], Any]]:
    """(dotted path, dict, class or function that the dict is passed to) for every such dict of a config."""
    return _typed(values, "")


def accepted(values: Mapping[str, Any]) -> set[str]:
    """Dotted paths of all arguments that the signatures in a config take, set or not."""
    paths: set[str] = set()
    for path, _, target in _typed(values, ""):
        names = None if isinstance(target, Exception) else accepted_names(target)
        paths |= {f"{path}.{name}" for name in names or {}}
    return paths


def flatten(values: Mapping[str, Any], where: str = "") -> Iterator[str]:
    """Dotted paths of everything that is set, dicts included."""
    for key, value in values.items():
        yield f"{where}{key}"
        if isinstance(value, Mapping):
            yield from flatten(value, f"{where}{key}.")


def accepted_names(target: Any) -> Names | None:
    """Argument names of a class or function; None if it accepts any name.

    ``**kwargs`` of a class are resolved through its base classes.
    """
    target = resolve(target)
    if hasattr(target, "model_fields"):
        found = {name: _nested(field.annotation) for name, field in target.model_fields.items()}
        aliases = {field.alias: found[name] for name, field in target.model_fields.items() if field.alias}
        return {**found, **aliases}
    if not inspect.isclass(target):
        return _parameters(target, skip_first=False)
    names: Names = {}
    for cls in inspect.getmro(target):
        if "__init__" not in vars(cls):
            continue
        initialiser = vars(cls)["__init__"]
        own = _parameters(initialiser, skip_first=True)
        names = {**_all_parameters(initialiser), **names}
        if own is not None:
            break
    else:
        return None
    return names


def _typed(
    values: Any, where: str, target: Any = None, below: Mapping[str, Any] | None = None
) -> Iterator[tuple[str, Mapping[str, Any], Any]]:
    """(path, dict, target) for every dict whose target's signature is known; below: targets by relative path."""
    if isinstance(values, (list, tuple)):
        for index, item in enumerate(values):
            yield from _typed(item, f"{where}.{index}")
    if not isinstance(values, Mapping):
        return
    if "type" in values:  # a config may replace the class that would be called
        try:
            target = resolve(values["type"])
        except Exception as error:  # an import can raise anything; it is reported like any other problem
            target = error
    names: Names = {}
    if target is not None:
        yield where, values, target
        names = {} if isinstance(target, Exception) else accepted_names(target) or {}
    below = {**(below or {}), **getattr(target, "config_targets", {})}
    for key, value in values.items():
        deeper = {name[len(key) + 1 :]: found for name, found in below.items() if name.startswith(f"{key}.")}
        yield from _typed(value, f"{where}.{key}" if where else str(key), below.get(key) or names.get(key), deeper)


def _parameters(function: Any, skip_first: bool) -> Names | None:
    """Parameters by name with the target of their dicts; None where **kwargs accept any name."""
    kinds = [parameter.kind for parameter in inspect.signature(function).parameters.values()]
    if inspect.Parameter.VAR_KEYWORD in kinds:
        return None
    names = _all_parameters(function)
    return dict(list(names.items())[1:]) if skip_first and not inspect.ismethod(function) else names


def _all_parameters(function: Any) -> Names:
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    try:
        hints = typing.get_type_hints(function)
    except Exception:  # other packages' annotations may not be importable; parameter names are enough
        hints = {}
    parameters = inspect.signature(function).parameters.values()
    return {p.name: _nested(hints.get(p.name)) for p in parameters if p.kind in named}


def _nested(annotation: Any) -> Any:
    """The dataclass or pydantic model in an annotation such as ``Settings | None``, else None."""
    for option in (annotation, *typing.get_args(annotation)):
        if inspect.isclass(option) and (dataclasses.is_dataclass(option) or hasattr(option, "model_fields")):
            return option
    return None


def _is_plain(default: Any) -> bool:
    if isinstance(default, tuple):
        return all(map(_is_plain, default))
    return default is None or type(default) in (bool, int, float, str)  # an enum member is not written as its value


def _name(target: Any) -> str:
    return getattr(resolve(target), "__name__", str(target))


def _none(_: Mapping[str, Any]) -> list[str]:
    return []
