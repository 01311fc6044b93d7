"""What the tests share: the package as it was installed from its wheel, and the command."""

import json
import os
import pathlib
import subprocess

import pytest

import ocelli

ROOT = pathlib.Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "models/demo/examples"
GOLDEN = ROOT / "tests/golden"


@pytest.fixture(scope="session")
def model():
    return ocelli.Model("demo", backend="cpu")


@pytest.fixture(scope="session")
def command():
    """Runs the command; gives its output."""
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))

    def run(*args, code=0):
        line = [target / "release/ocelli", *map(str, args)]
        done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == code, done
        return done

    return run


@pytest.fixture(scope="session")
def asked(command):
    """The answer of `ocelli run` as JSON."""

    def run(prompt, *images, more=()):
        flags = [flag for image in images for flag in ("--image", image)]
        return json.loads(command("run", "--json", "--backend", "cpu", *flags, *more, prompt).stdout)

    return run
