"""docs/pipeline.md names files and ops that exist."""

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


def test_every_file_of_the_pipeline_has_its_place():
    files = sorted(path.name for path in (ROOT / "raymarch" / "model").glob("*.py"))
    assert len(files) > 10 and [name for name in files if f"`raymarch/model/{name}`" not in PAGE] == []
