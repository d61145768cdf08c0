"""Training on a network so small that it learns in seconds, and what must hold at any size."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model import checkpoint as checkpoints
from model import small
from model.data.corpus.case import VIEWS, Case
from model.data.corpus.scene import Pool, Scene
from model.data.sample import Sample, Task
from model.data.tokens import IGNORED, Layout
from model.errors import ModelError
from model.network import Lamed, build
from model.training import lora, recipe
from model.training.augment import Augment
from model.training.batches import Questions
from model.training.examples import Patients, Stream, sample_of
from model.training.lora import Lora
from model.training.objectives import Speaking
from model.training.packing import pack
from model.training.running import Run, TrainingError, train

GRID = (16, 32, 32)


@pytest.fixture(scope="module")
def network() -> Lamed:
    words = small.tokenizer()
    config = small.lamed_config(words) | {
        "image_size": list(GRID),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "mm_hidden_size": 48,
        "oracle_overrides": {
            "vision": {"hidden_size": 48, "mlp_dim": 96, "num_layers": 1, "num_heads": 4},
            "segvol": {
                "embed_dim": 48, "mlp_dim": 96, "num_layers": 1, "num_heads": 4,
                "decoder_mlp_dim": 96, "decoder_heads": 4, "iou_hidden": 16,
            },
        },
    }  # fmt: skip
    torch.manual_seed(0)
    made = build(config)
    assert isinstance(made, Lamed)
    return made


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory, network: Lamed) -> Patients:
    pool = Pool(tmp_path_factory.mktemp("pool"), GRID)
    return Patients(
        [(pool, range(3))],
        tokenizer=small.tokenizer(),
        layout=Layout.of(network.config),
        questions=5,
        masks=1,
    )


def collate(network: Lamed) -> Questions:
    return Questions(Layout.of(network.config), network.config.seg_token_id)


def test_an_answer_behind_others_costs_what_it_costs_alone(
    network: Lamed, patients: Patients
) -> None:
    examples = [patients.example(number, np.random.default_rng(number)) for number in range(2)]
    layout, seg = Layout.of(network.config), network.config.seg_token_id
    packs = pack(examples, layout, seg)
    images = torch.from_numpy(np.stack([each.image for each in examples]))
    with torch.no_grad():
        embeds = network.embed(packs.input_ids, network.encode_image(images))
        hidden = network.model(
            inputs_embeds=embeds,
            attention_mask=packs.attention,
            position_ids=packs.position_ids,
            use_cache=False,
        ).last_hidden_state
        for row, example in enumerate(examples):
            at = 1 + layout.image_tokens
            for tokens in example.tokens:
                ids = torch.tensor([tokens.input_ids])
                alone = network(images[row : row + 1], ids).hidden[0]
                own = len(tokens.input_ids) - (1 + layout.image_tokens)
                assert torch.allclose(hidden[row, at : at + own], alone[-own:], atol=1e-5)
                at += own


def test_only_answers_are_learnt_and_a_mask_hangs_on_the_word_before_its_seg(
    network: Lamed, patients: Patients
) -> None:
    example = replace(patients, questions=40).example(1, np.random.default_rng(5))
    layout, seg = Layout.of(network.config), network.config.seg_token_id
    packs = pack([example], layout, seg)
    learnt = sum(label != IGNORED for each in example.tokens for label in each.labels)
    assert int((packs.labels != IGNORED).sum()) == learnt > 0
    assert len(packs.places) == sum(each is not None for each in example.masks) == 1
    assert packs.input_ids[packs.rows, packs.places + 1].tolist() == [seg]
    assert packs.labels[packs.rows, packs.places + 1].tolist() == [seg]


def test_a_place_in_the_stream_is_one_example_for_ever(patients: Patients) -> None:
    moving = replace(patients, augment=Augment("mild"))
    one, again = (Stream(moving, 12, seed=3) for _ in range(2))
    for place in (0, 7):
        assert np.array_equal(one[place].image, again[place].image)
        assert one[place].tokens == again[place].tokens
    seen = {Stream(patients, 3, seed=3)[place].image.tobytes() for place in range(3)}
    assert len(seen) == 3  # each patient once before any comes again


def test_no_image_is_mirrored_and_organs_move_with_it() -> None:
    scene = Scene.of(Case.make(4, view=VIEWS[1]), (16, 48, 48))
    for seed in range(12):
        moved = Augment("mild")(scene, np.random.default_rng(seed))
        liver, spleen = (np.argwhere(moved.mask(name))[:, 2].mean() for name in ("liver", "spleen"))
        assert liver < spleen  # columns ascend from right to left
        spine, body = np.argwhere(moved.mask("spine")), np.argwhere(moved.labels > 0)
        assert spine[:, 1].mean() > body[:, 1].mean()
        bright = moved.image[moved.mask("spine")].mean()
        assert bright > moved.image[moved.labels > 0].mean()


def test_published_images_turn_only_under_words_without_a_side() -> None:
    image = np.zeros((1, 4, 6, 6), np.float32)
    image[0, 0, 0, 1] = 1
    plain = Sample("f#1", Task.OPEN_VQA, Path("i.npy"), "What is seen?", "A mass.", "p")
    sided = replace(plain, answer="A mass in the left lung.")
    places: dict[str, set[tuple[int, ...]]] = {"plain": set(), "sided": set()}
    for name, sample in (("plain", plain), ("sided", sided)):
        for seed in range(25):
            moved, _ = Augment("reference").samples(
                image, [None], [sample], np.random.default_rng(seed)
            )
            places[name].add(
                tuple(int(each) for each in np.unravel_index(moved.argmax(), (1, 4, 6, 6)))
            )
    assert places["sided"] == {(0, 0, 0, 1)}
    assert len(places["plain"]) > 3


def test_a_box_is_of_the_image_as_it_was_moved() -> None:
    from model.data.corpus.telling import BOX, Turn

    scene = Scene.of(Case.make(4, view=VIEWS[1]), (16, 48, 48))
    moved = Augment("mild")(scene, np.random.default_rng(3))
    assert not np.array_equal(scene.labels, moved.labels)
    turn = Turn("rec", "Where is the liver?", f"It is at {BOX}.", target="liver")
    for each in (scene, moved):
        box = sample_of(each, turn).box
        places = np.argwhere(each.mask("liver")) / each.labels.shape
        assert box is not None
        assert np.allclose(box, [*places.min(axis=0), *places.max(axis=0)])
    assert sample_of(scene, turn).box != sample_of(moved, turn).box


def test_merged_adapters_say_what_they_said_before(network: Lamed) -> None:
    own = build_like(network)
    names = list(own.state_dict())
    lora.inject(own, Lora(rank=4, dropout=0.0))
    adapted = {name for name, _ in own.named_parameters() if "lora_" in name}
    assert len(adapted) == 2 * 4 * 2  # A and B of the four Linears of two layers
    with torch.no_grad():
        for name, each in own.named_parameters():
            if "lora_" in name:
                each.normal_(std=0.1)
    ids = torch.tensor([[1, 40, 50, 60]])
    with torch.no_grad():
        before = own(None, ids).logits
        lora.merge(own)
        assert list(own.state_dict()) == names
        assert torch.allclose(own(None, ids).logits, before, atol=1e-4)
        assert not torch.allclose(network(None, ids).logits, before, atol=1e-2)


def build_like(network: Lamed) -> Lamed:
    import copy

    return copy.deepcopy(network)


def test_a_handful_is_learnt_by_heart(network: Lamed, patients: Patients, tmp_path: Path) -> None:
    own = build_like(network)
    asked = frozenset({Task.OPEN_VQA, Task.CLOSED_VQA, Task.SEMANTIC_SEGMENTATION})
    # One place again and again: the same questions.
    example = replace(patients, questions=6, tasks=asked).example(0, np.random.default_rng(0))
    assert any(each is not None for each in example.masks)
    fixed = Fixed([example])
    run = Run(steps=120, batch=1, learning_rate=5e-3, log_every=10, save_every=500, device="cpu")
    log = train(Speaking(own).train(), Stream(fixed, 120), collate(own), run, tmp_path / "run")
    assert log[0]["language"] > 4
    assert log[-1]["language"] < 0.05
    assert log[-1]["dice"] < 0.5 * log[0]["dice"]
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))


class Fixed:
    def __init__(self, examples: list[object]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def example(self, number: int, _: np.random.Generator) -> object:
        return self.examples[number]


def test_a_loss_that_is_no_number_ends_the_run_and_names_the_step(
    network: Lamed, patients: Patients, tmp_path: Path
) -> None:
    own = build_like(network)
    with torch.no_grad():
        own.lm_head.weight[3, 3] = float("nan")
    run = Run(steps=2, batch=1, learning_rate=1e-3, device="cpu")
    with pytest.raises(TrainingError, match="step 1: expected a finite loss, got loss nan"):
        train(Speaking(own).train(), Stream(patients, 2), collate(own), run, tmp_path / "run")


STAGE = """
stage = "align"
steps = 6
batch = 1
learning_rate = 1e-3
train = ["projector", "embed", "head", "language"]
questions = 3
augment = "mild"
log_every = 1
save_every = 2
[corpus]
phantoms = 2
"""


@pytest.mark.slow
def test_a_run_that_was_killed_ends_as_one_that_was_not(tmp_path: Path) -> None:
    words = small.tokenizer()
    start = tmp_path / "start"
    config = small.lamed_config(words) | {"image_size": list(GRID)}
    shapes = config | {"num_hidden_layers": 1}
    made = build(shapes)
    added = json.dumps(dict(words.added)).encode()
    files = {"tokenizer.model": words.model, "added_tokens.json": added}
    checkpoints.write(start, shapes, made.state_dict(), files, name="start", untrained=True)
    (tmp_path / "recipe.toml").write_text(STAGE)

    def command(out: str) -> list[str]:
        told = ["train", "align", "--recipe", str(tmp_path / "recipe.toml"), "--start", str(start)]
        told += ["--cache", str(tmp_path / "cache"), "--out", str(tmp_path / out)]
        return [sys.executable, "-m", "model", *told, "--device", "cpu"]

    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    whole = subprocess.run(command("whole"), env=environment, capture_output=True, check=False)
    assert whole.returncode == 0, whole.stderr.decode()[-2000:]
    with subprocess.Popen(command("cut"), env=environment, stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL) as going:  # fmt: skip
        saved = tmp_path / "cut" / "checkpoint-2" / "trainer_state.json"
        deadline = time.monotonic() + 120
        while not saved.exists() and going.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        going.send_signal(signal.SIGKILL)
    assert saved.exists()
    again = subprocess.run(command("cut"), env=environment, capture_output=True, check=False)
    assert again.returncode == 0, again.stderr.decode()[-2000:]
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")
    digests = {
        json.loads((tmp_path / each / "checkpoint" / "manifest.json").read_text())["sha256"]
        for each in ("cut", "whole")
    }
    assert len(digests) == 1


def curve(out: Path) -> list[float]:
    last = json.loads((out / "checkpoint-6" / "trainer_state.json").read_text())
    return [each["loss"] for each in last["log_history"] if "loss" in each]


@pytest.mark.parametrize("path", sorted(recipe.RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_that_ships_can_be_read(path: Path) -> None:
    assert recipe.read(path).stage == path.stem.partition("_")[0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("speed = 3", "recipe has no key 'speed'"),
        ('batch = "two"', "batch must be int, not 'two'"),
        ("epochs = 2", "steps or epochs must be given"),
        ('augment = "wild"', "augment must be of none, mild, reference"),
        ('train = ["brain"]', "train must be of"),
    ],
)
def test_a_wrong_recipe_says_what_was_expected(tmp_path: Path, line: str, message: str) -> None:
    key = line.partition(" ")[0]
    kept = [each for each in STAGE.strip().splitlines() if not each.startswith(f"{key} ")]
    (tmp_path / "r.toml").write_text("\n".join([line, *kept]))
    with pytest.raises(ModelError, match=message) as raised:
        recipe.read(tmp_path / "r.toml")
    assert str(tmp_path / "r.toml") in str(raised.value)
