"""Training M3D: SegVol, M3D-CLIP, perceiver alignment and instruction tuning.

recipe       what a run is: a TOML file        examples    one image, all that is asked about it
augment      how images vary                   packing     many questions behind one image
objectives   what each stage minimises         running     transformers' Trainer, guarded
lora         adapters in and merged out        commands    `lamed-model train`
"""
