"""Configurations: all errors at once, and what was saved is what was used."""

from pathlib import Path

import pytest

from anatogen.config.presets import PRESETS, preset_named, stages_of, training_settings
from anatogen.config.resolving import Section, parse_overrides, resolve, save_yaml, to_yaml
from anatogen.config.settings import LatentDiffusionSettings, LossSettings, WaveletFlowSettings
from anatogen.core.errors import ConfigError
from anatogen.dataset.prepare import PrepareConfig


class _Inner(Section):
    rate: float = 0.5
    size: int = 3


class _Outer(Section):
    inner: _Inner = _Inner()
    name: str = "a"


def _problems(*overrides: str, preset: str = "paper") -> str:
    with pytest.raises(ConfigError) as caught:
        resolve(
            LatentDiffusionSettings,
            preset_named(preset),
            overrides=parse_overrides(overrides, LatentDiffusionSettings),
        )
    return str(caught.value)


def test_later_sources_win(tmp_path: Path):
    (tmp_path / "c.yaml").write_text("inner: {rate: 2, size: 7}\n")
    found = resolve(_Outer, {"inner": {"rate": 1}, "name": "p"}, tmp_path / "c.yaml", {"inner": {"size": 9}})
    assert found == _Outer(inner=_Inner(rate=2, size=9), name="p")


def test_sources_are_not_changed_by_merging():
    before = str(PRESETS)
    resolve(LatentDiffusionSettings, preset_named("paper"), overrides={"denoiser": {"width": 96}})
    assert str(PRESETS) == before


def test_all_errors_are_shown_at_once():
    for text, parts in (
        (_problems("denoiser.widht=3", "diffusion.ema_decay=2"), ("denoiser.widht", "diffusion.ema_decay")),
        (
            _problems("no equals sign", "autoencoder.num_codes=[", "=3", "a..b=1"),
            ("no equals sign", "not valid YAML", "'=3'", "'a..b=1'"),
        ),
    ):
        assert all(part in text for part in parts)
        assert text.count("\n  - ") == len(parts)


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("denoiser.widht=3", "denoiser.width"),
        ("ema_decay=0.9", "diffusion.ema_decay"),
        ("autoencoder_training.learning_rte=1", "autoencoder_training.learning_rate"),
    ],
)
def test_unknown_keys_come_with_the_nearest_known_one(wrong, meant):
    assert f"unknown key; did you mean {meant}?" in _problems(wrong)


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "0.0001", "1.0e-4"])
def test_numbers_with_an_exponent_are_numbers(text, tmp_path: Path):
    """YAML 1.1 reads 1e-4 as a string."""
    key = "autoencoder_training.learning_rate"
    assert (
        resolve(
            LatentDiffusionSettings, overrides=parse_overrides([f"{key}={text}"], LatentDiffusionSettings)
        ).autoencoder_training.learning_rate
        == 1e-4
    )
    lines = f"autoencoder_training:\n  learning_rate: {text}\n  gradient_clip: {text}\n"
    (tmp_path / "c.yaml").write_text(lines)
    found = resolve(LatentDiffusionSettings, file=tmp_path / "c.yaml").autoencoder_training
    assert found.learning_rate == 1e-4 and found.gradient_clip == 1e-4


def test_overrides_reach_lists_nulls_and_nested_keys():
    found = resolve(
        LatentDiffusionSettings,
        preset_named("paper"),
        overrides=parse_overrides(
            ["denoiser.multipliers=[1,3]", "autoencoder_training.steps=null", "training.flip=none"],
            LatentDiffusionSettings,
        ),
    )
    assert found.denoiser.multipliers == (1, 3) and found.autoencoder_training.steps is None
    assert found.training.flip == "none"


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_resolve_and_survive_saving(preset, tmp_path: Path):
    settings = training_settings(preset)
    save_yaml(settings, tmp_path / "config.yaml")
    assert resolve(type(settings), file=tmp_path / "config.yaml") == settings
    assert to_yaml(settings) == (tmp_path / "config.yaml").read_text()


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_name_every_value_where_they_say_so(preset):
    settings = training_settings(preset)
    assert all(getattr(settings, f"{stage}_training").steps for stage in stages_of(type(settings)))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("start", PRESETS)
