"""The manifest, the requirements and the tests agree."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import TypedDict

import pytest
from cells import CROSSINGS, ordered
from manifest import BY_ID, EXPECTED_FAILURES, REQUIREMENTS
from saboteurs import SABOTEURS, TRAPS

HERE = Path(__file__).parent


class Citation(TypedDict):
    """What the collection says of one test."""

    test: str
    ids: list[str]
    cell: str
    crossing: str


@pytest.fixture(scope="module")
def citations(tmp_path_factory: pytest.TempPathFactory) -> list[Citation]:
    """Every test of the suite, whichever of them run at the moment."""
    path = tmp_path_factory.mktemp("citations") / "citations.json"
    collecting = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--collect-only", "--citations", path, "-p", "no:cacheprovider", HERE],
        cwd=HERE.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert collecting.returncode == 0, collecting.stdout + collecting.stderr
    found: list[Citation] = json.loads(path.read_text())
    return found


def test_the_manifest_holds_every_requirement_in_its_order() -> None:
    text = (HERE / "REQUIREMENTS.md").read_text()
    assert re.findall(r"^- ([A-Z]+-\d+) ", text, re.MULTILINE) == [requirement.id for requirement in REQUIREMENTS]
    assert len(BY_ID) == len(REQUIREMENTS)


def test_every_built_requirement_is_cited_and_no_unknown_one(citations: list[Citation]) -> None:
    cited = {each for citation in citations for each in citation["ids"]}
    assert cited - BY_ID.keys() == set()
    assert {requirement.id for requirement in REQUIREMENTS if requirement.built} - cited == set()
    # A requirement that somebody has begun to prove is not planned as a whole any more.
    assert {requirement.id for requirement in REQUIREMENTS if not requirement.built} & cited == set()


def test_each_requirement_is_proven_on_each_of_its_cells(citations: list[Citation]) -> None:
    proven = defaultdict(set)
    for citation in citations:
        for each in citation["ids"]:
            proven[each].add(citation["cell"])
    missing = {
        requirement.id: [str(cell) for cell in ordered(requirement.cells) if str(cell) not in proven[requirement.id]]
        for requirement in REQUIREMENTS
        if requirement.built
    }
    assert {each: cells for each, cells in missing.items() if cells} == {}


def test_upload_and_download_are_crossed(citations: list[Citation]) -> None:
    proven = defaultdict(set)
    for citation in citations:
        for each in citation["ids"]:
            proven[each].add(citation["crossing"])
    every = {str(crossing) for crossing in CROSSINGS}
    assert {each.id: every - proven[each.id] for each in REQUIREMENTS if each.crossed} == {
        each.id: set() for each in REQUIREMENTS if each.crossed
    }


def test_expected_failures_are_of_known_requirements_and_give_a_reason() -> None:
    for expected in EXPECTED_FAILURES:
        assert BY_ID[expected.id].built
        assert expected.reason


def test_each_group_and_each_trap_has_a_saboteur(citations: list[Citation]) -> None:
    names = [saboteur.name for saboteur in SABOTEURS]
    assert len(set(names)) == len(names)
    cited = {each for citation in citations for each in citation["ids"]}
    assert {each for saboteur in SABOTEURS for each in saboteur.ids} - cited == set()
    groups = {requirement.id.split("-")[0] for requirement in REQUIREMENTS if requirement.built}
    assert groups - {each.split("-")[0] for saboteur in SABOTEURS for each in saboteur.ids} == set()
    assert {saboteur.trap for saboteur in SABOTEURS if saboteur.trap is not None} == TRAPS.keys()


def test_each_saboteur_fits_the_code() -> None:
    """One that does not is not tried, of which whoever changed the code would learn from `make mutants` only."""
    script = """
from saboteurs import SABOTEURS
for saboteur in SABOTEURS:
    try:
        saboteur.put_back()
    except Exception as error:
        print(saboteur.name, repr(error))
"""
    # In a process of its own, which is good for nothing afterwards.
    run = subprocess.run([sys.executable, "-c", script], cwd=HERE, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, ""), run.stderr
