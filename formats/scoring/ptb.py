"""Penn-Treebank tokens as Stanford CoreNLP 3.4.1 makes them, without Java."""
import re

# Abbreviations that keep their period: those that Stanford CoreNLP 3.4.1 knows.
_ABBREVIATIONS = r"""jan feb mar apr jun jul aug sept? oct nov dec mon tues? wed thu thurs fri calif
conn fla mich penn va ariz tenn mo md wis minn ind okla kan ga colo ky ala nev neb vt wyo mont dak
inc cos? corp ltd plc rt bancorp bhd assn univ intl sys [js]r bros blvd rd esq etc al seq est sq ct
bldg ext tel dept ph ph\.d mrs? ms drs? profs? sens? reps? attys? lt col gen messrs govs? adm rev
maj sgt cpl pvt capt ste? ave pres lieut hon brig comdr cmdr pfc spc supts? det invt elec natl mfg
mtg vs alex wm jos cie cf treas mt ft mme mlle assoc""".split()
# After a lone letter these open a new sentence: "the form of V. There is" has a full stop.
_STARTERS = """A About According Additionally After An As At But Earlier He Her Here However If In
It Last Many More Now Once One Other Our She Since So Some Such That The Their Then There These
They This We What When While Yet You""".split()
_L, _W = r"[^\W\d_²³]", r"[^\W_²³]"  # a letter; a letter or digit
_TOKEN = re.compile(rf"""
    https?://\S+ | www\.[\w./-]+ | [\w.+-]+@\w[\w-]*(?:\.\w+)* | </?[a-z][^<>\s]*> | -[lr][rsc]b-
  | can(?=not\b) | (?:gon|wan)(?=na\b) | got(?=ta\b) | (?:gim|lem)(?=me\b) | 't(?=(?:is|was)\b)
  | [a-z]+(?=n't\b) | n't\b | '(?:s|m|d|ll|re|ve)\b             # do n't, it 's
  | (?:[dol]'|n?e'(?=er)){_L}{{2,}} | ma'am\b | '(?:em|til|cause)\b | 'n\b'? | '\d\ds?\b
  | (?-i:[A-Z]+(?:[&+][A-Z]+)+ | (?:US|HK|[AC])\$) | c(?:\+\+|\#)         # R&B, US$
  | [a-z](?:\.[a-z])+\.(?![\w-])                                # u.s.
  | [a-z]\.(?!{_L}|-{_W}|\s+(?-i:{"|".join(_STARTERS)})\b)      # plan b.
  | (?:{"|".join(_ABBREVIATIONS)})\.(?![\w-])
  | (?:nos?|figs?|art|pp|op|sec|vol|eds?|prop|ca)\.(?=\s?\d)    # no. 5 but "no . of"
  | (?:{_W}+(?:-{_L}+){{0,2}}(?:/{_W}+(?:-{_L}+){{0,2}}){{1,2}}  # and/or, 24/7
    | {_W}(?:{_W}|[.,])*(?:-{_W}+)+                             # fan-shaped
    | {_W}+(?:_{_W}+)+ | [+-]?(?:\d*(?:[.:,]\d+)+|\d+(?!{_W}))  # a_b, 1,000
    | {_L}{_W}*(?:[.!?]{_L}{_W}*)* | {_W}+                      # road, road.the, 20m
    )(?:\.(?=[,;:]))?                                           # "trees.," keeps its period
  | [@\#]{_L}\w* | [?!]+ | [*]+ | _+ | @+ | \#+
  | \.{{3,}} | --+ | << | >> | ``|'' | [^\s\U00010000-\U0010ffff]
""", re.I | re.X)
_CHARACTERS = str.maketrans({
    "(": " -lrb- ", ")": " -rrb- ", "[": " -lsb- ", "]": " -rsb- ", "{": " -lcb- ", "}": " -rcb- ",
    "’": "'", "‘": "`", "“": "``", "”": "''", "–": "--", "—": "--", "…": " ... ", "€": "$",
    "£": "#", "¢": " cents", "½": " 1/2 ", "¼": " 1/4 ", "¾": " 3/4 ", "⅓": " 1/3 ", "⅔": " 2/3 ",
    "\u200b": " ", "\ufeff": " ", "\xad": "", "«": "``", "»": "''", "‹": "`", "›": "'"})
_DROPPED = re.compile(r"""''?|``?|"|[.?!,:;]|\.{3,}|-+""")


def ptb_tokenize(text: str) -> str:
    """Lower-cased Penn-Treebank tokens, punctuation dropped, as pycocoevalcap's PTBTokenizer.

    Brackets become "-lrb-" etc. and stay: the reference drops only their upper-case names.
    """
    tokens = (match[0].lower() for match in _TOKEN.finditer(text.translate(_CHARACTERS)))
    return " ".join(t for t in tokens if not _DROPPED.fullmatch(t))
