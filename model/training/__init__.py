"""Training M3D: SegVol, M3D-CLIP, perceiver alignment and instruction tuning.

recipe       what a run is: a TOML file        examples    one image, all that is asked about it
augment      how images vary                   packing     many questions behind one image
batches      examples to tensors               objectives  what each stage minimises
prompts      SegVol's own, for the words       running     transformers' Trainer, guarded
progress     how far a run is                  lora        adapters in and merged out
stages       a recipe in, a checkpoint out     demo        the small checkpoint, from nothing
curves       how the stages went               shipping    and in half the bytes
seeing       what a checkpoint sees            ablation    what each part gives
commands     `lamed-model train`
"""
