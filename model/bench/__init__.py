"""M3D-Bench (arXiv 2404.00578): how good an answer is, in numbers that mean what they say.

What is measured by:

    text       BLEU, ROUGE, METEOR, chrF             bertscore  BERTScore, if its weights are here
    findings   what two reports say, compared        lexicon, clauses, negation  how they are read
    geometry   boxes, masks, surfaces                choices    letters of four-choice answers
    retrieval  R@k both ways                         intervals  how sure a number is

How a checkpoint is measured, `lamed-model bench`:

    items      what is asked of an image             patients, folders  where images come from
    asking     answers, kept; with and without image judging    one answer as numbers
    scoring    many of them; what results.json holds retrieving retrieval, in pools
    reporting  the page                              pictures   outlines on slices
    commands   the command line

Whatever is called `reference` scores as the published scripts did, to be compared with published
numbers and for nothing else. Scores are 0 to 1.
"""

__all__: list[str] = []
