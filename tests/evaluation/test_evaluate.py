"""`anatogen evaluate` from end to end on tiny scans: the same twice, and one line for what is wrong."""

import json
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic_dataset import write_dataset

from anatogen.cli import app as cli
from anatogen.config.settings import GANSettings
from anatogen.core.errors import UserError
from anatogen.dataset.manifest import load_manifest
from anatogen.dataset.scan_sets import load_scans
from anatogen.evaluation import evaluate as evaluation
from anatogen.evaluation.evaluate import describe_roles, evaluate
from anatogen.evaluation.fidelity.measure import measure_fidelity
from anatogen.evaluation.privacy.audit import audit
from anatogen.evaluation.privacy.contrastive import ContrastiveSettings
from anatogen.evaluation.reconstruction.report import report_reconstruction
from anatogen.generators.description import WGANGPDescription
from anatogen.generators.wgan_gp import WGANGPBundle
from anatogen.models.wgan_gp import Generator
from anatogen.report.rows import Row

pytestmark = pytest.mark.usefixtures("one_thread")

# An encoder that takes a moment; what it is worth is not asked here.
QUICK = ContrastiveSettings(widths=(4, 8), dimensions=8, max_voxels=16**3, batch_size=4, steps=2)


def _hurry(patch: pytest.MonkeyPatch) -> None:
    """A quick encoder, few slices and few scans in figures."""
    patch.setattr(evaluation, "audit", partial(audit, settings=QUICK))
    patch.setattr("anatogen.evaluation.fidelity.measure.NUM_SLICES", 2)
    patch.setattr("anatogen.evaluation.sections._NUM_SHOWN", 1)
    patch.setattr("anatogen.evaluation.privacy.audit._NUM_PAIRS", 1)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    _hurry(monkeypatch)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6 training and 6 test scans."""
    folder = write_dataset(tmp_path_factory.mktemp("evaluate") / "real", 6, 6)
    path = folder / "dataset.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"validation"', '"test"'), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5 scans like those, and the first once more."""
    folder = write_dataset(tmp_path_factory.mktemp("evaluate") / "synthetic", 6, 0, seed=1)
    shutil.copy(folder / "volumes" / "case_00000.npy", folder / "volumes" / "case_00005.npy")
    return folder


