"""The models that come with the package: listed by `anatogen models`, used by name like a bundle's folder."""

from dataclasses import dataclass
from pathlib import Path

from anatogen.core.errors import UserError
from anatogen.generators.description import DESCRIPTION_NAME, Description, Release, read_description

CARD_NAME = "model_card.md"
_FOLDER = Path(__file__).parent / "shipped_models"


@dataclass(frozen=True)
class ShippedModel:
    """A model that comes with the package.

    Attributes:
        folder: Its bundle, with the model card.
        release: Name, licence and what was measured.
        description: Content of its `bundle.json`.
    """

    folder: Path
    release: Release
    description: Description

    @property
    def card(self) -> Path:
        """The model card, Markdown."""
        return self.folder / CARD_NAME

    @property
    def num_bytes(self) -> int:
        """Size of all its files."""
        return sum(path.stat().st_size for path in self.folder.iterdir())


def shipped_models() -> list[ShippedModel]:
    """All models that come with the package, by name.

    Raises:
        UserError: If one is damaged.
    """
    models = []
    for path in sorted(_FOLDER.glob(f"*/{DESCRIPTION_NAME}")):
        description = read_description(path.parent)
        if description.release is None or description.release.name != path.parent.name:
            raise UserError(f"{path} does not name the model {path.parent.name}: install anatogen again.")
        models.append(ShippedModel(path.parent, description.release, description))
    return models


def describe_models() -> str:
    """The models that come with the package, as text for people.

    Raises:
        UserError: If one is damaged.
    """
    return "\n\n".join(map(_describe, shipped_models())) or "no models come with this installation"


def _describe(model: ShippedModel) -> str:
    about = [
        *model.description.text().splitlines(),
        f"size: {model.num_bytes / 1e6:.1f} MB",
        f"card: {model.card}",
    ]
    return "\n  ".join([f"{model.release.name}: {model.release.summary}", *about])


def bundle_folder(name_or_folder: Path | str) -> Path:
    """The folder of a bundle that is given as one, or as the name of a model that comes with the package.

    Args:
        name_or_folder: What exists as a path is taken as a path, whatever its name.

    Raises:
        UserError: If it is neither, and no path with folders in it either.
    """
    path = Path(name_or_folder)
    if path.exists() or path.name != str(path):
        return path
    folder = _FOLDER / path
    if (folder / DESCRIPTION_NAME).is_file():
        return folder
    names = ", ".join(sorted(found.parent.name for found in _FOLDER.glob(f"*/{DESCRIPTION_NAME}")))
    raise UserError(
        f"{path} is not a model bundle: there is no such folder, and the models that come with anatogen are: "
        f"{names or 'none'}"
    )
