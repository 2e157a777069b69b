"""Makes a bundle into a model that comes with the package: half precision, with licence and model card.

python experiments/ship_model.py RUN/bundle src/anatogen/generators/shipped_models/NAME --card CARD.md

NAME is that of the model, e.g. hippocampus-mr. CARD.md is `experiments/model_card.md` with every {{gap}}
filled; its head holds name, licence and metrics.
"""

import argparse
import re
import shutil
import tempfile
from pathlib import Path

import yaml
from pydantic import ValidationError

from anatogen.core.errors import UserError
from anatogen.core.files import write_text
from anatogen.generators.bundle import Bundle
from anatogen.generators.description import DESCRIPTION_NAME, Release
from anatogen.generators.loading import load_bundle
from anatogen.generators.shipped import CARD_NAME
from anatogen.training.autoencoder_check import psnr_db

_MAX_BYTES = 30_000_000
_MIN_PSNR_DB = 35.0


def main() -> None:
    """Reads the command line, ships the bundle, and says how large it is and what half precision costs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("destination", type=Path, help="folder with the model's name")
    parser.add_argument("--card", type=Path, required=True)
    parser.add_argument("--number", type=int, default=4, help="scans that are compared")
    arguments = parser.parse_args()
    psnrs = ship(arguments.bundle, arguments.destination, arguments.card, number=arguments.number)
    size = sum(path.stat().st_size for path in arguments.destination.iterdir())
    print(
        f"{arguments.destination}: {size / 1e6:.1f} MB; scans differ from those of full precision by "
        f"{min(psnrs):.1f} to {max(psnrs):.1f} dB PSNR ({len(psnrs)} scans)"
    )


def ship(bundle: Path, destination: Path, card: Path, *, number: int = 4) -> list[float]:
    """Writes a bundle in half precision, if its scans are still the same to the eye, with its card.

    Args:
        bundle: Folder of a bundle.
        destination: Folder to write or replace, with the model's name.
        card: Markdown, headed by the fields of a `Release` as YAML between lines of three dashes.
        number: How many scans are compared.

    Returns:
        PSNR in dB of each scan, on [-1, 1], against that of the same seed in full precision.

    Raises:
        UserError: If the card is not complete, the folder holds no model, a file is too large, or a scan
            differs too much.
    """
    text = card.read_text(encoding="utf-8")
    release = read_release(text, card)
    if destination.name != release.name:
        raise UserError(f"{destination} must have the name of the model: {release.name}")
    if destination.exists() and not (destination / DESCRIPTION_NAME).is_file():
        raise UserError(f"{destination} is there and holds no model: name another folder")
    full = load_bundle(bundle)
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".part-") as temporary:
        written = Path(temporary) / release.name
        shipped = load_bundle(bundle)
        shipped.description = shipped.description.model_copy(update={"release": release})
        shipped.save(written, half=True)
        too_large = [path.name for path in written.iterdir() if path.stat().st_size > _MAX_BYTES]
        if too_large:
            raise UserError(
                f"{', '.join(too_large)}: larger than {_MAX_BYTES / 1e6:g} MB, too much for a package"
            )
        psnrs = compare(full, load_bundle(written), number)
        if min(psnrs) < _MIN_PSNR_DB:
            raise UserError(
                f"a scan differs from that of full precision by {min(psnrs):.1f} dB PSNR: at least "
                f"{_MIN_PSNR_DB:g} is asked for"
            )
        write_text(written / CARD_NAME, text)
        shutil.rmtree(destination, ignore_errors=True)
        written.rename(destination)
    return psnrs


def compare(full: Bundle, half: Bundle, number: int) -> list[float]:
    """PSNR in dB of the scans 0 to number - 1 of one bundle against those of the other, on [-1, 1]."""
    pairs = zip(half.generate(range(number)), full.generate(range(number)), strict=True)
    return [psnr_db(found, wanted) for found, wanted in pairs]


def read_release(text: str, card: Path) -> Release:
    """What the head of a model card says.

    Raises:
        UserError: If it has none, a field is missing or wrong, or a gap of the template is left.
    """
    gaps = sorted(set(re.findall(r"\{\{\w+\}\}", text)))
    if gaps:
        raise UserError(f"{card} has gaps left: fill {', '.join(gaps)}")
    _, *parts = re.split(r"^---$", text, maxsplit=2, flags=re.MULTILINE)
    try:
        return Release.model_validate(yaml.safe_load(parts[0]) if len(parts) == 2 else None)
    except (yaml.YAMLError, ValidationError) as error:
        problem = " ".join(str(error).split())
        raise UserError(
            f"{card} must begin with the fields of a Release between lines ---: {problem}"
        ) from error


if __name__ == "__main__":
    main()
