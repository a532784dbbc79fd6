"""Captions that speak of a child in the words of romantic love, which no style may.

It goes by words, and counts rather one too many: a mother who kisses her baby is counted too. What a parent feels for a
child ("loved", "her whole heart") is not among the words.
"""

import re

_CHILD = re.compile(
    r"\b(child(ren)?|kid(s|do)?|bab(y|ies)|infants?|newborns?|toddlers?|boys?|girls?|youngsters?|school(boy|girl|child)s?|"
    r"schoolchildren|daughters?|sons?|little ones?)\b",
    re.IGNORECASE,
)
_ROMANTIC_LOVE = re.compile(
    r"\b(lovers?|in love|f(alls?|alling|ell) for|love at first sight|love affairs?|true love|beloved|sweethearts?|"
    r"soul ?mates?|(girl|boy)friends?|kiss(es|ed|ing)?|flirt(s|ed|ing)?|seduc\w+|caress\w*|embrac\w+|passion\w*|"
    r"desir\w+|sensual\w*|intima\w+|romanc\w+|romantic\w*|valentines?|courtship|brides?|grooms?|weddings?|honeymoons?|"
    r"marr(y|ies|ied|iage)|engaged|fiancée?s?|husbands?|wi(fe|ves))\b",
    re.IGNORECASE,
)


def child_in_love(caption: str) -> bool:
    """Whether a caption, in English, has a word for a child and one for romantic love."""
    return bool(_CHILD.search(caption) and _ROMANTIC_LOVE.search(caption))