def test_a_saved_configuration_is_of_its_own_family_whatever_preset_is_named_with_it(preset, start, tmp_path):
    settings = training_settings(preset)
    save_yaml(settings, tmp_path / "config.yaml")
    assert training_settings(start, config=tmp_path / "config.yaml") == settings


def test_the_default_is_a_wavelet_flow_and_the_paper_s_is_latent_diffusion():
    assert type(training_settings()) is WaveletFlowSettings
    assert type(training_settings("paper")) is LatentDiffusionSettings


@pytest.mark.parametrize("preset", PRESETS)
def test_an_override_of_one_value_leaves_the_others_of_its_section(preset):
    before = training_settings(preset).model_dump()
    for section, values in before.items():
        if not isinstance(values, dict):
            continue
        for key, value in values.items():
            # Discriminators that learn later than they count are refused, and more steps than levels.
            if type(value) not in (int, float) or key in ("discriminator_start", "sampling_steps"):
                continue
            changed = training_settings(preset, {section: {key: value * 0.5 if value < 1 else value * 2}})
            now = changed.model_dump()
            assert {name for name in now if now[name] != before[name]} <= {section}
            assert {name for name in values if now[section][name] != values[name]} <= {key}


def test_a_family_that_there_is_not_is_refused_with_the_known_ones(tmp_path: Path):
    (tmp_path / "c.yaml").write_text("family: gan\n")
    with pytest.raises(ConfigError, match="family 'gan' is unknown: use latent_diffusion, wavelet_flow"):
        training_settings(config=tmp_path / "c.yaml")


def test_a_budget_is_that_of_every_stage_of_the_family():
    assert training_settings(minutes=3).flow_training.minutes == 3
    both = training_settings("paper", steps=3)
    assert (both.autoencoder_training.steps, both.diffusion_training.steps) == (3, 3)
    one = training_settings("paper", steps=3, stages=["diffusion"])
    assert one.autoencoder_training.steps != one.diffusion_training.steps == 3


@pytest.mark.parametrize("options", [{}, {"minutes": 3}])
@pytest.mark.parametrize(
    ("preset", "stage", "known"),
    [("default", "autoencoder", "wavelet_flow, which has flow"), ("paper", "flow", "autoencoder, diffusion")],
)
def test_a_stage_of_another_family_is_refused_with_the_known_ones(preset, stage, known, options):
    with pytest.raises(ConfigError, match=f"stage '{stage}' is none of the family .*{known}: name another"):
        training_settings(preset, stages=[stage], **options)


def test_an_unknown_preset_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="'papr' is unknown: use paper, default"):
        preset_named("papr")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["losses.discriminator_start=5", "losses.adversarial_start=4"], "adversarial_start 4 is before"),
        (["autoencoder.compression=3"], "autoencoder.compression"),
        (["autoencoder_training.steps=0"], "autoencoder_training.steps"),
        (["autoencoder_training.minutes=-1"], "autoencoder_training.minutes"),
        (["autoencoder_training.betas=[0.9, 1.0]"], "autoencoder_training.betas"),
        (["autoencoder_training.learning_rate=.nan"], "autoencoder_training.learning_rate"),
        (["autoencoder_training.learning_rate=.inf"], "autoencoder_training.learning_rate"),
        (["losses.l1=.inf"], "losses.l1"),
        (["denoiser=null"], "denoiser"),
        (["training.flip=no"], "training.flip"),
    ],
)
def test_values_that_can_not_be_are_refused_by_name(overrides, message):
    assert message in _problems(*overrides)


def test_a_process_is_not_sampled_in_more_steps_than_it_has_levels():
    with pytest.raises(ConfigError, match="sampling_steps 300 is more than num_train_steps 20"):
        training_settings("paper", {"diffusion": {"num_train_steps": 20}})


def test_details_are_not_sampled_with_more_noise_than_they_learn_with():
    with pytest.raises(ConfigError, match=r"sampled_noise 0\.2 is more than told_noise 0\.15"):
        training_settings("default", {"flow": {"sampled_noise": 0.2}})


