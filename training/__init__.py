"""Styles' examples and training runs, on top of `captioner`; beside them the trainer, pure PyTorch.

`trainer.py`, `packing.py`, `evaluation.py`, `ptb_tokenizer.py` and `style_classifier.py` know no Django.
"""
