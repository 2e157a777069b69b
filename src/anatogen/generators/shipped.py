"""The models that come with the package: listed by `anatogen models`, used by name like a bundle's folder."""

from pathlib import Path

from anatogen.core.errors import UserError
from anatogen.generators.description import DESCRIPTION_NAME, Description, read_description

CARD_NAME = "model_card.md"
_FOLDER = Path(__file__).parent / "shipped_models"


def shipped_models() -> dict[Path, Description]:
    """The bundles that come with the package, by folder, with what each says of itself; ordered by name.

    Raises:
        UserError: If one is damaged.
    """
    models: dict[Path, Description] = {}
    for path in sorted(_FOLDER.glob(f"*/{DESCRIPTION_NAME}")):
        description = read_description(path.parent)
        if description.release is None or description.release.name != path.parent.name:
            raise UserError(f"{path} does not name the model {path.parent.name}: install anatogen again.")
        models[path.parent] = description
    return models


def describe_models() -> str:
    """The models that come with the package, as text for people.

    Raises:
        UserError: If one is damaged.
    """
    texts = []
    for folder, description in shipped_models().items():
        assert description.release is not None
        num_bytes = sum(path.stat().st_size for path in folder.iterdir())
        about = [
            f"{folder.name}: {description.release.summary}",
            *description.text().splitlines(),
            f"size: {num_bytes / 1e6:.1f} MB",
            f"card: {folder / CARD_NAME}",
        ]
        texts.append("\n  ".join(about))
    return "\n\n".join(texts) or "no models come with this installation"


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
