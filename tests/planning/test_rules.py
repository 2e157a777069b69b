"""The plan's rules: fingerprints and what must be decided for them."""

import itertools
import math

import pytest
from fingerprints import ADNI, DUKE, LIDC, MRNET, fingerprint, memory_gb, seconds_per_step, spread

from anatogen.config.presets import FAMILIES, preset_named
from anatogen.config.settings import MOST_LEVELS
from anatogen.core.errors import UserError
from anatogen.dataset.manifest import Grid
from anatogen.dataset.prepare_config import PrepareConfig
from anatogen.dataset.recipes import recipe_named
from anatogen.models.pyramid import MAX_COARSE_CELLS, WaveletPyramid
from anatogen.planning.rules import (
    RULES,
    Budget,
    _of_batches,
    decide,
    decide_budgets,
    num_training_scans,
    rules_of,
    settings_of,
    stages_planned,
)
from anatogen.planning.wavelet_flow_rules import choose_pyramid

HIPPOCAMPI = fingerprint((1.0, 1.0, 1.0), (36.0, 50.0, 35.0), num_scans=216, num_patients=216)
THORAX = LIDC.model_copy(update={"foreground_mm": LIDC.field_mm})
THICK = fingerprint((5.0, 0.5, 0.5), (24.0, 320.0, 320.0))
GPU = Budget(memory_gb=24, hours=24, on_gpu=True, bf16=True)
LATENT = "paper"
of_each_family = pytest.mark.parametrize("preset", ["default", LATENT])


def plan(prints, budget=GPU, given=None, given_training=None, preset="default"):
    given, given_training = given or {}, given_training or {}
    decisions = decide(prints, budget, given, given_training, memory_gb, seconds_per_step, preset)
    settings = settings_of(decisions.training, preset)
    seconds = {stage: seconds_per_step(stage, settings, decisions.grid) for stage in stages_planned(preset)}
    return decide_budgets(decisions, prints, budget, given_training, seconds, preset)


def batches_of(decisions, preset):
    settings = settings_of(decisions.training, preset)
    return [getattr(settings, f"{stage}_training").batch_size for stage in stages_planned(preset)]


def test_every_family_has_rules():
    assert RULES.keys() == set(FAMILIES.values())
    for settings, rules in RULES.items():
        assert type(preset_named(rules.reference)) is settings
        stages = stages_planned(rules.reference)
        assert tuple(rules.min_steps) == stages
        assert rules.smaller_batches[-1] == (1,) * len(stages)


TABLE = [
    # scans, memory in GB, hours -> grid, spacing, what comes to the middle
    (HIPPOCAMPI, 24, 24, (40, 56, 40), (1, 1, 1), None),
    (THICK, 24, 24, (24, 320, 320), (5, 0.5, 0.5), None),
    (ADNI, 24, 24, (168, 200, 168), (1, 1, 1), "foreground"),
    (ADNI, 2, 24, (128, 152, 128), (1.33, 1.33, 1.33), "foreground"),
    (fingerprint((2.0, 1.0, 1.0), (64.0, 128.0, 128.0)), 24, 24, (64, 128, 128), (2, 1, 1), None),
    (fingerprint((1.0, 1.0, 1.0), (24.0, 30.0, 24.0)), 24, 24, (24, 32, 24), (1, 1, 1), None),
]


@pytest.mark.parametrize(("prints", "memory", "hours", "shape", "spacing", "center"), TABLE)
def test_the_grid_follows_spacing_foreground_and_memory(prints, memory, hours, shape, spacing, center):
    decisions = plan(prints, Budget(memory, hours), preset=LATENT)
    assert decisions.grid.shape == shape
    assert decisions.grid.spacing_mm == pytest.approx(spacing)
    assert decisions.prepare.get("center") == center
    assert decisions.prepare["shape"] == list(shape)


