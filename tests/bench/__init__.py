"""How fast, how large, beside what others do: `python -m tests.bench [NAME ...]`, `make bench`.

    receiving     our SCP, DCMTK, Orthanc, pynetdicom's example      sending       our SCU
    volume        a series into one array                            segmentation  masks into SEG
    reading       18 questions, as one batch and one by one          ledger        events

One file for each, with a function `run`. Two shared cores are noisy: the subjects of a case take
turns, the order changes with each round, and a median is kept. Believe ratios, not seconds.
"""

from pathlib import Path

ROOT = Path(__file__).parents[2]
