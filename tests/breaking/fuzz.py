"""`python -m tests.breaking fuzz`: runs campaigns, tells of them, keeps the telling cases."""

import argparse
import json
from collections.abc import Sequence
from typing import Any

from . import CORPUS, campaign
from .targets import TARGETS

KEPT = 40  # of each target
EACH = 2  # of each outcome


def run(arguments: argparse.Namespace) -> int:
    states = [
        campaign.run(name, arguments.cases, arguments.seed, arguments.folder, _tell)
        for name in arguments.target or TARGETS
    ]
    for each in states:
        _tell_state(each)
        if arguments.keep:
            keep(each["target"], [*each["found"], *each["kept"]])
    return 1 if any(each["found"] for each in states) else 0


def keep(target: str, told: Sequence[dict[str, Any]]) -> None:
    """Add to the corpus: all that found something, and a few of each outcome."""
    path = CORPUS / f"{target}.json"
    kept = json.loads(path.read_text()) if path.exists() else []
    known = {each["content"] for each in kept}
    counts: dict[str, int] = {}
    for each in kept:
        counts[each["said"]] = counts.get(each["said"], 0) + 1
    for each in told:
        said = each.get("said", f"found: {each.get('what', '')}")
        if "content" not in each or each["content"] in known or counts.get(said, 0) >= EACH:
            continue
        if len(kept) < KEPT or said.startswith("found"):
            counts[said] = counts.get(said, 0) + 1
            kept.append({"said": said, **{key: each[key] for key in CASE}})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(kept, indent=0) + "\n")


CASE = ("content", "syntax", "sop_class_uid", "sop_uid")


def _tell(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - a command


def _tell_state(state: dict[str, Any]) -> None:
    samples = [each for each in state["memory_mb"] if each]
    memory = f"{samples[0][0]:.0f} to {samples[-1][-1]:.0f} MB" if samples else "-"
    _tell(f"\n{state['target']}: {state['done']} cases, {state['seconds']:.0f} s, memory {memory}")
    for said, count in sorted(state["outcomes"].items(), key=lambda each: -each[1])[:12]:
        _tell(f"  {count:>7}  {said}")
    for each in state["found"]:
        _tell(f"  FOUND {each['index']}: {each['what']}")