@pytest.mark.parametrize(
    ("prints", "memory", "shape", "levels"),
    [
        (HIPPOCAMPI, 24, (40, 56, 40), 2),
        (THICK, 24, (24, 320, 320), 5),
        (ADNI, 24, (168, 200, 168), 4),
        (ADNI, 0.77, (128, 152, 128), 4),
        (fingerprint((1.0, 1.0, 1.0), (8.0, 10.0, 8.0)), 24, (8, 16, 8), 1),
    ],
)
def test_a_flows_pyramid_follows_the_grid(prints, memory, shape, levels):
    decisions = plan(prints, Budget(memory, 24))
    assert decisions.grid.shape == shape
    assert decisions.training["pyramid"] == {"num_levels": levels}
    assert any(reason.startswith(f"pyramid of {levels} halvings") for reason in decisions.reasons)


def test_a_pyramid_has_the_fewest_halvings_that_leave_a_small_coarse_image():
    for shape in itertools.product((8, 16, 24, 40, 96, 512), repeat=3):
        for spacing in ((1, 1, 1), (3, 1, 1), (1.6, 1, 1), (0.5, 0.7, 5)):
            grid = Grid.centred("SPL", shape, spacing)
            (decision,) = choose_pyramid(grid)
            levels = decision.values["pyramid"]["num_levels"]
            pyramids = [WaveletPyramid(shape, spacing, number) for number in range(1, MOST_LEVELS + 1)]
            allowed = [pyramid for pyramid in pyramids if all(pyramid.axes)]
            small = [p for p in allowed if math.prod(p.shapes[-1]) <= MAX_COARSE_CELLS]
            assert levels == (small[0] if small else allowed[-1]).num_levels
            assert ("at most" in str(decision)) == bool(small)


# The paper's grids, as their recipes settle them; where breasts are halved the scans' regions count.
PAPER = [
    ("mrnet", MRNET, (32, 256, 256), {}),
    (
        "adni",
        ADNI,
        (64, 64, 64),
        {"region": "foreground", "cube": True, "fit": "resize", "shape": [64, 64, 64]},
    ),
    ("duke", DUKE, (32, 256, 256), {"region": "breasts_by_mask", "fit": "resize", "shape": [32, 256, 256]}),
    ("lidc", LIDC, (128, 128, 128), {"spacing_mm": 2.5, "shape": [128, 128, 128]}),
]


@pytest.mark.parametrize(("name", "prints", "shape", "settled"), PAPER)
def test_the_papers_grids_are_kept_where_its_recipes_settle_them(name, prints, shape, settled):
    given = dict(recipe_named(name).defaults) if name == "mrnet" else settled
    decisions = plan(prints, given=given, preset=LATENT)
    assert decisions.grid.shape == shape
    config = PrepareConfig.model_validate(decisions.prepare)
    assert config.shape == shape
    assert settings_of(decisions.training, LATENT).autoencoder.compression == (4, 4, 4)
    assert all("GB" not in reason for reason in decisions.reasons)


@of_each_family
@pytest.mark.parametrize("prints", [MRNET, ADNI, DUKE, LIDC], ids=["mrnet", "adni", "duke", "lidc"])
def test_without_recipes_the_papers_data_give_grids_with_reasons(prints, preset):
    decisions = plan(prints, preset=preset)
    field = [
        size * spacing for size, spacing in zip(decisions.grid.shape, decisions.grid.spacing_mm, strict=True)
    ]
    assert all(
        a <= b * 1.25 + 8 * s
        for a, b, s in zip(field, prints.field_mm.median, decisions.grid.spacing_mm, strict=True)
    )
    assert sum(reason.startswith(("grid ", "spacing ")) for reason in decisions.reasons) == 2
    assert all("\n" not in reason for reason in decisions.reasons)


@of_each_family
@pytest.mark.parametrize("prints", [HIPPOCAMPI, ADNI, LIDC, DUKE, THICK])
def test_more_memory_never_gives_a_smaller_grid_or_batch(prints, preset):
    memories = (0.7, 0.8, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 48, 80)[0 if preset == "default" else 3 :]
    plans = [plan(prints, Budget(memory, 24), preset=preset) for memory in memories]
    for less, more in itertools.pairwise(plans):
        assert math.prod(more.grid.shape) >= math.prod(less.grid.shape)
        pairs = zip(batches_of(less, preset), batches_of(more, preset), strict=True)
        assert all(few <= many for few, many in pairs)


