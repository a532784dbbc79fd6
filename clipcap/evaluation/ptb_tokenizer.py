"""Penn Treebank tokenization of captions, as the COCO caption scorer does it, without Java.

`pycocoevalcap` sends captions through the PTBTokenizer of Stanford CoreNLP 3.4.1 (options `-preserveLines -lowerCase`)
and then drops the punctuation tokens. This file is a lexer of the same kind: at each place every rule is tried, the
rule that reads furthest wins, and of two that read equally far the earlier. What each rule has to do was found by
running the Java tokenizer on dictionaries, captions and random strings.

Known deviations from the Java tokenizer, all rare in captions:

- Java reads the captions as one text, so that a caption that ends in a single letter and a period ("with family z.")
  loses the period if the *next* caption begins with one of a few words, such as "A". Here a caption stands alone.
- Web and e-mail addresses, markup such as `<b>`, character references such as `&amp;`, telephone numbers and most
  emoticons are not recognised, and come out in pieces.
- Letters and symbols younger than Unicode 6, and rare symbols outside the Latin scripts, are kept or dropped by simpler
  rules.
- Punctuation that runs into a number in unusual ways, as in "....5" and "'10st.", is cut at other places.
- A line separator other than a newline (vertical tab, form feed, U+2028) is a space here, and ends the line in Java.
"""

import re
from functools import cache

# The words that keep their period wherever they stand. A capital or a small letter makes no difference.
_ABBREVIATIONS = (
    r"ph\.d|adj|adm|adv|al|ala|alex|apr|ariz|assn|assoc|asst|atty|attys|aug|ave|bhd|bldg|blvd|brig|bros|calif|capt|cf|"
    "cie|cmdr|co|col|colo|comdr|conn|corp|cos|cpl|ct|dak|dec|dept|det|dr|drs|elec|ens|esq|est|etc|ext|feb|fla|fri|ft|"
    "ga|gen|gov|govs|hon|inc|ind|insp|intl|invt|jan|jos|jr|jul|jun|kan|kans|ky|lieut|lt|ltd|maj|mar|md|messrs|mfg|"
    "mich|minn|mlle|mme|mo|mon|mont|mr|mrs|ms|msgr|mt|mtg|natl|neb|nev|nov|oct|okla|penn|pfc|ph|plc|ppte|ppty|pres|prof|"
    "profs|pte|ptes|pty|ptys|pvt|rd|rep|reps|rev|rt|sen|sens|sep|sept|seq|sfc|sgt|spc|sq|sr|st|ste|supt|supts|sys|"
    "tel|tenn|thu|thurs|treas|tue|tues|univ|va|vs|vt|wed|wis|wisc|wm|wyo"
)
# The words that keep it only before a number: "no. 5".
_NUMBER_ABBREVIATIONS = "art|ca|fig|figs|no|nos|op|pp|prop"
# After a single letter with a period, these begin a new sentence, and the period ends the old one: "plan B. The".
_SENTENCE_STARTS = (
    "A|About|According|Additionally|After|An|As|At|But|Earlier|He|Her|Here|However|If|In|It|Last|Many|More|Now|Once|"
    r"One|Other|Our|She|Since|So|Some|Such|That|The|Their|Then|There|These|They|This|We|What|When|While|Yet|You|Mr\.|"
    r"Ms\."
)

# The letters of the scripts in use, with the accents that are characters of their own and the two Unicode hyphens.
_LETTERS = (
    r"a-z\u00aa\u00b5\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u1fff\u2010\u2011"
    r"\u2c00-\u2fff\u3005-\u30fa\u30fc-\ud7ff\uf900-\ufdff\uff66-\uffdc"
)
_L = f"[{_LETTERS}]"
_LD = f"[{_LETTERS}0-9]"
_APOSTROPHE = r"['\u2019\u201b]"
_WORD = rf"{_L}{_LD}*(?:[.!?]{_L}{_LD}*)*"
_INITIALS = rf"{_L}(?:\.{_L})+\."  # U.S., t.v.
_CLITIC = rf"{_APOSTROPHE}(?:[msd]|re|ve|ll)(?!{_L})"
# Words with an apostrophe at either end, or in a place where it would divide them.
_APOSTROPHE_WORD = (
    r"'n'|'n(?![a-z])|'em|'til|'cause|'\d0s|'\d\d(?=\s|$)|[dljy]'|ol'|somethin'|dunkin'"
    r"|c'mons?|e'er|s'mores|nat'l|nor'easter|t'ang|a'asia"
).replace("'", _APOSTROPHE)

