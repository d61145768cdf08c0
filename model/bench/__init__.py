"""M3D-Bench (arXiv 2404.00578): how good an answer is, in numbers that mean what they say.

    text       BLEU, ROUGE, METEOR, chrF             bertscore  BERTScore, if its weights are here
    findings   what two reports say, compared        lexicon, clauses, negation  how they are read
    geometry   boxes, masks, surfaces                choices    letters of four-choice answers
    retrieval  R@k both ways                         intervals  how sure a number is

Whatever is called `reference` scores as the published scripts did, to be compared with published
numbers and for nothing else. Scores are 0 to 1.
"""

__all__: list[str] = []
