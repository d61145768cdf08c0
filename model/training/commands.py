"""The command line `lamed-model train`.

Knows words of a command; the work is done elsewhere, and imported when it is asked for.
"""

import argparse
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from model.errors import ModelError

from . import recipe

EXTRAS: Final = ("accelerate", "peft", "tensorboard")
HELP: Final = {
    "segment": "SegVol by itself, on the corpus",
    "contrastive": "M3D-CLIP: images and reports",
    "align": "the perceiver: images into the language model's words",
    "tune": "all tasks, with masks; LoRA on the language model",
}


def add_to(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `train` to the verbs of `lamed-model`."""
    stages = verbs.add_parser("train", help="train M3D, stage by stage").add_subparsers(
        required=True, metavar="STAGE"
    )
    for stage in recipe.STAGES:
        _add_stage(stages.add_parser(stage, help=HELP[stage]), stage)
    demo = stages.add_parser("demo", help="the small checkpoint that ships, from nothing")
    demo.set_defaults(command=_demo)
    demo.add_argument("--out", type=Path, default=Path("run/demo"), metavar="DIR")
    demo.add_argument("--cache", type=Path, default=Path("run/pool"), metavar="DIR")
    demo.add_argument("--share", type=float, default=1.0, help="of each recipe's steps, 0 to 1")
    demo.add_argument("--json", action="store_true", help="machine-readable output")
    ablate = stages.add_parser("ablate", help="what each part of `demo` gives, at equal steps")
    ablate.set_defaults(command=_ablate)
    ablate.add_argument("--run", type=Path, default=Path("run/demo"), metavar="DIR", help="of demo")
    ablate.add_argument("--out", type=Path, default=Path("run/ablation"), metavar="DIR")
    ablate.add_argument("--cache", type=Path, default=Path("run/pool"), metavar="DIR")
    ablate.add_argument("--steps", type=int, default=200, metavar="N", help="default 200")
    ablate.add_argument("--patients", type=int, default=120, metavar="N", help="default 120")
    ablate.add_argument(
        "--only", nargs="+", action="extend", default=[], metavar="NAME", help="variants to run"
    )
    ablate.add_argument("--json", action="store_true", help="machine-readable output")
    shipping = stages.add_parser("ship", help="half the bytes, and a card with every number")
    shipping.set_defaults(command=_ship)
    shipping.add_argument("--source", type=Path, required=True, metavar="DIR")
    shipping.add_argument("--results", type=Path, required=True, metavar="FILE", help="of `bench`")
    shipping.add_argument("--run", type=Path, metavar="DIR", help="of `demo`, for its curves")
    shipping.add_argument("--ablation", type=Path, metavar="FILE", help="of `ablate`, with --run")
    shipping.add_argument("--out", type=Path, required=True, metavar="DIR")
    shipping.add_argument("--json", action="store_true", help="machine-readable output")


def _add_stage(parser: argparse.ArgumentParser, stage: str) -> None:
    parser.set_defaults(command=_train, stage=stage)
    parser.add_argument("--recipe", default="small", help="a known one's name, or a .toml file")
    folders = {
        "--start": "the checkpoint to begin with",
        "--out": "state of the run, and its checkpoint; a run that was killed goes on",
        "--vision": "a checkpoint whose vision encoder is taken over",
        "--data": "the folder of the prepared sets",
    }
    for name, told in folders.items():
        needed = name in ("--start", "--out")
        parser.add_argument(name, type=Path, required=needed, metavar="DIR", help=told)
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path("run/pool"),
        metavar="DIR",
        help="where corpus patients are kept",
    )
    parser.add_argument("--name", default="", help="of the trained checkpoint")
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto")
    parser.add_argument("--json", action="store_true", help="machine-readable output")


def _train(arguments: argparse.Namespace) -> dict[str, object]:
    _need_extras()
    from . import running, stages

    chosen = recipe.read(recipe.find(arguments.stage, arguments.recipe))
    if chosen.stage != arguments.stage:
        raise ModelError(
            f"{arguments.recipe} is a recipe of {chosen.stage}, not of {arguments.stage}"
        )
    places = stages.Places(
        arguments.start, arguments.out, arguments.vision, arguments.data, arguments.cache
    )
    told = stages.run(chosen, places, device=arguments.device, name=arguments.name)
    running.leave()
    return told


def _demo(arguments: argparse.Namespace) -> dict[str, object]:
    _need_extras()
    from . import demo

    return demo.run(arguments.out, arguments.cache, arguments.share)


def _ablate(arguments: argparse.Namespace) -> dict[str, object]:
    _need_extras()
    from . import ablation

    plan = ablation.Plan.of(arguments.steps, arguments.patients, arguments.only)
    found = ablation.run(arguments.run, arguments.out, arguments.cache, plan)
    return {"folder": str(arguments.out), "table": "\n".join(ablation.table(found["variants"]))}


def _ship(arguments: argparse.Namespace) -> dict[str, object]:
    _need_extras()
    from . import demo
    from .shipping import ship

    text = demo.CARD.read_text("utf-8")
    given = {"results": arguments.results, "run": arguments.run, "ablation": arguments.ablation}
    card = ship(arguments.source, arguments.out, text=text, **given)
    return {"folder": str(arguments.out), **vars(card)}


def _need_extras() -> None:
    missing = [each for each in EXTRAS if find_spec(each) is None]
    if missing:
        raise ModelError(
            f"training needs {', '.join(missing)}: pip install 'lamed-node[train]' brings them"
        )
