"""What metrics are called. Scores are stored under the keys of `pycocoevalcap`; people read the names of the field."""

NAMES = {"CIDEr": "CIDEr", "Bleu_4": "BLEU-4", "ROUGE_L": "ROUGE-L", "METEOR": "METEOR", "SPICE": "SPICE"}


def metric_name(key: str) -> str:
    """The name of a metric; the key itself of one that is shown nowhere."""
    return NAMES.get(key, key)
