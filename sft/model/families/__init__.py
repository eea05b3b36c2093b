"""Legacy checkpoint formats, one module each: how their files become a native transformers folder. Nothing in a checkpoint is run.

OPT, LLaMA-2 and what else transformers has a class for need no conversion. transformers' own packed masks are never made for OPT (its
decoder gives the mask builder no positions), so flat rows of OPT are apart only in the backends of :mod:`sft.model.attention`, which take
document borders.
"""
