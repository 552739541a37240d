"""What was known before the scan, fused with what is seen: request and record move a candidate's logit.

Each candidate is one example with three modalities: its size in the image, one token for each nodule that the request
mentions, set against the candidate, and the record. The shift is what the fused read-outs say less what they say of the image
alone, so that nothing known shifts by exactly nothing. Only text from before the scan belongs here: a report of the scan
itself would be echoed, not weighed.

N candidates, L mentions, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from core.fusion import Fuser
from solutions.medical_imaging.rules import Person
from solutions.medical_imaging.text import Mention, Written

F32 = NDArray[np.float32]
WIDTH, HEADS, READ_OUTS = 16, 2, 2
STRONGEST_SHIFT = 3.0  # logits; words can not overrule a clear image
MOST_MENTIONS = 6
ZONE_OF = {"lower": 0.0, "middle": 1.0, "upper": 2.0}
FLAGS = ("family_history", "emphysema", "known_cancer", "immunosuppressed", "screening")
SIZES = {"image": 1, "request": 9, "record": 2 * (len(FLAGS) + 1)}


@dataclass(frozen=True)
class Seen:
    """A candidate as far as words can speak of it: logit of the image, diameter, side, height as a share of the lungs' own."""

    logit: float
    diameter_mm: float
    left: bool
    height: float

    def token(self) -> list[float]:
        """Size only: words err whatever the image says and wherever, so that what they are worth does not depend on it."""
        return [float(np.log(max(self.diameter_mm, 1.0) / 8.0))]


@dataclass(frozen=True)
class Known:
    """What was known before the scan; neither need be there."""

    request: Written | None = None
    person: Person = field(default_factory=Person)

    def __bool__(self) -> bool:
        return bool(self.mentions) or bool(record_token(self.person))

    @property
    def mentions(self) -> tuple[Mention, ...]:
        return () if self.request is None else self.request.mentions[:MOST_MENTIONS]


def mention_token(mention: Mention, seen: Seen) -> list[float]:
    """How well a mention fits a candidate: side, height and size, each with whether it is stated."""
    side = 0.0 if mention.side is None else 1.0 if (mention.side == "left") == seen.left else -1.0
    lobe = ZONE_OF.get(mention.lobe)
    apart = 0.0 if lobe is None else abs(lobe - min(int(3.0 * seen.height), 2))
    ratio = (
        0.0
        if mention.size_mm is None
        else float(np.clip(np.log(seen.diameter_mm / max(mention.size_mm, 1.0)), -2.0, 2.0))
    )
    stated = [float(v) for v in (mention.side is not None, lobe is not None, mention.size_mm is not None)]
    return [*stated, side, apart, ratio, abs(ratio), float(mention.negated), 1.0]


def record_token(person: Person) -> list[float]:
    """(known, value) of age and flags; empty when none is known."""
    values = [None if person.age is None else (person.age - 60.0) / 20.0]
    values += [None if (flag := getattr(person, name)) is None else float(flag) for name in FLAGS]
    if all(value is None for value in values):
        return []
    return [v for value in values for v in (float(value is not None), value or 0.0)]


@dataclass(frozen=True)
class Batch:
    """tokens: (N, L, size) of each modality; mask: (N, L)."""

    tokens: dict[str, Tensor]
    mask: dict[str, Tensor]

    @classmethod
    def of(cls, pairs: Sequence[tuple[Seen, Known]]) -> Batch:
        """One example for each pair."""
        request_NLD = np.zeros((len(pairs), MOST_MENTIONS, SIZES["request"]), np.float32)
        record_ND = np.zeros((len(pairs), 1, SIZES["record"]), np.float32)
        said_NL, recorded_N = np.zeros((len(pairs), MOST_MENTIONS), bool), np.zeros((len(pairs), 1), bool)
        for n, (seen, known) in enumerate(pairs):
            for i, mention in enumerate(known.mentions):
                request_NLD[n, i], said_NL[n, i] = mention_token(mention, seen), True
            if token := record_token(known.person):
                record_ND[n, 0], recorded_N[n] = token, True
        image_ND = np.array([seen.token() for seen, _ in pairs], np.float32)[:, None]
        tokens = {"image": image_ND, "request": request_NLD, "record": record_ND}
        masks = {"image": np.ones((len(pairs), 1), bool), "request": said_NL, "record": recorded_N}
        return cls(*({n: torch.from_numpy(v) for n, v in d.items()} for d in (tokens, masks)))

    def at(self, rows: Tensor) -> Batch:
        return Batch(*({n: v[rows] for n, v in d.items()} for d in (self.tokens, self.mask)))

    def present(self) -> Tensor:
        """(N, 3) in the order of SIZES."""
        return torch.stack([m.any(1) for m in self.mask.values()], 1)


class ContextFuser(nn.Module):
    """A batch -> (N,) shifts of the logit."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.ModuleDict(
            {n: nn.Sequential(nn.Linear(size, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH)) for n, size in SIZES.items()}
        )
        self.fuser = Fuser(dict.fromkeys(SIZES, WIDTH), width=WIDTH, read_outs=READ_OUTS, heads=HEADS)
        self.head = nn.Sequential(nn.Linear(READ_OUTS * WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, 1))

    def evidence(self, batch: Batch, present_NM: Tensor) -> Tensor:
        """(N,) what the modalities say together, besides the image's logit. present: (N, 3) in the order of SIZES."""
        tokens = {n: self.embed[n](batch.tokens[n]) for n in SIZES}
        said_N: Tensor = self.head(self.fuser(tokens, batch.mask, present_NM).flatten(1)).squeeze(1)
        return said_N

    def forward(self, batch: Batch) -> Tensor:
        there_NM = batch.present()
        alone_NM = there_NM & torch.tensor([n == "image" for n in SIZES])
        raw_N = self.evidence(batch, there_NM) - self.evidence(batch, alone_NM)
        shift_N = STRONGEST_SHIFT * torch.tanh(raw_N / STRONGEST_SHIFT)
        return torch.where(there_NM[:, 1:].any(1), shift_N, 0.0)

    @torch.inference_mode()
    def shifts(self, candidates: Sequence[Seen], known: Known) -> NDArray[np.float64]:
        """(N,) of the candidates of one scan; zeros when nothing is known."""
        if not candidates or not known:
            return np.zeros(len(candidates))
        self.eval()
        shift_N: Tensor = self(Batch.of([(seen, known) for seen in candidates]))
        return shift_N.numpy().astype(np.float64)

    def save(self, path: Path) -> None:
        np.savez_compressed(path, **{name: value.numpy() for name, value in self.state_dict().items()})

    @classmethod
    def load(cls, path: Path) -> ContextFuser:
        network = cls()
        with np.load(path) as stored:
            network.load_state_dict({name: torch.from_numpy(stored[name]) for name in stored.files})
        return network.eval()
