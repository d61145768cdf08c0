"""Which region of the body words name, in many languages, and which exams a protocol is for.

Knows words. Must not know series, or what follows from a region.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

# PS3.16 Annex L: terms for several regions at once.
COMPOUNDS = {
    "ABDOMENPELVIS": "ABDOMEN PELVIS",
    "CHESTABDOMEN": "CHEST ABDOMEN",
    "CHESTABDPELVIS": "CHEST ABDOMEN PELVIS",
    "HEADNECK": "HEAD NECK",
    "NECKCHEST": "NECK CHEST",
    "NECKCHESTABDOMEN": "NECK CHEST ABDOMEN",
    "NECKCHESTABDPELV": "NECK CHEST ABDOMEN PELVIS",
}
# What a word says of the region, whether or not a rule is for it: a series that names one region
# is not read as another because the study as a whole names that too ("CT head and chest").
REGIONS = {
    "head": """head brain skull cranium cranial cerebral kopf schädel gehirn hirn tête crâne cerveau
        cabeza cráneo cerebro testa encefalo голова головы мозг мозга череп 头 頭 脑 脳 颅""",
    "face": "face facial jaw mandible orbit orbits sinus sinuses nnh pituitary sella",
    "neck": "neck hals cou cuello collo шея шеи larynx pharynx thyroid carotid 颈 頸",
    "chest": """chest thorax thoracic thoraco lung lungs pulmonary mediastinum lunge thorakal poumon
        poumons thoracique tórax torace pulmón pulmones polmone грудь груди грудная грудной легкие
        легких огк 胸 肺""",
    "abdomen": """abdomen abdominal abd liver kidney kidneys renal pancreas spleen bauch oberbauch
        leber niere nieren milz abdominale foie rénal hígado addome fegato colon живот брюшная
        брюшной печень почки обп 腹 肝""",
    "pelvis": """pelvis pelvic becken unterbauch bassin pelvien bacino таз таза prostate prostata
        uterus bladder blase rectum 盆""",
    "spine": """spine spinal vertebral cspine tspine lspine sspine cervical lumbar sacrum hws bws
        lws wirbelsäule rachis columna colonna позвоночник позвоночника 椎""",
    "limb": """hip hips hüfte hanche cadera anca shoulder schulter épaule hombro spalla плечо elbow
        wrist hand finger foot ankle toe leg legs bein calf thigh femur femoral tibia knee knie
        genou rodilla ginocchio колено arm forearm humerus humeral extremity 膝 肩 髋""",
    "heart": "heart herz coeur corazón cuore сердце coronary koronar",
    "breast": "breast mamma mammae",
}
TRUNK = ("head", "neck", "chest", "abdomen", "pelvis")  # one scan is of one stretch of it
LETTER = r"[^\W\d_]"
FIRST_CJK = "\u2e80"


@dataclass(frozen=True)
class Rule:
    """Which studies a protocol is for.

    ``body_parts`` are values of Body Part Examined (PS3.16 Annex L), ``keywords`` words of
    descriptions; a series needs one of either. Of two rules that fit the earlier one is taken.
    """

    protocol: str
    modality: str
    body_parts: tuple[str, ...]
    keywords: tuple[str, ...]
    minimum_slices: int


def named(text: str, rules: Sequence[Rule]) -> list[Rule]:
    """Find the rules whose region a text names, as a scan of which they are a part."""
    regions, words, whole = regions_in(text), _words(_expanded(text)), plain(text)
    stretch = sorted(TRUNK.index(each) for each in regions if each in TRUNK)
    if stretch and len(stretch) <= stretch[-1] - stretch[0] and "to" not in words:
        return []
    return [
        rule
        for rule in rules
        # A thoracic spine is no chest.
        if regions - {*TRUNK} <= regions_of(rule)
        # Chinese and Japanese are written without spaces: there a keyword may stand anywhere.
        and any(
            plain(each) in whole if max(each) >= FIRST_CJK else _words(each) <= words
            for each in (*rule.body_parts, *rule.keywords)
        )
    ]


def regions_in(text: str) -> frozenset[str]:
    """Tell which regions a text names."""
    words, whole = _words(_expanded(text)), plain(text)
    return frozenset(
        region
        for region, known in _region_words().items()
        if known & words or any(each in whole for each in known if each >= FIRST_CJK)
    )


@cache
def _region_words() -> dict[str, frozenset[str]]:
    return {region: frozenset(plain(known).split()) for region, known in REGIONS.items()}


@cache
def regions_of(rule: Rule) -> frozenset[str]:
    """Tell which regions the words of a rule name; a term for several is not its own."""
    return frozenset().union(
        *(
            regions_in(each)
            for each in (*rule.body_parts, *rule.keywords)
            if each.upper() not in COMPOUNDS
        )
    )


def _expanded(text: str) -> str:
    return " ".join(COMPOUNDS.get(each.upper(), each) for each in text.split())


def _words(text: str) -> set[str]:
    """Split into lower-case words without accents; ``_``, digits and CamelCase separate too."""
    return set(re.findall(rf"{LETTER}+", plain(apart(text))))


def apart(text: str) -> str:
    """Write CamelCase as words apart."""
    text = re.sub(r"(?<=[a-zà-öø-ÿа-яё])(?=[A-ZÀ-ÖØ-ÞА-ЯЁ])", " ", text)
    return re.sub(r"(?<=[A-Z])(?=[A-Z][a-z])", " ", text)


def plain(text: str) -> str:
    """Write in lower case without accents."""
    letters = unicodedata.normalize("NFKD", text.strip().casefold())
    return "".join(each for each in letters if not unicodedata.combining(each))
