"""ClipCap (arXiv 2111.09734) as a library: CLIP embedding -> mapping network -> prefix -> language model.

Pure PyTorch; knows nothing of Django, Celery or a database.
"""

from clipcap.torchvision_schemas import mend

mend()  # before anything imports open_clip or transformers
