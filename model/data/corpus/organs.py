"""The structures the corpus knows: names, numbers in the label map, sides, and where they are.

Knows words and numbers only.
"""

from dataclasses import dataclass
from typing import Final

CHEST, ABDOMEN, HEAD = "chest", "abdomen", "head"


@dataclass(frozen=True)
class Organ:
    """One structure: `number` in the label map; `asked` if it is worth a question."""

    number: int
    name: str
    region: tuple[str, ...]
    side: str = ""  # "left", "right" or none
    asked: bool = True

    @property
    def plain(self) -> str:
        """The name without its side."""
        return self.name.removeprefix(f"{self.side} ") if self.side else self.name


_TABLE: Final = (
    ("body", (CHEST, ABDOMEN), False),
    ("muscle", (CHEST, ABDOMEN), False),
    ("inside of the abdomen", (ABDOMEN, CHEST), False),
    ("ribs", (CHEST,), False),
    ("sternum", (CHEST,), False),
    ("spine", (CHEST, ABDOMEN), True),
    ("right lung", (CHEST,), True),
    ("left lung", (CHEST,), True),
    ("heart", (CHEST,), True),
    ("aorta", (CHEST, ABDOMEN), True),
    ("trachea", (CHEST,), True),
    ("liver", (ABDOMEN,), True),
    ("spleen", (ABDOMEN,), True),
    ("right kidney", (ABDOMEN,), True),
    ("left kidney", (ABDOMEN,), True),
    ("pancreas", (ABDOMEN,), True),
    ("stomach", (ABDOMEN,), True),
    ("gallbladder", (ABDOMEN,), True),
    ("inferior vena cava", (ABDOMEN,), False),
    ("bowel", (ABDOMEN,), False),
    ("right psoas muscle", (ABDOMEN,), False),
    ("left psoas muscle", (ABDOMEN,), False),
    ("scalp", (HEAD,), False),
    ("skull", (HEAD,), True),
    ("cerebrospinal fluid", (HEAD,), False),
    ("brain", (HEAD,), True),
    ("ventricles of the brain", (HEAD,), True),
    ("cerebellum", (HEAD,), True),
    ("brainstem", (HEAD,), True),
    ("right eye", (HEAD,), True),
    ("left eye", (HEAD,), True),
    ("urinary bladder", (ABDOMEN,), False),
    ("table", (CHEST, ABDOMEN), False),  # what the patient lies on
)

ORGANS: Final = {
    name: Organ(
        number,
        name,
        region,
        next((each for each in ("left", "right") if name.startswith(each)), ""),
        asked,
    )
    for number, (name, region, asked) in enumerate(_TABLE, 1)
}
OUTSIDE: Final = 0
