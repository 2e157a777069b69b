"""Packages that only some commands need, and what to install where they are missing."""

from importlib.util import find_spec

from anatogen.core.errors import UserError

# The modules of each extra of pyproject.toml.
_MODULES = {
    "demo": ("nilearn",),
    "downstream": ("filelock", "monai", "statsmodels", "torchio"),
    "study": ("fastapi", "sqlmodel", "statsmodels", "uvicorn"),
    "tensorboard": ("tensorboard",),
}


def missing_modules(extra: str) -> list[str]:
    """The modules of an extra that are not installed."""
    return [name for name in _MODULES[extra] if find_spec(name) is None]


def require_extra(extra: str) -> None:
    """Checks that the packages of an extra are installed.

    Raises:
        UserError: If one is missing; says what to install.
    """
    missing = missing_modules(extra)
    if missing:
        raise UserError(f"this needs {', '.join(missing)}: run  pip install 'anatogen[{extra}]'")
