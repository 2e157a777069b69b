"""Why a scan can't be used: every reason with its message and its remedy, in one table.

A reader, a recipe or a check gives a reason its facts, and the refusal is data: it is compared and grouped by
its code, and stored as code and facts. Text is made of it where a person reads it.

    raise ScanError(Reason.TOO_FEW_SLICES(num=3, least=4))
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, unique
from string import Formatter
from typing import Any, NamedTuple

# Numbers, words of a header, names of files, shapes: what JSON can hold.
Fact = str | int | float | tuple[int, ...]


class Remedy(NamedTuple):
    """Advice about a refused scan.

    Attributes:
        advice: One or two sentences.
        option: What to add to `anatogen prepare`, exactly as it is typed; "" where nothing is.
    """

    advice: str
    option: str = ""


@dataclass(frozen=True)
class Refusal:
    """A reason with the facts of one scan.

    Attributes:
        code: Name of the `Reason` in lower case.
        facts: What its message tells, by name; file names and words of headers may be among them.

    Raises:
        ValueError: If there is no such reason, or these are not its facts.
    """

    code: str
    facts: Mapping[str, Fact] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.code.upper() not in Reason.__members__ or self.reason.facts != self.facts.keys():
            raise ValueError(f"no reason {self.code} with the facts {', '.join(self.facts) or '(none)'}")

    @property
    def reason(self) -> "Reason":
        """The reason itself."""
        return Reason[self.code.upper()]

    @property
    def remedy(self) -> Remedy:
        """Advice, and the option that follows it."""
        return self.reason.remedy

    @property
    def is_of_map(self) -> bool:
        """Whether what is refused is a label or probability map, and no scan that can't be used."""
        return self.reason in (Reason.LABEL_MAP, Reason.PROBABILITY_MAP)

    def as_json(self) -> dict[str, Any]:
        """Its text with its code and facts, as files keep it."""
        return {"reason": str(self), "code": self.code, "facts": dict(self.facts)}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "Refusal":
        """The refusal that `as_json` wrote.

        Raises:
            KeyError, ValueError: If it is none.
        """
        facts = {
            name: tuple(value) if isinstance(value, list) else value for name, value in entry["facts"].items()
        }
        return cls(entry["code"], facts)

    def __str__(self) -> str:
        """One line, without the scan's own path and without patient data."""
        return self.reason.message.format(**self.facts)


_CHECK_FILE = Remedy("Check that the file is there and that you may read it.")
_FETCH = Remedy("Fetch it, as with datalad get, git annex get or git lfs pull, or exclude it.")
_OTHER_FORMAT = Remedy("Save it as .nii.gz, .nrrd, .mha or a single .npy.")
_NOT_WHOLE = Remedy("Copy or export it again: the file is not whole, or not what its header says.")
_ONE_FILE = Remedy("Write it as one file that holds header and voxels, such as .nrrd or .mha.")
_BRING_TOGETHER = Remedy("Put the header and its data file back together, below the folder of scans.")
_EMPTY = Remedy("It is empty: leave it out, or export it again.")
_TOO_THIN = Remedy("It is too thin: put its slices together as one series.")
_SPLIT = Remedy("Split it into 3D volumes and keep one of each, such as the first time point.")
_NO_COLOUR = Remedy("Export the grey values: colour is of no use here.")
_PLAIN_NUMBERS = Remedy("Export it with plain numbers as grey values.")
_GEOMETRY = Remedy("Export it again with its geometry: the place, direction and spacing of its slices.")
_LEAVE_DAMAGED = Remedy("Get the damaged file again, or remove it with its series.")
_SCOUT = Remedy("It is a scout of a few slices for planning: leave it out.")
_OWN_SERIES = Remedy("Export each stack as a series of its own.")
_ONE_AT_A_PLACE = Remedy("Export one image per position: one echo, one b-value, one phase.")
_STRAIGHTEN = Remedy("Have it resampled to upright slices.", "allow_tilt=true")
_UNEVEN = Remedy("Get the original series: its slices are no even stack as they are.")
_RESCALE = Remedy("Export it with its rescale slope and intercept.")
_DECOMPRESS = Remedy("Export it uncompressed, or decompress it, as with gdcmconv --raw.")
_MASK = Remedy("Export the mask again: whole numbers from 0 to 255, on the grid of its image.")
_LOOK = Remedy(
    "Look at it: the part to cut out is not found. Leave it out, or keep whole scans by region=scan."
)
_NAME_MODALITY = Remedy("Leave it out, or name the modality of all.")
_NAMED_AS_SLICE = Remedy("Remove it from the series, or get it again: its name promises a slice.")
_MRNET = Remedy("Get the file again from the provider: it is no scan of MRNet as it is.")
_FINE = "Nothing needs to be done:"


