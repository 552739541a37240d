"""Free text of logs and work orders as coded evidence: jargon normalised, then item, state and action picked out.

`"L/H BUCKET CYL LEAKING."` -> item:bucket, item:cylinder, state:leak. The vocabulary is general to rotating and hydraulic
machinery, and is open: words that it lacks are no evidence, they are never guessed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

# how fitters write -> what they mean
JARGON = {
    **dict.fromkeys(("cyl", "cyls", "cylinders", "cylinder's"), "cylinder"),
    **dict.fromkeys(("hyd", "hydr", "hydraulics"), "hydraulic"),
    **dict.fromkeys(("eng", "engines", "motor", "motors"), "engine"),
    **dict.fromkeys(("brg", "brgs", "bearings"), "bearing"),
    **dict.fromkeys(("comp", "compr", "compressors"), "compressor"),
    **dict.fromkeys(("pmp", "pumps"), "pump"),
    **dict.fromkeys(("temp", "temps", "temperatures"), "temperature"),
    **dict.fromkeys(("press", "pressures"), "pressure"),
    **dict.fromkeys(("vlv", "valves"), "valve"),
    **dict.fromkeys(("flt", "fltr", "filters"), "filter"),
    **dict.fromkeys(("gen", "alternator", "generators"), "generator"),
    **dict.fromkeys(("teeth", "tooths"), "tooth"),
    **dict.fromkeys(("hoses", "hse"), "hose"),
    **dict.fromkeys(("a/c", "ac", "aircon", "airconditioner", "air-con"), "aircon"),
    **dict.fromkeys(("lights", "lamp", "lamps"), "light"),
    **dict.fromkeys(("tracks", "trk"), "track"),
    **dict.fromkeys(("elec", "elect", "electrical"), "electric"),
    **dict.fromkeys(("lube", "lubrication", "greasing"), "grease"),
    **dict.fromkeys(("seals",), "seal"),
    **dict.fromkeys(("belts",), "belt"),
    **dict.fromkeys(("fans",), "fan"),
    **dict.fromkeys(("pins",), "pin"),
    **dict.fromkeys(("bolts",), "bolt"),
    **dict.fromkeys(("leaks", "leaking", "leakage", "leaky", "lking"), "leak"),
    **dict.fromkeys(("cracks", "cracked", "cracking"), "crack"),
    **dict.fromkeys(("broke", "broken", "snapped", "sheared"), "break"),
    **dict.fromkeys(("blown", "blew", "burst", "ruptured"), "burst"),
    **dict.fromkeys(("vib", "vibrating", "vibrates", "shaking"), "vibration"),
    **dict.fromkeys(("o/heat", "overheating", "overheated", "hot"), "overheat"),
    **dict.fromkeys(("noisy", "knocking", "squealing"), "noise"),
    **dict.fromkeys(("loose", "fallen", "missing"), "loose"),
    **dict.fromkeys(("worn", "wearing"), "wear"),
    **dict.fromkeys(("u/s", "unserviceable", "faulty", "failed", "fault", "failure", "inop", "dead"), "fail"),
    **dict.fromkeys(("blocked", "clogged", "plugged"), "block"),
    **dict.fromkeys(("low",), "low"),
    **dict.fromkeys(
        ("replace", "replaced", "replacing", "r/r", "c/o", "changeout", "changed", "renew", "swap"), "replace"
    ),
    **dict.fromkeys(("repair", "repaired", "fix", "fixed", "weld", "welded"), "repair"),
    **dict.fromkeys(("inspect", "inspected", "check", "checked", "chk"), "inspect"),
    **dict.fromkeys(("adjust", "adjusted", "tighten", "tightened", "reset"), "adjust"),
    **dict.fromkeys(("clean", "cleaned", "flush", "flushed"), "clean"),
    **dict.fromkeys(("service", "serviced", "svc"), "service"),
}
_ITEMS = """
cylinder hydraulic engine bearing compressor pump valve filter generator tooth hose aircon light track
electric grease seal belt fan pin bolt bucket boom stick shroud oil radiator coolant battery starter alarm
radio camera gear gearbox cooler brake turbo injector sensor cable pipe ladder door seat cab pedal swing rotor
shaft
"""
_STATES = "leak crack break burst vibration overheat noise loose wear fail block low"
_ACTIONS = "replace repair inspect adjust clean service"
ITEMS, STATES, ACTIONS = frozenset(_ITEMS.split()), frozenset(_STATES.split()), frozenset(_ACTIONS.split())
WORD = re.compile(r"[a-z]/[a-z]+|[a-z][a-z'-]*")


@dataclass(frozen=True)
class Evidence:
    """What a text speaks of."""

    items: tuple[str, ...]
    states: tuple[str, ...]
    actions: tuple[str, ...]

    def codes(self) -> list[str]:
        return [
            *(f"item:{item}" for item in self.items),
            *(f"state:{state}" for state in self.states),
            *(f"action:{action}" for action in self.actions),
        ]


def words(text: str) -> list[str]:
    """Lower case, jargon replaced, numbers and signs dropped."""
    return [JARGON.get(word, word) for word in WORD.findall(text.casefold())]


def extract(text: str) -> Evidence:
    """Item, state and action of a text, each once, in the order of the text."""
    found = list(dict.fromkeys(words(text)))
    return Evidence(
        tuple(word for word in found if word in ITEMS),
        tuple(word for word in found if word in STATES),
        tuple(word for word in found if word in ACTIONS),
    )


@lru_cache(maxsize=100_000)
def _coded(text: str) -> tuple[str, ...]:
    return tuple(extract(text).codes())


def coded(text: str) -> list[str]:
    return list(_coded(text))
