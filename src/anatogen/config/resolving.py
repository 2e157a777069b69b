"""Configuration: pydantic models from a preset, a YAML file and ``key.sub=value`` overrides, in that order.

Every stage describes its options as a subclass of `Section`; `resolve` merges the sources, shows all
errors at once, and `save_yaml` writes what was used beside the results.
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from anatogen.core.errors import ConfigError
from anatogen.core.files import write_text


class Section(BaseModel):
    """A part of a configuration: unknown keys are errors, numbers finite, values fixed once resolved."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


SectionT = TypeVar("SectionT", bound=Section)


def resolve(
    model: type[SectionT],
    preset: Mapping[str, Any] | None = None,
    file: Path | None = None,
    overrides: Iterable[str] = (),
) -> SectionT:
    """Merges preset, YAML file and overrides (later wins) and validates the result.

    Args:
        model: The configuration to build.
        preset: Nested values to start from.
        file: A YAML file with nested keys.
        overrides: Strings ``key.sub=value``; the value is read as YAML.

    Raises:
        ConfigError: Listing every unreadable override, unknown key and invalid value.
    """
    values: dict[str, Any] = _copy(preset or {})
    if file is not None:
        _merge(values, read_yaml(file))
    problems = _add_overrides(values, overrides)
    try:
        resolved = model.model_validate(values)
    except ValidationError as error:
        problems.extend(_describe(error, model))
    _raise_if_any(problems)
    return resolved


def merged(base: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values of both; where they meet, those of `extra`."""
    values = _copy(base)
    _merge(values, extra)
    return values


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """Nested values of strings ``key.sub=value``.

    Raises:
        ConfigError: Listing those that can't be read.
    """
    values: dict[str, Any] = {}
    problems = _add_overrides(values, overrides)
    _raise_if_any(problems)
    return values


def to_yaml(config: Section) -> str:
    """The configuration as YAML text that `resolve` reads back to an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def save_yaml(config: Section, path: Path) -> None:
    """Writes the configuration as YAML, atomically."""
    write_text(path, to_yaml(config))


def read_yaml(path: Path) -> dict[str, Any]:
    """The nested values of a YAML configuration file.

    Raises:
        ConfigError: If it can't be read, or is no YAML of `key: value` lines.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"the configuration file {path} can't be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"the configuration file {path} is not valid YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"the configuration file {path} must hold `key: value` lines, not {content!r}")
    return content


def _add_overrides(values: dict[str, Any], overrides: Iterable[str]) -> list[str]:
    """Merges overrides into nested values; returns what is wrong with those that can't be read."""
    problems = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            problems.append(f"'{override}': an override is written key.sub=value")
            continue
        try:
            # A glob is a string, not YAML's alias.
            value = text if text.startswith("*") else yaml.safe_load(text)
        except yaml.YAMLError:
            problems.append(f"'{override}': the value is not valid YAML")
            continue
        branch: dict[str, Any] = {}
        leaf = branch
        *parents, last = key.split(".")
        for name in parents:
            leaf[name] = {}
            leaf = leaf[name]
        leaf[last] = value
        _merge(values, branch)
    return problems


def _raise_if_any(problems: list[str]) -> None:
    if problems:
        listing = "\n".join(f"  - {problem}" for problem in problems)
        raise ConfigError(f"the configuration is wrong:\n{listing}")


def _copy(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in values.items()}


def _merge(base: dict[str, Any], extra: Mapping[str, Any]) -> None:
    for key, value in extra.items():
        if isinstance(value, Mapping) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = _copy(value) if isinstance(value, Mapping) else value


def _describe(error: ValidationError, model: type[BaseModel]) -> Iterator[str]:
    known = list(_keys(model))
    for problem in error.errors(include_url=False):
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            near = difflib.get_close_matches(key, known, n=1) or [
                name for name in known if name.rsplit(".")[-1] == key.rsplit(".")[-1]
            ]
            yield f"{key}: unknown key" + (f"; did you mean {near[0]}?" if near else "")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            # A rule about several keys names their values itself; a whole section would bury it.
            unnamed = problem["type"] == "missing" or isinstance(problem["input"], dict)
            given = "" if unnamed else f" (got {problem['input']!r})"
            yield f"{key or 'configuration'}: {message}{given}"


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _keys(field.annotation, f"{prefix}{name}.")
