"""What the tests of training share: networks of a few thousand weights and three patients.

The patients are of the anatomy corpus, written as prepared samples in the published layout.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import published_data
import torch

from model import checkpoint, small
from model.data.corpus import telling
from model.data.corpus.case import Case
from model.data.corpus.organs import ORGANS
from model.data.corpus.scene import Scene
from model.network import build
from model.tokenizer import Tokenizer
from model.training.recipe import Corpus, Published, Recipe

GRID, PATCH, WIDTH = (16, 32, 32), (4, 8, 8), 48
WIDTHS = {"mlp_dim": 2 * WIDTH, "num_layers": 2, "num_heads": 4, "stem_channels": 8}
SEEDS = (0, 1, 3)  # a head, a chest and an abdomen
ORGAN = {"head": "brain", "chest": "right lung", "abdomen": "liver"}
SETS = (
    Published("cap", "M3D_Cap_npy/M3D_Cap.json"),
    Published("vqa-closed", "M3D-VQA/M3D_VQA_train.csv"),
    Published("vqa-open", "M3D-VQA/M3D_VQA_train.csv"),
)
SEG = Published("seg", "M3D_Seg_npy/0003/0003.json")
REFSEG = Published("refseg", "M3D_RefSeg_npy/M3D_RefSeg.csv")


def lamed(folder: Path, *, family: str = "phi3", **changed: Any) -> Path:
    """Write an untrained M3D-LaMed of the corpus' words."""
    words = small.tokenizer()
    config = small.lamed_config(words) | {
        "model_type": f"lamed_{family}",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "image_size": list(GRID),
        "patch_size": list(PATCH),
        "mm_hidden_size": WIDTH,
        "oracle_overrides": {
            "vision": {"hidden_size": WIDTH, **WIDTHS},
            "segvol": {
                "embed_dim": WIDTH, **WIDTHS,
                "decoder_mlp_dim": 96, "decoder_heads": 4, "iou_hidden": 16,
            },
        },
    }  # fmt: skip
    return written(folder, config | changed, lamed_files(words))


def lamed_files(words: Tokenizer) -> dict[str, bytes]:
    added = json.dumps(dict(words.added)).encode()
    return {"tokenizer.model": words.model, "added_tokens.json": added}


def clip(folder: Path) -> Path:
    """Write an untrained M3D-CLIP of the corpus' words."""
    words = small.clip_words()
    config = small.clip_config(len(words.splitlines())) | {
        "img_size": list(GRID),
        "patch_size": list(PATCH),
        "hidden_size": WIDTH,
        **WIDTHS,
        "oracle_overrides": {
            "bert": {
                "hidden_size": WIDTH, "intermediate_size": 96,
                "num_hidden_layers": 1, "num_attention_heads": 4,
            }
        },
    }  # fmt: skip
    return written(folder, config, {"vocab.txt": words})


def written(folder: Path, config: Mapping[str, Any], files: Mapping[str, bytes]) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build(config)
    checkpoint.write(folder, config, network.state_dict(), files, name=folder.name, untrained=True)
    return folder


def scenes(seeds: Sequence[int] = SEEDS) -> list[Scene]:
    return [Scene.of(Case.make(seed), GRID) for seed in seeds]


def data(folder: Path, patients: Sequence[Scene]) -> Path:
    """Write patients as M3D-Cap, -VQA, -Seg and -RefSeg, prepared."""
    cases, rows = [], []
    for each in patients:
        name = f"M3D_Cap_npy/ct_case/{each.truth.seed:06d}"
        saved(folder / name / "Axial.npy", each.image[None])
        (folder / name / "text.txt").write_text(telling.report(each.truth))
        cases.append({"image": f"{name}/Axial.npy", "text": f"{name}/text.txt"})
        rows += [(f"{name}/Axial.npy", *row) for row in asked(each)]
    published_data.listed(folder / "M3D_Cap_npy/M3D_Cap.json", train=cases)
    (folder / "M3D-VQA").mkdir()
    published_data.table(folder / "M3D-VQA/M3D_VQA_train.csv", published_data.VQA, rows)
    _seg(folder / "M3D_Seg_npy/0003", patients)
    _refseg(folder / "M3D_RefSeg_npy", patients)
    return folder


def asked(scene: Scene) -> list[tuple[object, ...]]:
    """Ask what only the image tells: the region and an organ of it."""
    regions = ("head", "chest", "abdomen", "knee")
    letter = "ABCD"[regions.index(scene.truth.region)]
    return [
        ("", 3, "Which part of the body is shown?", *regions, scene.truth.region, letter),
    ]


def _seg(folder: Path, patients: Sequence[Scene]) -> None:
    names = sorted(ORGAN.values())
    labels = {str(number): name for number, name in enumerate(names, 1)}
    entries = []
    for each in patients:
        case = folder / f"{each.truth.seed:06d}"
        saved(case / "image.npy", each.image[None])
        for number, name in enumerate(names):
            found = each.mask(name)
            path = saved(case / f"masks/mask_{number}.npy", found[None])
            paths = [str(file.relative_to(folder.parent)) for file in (case / "image.npy", path)]
            entries.append({"image": paths[0], "label": paths[1]})
    published_data.listed(folder / "0003.json", labels={"0": "nothing"} | labels, train=entries)


def _refseg(folder: Path, patients: Sequence[Scene]) -> None:
    rows = []
    for each in patients:
        case = f"s{each.truth.seed:04d}"
        saved(folder / case / "ct.npy", each.image[None])
        number = ORGANS[ORGAN[each.truth.region]].number
        saved(folder / case / "mask.npy", np.where(each.labels == number, number, 0)[None])
        question = "What is the largest organ? Mark it."
        answer = f"It is the {ORGAN[each.truth.region]}: [SEG]."
        rows.append((f"{case}/ct.nii.gz", f"{case}/mask.nii.gz", number, 1, question, answer))
    published_data.table(folder / "M3D_RefSeg.csv", published_data.REFSEG, rows)


def saved(path: Path, array: np.ndarray[Any, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)
    return path


def recipe(stage: str, **changed: Any) -> Recipe:
    """Give a recipe of a handful of steps."""
    given: dict[str, Any] = {
        "batch": 2, "learning_rate": 2e-3, "steps": 4, "log_every": 1, "save_every": 2,
    }  # fmt: skip
    if stage == "segment":
        given |= {"corpus": Corpus(2), "outlines": 2}
    elif stage == "contrastive":
        given |= {"sets": SETS[:1]}
    elif stage == "align":
        given |= {"sets": SETS, "train": ("projector", "embed", "head", "language")}
    else:
        train = ("vision", "projector", "embed", "head", "seg_projector", "segvol")
        given |= {"sets": (*SETS, SEG), "questions": 8, "masks": 2, "train": train}
    return Recipe(stage=stage, **(given | changed))
