"""Request and record beside the image: absent is absent, a mention lifts what it fits, and nothing is hidden."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from solutions.medical_imaging.context import STRONGEST_SHIFT, Batch, ContextFuser, Known, Seen
from solutions.medical_imaging.context_training import Pool, draw, fit_context, say, write_request
from solutions.medical_imaging.detect import detect
from solutions.medical_imaging.gate import open_series
from solutions.medical_imaging.models import Models
from solutions.medical_imaging.rules import Person
from solutions.medical_imaging.text import extract

RIGHT_UPPER = Seen(-1.0, 8.0, False, 0.9)
LEFT_LOWER = Seen(-1.0, 8.0, True, 0.1)


@pytest.fixture(scope="module")
def shipped() -> ContextFuser:
    return Models.load().context


def known(text: str) -> Known:
    return Known(extract(text, past=True))


def test_nothing_known_shifts_by_exactly_nothing(shipped: ContextFuser) -> None:
    for nothing in (Known(), known("Cough for three weeks."), Known(person=Person(sex="female", risk="high"))):
        assert not nothing
        assert (shipped.shifts([RIGHT_UPPER, LEFT_LOWER], nothing) == 0.0).all()


def test_an_absent_modality_is_the_same_as_one_that_never_was(shipped: ContextFuser) -> None:
    """Garbage in a masked modality changes nothing."""
    batch = Batch.of([(RIGHT_UPPER, known("Prior CT: 8 mm nodule in the right upper lobe."))])
    garbage = Batch({**batch.tokens, "record": torch.full_like(batch.tokens["record"], 1e3)}, batch.mask)
    with torch.inference_mode():
        torch.testing.assert_close(shipped(batch), shipped(garbage), rtol=0.0, atol=0.0)


def test_a_mention_lifts_the_candidate_that_it_fits(shipped: ContextFuser) -> None:
    fits, not_there = shipped.shifts([RIGHT_UPPER, LEFT_LOWER], known("Prior CT: 8 mm nodule in the right upper lobe."))
    assert 0.5 < fits <= STRONGEST_SHIFT
    assert not_there < 0.2
    (larger,) = shipped.shifts([replace(RIGHT_UPPER, diameter_mm=25.0)], known("4 mm nodule in the right upper lobe."))
    assert larger < fits


def test_one_scan_at_a_time_agrees_with_many(shipped: ContextFuser) -> None:
    first, second = known("Prior: nodule on the left."), Known(person=Person(age=70, emphysema=True))
    pairs = [(RIGHT_UPPER, first), (LEFT_LOWER, second), (LEFT_LOWER, Known())]
    with torch.inference_mode():
        together = shipped(Batch.of(pairs)).numpy()
    alone = np.concatenate([shipped.shifts([seen], what) for seen, what in pairs])
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_simulated_sentences_are_read_as_any_text() -> None:
    rng = np.random.default_rng(0)
    read = [extract(say(RIGHT_UPPER, rng), past=True).mentions for _ in range(200)]
    assert all(len(mentions) == 1 and not mentions[0].negated for mentions in read)
    sides = [m.side for (m,) in read if m.side]
    assert 0.9 < sides.count("right") / len(sides) < 1.0
    assert any(not extract(write_request([], rng), past=True).mentions for _ in range(20))


def test_training_learns_what_words_are_worth() -> None:
    """On images that say nothing, mentions alone tell nodules from the rest."""
    rng = np.random.default_rng(0)
    places = [Seen(-3.0, float(rng.uniform(4, 12)), bool(rng.random() < 0.5), float(rng.random())) for _ in range(80)]
    pool = Pool(tuple(places[:40]), tuple(places[40:]))
    network = fit_context([pool], scans=600, epochs=4)
    pairs, target = draw([pool], 200, 1)
    with torch.inference_mode():
        shift = network(Batch.of(pairs)).numpy()
    assert shift[target == 1].mean() > shift[target == 0].mean() + 0.5


def test_context_moves_confidence_but_hides_nothing(series_dir: Path) -> None:
    models, series = Models.load(), open_series(series_dir)
    alone = detect(series, models)
    assert repr(detect(series, models, Known()).nodules) == repr(alone.nodules)
    denied = detect(series, models, known("Prior CT: no pulmonary nodule."))
    assert len(denied.nodules) >= len(alone.nodules)
    assert [n.assessment for n in denied.nodules][: len(alone.nodules)] == [n.assessment for n in alone.nodules]