# The token is the first group of a rule that has one, else all that the rule reads; the rest is context.
_RULES = (
    r"(can)not|(gon|wan)na|(got)ta|(gim|lem)me|('t)(?:is|was)",
    rf"({_L}*(?!n){_L})n{_APOSTROPHE}t",
    rf"n{_APOSTROPHE}{_L}+",
    rf"({_WORD}){_CLITIC}",
    _CLITIC,
    _APOSTROPHE_WORD,
    rf"[dol]{_APOSTROPHE}{_L}{_LD}*(?:-{_LD}+)*",  # o'clock, d'oeuvre
    rf"{_L}+[aeiouy]{_APOSTROPHE}(?:[aeiou]|(?-i:[A-Z])){_L}*",  # ma'am, Ha'aretz
    _WORD,
    r"[a-z0-9]+(?:/[a-z0-9]+){0,2}",  # and/or, 3/4
    rf"{_LD}+(?:_{_LD}+)*",
    rf"{_LD}[{_LETTERS}0-9.,]*(?:-(?:{_INITIALS}|{_LD}+))+",  # ice-cream, 3.5-inch
    r"[+-]?(?:\d+(?:[.:,]\d+)*|(?:[.:,]\d+)+)",
    r"\d+[ -]\d+/\d+",  # 22 3/4
    rf"({_L})\.\s+['\"]?(?-i:{_SENTENCE_STARTS})(?:\s|$)",
    rf"{_L}(?:\.{_L})*\.|(?:{_ABBREVIATIONS})\.",
    rf"((?:{_NUMBER_ABBREVIATIONS})\.)\s*\d",
    rf"((?:{_WORD}|{_LD}+)\.)[,;:]",
    r"(?-i:[A-Z]+(?:&[A-Z]+)+)",
    r"(?:us|hk)\$|c\+\+",
    r"#[a-z]+|@[a-z]\w*",
    rf"[:;=]-?[()](?!{_LD})",
    r"\.\.\.|''|``|--+|[?!]+|#+|_+|\*+",
    r"(?s:.)",
)
_CONTRACTION = re.compile(rf"{_CLITIC}|n{_APOSTROPHE}t", re.IGNORECASE)
# Most tokens are plain words, and trying all rules on each would take several times as long.
_PLAIN_WORDS = re.compile(r"(?:\s+|(?!(?i:cannot|gonna|wanna|gotta|gimme|lemme)\s)[A-Za-z]+(?=\s))+")

_SPELLINGS = str.maketrans(
    {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-", "£": "#", "€": "$", "¤": "$"}
    | {"¢": "cents", "½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4"}
    | {" ": "\u00a0"}  # the only token with a space in it is a mixed number, and the scorers split at spaces
)
# The scorer's list is in capitals where it names brackets, so that it never matches the lowercased "-lrb-": they stay.
_PUNCTUATION = re.compile(
    r"""''|``|\.\.\.|-{1,4}|['"`.?!,:;\u2013-\u2015\u2026\u2018\u2019\u201b-\u201d\u2039\u203a\u00ab\u00bb]"""
)
# Of the characters that no other rule reads, those that Java drops: whatever is no symbol of the older Unicode blocks.
_DROPPED = re.compile(r"[^!-\u2bff]|[\u0080-\u00a0\u200b-\u200f\u202a-\u202e\u2060-\u206f]")


@cache
def _rules() -> list[re.Pattern[str]]:
    """Compiled when they are first used, since that takes 0.3 s, for which no start of a program should wait."""
    return [re.compile(rule, re.IGNORECASE) for rule in _RULES]


def ptb_tokenize(sentence: str) -> str:
    """The lowercased words of `sentence`, joined by spaces, without punctuation: "The man's dog." → "the man 's dog".

    Equal to what `pycocoevalcap.tokenizer.ptbtokenizer.PTBTokenizer` makes of the sentence, but for the deviations that
    the head of this file lists. A sentence without words gives "".
    """
    text = sentence.replace("\u00ad", "") + "\n"  # a soft hyphen is not part of a word
    tokens = []
    position = 0
    while position < len(text):
        if plain := _PLAIN_WORDS.match(text, position):
            tokens += plain[0].lower().split()
            position = plain.end()
            continue
        # Of equals, max() takes the first. The last rule always matches.
        match = max((m for rule in _rules() if (m := rule.match(text, position))), key=re.Match.end)
        token = match[match.lastindex or 0]
        position += len(token)
        if _PUNCTUATION.fullmatch(token) or _DROPPED.fullmatch(token):
            continue
        if _CONTRACTION.fullmatch(token):
            token = re.sub(_APOSTROPHE, "'", token)
        tokens.append(token.translate(_SPELLINGS).lower())
    return " ".join(tokens)
