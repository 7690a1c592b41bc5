"""What the documentation says is there, and what is there is in the documentation."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


def load_generator() -> ModuleType:
    path = ROOT / "docs" / "make_reference.py"
    spec = importlib.util.spec_from_file_location("make_reference", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_pages_are_what_the_program_says() -> None:
    script = ROOT / "docs" / "make_reference.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, check=False)
    assert (done.stderr.decode(), done.returncode) == ("", 0)


def test_links_between_the_pages_lead_somewhere() -> None:
    dead = [
        f"{page.name}: {target}"
        for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text())
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert dead == []


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
def test_the_commands_that_people_are_told_to_type_exist(page: str) -> None:
    table = load_generator().TABLE
    told = re.findall(r"^\$ shoal (\w+)|\$\(shoal (\w+)", (ROOT / page).read_text(), re.MULTILINE)
    assert told
    assert {a or b for a, b in told} <= set(table)


def test_the_files_to_read_first_exist() -> None:
    readme = (ROOT / "README.md").read_text()
    paragraph = readme[readme.index("Five files") :].split("\n\n")[0]
    files = re.findall(r"`([\w/]+\.py)`", paragraph)
    assert len(files) == 5
    assert [file for file in files if not (ROOT / file).is_file()] == []