@pytest.mark.parametrize(("preset", "memory"), [("default", 0.65), (LATENT, 1.0), (LATENT, 3), (LATENT, 10)])
def test_more_memory_never_gives_a_smaller_batch_on_a_settled_grid(preset, memory):
    given = {"shape": [96, 96, 96], "spacing_mm": 2}
    if preset == "default":
        given["shape"] = [32, 32, 32]
    first, second = (plan(LIDC, Budget(m, 24), given, preset=preset) for m in (memory, memory * 1.3))
    assert first.grid == second.grid
    assert batches_of(second, preset)[0] >= batches_of(first, preset)[0]


def test_a_batch_is_made_smaller_where_a_settled_grid_needs_it():
    given = {"shape": [32, 32, 32], "spacing_mm": 2}
    least = 1.2 * (0.5 + 2e-8 * 32**3)
    for memory, batch in ((least + 0.03, 1), (least + 0.05, 2)):
        decisions = plan(LIDC, Budget(memory, 24), given)
        assert batches_of(decisions, "default") == [batch]
        assert any(reason.startswith(f"batches of {batch}: more do not fit") for reason in decisions.reasons)


def test_smaller_batches_of_stage_two_make_a_step_of_as_many_scans():
    own = preset_named(LATENT).diffusion_training
    for batches in rules_of(LATENT).smaller_batches:
        sizes = _of_batches(LATENT, dict(zip(stages_planned(LATENT), batches, strict=True)))
        taken = settings_of(sizes, LATENT).diffusion_training
        assert taken.batch_size == batches[1] < own.batch_size
        assert taken.batch_size * taken.accumulate == own.batch_size * own.accumulate == 20


def test_a_batch_that_is_settled_is_the_one_that_is_reckoned_with_and_told():
    given = {"shape": [96, 96, 96], "spacing_mm": 2}
    settled = {"diffusion_training": {"batch_size": 8}}
    # Eight latents fit, and one scan, but not two.
    decisions = plan(LIDC, Budget(1.2 * 0.84, 24), given, settled, preset=LATENT)
    found = settings_of(decisions.training, LATENT)
    assert found.autoencoder_training.batch_size == 1
    assert (found.diffusion_training.batch_size, found.diffusion_training.accumulate) == (8, 3)
    assert any(reason.startswith("batches of 1 and 8: more do not fit") for reason in decisions.reasons)
    with pytest.raises(UserError, match="GB at batch 64"):
        plan(LIDC, Budget(0.7, 24), given, {"flow_training": {"batch_size": 64}})


@of_each_family
@pytest.mark.parametrize("prints", [HIPPOCAMPI, ADNI, LIDC, THICK])
def test_more_hours_never_give_a_coarser_grid_nor_fewer_steps_on_it(prints, preset):
    plans = [plan(prints, Budget(24, hours), preset=preset) for hours in (0.05, 0.1, 0.3, 1, 3, 10, 30, 100)]
    for less, more in itertools.pairwise(plans):
        assert math.prod(more.grid.shape) >= math.prod(less.grid.shape)
        if more.grid == less.grid:
            assert all(more.steps[stage] >= less.steps[stage] for stage in more.steps)
    settled = [plan(prints, Budget(24, h), {"shape": [64, 64, 64]}, preset=preset) for h in (0.1, 1, 10, 100)]
    for less, more in itertools.pairwise(settled):
        assert all(more.steps[stage] >= less.steps[stage] for stage in more.steps)


@pytest.mark.parametrize(("preset", "hours"), [("default", 0.5), (LATENT, 3)])
def test_a_grid_that_hours_made_coarser_can_be_trained_in_them(preset, hours):
    decisions = plan(LIDC, Budget(80, hours), preset=preset)
    assert any(f"{hours:g} hours" in reason for reason in decisions.reasons)
    assert all(decisions.steps[stage] >= least for stage, least in rules_of(preset).min_steps.items())