@pytest.fixture(scope="module")
def report(data: Path, made: Path, one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report's folder, of an evaluation with an audit."""
    out = tmp_path_factory.mktemp("evaluate") / "report"
    with pytest.MonkeyPatch.context() as patch:
        _hurry(patch)
        evaluate(data, made, out, num_pairs=5)
    return out


def _content(out: Path) -> dict:
    content = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert content.pop("created")
    return content


def _row(content: dict, name: str) -> dict:
    (row,) = [row for row in content["rows"] if row["name"] == name]
    return row


def _call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["anatogen", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


def test_a_report_holds_every_group_and_answers_every_question(report: Path) -> None:
    content = _content(report)
    assert {row["group"] for row in content["rows"]} == {"fidelity", "diversity", "privacy"}
    assert [answer["question"] for answer in content["answers"]] == [
        "Do they look real?",
        "Are they diverse?",
        "Do they leak patients?",
    ]
    assert {role: about["num_scans"] for role, about in content["inputs"].items()} == {
        "real": 6,
        "synthetic": 6,
        "train": 6,
        "holdout": 6,
    }
    figures = {path.name for path in (report / "figures").iterdir()}
    # Six scans are too few for distances, so there is no chart of them.
    assert {"scans.png", "slices.png", "pairs.png", "nearest.png", "planted.png"} <= figures
    assert "fidelity.png" not in figures
    assert {path.name for path in report.iterdir()} == {
        "report.html",
        "report.json",
        "figures",
        "cache",
        "audit",
    }


def test_the_same_call_gives_the_same_report(data: Path, made: Path, report: Path, tmp_path: Path) -> None:
    evaluate(data, made, tmp_path / "again", num_pairs=5)
    assert _content(tmp_path / "again") == _content(report)


def test_a_report_that_was_stopped_is_made_whole_from_the_cache(
    data: Path, made: Path, report: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "report"
    shutil.copytree(report, out)
    (out / "report.json").unlink()
    (out / ".part-1.json").write_text("{")
    monkeypatch.setattr(
        "anatogen.evaluation.fidelity.features._square_pixels", lambda *_: pytest.fail("computed again")
    )
    monkeypatch.setattr(
        "anatogen.evaluation.privacy.contrastive.train_encoder", lambda *_, **__: pytest.fail("trained again")
    )
    evaluate(data, made, out, num_pairs=5)
    assert _content(out) == _content(report)
    assert not list(out.glob(".part-*"))


def test_nothing_of_files_or_patients_is_named(report: Path, data: Path) -> None:
    names = ["case_0", "patient_", str(data.parent)]
    for path in report.rglob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert not [name for name in names if name in text], path
    page = (report / "report.html").read_text(encoding="utf-8")
    assert not [name for name in names if name in page]


def test_without_training_scans_the_report_says_how_to_make_an_audit(
    data: Path, made: Path, report: Path, tmp_path: Path
) -> None:
    real = Path(f"{data}:test")
    # The audit of an earlier evaluation would pass for this one's.
    shutil.copytree(report, tmp_path / "report")
    found = evaluate(real, made, tmp_path / "report", num_pairs=3)
    assert found.answers[2].tone == "open" and "--train and --holdout" in found.answers[2].detail
    assert not (tmp_path / "report" / "audit").exists()
    assert describe_roles(real) is None
    assert (
        describe_roles(data) == f"real and held-out scans: {data}:test; copies are looked for of {data}:train"
    )


def test_a_quick_report_says_so_and_has_no_audit(
    data: Path, made: Path, report: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "audit", lambda *_, **__: pytest.fail("audited"))
    found = evaluate(data, made, tmp_path, quick=True)
    content, full = _content(tmp_path), _content(report)
    assert content["settings"]["quick"] == "yes" and full["settings"]["quick"] == "no"
    assert "The quick evaluation" in found.page.read_text(encoding="utf-8")
    assert "The quick evaluation" not in (report / "report.html").read_text(encoding="utf-8")
    assert found.answers[2].tone == "open" and "without --quick" in found.answers[2].detail
    names, known = ({row["name"] for row in rows} for rows in (content["rows"], full["rows"]))
    assert names < known and {"kid_slices", "coverage_slices", "spectrum", "ms_ssim_gap"} <= names
    assert not names & {"frechet_slices", "ms_ssim_reference_compatible", "copies"}
    assert set(content["inputs"]) == {"real", "synthetic"}
    assert describe_roles(data, quick=True) == f"real scans: {data}:test"


def test_a_quick_evaluation_refuses_what_it_leaves_out(data: Path, made: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--quick leaves out --train, --holdout, --bundle and --medicalnet"):
        evaluate(data, made, tmp_path / "report", bundle=tmp_path, quick=True)
    assert not (tmp_path / "report").exists()


def test_repeated_and_copied_scans_have_rows_that_say_so(data: Path, report: Path, tmp_path: Path) -> None:
    content = _content(report)
    assert _row(content, "repeated_scans")["value"] == 1
    assert _row(content, "identical_scans")["value"] == 0
    mixed = write_dataset(tmp_path / "mixed", 6, 0, seed=2)
    for index in (0, 1):
        shutil.copy(data / "volumes" / f"case_{index:05d}.npy", mixed / "volumes")
    constant = np.zeros((16, 16, 16), dtype=np.float16)
    np.save(mixed / "volumes" / "case_00002.npy", constant)
    evaluate(data, mixed, tmp_path / "report", num_pairs=3)
    content = _content(tmp_path / "report")
    assert _row(content, "identical_scans")["value"] == 2
    assert _row(content, "constant_scans")["value"] == 1
    privacy = content["answers"][2]
    assert privacy["tone"] == "bad" and "2 of 6 are training scans, voxel for voxel" in privacy["headline"]


def test_a_gan_s_bundle_has_no_loss_and_networks_compute_on_the_device_asked_for(
    data: Path, made: Path, report: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, settings = load_manifest(data), GANSettings(width=2, latent_dim=5)
    description = WGANGPDescription(gan=settings, grid=manifest.grid, intensity=manifest.intensity)
    WGANGPBundle(description, Generator(settings, manifest.grid.shape)).save(tmp_path / "bundle")
    out = tmp_path / "report"
    shutil.copytree(report, out)
    asked = {}
    for name, stage in (("measure_fidelity", measure_fidelity), ("audit", evaluation.audit)):

        def noted(*sets, name=name, stage=stage, device, **options):
            asked[name] = device
            return stage(*sets, device=device, **options)

        monkeypatch.setattr(evaluation, name, noted)
    found = evaluate(data, made, out, bundle=tmp_path / "bundle", num_pairs=1, device="cpu")
    (row,) = [row for row in found.rows if row.name == "membership_denoiser_auc"]
    assert row.value is None and "GAN" in "; ".join(row.notes)
    assert asked == dict.fromkeys(("measure_fidelity", "audit"), torch.device("cpu"))
    with pytest.raises(UserError, match="device 'tpu' is unknown"):
        evaluate(data, made, tmp_path / "none", device="tpu")
    assert not (tmp_path / "none").exists()


def test_what_no_audit_can_be_made_of_is_told_before_anything_is_measured(
    data: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "measure_fidelity", lambda *_, **__: pytest.fail("measured"))
    few = write_dataset(tmp_path / "few", 3, 0, seed=5)
    with pytest.raises(UserError, match="there are 3 holdout scans: 4 are needed"):
        evaluate(Path(f"{data}:test"), made, tmp_path / "report", train=Path(f"{data}:train"), holdout=few)
    manifest, settings = load_manifest(data), GANSettings(width=2, latent_dim=5)
    grid = manifest.grid.model_copy(update={"shape": (16, 16, 32)})
    description = WGANGPDescription(gan=settings, grid=grid, intensity=manifest.intensity)
    WGANGPBundle(description, Generator(settings, grid.shape)).save(tmp_path / "bundle")
    with pytest.raises(UserError, match=r"is for scans of 16 x 16 x 32 voxels"):
        evaluate(data, made, tmp_path / "report", bundle=tmp_path / "bundle")
    # Its losses would be of scans that it never learned.
    window = manifest.intensity.model_copy(update={"high": manifest.intensity.high + 50})
    description = WGANGPDescription(gan=settings, grid=manifest.grid, intensity=window)
    WGANGPBundle(description, Generator(settings, manifest.grid.shape)).save(tmp_path / "other window")
    with pytest.raises(UserError, match="prepare them alike"):
        evaluate(data, made, tmp_path / "report", bundle=tmp_path / "other window")
    assert not (tmp_path / "report").exists()


def test_a_report_does_not_lie_among_scans(data: Path, made: Path) -> None:
    """Its cache would be taken for scans by the next call."""
    for real, synthetic, out in (
        (data, made, made / "report"),
        (Path(f"{data}:test"), made, data / "report"),
    ):
        with pytest.raises(UserError, match="lies among the scans of"):
            evaluate(real, synthetic, out)
        assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["DATA", "DATA:test"], "every synthetic scan is also a real scan"),
        (["DATA:test", "MADE", "--train", "DATA:train"], "--train was given without --holdout"),
        (["DATA:test", "MADE", "--holdout", "DATA:test"], "--holdout was given without --train"),
        (["DATA:test", "MADE", "--bundle", "DATA"], "give --train and --holdout too"),
        (["DATA", "MADE", "--bundle", "MADE"], "is not a model bundle"),
        (["DATA:train", "MADE", "--train", "DATA:train", "--holdout", "DATA:test"], "6 of 6 scans of REAL"),
        (["DATA:test", "MADE", "--train", "DATA:train", "--holdout", "DATA"], "6 of 12 scans of --holdout"),
        (["DATA", "OTHER"], "16 x 16 x 20 voxels"),
        (["DATA", "EMPTY"], "holds no scans"),
        (["EMPTY", "MADE"], "holds no scans"),
        (["ABSENT", "MADE"], "is not a folder"),
        (["DATA:tset", "MADE"], "there is no split 'tset'"),
        (["DATA:validation", "MADE"], "is empty"),
        (["DATA", "MADE", "--num-pairs", "0"], "pairs is 0"),
        (["DATA", "MADE", "--seed", "-1"], "seed is -1"),
        (["DATA", "MADE", "--medicalnet", "ABSENT"], "is no file"),
        (["FEW", "MADE"], "there are 3 real scans"),
    ],
)
def test_what_is_wrong_is_one_line(
    arguments: list[str], message: str, data: Path, made: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"DATA": data, "MADE": made, "EMPTY": tmp_path / "empty", "ABSENT": tmp_path / "absent"}
    if "OTHER" in arguments:
        places["OTHER"] = write_dataset(tmp_path / "other", 6, 0, shape=(16, 16, 20))
    if "FEW" in arguments:
        places["FEW"] = write_dataset(tmp_path / "few", 3, 0)

    def place(word: str) -> str:
        name, colon, split = word.partition(":")
        return f"{places[name]}{colon}{split}" if name in places else word

    out = tmp_path / "out"
    assert _call(monkeypatch, "evaluate", *map(place, arguments[:2]), out, *map(place, arguments[2:])) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("anatogen: ") and errors.count("\n") == 1 and message in errors
    assert not out.exists()


def test_a_folder_of_something_else_is_refused(
    data: Path, made: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    assert _call(monkeypatch, "evaluate", data, made, tmp_path) == 1
    assert "no report's folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_the_command_prints_numbers_answers_and_the_page(
    data: Path, made: Path, report: Path, monkeypatch, capsys
) -> None:
    assert _call(monkeypatch, "evaluate", data, made, report, "--num-pairs", 5) == 0
    shown = capsys.readouterr().out
    assert f"real and held-out scans: {data}:test" in shown
    assert "Kernel distance" in shown and "MS-SSIM within pairs" in shown and "planted exact copies" in shown
    assert "Do they leak patients?" in shown and f"report: {report / 'report.html'}" in shown


def test_reconstructions_get_the_same_page(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    from anatogen.evaluation.reconstruction import report as reconstruction_report
    from anatogen.evaluation.reconstruction.measure import MeasuredAutoencoder

    def measured(folder, bundles, **_):
        scans = load_scans(Path(f"{data}:test"), "held-out")
        found = {}
        for index, bundle in enumerate(bundles):
            row = Row("reconstruction", "psnr", "PSNR", 20.0 + index, 19, 25, unit="dB")
            per_scan = {"psnr": np.full(len(scans), 20.0)}
            found[bundle.name] = MeasuredAutoencoder([row], per_scan, "1" * 64, {0: scans.arrays[0]})
        return scans, found

    monkeypatch.setattr(reconstruction_report, "measure_autoencoders", measured)
    out = tmp_path / "report"
    one, two = tmp_path / "one<b>", tmp_path / "two"
    assert _call(monkeypatch, "compare-autoencoders", "data", out, one, two) == 0
    assert f"report: {out / 'report.html'}" in capsys.readouterr().out
    text = (out / "report.html").read_text(encoding="utf-8")
    assert "one&lt;b&gt;</th>" in text and "20 dB" in text and "21 dB" in text
    assert "it stays in your institution" in text
    assert _content(out)["columns"]["two"][0]["value"] == 21
    report_reconstruction("data", [one], out)
    assert list(_content(out)["columns"]) == ["one<b>"]
    assert [path.name for path in (out / "figures").iterdir()] == ["reconstruction.png"]
    # A name that is no folder is looked for among the models that come with the package.
    assert _call(monkeypatch, "compare-autoencoders", "data", tmp_path / "none", "no-such-model") == 1
    assert "models that come with anatogen" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
