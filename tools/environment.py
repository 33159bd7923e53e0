"""Write environment.yml: conda's Python and the lock's pins of the direct dependencies.

python tools/environment.py [--check]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PYTHON = "3.11"
EXTRAS = ("book", "offline", "api", "serve", "train", "langchain", "llama-index", "mcp", "ray", "dev")  # as in Makefile
MARKERS = {  # the environment that the pins are for, whatever machine writes them
    "python_version": PYTHON,
    "python_full_version": f"{PYTHON}.9",
    "os_name": "posix",
    "sys_platform": "linux",
    "platform_system": "Linux",
    "platform_machine": "x86_64",
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
    "extra": "",
}
HEADER = f"""\
# Written by tools/environment.py from pyproject.toml and requirements.lock; not edited by hand.
name: rerank-lab
channels:
  - conda-forge
dependencies:
  - python={PYTHON}
  - pip
  - pip:
      - "-c requirements.lock"
"""


def direct_dependencies(pyproject: dict) -> list[str]:
    """Names, sorted, that the package and the Makefile's extras ask for under Python 3.11."""
    project = pyproject["project"]
    lines = [*project["dependencies"], *(line for extra in EXTRAS for line in project["optional-dependencies"][extra])]
    requirements = [Requirement(line) for line in lines]
    return sorted({canonicalize_name(r.name) for r in requirements if r.marker is None or r.marker.evaluate(MARKERS)})


def pins(lock: str) -> dict[str, str]:
    """Name to `name==version` for every line of the lock that holds under Python 3.11."""
    lines = (line.strip() for line in lock.splitlines())
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    held = [r for r in requirements if r.marker is None or r.marker.evaluate(MARKERS)]
    return {canonicalize_name(r.name): f"{canonicalize_name(r.name)}{r.specifier}" for r in held}


def environment() -> str:
    """The text of environment.yml."""
    locked = pins((ROOT / "requirements.lock").read_text(encoding="utf-8"))
    wanted = direct_dependencies(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8")))
    missing = [name for name in wanted if name not in locked]
    if missing:
        sys.exit(f"environment.py: requirements.lock has no pin for {', '.join(missing)}: lock again (CONTRIBUTING.md)")
    return HEADER + "".join(f"      - {line}\n" for line in [*(locked[name] for name in wanted), "-e ."])


def main() -> None:
    """Write the file, or with --check end with 1 when it is stale."""
    parser = argparse.ArgumentParser(description="Write environment.yml from pyproject.toml and requirements.lock.")
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 when the file is stale")
    check = parser.parse_args().check
    path, text = ROOT / "environment.yml", environment()
    if not check:
        path.write_text(text, encoding="utf-8", newline="\n")
    elif not path.is_file() or path.read_text(encoding="utf-8") != text:
        sys.exit("environment.yml is stale: run `.venv/bin/python tools/environment.py` and commit the result")


if __name__ == "__main__":
    main()