@of_each_family
def test_the_stages_fit_into_the_hours_and_one_gets_what_the_other_leaves(preset):
    stages = stages_planned(preset)
    for hours in (0.2, 1, 5, 40):
        decisions = plan(HIPPOCAMPI, Budget(24, hours), preset=preset)
        settings = settings_of(decisions.training, preset)
        seconds = {stage: seconds_per_step(stage, settings, decisions.grid) for stage in stages}
        assert sum(decisions.steps[stage] * seconds[stage] for stage in stages) <= 0.9 * 3600 * hours
        first, most = (
            getattr(values, f"{stages[0]}_training") for values in (settings, preset_named(preset))
        )
        assert first.steps == decisions.steps[stages[0]] <= most.steps
        assert first.minutes == pytest.approx(0.9 / len(stages) * 60 * hours, abs=0.01)


def test_sides_that_differ_are_not_mirrored():
    assert plan(HIPPOCAMPI).training["training"]["flip"] == "left_right"
    assert plan(LIDC).training["training"]["flip"] == "none"
    # A gap that its own error explains is none.
    unsure = LIDC.model_copy(update={"mirror_error": 0.06})
    assert plan(unsure).training["training"]["flip"] == "left_right"
    settled = plan(LIDC, given_training={"training": {"flip": "vertical", "seed": 3}}, preset=LATENT)
    assert settled.training["training"] == {"flip": "vertical", "seed": 3}


def test_held_out_scans_guard_a_flow_of_few_scans():
    def told(prints, given=None, stop=None):
        decisions = plan(prints, given=given, given_training={"training": {"stop": stop}} if stop else None)
        is_guarded = any("loss of held-out scans was lowest" in reason for reason in decisions.reasons)
        return is_guarded, [warning for warning in decisions.warnings if "may store" in warning]

    guarded, (warning,) = told(HIPPOCAMPI)
    assert guarded and "some of its 173 training scans" in warning
    assert told(LIDC) == (False, [])
    # Nothing is held out, or it is not looked at.
    for change in ({"given": {"split": {"validation": 0, "test": 0.1}}}, {"stop": "budget"}):
        for prints in (HIPPOCAMPI, LIDC):
            guarded, (warning,) = told(prints, **change)
            assert not guarded and "no loss of held-out scans stops it" in warning


def test_intensities_follow_the_modality():
    assert plan(LIDC).prepare["window_hu"] == [-1000, 1000]
    assert plan(LIDC, given={"window_hu": [-160, 240]}).prepare["window_hu"] == [-160, 240]
    assert "window_hu" not in plan(ADNI).prepare and plan(ADNI).prepare["modality"] == "MR"


@pytest.mark.parametrize(
    ("patients", "test"), [(10, 0.3), (50, 0.3), (100, 0.2), (150, 0.13), (200, 0.1), (5000, 0.1)]
)
def test_few_patients_leave_more_of_them_to_the_audit(patients, test):
    prints = HIPPOCAMPI.model_copy(update={"num_patients": patients, "num_scans": patients})
    assert plan(prints).prepare["split"] == {"validation": 0.1, "test": test}
    assert "split" not in plan(prints, given={"split": {"test": 0.2}}).prepare or plan(
        prints, given={"split": {"test": 0.2}}
    ).prepare["split"] == {"test": 0.2}


def test_copies_are_warned_of_by_the_passes_of_latent_diffusion():
    few = plan(HIPPOCAMPI, preset=LATENT)
    many = plan(ADNI.model_copy(update={"num_scans": 50_000}), Budget(24, 1), preset=LATENT)
    assert any("may store" in warning for warning in few.warnings)
    assert not any("may store" in warning for warning in many.warnings)


def test_what_the_user_settles_is_kept():
    given_training = {
        "autoencoder": {"compression": [4, 4, 4]},
        "autoencoder_training": {"steps": 77, "batch_size": 3},
        "diffusion": {"ema_decay": 0.9},
    }
    settings = settings_of(plan(HIPPOCAMPI, given_training=given_training, preset=LATENT).training, LATENT)
    assert settings.autoencoder.compression == (4, 4, 4)
    assert (settings.autoencoder_training.steps, settings.autoencoder_training.batch_size) == (77, 3)
    assert settings.diffusion.ema_decay == 0.9
    given_training = {"pyramid": {"num_levels": 1}, "flow_training": {"steps": 77, "batch_size": 3}}
    settings = settings_of(plan(HIPPOCAMPI, given_training=given_training).training, "default")
    assert settings.pyramid.num_levels == 1
    assert (settings.flow_training.steps, settings.flow_training.batch_size) == (77, 3)
    assert plan(HIPPOCAMPI, given={"spacing_mm": 2.0}).grid.spacing_mm == (2, 2, 2)


