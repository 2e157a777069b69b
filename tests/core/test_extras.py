"""What is installed by need is named where it is missing, and the core goes without."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import anatogen
from anatogen.core import extras
from anatogen.core.errors import UserError

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CALLS = {
    "study": [
        lambda folder: anatogen.new_study(folder / "study", folder),
        lambda folder: anatogen.analyse_study(folder),
        lambda folder: anatogen.import_study(folder, folder / "a.zip"),
    ],
    "downstream": [
        lambda folder: anatogen.pretrain(folder, folder / "run"),
        lambda folder: anatogen.finetune(folder, folder / "run"),
        lambda folder: anatogen.predict(folder, folder, folder / "out"),
        lambda folder: anatogen.run_experiment(folder / "plan.yaml", folder / "out"),
    ],
}


@pytest.mark.parametrize(("extra", "call"), [(extra, call) for extra in CALLS for call in CALLS[extra]])
def test_a_call_whose_packages_are_missing_says_what_to_install(extra, call, tmp_path, monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"pip install 'anatogen\[{extra}\]'") as error:
        call(tmp_path)
    assert "\n" not in str(error.value)


def test_the_extras_are_those_of_the_project():
    declared = PROJECT["optional-dependencies"]
    assert declared.keys() == {*extras._MODULES, "all", "dev"}
    for extra, modules in extras._MODULES.items():
        names = {re.split(r"[<>=!]", requirement)[0] for requirement in declared[extra]}
        assert names == set(modules)
    core = {re.split(r"[<>=!\[]", requirement)[0] for requirement in PROJECT["dependencies"]}
    assert not core & {module for modules in extras._MODULES.values() for module in modules}


def test_no_module_of_the_core_needs_an_extra():
    """Every module outside of study, downstream and workflow is imported where no extra is installed."""
    root = Path(anatogen.__file__).parent
    modules = [
        ".".join(("anatogen", *path.relative_to(root).with_suffix("").parts))
        for path in sorted(root.rglob("*.py"))
        if path.relative_to(root).parts[0] not in ("study", "downstream") and not path.stem.startswith("__")
    ]
    hidden = sorted({module for modules in extras._MODULES.values() for module in modules} - {"nilearn"})
    code = (
        "import importlib, json, sys\n"
        f"for name in {hidden!r}: sys.modules[name] = None\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print(json.dumps('done'))\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-2000:]
    assert json.loads(found.stdout) == "done"
