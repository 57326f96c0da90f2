"""docs/pipeline.md names files and ops that exist, and every section of the seed in the seed's order."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "pipeline.md").read_text("utf-8")


def test_every_file_that_is_named_exists():
    named = set(re.findall(r"`((?:raymarch|csrc)/[\w./]+\.\w+)`", PAGE))
    assert len(named) > 15 and [path for path in sorted(named) if not (ROOT / path).is_file()] == []


def test_every_op_that_is_named_exists():
    from raymarch import ops

    named = set(re.findall(r"`ops\.(\w+)`", PAGE)) - {"name"}
    assert len(named) > 20 and [name for name in sorted(named) if not hasattr(ops, name)] == []


def test_the_seed_is_followed_section_by_section():
    stages = (["1.1", "1.1.1", "1.1.2", "1.1.3", "1.1.4", "1.2", "1.3"], ["2.1", "2.2"])
    sections = [*stages[0], *stages[1], *(f"3.{i}" for i in range(1, 6))]
    told = re.findall(r"^\| (\d(?:\.\d)+) ", PAGE, re.M)
    assert list(dict.fromkeys(told)) == sections
    rest = ["## What depends on what", "## Performance considerations", "## Where the seed is mistaken"]
    assert [PAGE.find(title) for title in rest] == sorted(PAGE.index(title) for title in rest)


def test_every_file_of_the_pipeline_has_its_place():
    files = sorted(path.name for path in (ROOT / "raymarch" / "model").glob("*.py"))
    assert len(files) > 10 and [name for name in files if f"`raymarch/model/{name}`" not in PAGE] == []
