"""Configuration: pydantic models from a preset, a YAML file and overrides, in that order.

Every stage describes its options as a subclass of `Section`; `resolve` merges the sources, shows all
errors at once, and `save_yaml` writes what was used beside the results. `parse_overrides` reads what is
typed on the command line.
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from anatogen.core.errors import ConfigError
from anatogen.core.files import write_text


class Section(BaseModel):
    """A part of a configuration: unknown keys are errors, numbers finite, values fixed once resolved."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


SectionT = TypeVar("SectionT", bound=Section)


def resolve(
    model: type[SectionT],
    preset: Mapping[str, Any] | Section | None = None,
    file: Path | str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> SectionT:
    """Merges preset, YAML file and overrides (later wins) and validates the result.

    Args:
        model: The configuration to build.
        preset: Nested values, or a whole configuration, to start from.
        file: A YAML file with nested keys.
        overrides: Nested values that change those before, e.g. {"denoiser": {"width": 96}}.

    Raises:
        ConfigError: Listing every unknown key and invalid value.
    """
    base = preset.model_dump() if isinstance(preset, Section) else preset or {}
    values = merged(base, {} if file is None else read_yaml(Path(file)))
    try:
        return model.model_validate(merged(values, overrides or {}))
    except ValidationError as error:
        raise _config_error(_describe(error, model)) from error


def merged(base: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values of both; where they meet, those of `extra`."""
    values = {**base, **extra}
    for key, value in values.items():
        if isinstance(value, Mapping):
            below = base.get(key) if key in extra else None
            values[key] = merged(below if isinstance(below, Mapping) else {}, value)
    return values


def parse_overrides(texts: Iterable[str], *models: type[Section]) -> dict[str, Any]:
    """Nested values of texts ``key.sub=value``, as they are typed on the command line.

    A value is read as YAML. Where the key's type may be text, it is taken as it stands, but for quotes around
    all of it: globs, regular expressions with a "#", names that are digits. There YAML gives lists, null and
    what else the type takes.

    Args:
        texts: What was typed.
        models: The configurations that the keys may be of.

    Raises:
        ConfigError: Listing those that can't be read.
    """
    values: dict[str, Any] = {}
    problems = []
    for text in texts:
        key, equals, value = text.partition("=")
        path = key.split(".")
        if not equals or not all(path):
            problems.append(f"'{text}': an override is written key.sub=value")
            continue
        try:
            branch = _parse_value(value, _annotation(path, models))
        except yaml.YAMLError:
            problems.append(f"'{text}': the value is not valid YAML")
            continue
        for name in reversed(path):
            branch = {name: branch}
        values = merged(values, branch)
    if problems:
        raise _config_error(problems)
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


def _annotation(path: list[str], models: Iterable[type[BaseModel]]) -> Any:
    """The type of the value of a key; None of an unknown one."""
    for model in models:
        found: Any = model
        for name in path:
            is_section = isinstance(found, type) and issubclass(found, BaseModel)
            field = found.model_fields.get(name) if is_section else None
            if get_origin(found) is Mapping:
                found = get_args(found)[1]
            else:
                found = None if field is None else field.annotation
        if found is not None:
            return found
    return None


def _parse_value(text: str, annotation: Any) -> Any:
    takes_text = _takes_text(annotation)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        if takes_text:
            return _unquoted(text)
        raise
    if not takes_text:
        return value
    # To YAML "#" begins a comment, so that a text may be nothing.
    if isinstance(value, str) or (value is None and text.strip().lower() not in ("", "~", "null")):
        return _unquoted(text)
    for given in (value, [value]):  # one may be written without brackets where several are taken
        try:
            TypeAdapter(annotation).validate_python(given)
        except ValidationError:
            continue
        return value
    return text


def _unquoted(text: str) -> str:
    is_quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1] if is_quoted else text


def _takes_text(annotation: Any) -> bool:
    """Whether a value of the type may be a text, or hold one."""
    if get_origin(annotation) is Literal:
        return any(isinstance(choice, str) for choice in get_args(annotation))
    return annotation in (str, Path) or any(map(_takes_text, get_args(annotation)))


def _config_error(problems: Iterable[str]) -> ConfigError:
    listing = "\n".join(f"  - {problem}" for problem in problems)
    return ConfigError(f"the configuration is wrong:\n{listing}")


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
