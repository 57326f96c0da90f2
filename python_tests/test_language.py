"""Words find things: real CLIP text vectors painted onto scenes, distilled, and asked from held-out cameras.

What is measured is bench/language.py's. Needs ../shared/scenes (not part of the repository); skipped where it
is absent.
"""

from pathlib import Path

import pytest

from bench import language

SHARED = Path(__file__).resolve().parents[2] / "shared" / "scenes"
TEXTS = SHARED / "clip_text"

pytestmark = pytest.mark.skipif(not TEXTS.is_dir(), reason=f"needs {TEXTS}")


@pytest.fixture(scope="module")
def synthetic():
    return language.synthetic(TEXTS)


@pytest.mark.parametrize("name", language.THINGS)
def test_a_word_finds_its_thing_in_views_nobody_trained_on(synthetic, name):
    assert language.word_iou(TEXTS, *synthetic, name) >= 0.8


@pytest.mark.parametrize("centred", [False, True])  # text vectors share most of their direction
def test_held_out_features_are_as_good_as_the_maps_allow(synthetic, centred):
    rendered, allowed = language.cosines(*synthetic, centred)
    assert rendered >= 0.95 * allowed


def test_a_statue_among_photos_is_found_by_its_word():
    found = language.statue(TEXTS, SHARED / "head")
    assert found["iou"] >= 0.8 and found["share"] >= 0.95
