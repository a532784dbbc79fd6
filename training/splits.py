"""In which split an image is: for training, or held out to validate and judge by.

There is one answer for all styles, else a style would be judged by what another has taught the models. An image's
bytes decide it, unless a dataset comes with splits of its own: what one declares to be for validation or test is never
trained on, in any style and from whatever source.
"""

import uuid
from collections.abc import Mapping

from captioner.models import Image
from training.models import Example


def settle(by_bytes: Mapping[uuid.UUID, bool], declared: Mapping[uuid.UUID, bool]) -> dict[uuid.UUID, bool]:
    """Which of some images are held out; within a transaction that makes examples of them.

    Examples that are there already go along with an image that is declared held out now.

    Args:
        by_bytes: what `is_held_out` says of each image.
        declared: what the dataset at hand says, of those of which it says anything.
    """
    Image.lock(by_bytes.keys())  # so that two imports of the same image agree
    known: dict[uuid.UUID, bool] = {}
    there = Example.objects.filter(image__in=by_bytes).order_by()
    for image, held_out in there.values_list("image", "held_out").distinct():
        known[image] = known.get(image, False) or held_out
    settled = {
        image: declared.get(image) is True or known.get(image, declared.get(image, held_out))
        for image, held_out in by_bytes.items()
    }
    moved = [image for image, held_out in known.items() if settled[image] and not held_out]
    Example.objects.filter(image__in=moved, held_out=False).update(held_out=True)
    return settled
