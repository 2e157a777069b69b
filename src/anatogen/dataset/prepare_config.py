"""The options of `prepare`."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from anatogen.config.resolving import Section, read_yaml, resolve
from anatogen.core.errors import UserError
from anatogen.core.files import sha256_file, sha256_json
from anatogen.dataset.recipes import recipe_named
from anatogen.dataset.regions import RegionKind
from anatogen.io.formats import Reading
from anatogen.io.geometry import Interpolation, check_codes

Positive = Annotated[float, Field(gt=0)]
Voxels = Annotated[int, Field(ge=4)]


class SplitConfig(Section):
    """Which part of the patients is held back from training.

    Attributes:
        validation: Fraction of patients, at least one patient if not 0.
        test: Fraction of patients.
    """

    validation: float = Field(default=0.1, ge=0, lt=1)
    test: float = Field(default=0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _leaves_training(self) -> "SplitConfig":
        if self.validation + self.test >= 1:
            raise ValueError("validation and test together must be below 1, so that training keeps patients")
        return self


class PrepareConfig(Section):
    """How scans become a dataset; what is None or "auto" is chosen from the scans and told.

    Attributes:
        recipe: Which scans count, whose they are and what is known of them; "folder": all of them.
        limit: The first so many scans in order of name, to try; None for all.
        where: Values of conditions that scans must have, e.g. {"diagnosis": ["CN"]}; None of a key takes all.
        include: Glob patterns, one or several; a scan counts if its relative path (of a DICOM series its
            folder's or any file's) matches one. "*" matches "/" too, e.g. "*T1*".
        exclude: Scans that match one of these do not count, e.g. "labelsTr/*".
        orientation: Directions in which (D, H, W) grow, e.g. "SPL" (axial slices, shown as radiologists do),
            or "auto": that of most scans' slices.
        spacing_mm: Spacing of the common grid: one number, three along (D, H, W), or None for the scans'
            median.
        shape: (D, H, W) of the common grid in voxels, or None for the scans' median rounded up to
            multiples of 8.
        region: The part of each scan that is brought to the grid: all of it ("scan"), the box around the
            largest bright object ("foreground"; of a skull-stripped scan around all that is not 0), or the
            left and the right half of the breast region, two cases a scan ("breasts", by the body's outline;
            "breasts_by_mask" by a mask of the breasts where there is one, which no segmenter may learn from).
        cube: Whether the region is padded with background to a cube in millimetres, to less than a voxel,
            before it is resized.
        fit: "crop_or_pad" resamples to the spacing and cuts or pads to the shape; "resize" stretches each
            scan's whole field of view to the shape.
        center: What comes to the middle when cropping: the middle of the scan ("grid"), or of the largest
            bright object in it ("foreground").
        interpolation: "linear", or "cubic" (sharper, overshoots at edges before clipping).
        modality: "CT", "MR", or "auto": what DICOM or the values tell.
        window_hu: CT only: the Hounsfield units that become -1 and +1.
        percentiles: MR only: each scan's own percentiles that become -1 (over all voxels) and +1 (over
            tissue, i.e. voxels above the Otsu threshold).
        patient_pattern: Regular expression whose one group, searched in the relative path, is the patient.
        patient_csv: Table with columns `file` and `patient`, instead of a pattern.
        split: Fractions of patients held back.
        seed: Decides the split.
        npy_spacing_mm: Spacing along (D, H, W) of .npy files, which don't hold it.
        npy_orientation: Directions in which (D, H, W) of .npy files grow, which they don't hold either.
        allow_tilt: Resamples scans whose axes are not perpendicular, as of CT with gantry tilt, instead of
            leaving them out.
    """

    recipe: str = "folder"
    limit: Annotated[int, Field(ge=1)] | None = None
    where: Mapping[str, tuple[str | float, ...] | None] = Field(default_factory=dict)
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    orientation: str = "auto"
    spacing_mm: Positive | tuple[Positive, Positive, Positive] | None = None
    shape: tuple[Voxels, Voxels, Voxels] | None = None
    region: RegionKind = "scan"
    cube: bool = False
    fit: Literal["crop_or_pad", "resize"] = "crop_or_pad"
    center: Literal["grid", "foreground"] = "grid"
    interpolation: Interpolation = "linear"
    modality: Literal["auto", "CT", "MR"] = "auto"
    window_hu: tuple[float, float] = (-1000, 1000)
    percentiles: tuple[float, float] = (0.5, 99.5)
    patient_pattern: str | None = None
    patient_csv: Path | None = None
    split: SplitConfig = SplitConfig()
    seed: int = 0
    npy_spacing_mm: tuple[Positive, Positive, Positive] = (1, 1, 1)
    npy_orientation: str = "SPL"
    allow_tilt: bool = False

    @field_validator("include", "exclude", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("where", mode="before")
    @classmethod
    def _one_or_several_of_each(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        return {key: (v,) if isinstance(v, str | int | float) else v for key, v in value.items()}

    @field_validator("npy_orientation")
    @classmethod
    def _full_orientation(cls, value: str) -> str:
        return check_codes(value)

    @field_validator("orientation")
    @classmethod
    def _known_orientation(cls, value: str) -> str:
        return value if value == "auto" else check_codes(value)

    @field_validator("window_hu")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not value[0] < value[1]:
            raise ValueError("the first value must be below the second")
        return value

    @field_validator("percentiles")
    @classmethod
    def _percentiles(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= value[0] < value[1] <= 100:
            raise ValueError("percentiles lie in [0, 100], the first below the second")
        return value

    @field_validator("patient_pattern")
    @classmethod
    def _one_group(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            groups = re.compile(value).groups
        except re.error as error:
            raise ValueError(f"it is no regular expression: {error}") from error
        if groups != 1:
            raise ValueError(f"it must have exactly one (group), the patient, and has {groups}")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "PrepareConfig":
        if self.patient_pattern is not None and self.patient_csv is not None:
            raise ValueError("give patient_pattern or patient_csv, not both")
        if self.fit == "resize" and self.spacing_mm is not None:
            raise ValueError("fit=resize takes the spacing from each scan: leave spacing_mm out")
        if self.cube and self.fit != "resize":
            raise ValueError("cube pads what is then resized: set fit=resize, or leave cube out")
        return self

    @property
    def reading(self) -> Reading:
        """How scans are read."""
        return Reading(self.npy_spacing_mm, self.npy_orientation, self.allow_tilt)

    @property
    def narrows(self) -> bool:
        """Whether not all scans are wanted."""
        return self.include != ("*",) or bool(self.exclude)

    def portable(self) -> dict[str, Any]:
        """The values as they are stored with a dataset: hashes of all that paths are compared with.

        Paths name people, and so may patterns and the patient table.

        Raises:
            UserError: If the patient table can't be read.
        """
        values = self.model_dump(mode="json")
        for key in ("include", "exclude", "patient_pattern"):
            if getattr(self, key) != type(self).model_fields[key].default:
                values[key] = f"sha256:{sha256_json(values[key])}"
        if self.patient_csv is not None:
            try:
                values["patient_csv"] = f"sha256:{sha256_file(self.patient_csv)}"
            except OSError as error:
                raise UserError(
                    f"the patient table {self.patient_csv} can't be read ({error.strerror})"
                ) from error
        return values


def stored_settings(portable: Mapping[str, Any]) -> PrepareConfig:
    """The settings that a dataset was prepared with; those that are stored as hashes are as by default.

    Args:
        portable: What `PrepareConfig.portable` gave.
    """
    hashed = ("include", "exclude", "patient_pattern", "patient_csv")
    return PrepareConfig.model_validate({key: v for key, v in portable.items() if key not in hashed})


def prepare_settings(
    overrides: Mapping[str, Any] | None = None,
    *,
    settings: PrepareConfig | None = None,
    config: Path | str | None = None,
    recipe: str | None = None,
    limit: int | None = None,
) -> PrepareConfig:
    """The settings of a recipe, changed by a YAML file, then by overrides.

    Args:
        overrides: Nested values, e.g. {"spacing_mm": 1}.
        settings: Stand in the place of the recipe's.
        config: YAML file of settings.
        recipe: Name of the recipe; default what overrides or file say, else "folder".
        limit: Number of scans, to try; default all.

    Raises:
        UserError: If the recipe is unknown or a setting is wrong.
    """
    named = {"recipe": recipe, "limit": limit}
    given = dict(overrides or {}) | {key: value for key, value in named.items() if value is not None}
    if settings is not None:
        return resolve(PrepareConfig, settings, config, given)
    in_file = {} if config is None else read_yaml(Path(config))
    given.setdefault("recipe", str(in_file.get("recipe", "folder")))
    return resolve(PrepareConfig, recipe_named(str(given["recipe"])).defaults, config, given)
