"""Selection: by recipe, then by what the user narrows it to; no patient is ever in two splits."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scan_makers import head, tree_bytes

import anatogen
from anatogen.config.resolving import ConfigError, parse_overrides
from anatogen.core.errors import UserError
from anatogen.dataset.cases import deal_patients
from anatogen.dataset.discover import Source
from anatogen.dataset.manifest import Split
from anatogen.dataset.prepare import prepare
from anatogen.dataset.prepare_config import PrepareConfig, prepare_settings
from anatogen.dataset.recipes import RECIPES, recipe_named
from anatogen.dataset.recipes.recipe import Recipe, Scan, Selection
from anatogen.dataset.selection import select_scans
from anatogen.io.nifti import write_nifti

FOLDER = Path("/download")


def source(name: str) -> Source:
    return Source(name, (FOLDER / name,))


numbers = st.lists(st.integers(0, 40), unique=True, max_size=25)
fractions = st.tuples(st.floats(0, 0.45), st.floats(0, 0.45))


@st.composite
def mrnet(draw: st.DrawFn) -> list[str]:
    """Numbers may be in both splits, which they never should."""
    named = [("train", draw(numbers.filter(bool))), ("valid", draw(numbers))]
    return [f"MRNet-v1.0/{split}/sagittal/{n:04d}.npy" for split, found in named for n in found]


@st.composite
def decathlon(draw: st.DrawFn) -> list[str]:
    train = draw(numbers.filter(bool))
    tests = draw(numbers)
    labelled = tests if draw(st.booleans()) else []
    kinds = [("imagesTr", train), ("labelsTr", train), ("imagesTs", tests), ("labelsTs", labelled)]
    return [f"{kind}/la_{n:03d}.nii.gz" for kind, found in kinds for n in found]


@st.composite
def bids(draw: st.DrawFn) -> list[str]:
    names = []
    for subject, sessions in enumerate(draw(st.lists(st.integers(1, 4), min_size=1, max_size=12))):
        for session in range(sessions):
            place = f"sub-{subject:02d}/ses-{session}/anat/sub-{subject:02d}_ses-{session}"
            names += [f"{place}_T1w.nii.gz", f"derivatives/manual/{place}_dseg.nii.gz"]
    return names


LAYOUTS = {"mrnet": mrnet(), "folder_with_masks": st.one_of(decathlon(), bids()), "folder": bids()}


@pytest.mark.parametrize("recipe", LAYOUTS)
@settings(deadline=None)
@given(data=st.data(), fraction=fractions, seed=st.integers(0, 9), limit=st.none() | st.integers(1, 30))
def test_splits_never_share_a_patient(
    recipe: str, data: st.DataObject, fraction: tuple[float, float], seed: int, limit: int | None
) -> None:
    names = data.draw(LAYOUTS[recipe])
    split = {"validation": fraction[0], "test": fraction[1]}
    config = PrepareConfig(recipe=recipe, seed=seed, limit=limit, split=split)  # type: ignore[arg-type]
    selection = select_scans(FOLDER, [source(name) for name in sorted(names)], config)
    chosen = [scan.source.name for scan in selection.scans]
    assert chosen == sorted(set(chosen))
    assert limit is None or len(chosen) <= limit
    assert not {scan.name for scan in selection.left_out} & set(chosen)
    dealt = deal_patients(selection.scans, config)
    splits: dict[str, set[Split]] = {}
    for scan in selection.scans:
        where = dealt[scan.patient][0]
        splits.setdefault(scan.patient, set()).add(where)
        # Who is held back by the provider stays so; who is not may only be held back besides.
        if scan.split in (Split.VALIDATION, Split.TEST):
            assert where is scan.split
        if scan.split is Split.TRAIN and any(other.split is Split.TEST for other in selection.scans):
            assert where is not Split.TEST
    assert all(len(found) == 1 for found in splits.values())
    assert len({serial for _, serial in dealt.values()}) == len(dealt)


def with_recipe(monkeypatch: pytest.MonkeyPatch, *scans: Scan) -> None:
    """Makes "known" a recipe that chooses these scans."""
    recipe = Recipe("known", "for tests", {"seed": 3, "split": {"test": 0.3}}, lambda *_: Selection(scans))
    monkeypatch.setitem(RECIPES, "known", recipe)


def test_where_keeps_the_wanted_and_counts_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    diagnoses = ["CN", "AD", "CN", "MCI", None]
    with_recipe(
        monkeypatch,
        *(
            Scan(source(str(n)), str(n), conditions={} if told is None else {"diagnosis": told, "visit": n})
            for n, told in enumerate(diagnoses)
        ),
    )

    def chosen(*overrides: str) -> tuple[list[str], tuple[str, ...]]:
        selection = select_scans(
            FOLDER, [], prepare_settings(parse_overrides(overrides, PrepareConfig), recipe="known")
        )
        assert not selection.left_out
        return [scan.source.name for scan in selection.scans], selection.notes

    assert chosen("where.diagnosis=CN") == (
        ["0", "2"], ("2 of 5 scans have diagnosis CN; the others: 1 AD, 1 MCI, 1 unknown",),
    )  # fmt: skip
    assert chosen("where.diagnosis=[CN, MCI]")[0] == ["0", "2", "3"]
    assert chosen("where.diagnosis=CN", "where.visit=2")[0] == ["2"]
    assert chosen("where.diagnosis=null") == (["0", "1", "2", "3", "4"], ())
    with pytest.raises(UserError, match="no scan has diagnosis SMC, but 1 AD, 2 CN, 1 MCI, 1 unknown; where"):
        chosen("where.diagnosis=SMC")
    with pytest.raises(UserError, match=r"where\.sex can't be told.*conditions are diagnosis, visit"):
        chosen("where.sex=F")


def test_a_recipe_that_takes_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with_recipe(monkeypatch)
    with pytest.raises(UserError, match="the recipe known takes none of the 2 scans in /download"):
        select_scans(FOLDER, [source("a"), source("b")], PrepareConfig(recipe="known"))


def test_ages_over_89_are_one_category(monkeypatch: pytest.MonkeyPatch) -> None:
    ages = [71.5, 89, 89.5, 93, "94Y", "about 50"]
    with_recipe(
        monkeypatch,
        *(Scan(source(str(n)), str(n), conditions={"age": a, "stage": 95}) for n, a in enumerate(ages)),
    )
    selection = select_scans(FOLDER, [], PrepareConfig(recipe="known"))
    assert [scan.conditions["age"] for scan in selection.scans] == [71.5, 89, 90, 90, 90, "about 50"]
    assert all(scan.conditions["stage"] == 95 for scan in selection.scans)
    notes = select_scans(FOLDER, [], prepare_settings({"where": {"age": 89}}, recipe="known")).notes
    assert notes == ("1 of 6 scans have age 89.0; the others: 1 71.5, 3 90.0, 1 about 50",)


def test_a_patients_scan_without_a_split_goes_with_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    with_recipe(
        monkeypatch,
        Scan(source("a1"), "a", Split.TEST),
        Scan(source("a2"), "a"),
        Scan(source("b1"), "b", Split.VALIDATION),
        Scan(source("b2"), "b", Split.TRAIN),
        Scan(source("c"), "c"),
    )
    selection = select_scans(FOLDER, [], PrepareConfig(recipe="known"))
    assert {scan.source.name: scan.split for scan in selection.scans} == {
        "a1": Split.TEST, "a2": Split.TEST, "b1": Split.VALIDATION, "c": None,
    }  # fmt: skip
    assert [scan.name for scan in selection.left_out] == ["b2"]


def test_recipe_file_and_overrides_are_merged_in_that_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_recipe(monkeypatch)
    file = tmp_path / "config.yaml"
    file.write_text("recipe: known\nsplit:\n  validation: 0.2\nlimit: 9\n")
    settings = prepare_settings({"limit": 8}, config=file)
    assert (settings.recipe, settings.seed, settings.limit) == ("known", 3, 8)
    assert (settings.split.validation, settings.split.test) == (0.2, 0.3)
    assert prepare_settings({"limit": 8}, config=file, limit=7).limit == 7
    assert prepare_settings({"recipe": "mrnet"}, config=file).shape == (32, 256, 256)
    assert prepare_settings(config=file, recipe="folder").recipe == "folder"
    assert prepare_settings().model_dump() == PrepareConfig().model_dump()


def test_unknown_recipes_are_refused_with_the_known_ones(tmp_path: Path) -> None:
    write_nifti(head(0), tmp_path / "scans" / "a.nii")
    for call in (
        lambda: recipe_named("mrnett"),
        lambda: prepare_settings({"recipe": "mrnett"}),
        lambda: anatogen.prepare(tmp_path / "scans", tmp_path / "out", recipe="mrnett"),
        lambda: prepare(tmp_path / "scans", tmp_path / "out", PrepareConfig(recipe="mrnett"), workers=1),
    ):
        with pytest.raises(
            UserError, match=r"recipe 'mrnett' is unknown: known are folder, .*mrnet"
        ) as caught:
            call()
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="limit"):
        prepare_settings(limit=0)


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "known"])
def test_every_recipes_settings_are_valid(name: str) -> None:
    settings = prepare_settings(recipe=name)
    assert settings.recipe == name == RECIPES[name].name
    assert len(RECIPES[name].summary) <= 100


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cube": True}, "cube pads what is then resized"),
        ({"npy_orientation": "auto"}, "one letter of each pair"),
        ({"region": "brain"}, "'scan', 'foreground', 'breasts' or 'breasts_by_mask'"),
        ({"limit": 0}, "greater than or equal to 1"),
        ({"where": ["CN"]}, "where"),
    ],
)
def test_wrong_settings_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PrepareConfig.model_validate(values)


def test_the_first_of_a_folder(tmp_path: Path) -> None:
    for seed in range(5):
        write_nifti(head(seed), tmp_path / "scans" / f"{seed}.nii")
    summary = anatogen.prepare(tmp_path / "scans", tmp_path / "out", limit=3)
    assert len(summary.manifest.cases) == 3
    assert summary.num_ignored == 2
    assert "limit: the first 3 of 5 scans are taken" in summary.decisions
    for seed in (3, 4):
        (tmp_path / "scans" / f"{seed}.nii").unlink()
    alone = prepare(tmp_path / "scans", tmp_path / "alone", PrepareConfig(), workers=1, progress=False)
    assert alone.manifest.cases == summary.manifest.cases
    arrays = {name: content for name, content in tree_bytes(tmp_path / "out").items() if "volumes" in name}
    assert arrays.items() <= tree_bytes(tmp_path / "alone").items()


def test_conditions_are_kept_and_names_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["avasarala", "holden", "nagata"]
    for seed, name in enumerate(names):
        write_nifti(head(seed), tmp_path / "scans" / f"{name}.nii")
    found = [Source(f"{name}.nii", (tmp_path / "scans" / f"{name}.nii",)) for name in names]
    with_recipe(
        monkeypatch,
        *(Scan(s, n, conditions={"sex": "F", "age": 95}) for s, n in zip(found, names, strict=True)),
    )
    summary = anatogen.prepare(tmp_path / "scans", tmp_path / "out", recipe="known")
    assert [case.conditions for case in summary.manifest.cases] == [{"sex": "F", "age": 90.0}] * 3
    assert (summary.manifest.recipe, summary.manifest.config["recipe"]) == ("known", "known")
    for content in tree_bytes(tmp_path / "out").values():
        assert not any(name.encode() in content for name in names)
