"""ClipCap (arXiv 2111.09734) as a library: CLIP embedding -> mapping network -> prefix -> language model.

Pure PyTorch; knows nothing of Django, Celery or a database. `image.py` and `options.py` do without torch too.
"""