@unique
class Reason(Enum):
    """Every reason: its message, with the names of its facts in braces, and its remedy."""

    # The file.
    NO_SUCH_FILE = "there is no such file", _CHECK_FILE
    ABSENT = "it is a link or stand-in for a file that is not there (datalad, git-annex, git-lfs)", _FETCH
    NOT_READABLE = "it can't be read: {why}", _CHECK_FILE
    UNKNOWN_FORMAT = "unknown format {ending}: known are {known} and DICOM", _OTHER_FORMAT
    DAMAGED_FILE = "the file is truncated, damaged or not of the format of its ending ({error})", _NOT_WHOLE
    OTHER_NUMBER_OF_BYTES = (
        "the file is truncated or its header is damaged: {announced} bytes announced, {found} found",
        _NOT_WHOLE,
    )
    SEVERAL_DATA_FILES = (
        "its header spreads the voxels over several files, which is not supported",
        _ONE_FILE,
    )
    NO_DATA_FILE = (
        "its header names no data file by a relative path below the folder of scans",
        _BRING_TOGETHER,
    )
    NO_HEADER = "the header (.hdr) of its voxels is missing", _BRING_TOGETHER
    ANALYZE = (
        "it is Analyze 7.5, whose header does not tell left from right",
        Remedy("Convert it to NIfTI with the program that wrote it."),
    )

    # Shape, values and geometry.
    EMPTY = "it is empty: shape {shape}", _EMPTY
    TOO_FEW_VOXELS = "only {num} voxels along an axis of {shape}, at least {least}", _TOO_THIN
    NOT_3D = "{num} dimensions {shape}, expected 3", _SPLIT
    COLOUR = "its voxels hold several values (colour or vectors), expected one number", _NO_COLOUR
    COMPLEX = "its values are complex numbers, expected real ones", _PLAIN_NUMBERS
    NO_NUMBERS = "its values are of type {dtype}, expected numbers", _PLAIN_NUMBERS
    NOT_FINITE = (
        "{num} of {total} voxels are NaN or infinite",
        Remedy("Replace the bad voxels by the background's value, or export the scan again."),
    )
    CONSTANT = "it is constant: every voxel is {value:g}", _EMPTY
    NEARLY_CONSTANT = (
        "nearly constant: its {lower:g}th and {upper:g}th percentile are both {value:g}",
        _EMPTY,
    )
    CONSTANT_ON_GRID = "on the common grid it is constant: every voxel is {value:g}", _EMPTY
    IMPOSSIBLE_SPACING = (
        "its voxels of {smallest:g} to {largest:g} mm can't be right: the header is damaged",
        _GEOMETRY,
    )
    UNKNOWN_UNIT = (
        "its header gives lengths in {unit!r}: known are m, cm, mm, um and nm",
        _GEOMETRY,
    )
    SINGULAR_AFFINE = (
        "its affine is no finite 4 x 4 matrix, or singular: axes are parallel or have no length",
        _GEOMETRY,
    )
    SHEARED = (
        "its axes are sheared by {degrees:.1f} degrees (gantry tilt, or an affine registration): set "
        "allow_tilt to resample it",
        _STRAIGHTEN,
    )

    # Files of a DICOM series.
    NO_DICOM = "it is no DICOM, though it is named like a slice", _NAMED_AS_SLICE
    DAMAGED_DICOM = "a file of it is truncated or damaged DICOM ({error})", _NOT_WHOLE
    LACKS_ELEMENT = "the file is a damaged DICOM image: it has no {keyword}", _NOT_WHOLE
    DAMAGED_BESIDE = "a file of it, or beside it, is damaged: {what}", _LEAVE_DAMAGED
    NOT_ONE_SERIES = "the folder holds {num} DICOM series, expected 1", _OWN_SERIES
    SEVERAL_PATIENTS = (
        "its files are of {num} patients or studies under one series identifier",
        Remedy(
            "Export each patient's series under an identifier of its own, or put each into its own folder."
        ),
    )
    INCOMPLETE_CONCATENATION = (
        "{num} of {total} parts of a concatenation are there",
        Remedy("Get the missing parts from the archive: all of them make one scan."),
    )

    # Slices of a DICOM series.
    LOCALISER = "it is a localiser (ImageType LOCALIZER)", _SCOUT
    FRAMES_WITHOUT_PLACE = (
        "it is multi-frame DICOM that does not tell the place of each frame ({sop_class})",
        _GEOMETRY,
    )
    OTHER_NUMBER_OF_FRAMES = "its header is damaged: {announced} frames, {found} told", _NOT_WHOLE
    SEVERAL_VOLUMES = "it holds several volumes in one file: {num} {what}", _SPLIT
    NO_PLACE = "a slice has no {keyword}, so its place in the patient is unknown", _GEOMETRY
    DAMAGED_PLACE = "a slice's {keyword} is damaged: its numbers can't be right", _GEOMETRY
    RESCALE = "a slice's RescaleSlope or RescaleIntercept can't be right", _RESCALE
    CT_WITHOUT_INTERCEPT = (
        "it is CT without RescaleIntercept, so its values are not in Hounsfield units",
        _RESCALE,
    )
    NOT_HOUNSFIELD = (
        "it is CT whose values are no Hounsfield units ({what})",
        Remedy("Leave it out, as maps made of spectral CT, or export the images in Hounsfield units."),
    )
    SOME_WITHOUT_RESCALE = "some of its slices have a {keyword} and others have none", _RESCALE
    SLICES_DIFFER = "its slices differ in {keyword}", _OWN_SERIES
    UNUSUAL_BITS = "its values lie in unusual bits: HighBit {high_bit} with {stored} stored", _PLAIN_NUMBERS
    LOOKUP_TABLE = (
        "its values go through a lookup table (ModalityLUTSequence), which is not supported",
        _PLAIN_NUMBERS,
    )
    SEVERAL_STACKS = "its slices have mixed orientations (several stacks, or a damaged slice)", _OWN_SERIES
    THREE_PLANES = "its slices have mixed orientations (of 3 planes, as a localiser's)", _SCOUT
    TOO_FEW_SLICES = "only {num} slices, at least {least}", _TOO_THIN
    SLICES_TOO_NEAR = "{num} slices lie where another one is, or nearly", _ONE_AT_A_PLACE
    SEVERAL_AT_A_PLACE = (
        "{num} slices lie where another one is, with another image: they differ in {what}",
        _ONE_AT_A_PLACE,
    )
    MISSING_SLICES = (
        "{num} slices are missing inside the stack of {total}",
        Remedy("Get the missing slices from the archive; a stack with gaps can't be stacked."),
    )
    TILT = (
        "its slices are sheared by {degrees:.1f} degrees (gantry tilt): set allow_tilt to resample it",
        _STRAIGHTEN,
    )
    UNEVEN_SLICES = "its slices are unevenly spaced, {smallest:.3f} to {largest:.3f} mm", _UNEVEN
    SLICES_NOT_IN_LINE = "its slices do not lie in line: one is {aside_mm:.2f} mm aside", _UNEVEN

    # Pixels of a DICOM slice.
    COMPRESSED = "its pixels are compressed ({how}), which is not supported: decompress it", _DECOMPRESS
    DAMAGED_PIXELS = (
        "its pixels can't be read ({syntax}): they are truncated or damaged, or their header is",
        _NOT_WHOLE,
    )

    # The scan beside others, as `prepare` sees it.
    LABEL_MAP = (
        "it looks like a label map ({num} distinct whole values)",
        Remedy("Exclude it, or keep it with its image by --recipe folder_with_masks."),
    )
    PROBABILITY_MAP = (
        "it looks like a probability map (values from 0 to 1, many of them 0)",
        Remedy("Exclude it: a generator of scans learns nothing from it."),
    )
    MAYBE_LABEL_MAP = (
        "it may be a label or probability map by its {why}: if it is a scan, name it in include, else in "
        "exclude",
        Remedy('Exclude it, or name it beside the others where it is a scan: include=["*", "NAME"].'),
    )
    OTHER_MODALITY = "its DICOM modality is {modality}, and the {whose}'s is {expected}", _NAME_MODALITY
    VALUES_OF_OTHER_MODALITY = (
        "its values from {low:g} to {high:g} do not look like {modality}; if they are, set modality to "
        "{modality}",
        _NAME_MODALITY,
    )
    CT_WITHOUT_AIR = (
        "its values from {low:g} to {high:g} are no Hounsfield units: it is no CT, or has lost its rescale "
        "intercept (air at 0)",
        Remedy("Leave it out, or export it with its rescale intercept; modality=CT would hide the shift."),
    )
    VALUES_OF_OTHER_SEGMENTER = (
        "its values from {low:g} to {high:g} do not look like {modality}, the segmenter's modality",
        _NAME_MODALITY,
    )
    SAME_SCAN = "it is the same scan as {other}", Remedy(f"{_FINE} one of the two is kept.")
    OTHER_SPLIT = (
        "its patient has scans in {split} and in {kept}: the latter are kept",
        Remedy(f"{_FINE} what is held back stays unseen."),
    )
    NO_LINE_FOR_PATIENT = (
        "patient_csv has no line for it",
        Remedy("Add a line with its path and its patient to the table."),
    )
    PATTERN_WITHOUT_MATCH = (
        "patient_pattern {pattern!r} does not match its path",
        Remedy("Widen the pattern, so that it matches the path of every scan."),
    )

    # The part of it that is wanted.
    NO_FOREGROUND = "nothing in it is brighter than air: it shows no body", _LOOK
    SMALL_REGION = "its {region} region is only {shape} voxels", _TOO_THIN
    NARROW_BODY = "two breasts are not found: the body in it is only {width_mm:.0f} mm wide", _LOOK
    FLAT_CHEST = (
        "two breasts are not found: the body stands out from the skin between them {left_mm:.0f} mm "
        "on the left and {right_mm:.0f} mm on the right, and both have to by {least_mm:g} mm",
        _LOOK,
    )

    # Its mask.
    MASK_UNUSABLE = "its mask can't be used: {why}", _MASK
    MASK_VALUES = "its mask holds {value:g}: labels are whole numbers from 0 to 255", _MASK
    UNKNOWN_LABEL = "its mask holds the unknown label {label}: known are {known}", _MASK
    MASK_SHAPE = "its mask has {mask} voxels and the scan {scan}", _MASK
    MASK_GRID = "its mask lies on another grid: corners are up to {distance_mm:.3g} mm apart", _MASK
    EMPTY_BREAST_MASK = "its breast mask is empty, or lies outside the scan", _MASK
    JOINED_BREAST_MASK = "its breast mask has no gap between two breasts", _MASK

    # Public datasets.
    NO_PATIENT = (
        "neither its header nor its path names a patient, such as {example}",
        Remedy("Keep the provider's names of folders, which tell the patient."),
    )
    NO_T1 = (
        "the patient has no T1 series without fat saturation, but only: {series}",
        Remedy("Get the missing series, or name the right one in the mapping sheet."),
    )
    MRNET_ARRAY = "it is {dtype} {shape}, and MRNet's scans are uint8 (slices, 256, 256)", _MRNET
    UNCLEAR_PAIR = (
        "it is not clear which image and mask belong together: {names}; set include or exclude",
        Remedy("Keep one image and one mask of each name: exclude the others."),
    )
    NO_MASK = (
        "it has no mask",
        Remedy("Put its mask beside it, named as the others are; or generate images alone."),
    )
    NO_IMAGE = "there is no image for this mask", Remedy("Put its image beside it, or leave it out.")

    def __init__(self, message: str, remedy: Remedy) -> None:
        self.message = message
        self.remedy = remedy

    @property
    def facts(self) -> set[str]:
        """Names of the facts that the message tells."""
        return {name for _, name, _, _ in Formatter().parse(self.message) if name}

    def __call__(self, **facts: Fact) -> Refusal:
        """The refusal of one scan for this reason.

        Args:
            **facts: All that the message tells, by name.
        """
        return Refusal(self.name.lower(), facts)
