"""Letters that a reader takes for others: of two scripts, of two alphabets of one script, digits.

By their look in common typefaces, as Unicode's confusables have it (Unicode Technical Standard 39, section 4), in lower
case alone: what is compared has no case any more.
"""

from __future__ import annotations

import html
import unicodedata

_LOOKS = (
    # Latin: i and l are one where capitals were; letters of other alphabets, and small capitals
    ("lol", "i01"),
    ("aeoldhtgln", "ɑəøłđħŧɡıŋ"),
    ("abcdefghljklmnoprstuvwyz", "ᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢ"),
    # Cyrillic
    ("abekmhopctyxsljdhqwl", "авекмнорстухѕіјԁһԛԝӏ"),
    # Greek
    ("abezhlkmvoptuxywcj", "αβεζηικμνορτυχγωϲϳ"),
    # Armenian
    ("ouhngqq", "օսհոցզգ"),
)
_LOOKALIKES = str.maketrans(
    {theirs: ours for standard, lookalikes in _LOOKS for ours, theirs in zip(standard, lookalikes, strict=True)}
)


def as_seen(text: str) -> str:
    """The text as a reader sees it: entities of HTML resolved, without case and accents, letters that look alike one.

    No text to be read, but one to be compared.
    """
    plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", html.unescape(text)).casefold())
    return plain.translate(_LOOKALIKES)