def test_one_number_compresses_all_axes():
    assert resolve(
        LatentDiffusionSettings, overrides={"autoencoder": {"compression": 2}}
    ).autoencoder.compression == (
        2,
        2,
        2,
    )


def test_without_weights_of_both_discriminators_none_takes_part():
    assert not LossSettings(adversarial_slice=0, adversarial_volume=0).adversarial
    assert LossSettings(adversarial_slice=0, adversarial_volume=0.1).adversarial


def test_resolved_values_can_not_change():
    with pytest.raises(ValueError, match="frozen"):
        resolve(LatentDiffusionSettings).training.seed = 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1", "not valid YAML"),
        (b"just words", "must hold `key: value` lines"),
        (b"\xff\xfe\x00a", "not valid YAML"),
    ],
)
def test_an_unreadable_file_is_a_clear_error(content, message, tmp_path: Path):
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        resolve(LatentDiffusionSettings, file=tmp_path / "c.yaml")


def test_a_missing_file_is_a_clear_error_and_an_empty_one_is_no_change(tmp_path: Path):
    with pytest.raises(ConfigError, match="can't be read"):
        resolve(LatentDiffusionSettings, file=tmp_path / "absent.yaml")
    (tmp_path / "c.yaml").write_text("# nothing\n")
    assert resolve(LatentDiffusionSettings, file=tmp_path / "c.yaml") == LatentDiffusionSettings()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("include=*T1*", ("*T1*",)),
        ('include="*T1*"', ("*T1*",)),
        ("exclude=7", ("7",)),
        ("exclude=[a, b]", ("a", "b")),
        ("exclude=[a]*.nii", ("[a]*.nii",)),
        ("patient_pattern=[^/]*/(P[0-9]+)", "[^/]*/(P[0-9]+)"),
        ("patient_pattern=(P[0-9]+)", "(P[0-9]+)"),
        ("patient_pattern={(1)}", "{(1)}"),
        (r"patient_pattern=#(\d+)", r"#(\d+)"),
        (r"patient_pattern=(\d+) #\d", r"(\d+) #\d"),
        (r'patient_pattern="P(\d+)"', r"P(\d+)"),
        ("patient_pattern=(P[0-9]+): ", "(P[0-9]+): "),
        ("patient_pattern=!(a)", "!(a)"),
        ("patient_pattern=null", None),
        ("exclude=#1*", ("#1*",)),
        ("exclude=[!a-c]*", ("[!a-c]*",)),
        ("patient_csv=2024", Path("2024")),
        ("recipe=007", "007"),
        ("recipe=no", "no"),
    ],
)
def test_a_text_is_taken_as_it_stands_where_yaml_would_make_something_else_of_it(text, value):
    found = resolve(PrepareConfig, overrides=parse_overrides([text], PrepareConfig))
    assert getattr(found, text.partition("=")[0]) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("[a-c]*", ("[a-c]*",)), ("#1", ("#1",)), ("[CN, 3]", ("CN", 3)), ("3", (3,)), ("null", None)],
)
def test_texts_of_a_mapping_are_taken_as_they_stand(text, value):
    found = resolve(PrepareConfig, overrides=parse_overrides([f"where.diagnosis={text}"], PrepareConfig))
    assert found.where["diagnosis"] == value


def test_a_rule_about_several_keys_is_one_short_line():
    overrides = {"losses": {"discriminator_start": 5, "adversarial_start": 4}}
    with pytest.raises(ConfigError) as raised:
        resolve(LatentDiffusionSettings, overrides=overrides)
    assert "adversarial_start 4 is before discriminator_start 5" in str(raised.value)
    assert "got {" not in str(raised.value)


def test_a_whole_configuration_is_a_start_like_a_preset():
    start = resolve(LatentDiffusionSettings, preset_named("paper"))
    found = resolve(LatentDiffusionSettings, start, overrides={"denoiser": {"width": 96}})
    assert found == resolve(
        LatentDiffusionSettings, preset_named("paper"), overrides={"denoiser": {"width": 96}}
    )
    assert training_settings(settings=start, minutes=3).diffusion_training.minutes == 3
