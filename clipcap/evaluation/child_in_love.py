"""Captions that speak of a child in the words of romantic love, which no style may.

It goes by words: what is said without them is missed, and a mother who kisses her baby is counted. What a parent feels
for a child ("loved", "her whole heart", "embraces") is not among the words.
"""

import re

_CHILD = re.compile(
    r"\b((grand)?child(ren)?|kid(s|do)?|bab(y|ies)|infants?|newborns?|toddlers?|tots?|boys?|girls?|youngsters?|"
    r"school(boy|girl|child)s?|schoolchildren|pupils?|teen(ager)?s?|(grand)?(daughter|son)s?|little ones?)\b",
    re.IGNORECASE,
)
_ROMANTIC_LOVE = re.compile(
    r"\b(lovers?|lovebirds?|lovestruck|in love|f(alls?|alling|ell) for (him|her|you|each|someone)|"
    r"love (affair|letter|story|stories|song)s?|love of (his|her|their|my|your) li(fe|ves)|love at first sight|"
    r"(first|true) love|m(ake|akes|aking|ade) love|sweethearts?|soul[- ]?mates?|(girl|boy)friends?|"
    r"kiss(es|ed|ing)?|flirt\w*|seduc\w+|sensual\w*|sexy|intima\w+|passionate(ly)?|desire[sd]?|smitten|crush on|"
    r"head over heels|dat(es|ed|ing) (him|her)|on (a|their|our) (first )?date|romanc\w+|romantic\w*|valentines?|"
    r"courtship|brides?|bridegrooms?|weddings?|honeymoons?|marr(y|ies|ied|ying|iages?)|engaged to|fianc[eé]e?s?|"
    r"husbands?|wi(fe|ves))\b",
    re.IGNORECASE,
)


def child_in_love(caption: str) -> bool:
    """Whether a caption, in English, has a word for a child and one for romantic love."""
    return bool(_CHILD.search(caption) and _ROMANTIC_LOVE.search(caption))