REFUSED = [
    (
        HIPPOCAMPI.model_copy(update={"num_scans": 3, "num_patients": 3}),
        {},
        24,
        "3 scans of 3 patients are too few",
    ),
    (
        fingerprint((1.0, 1.0, 1.0), (4.0, 256.0, 256.0)),
        {},
        24,
        "4 x 256 x 256 voxels in the median, which is 2D",
    ),
    (LIDC, {"shape": [400, 512, 512]}, 4, r"needs .* GB at batch 1, and there are 4 GB: spacing_mm=\[.*fits"),
    (LIDC, {"spacing_mm": 0.7}, 4, r"spacing_mm=\[[\d.]+,[\d.]+,[\d.]+\] shape=\[\d+,\d+,\d+\] fits"),
    (LIDC, {}, 0.3, "no grid fits: use a machine with more"),
]


@pytest.mark.parametrize(("prints", "given", "memory", "message"), REFUSED)
def test_what_cannot_work_is_told_in_one_line(prints, given, memory, message):
    with pytest.raises(UserError, match=message) as error:
        plan(prints, Budget(memory, 24), given, preset=LATENT)
    assert "\n" not in str(error.value)


def test_the_suggested_grid_fits():
    import re

    with pytest.raises(UserError) as error:
        plan(LIDC, Budget(4, 24), {"spacing_mm": 0.7}, preset=LATENT)
    spacing, shape = (
        [float(number) for number in text.split(",")] for text in re.findall(r"\[(.*?)\]", str(error.value))
    )
    given = {"spacing_mm": spacing, "shape": [int(size) for size in shape]}
    decisions = plan(LIDC, Budget(4, 24), given, preset=LATENT)
    assert decisions.grid.shape == tuple(shape)


def test_a_crop_needs_air_to_leave_away():
    assert plan(THORAX).prepare.get("center") is None
    wide = LIDC.model_copy(update={"foreground_mm": spread((150.0, 150.0, 150.0))})
    assert plan(wide).prepare["center"] == "foreground"


def test_few_scans_are_not_shown_more_often_than_copied_others():
    """It planned 1,336 passes over 48 scans, and warned of 187 in the same breath."""
    atria = HIPPOCAMPI.model_copy(update={"num_scans": 75, "num_patients": 75})
    decisions = plan(atria, Budget(24, 100), preset=LATENT)
    settings = settings_of(decisions.training, LATENT)
    scans = num_training_scans(atria, decisions.prepare)
    own = settings.diffusion_training
    passes = decisions.steps["diffusion"] * own.batch_size * own.accumulate / scans
    assert scans == 48 and 180 < passes < 187
    assert own.steps == decisions.steps["diffusion"]
    (reason,) = [line for line in decisions.reasons if line.startswith("diffusion: ")]
    assert "passes over 48 training scans: after more, copies were seen" in reason
    assert "hours are left over" in reason
    warnings = " ".join(decisions.warnings)
    assert "times were too many" not in warnings
    assert "it may store some of its 48 training scans" in warnings
    assert f"48 training scans bear {decisions.steps['diffusion']:,} steps of stage diffusion" in warnings
    # What the user settles is kept, and warned of.
    settled = plan(
        atria, Budget(24, 100), given_training={"diffusion_training": {"steps": 20_000}}, preset=LATENT
    )
    assert settled.steps["diffusion"] == 20_000
    assert any("times were too many" in warning for warning in settled.warnings)
    # Held-out scans stop a flow, so that its steps are at most those.
    assert plan(atria, Budget(24, 100)).steps["flow"] > 3_000
