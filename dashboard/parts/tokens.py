"""A text as its tokens, each shaded by a value: the strip used for feature contexts and for the answers of a pair."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence

from core.features.pieces import END_OF_TURN
from dashboard.escape import esc, plain
from dashboard.escape import signed as with_sign
from dashboard.theme import sheet

STRONGEST = 50
"""Largest alpha in percent, so that the text stays readable on both themes (interface conventions)."""
TOKEN_CSS = sheet("tokens")
"""Style of what `token_html` and `scale_legend` return; add it to the `stylesheets` of the pane that shows them."""

# Characters that reorder or hide text are named, never drawn: control characters except tab and line ends,
# bidirectional marks, zero-width spaces, invisible operators and annotation anchors.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]"
)
# Joiners and variation selectors belong to emoji and to some scripts; only alone they would be invisible.
_JOINERS = re.compile("[\u200c\u200d\ufe00-\ufe0f]+")
_GLYPHS = {"\n": "↵", "\t": "⇥", "\r": "␍"}


def number(value: float, signed: bool = True) -> str:
    """A value as a strip shows it; 'missing' for NaN."""
    if math.isnan(value):
        return "missing"
    return with_sign(value) if signed else plain(value)


def token_html(
    tokens: Sequence[str],
    values: Sequence[float],
    *,
    scale: float,
    anchor: int | None = None,
    signed: bool = False,
    first: int = 0,
    marked: Collection[int] = (),
) -> str:
    """One text as escaped HTML, its tokens shaded by their values.

    Unsigned values are shaded in one hue, by alpha only; a negative one (TopK keeps signed values) is marked by a
    dotted line instead. With `signed`, blue over a solid line raises and vermillion over a dashed line lowers. A
    value that is NaN is hatched: missing is never zero.

    Args:
        tokens: pieces of the text, in order; '' is a further token of the character before.
        values: one value a token.
        scale: the |value| that gets the strongest shade.
        anchor: index of a token to outline.
        signed: whether both signs are shaded.
        first: position in the answer of the first token, for the tooltips.
        marked: indices of tokens to underline.

    Raises:
        ValueError: there are not as many values as tokens.
    """
    if len(tokens) != len(values):
        raise ValueError(f"{len(tokens)} tokens but {len(values)} values")
    numbers = [float(value) for value in values]
    spans = [
        _span(token, value, scale, signed, index == anchor, first + index, index in marked)
        for index, (token, value) in enumerate(zip(tokens, numbers, strict=True))
    ]
    summary = esc(_summary(tokens, numbers, signed))
    return f'<div class="tokens" dir="auto" role="group" aria-label="{summary}">{"".join(spans)}</div>'


def plain_html(text: str) -> str:
    """Running text, escaped, with what would hide or reorder it shown as a code (for prompts and other text)."""
    return _HIDDEN.sub(_code, esc(text))


def scale_legend(scale: float, *, basis: str, unit: str, signed: bool = False) -> str:
    """The key to a strip's shades, as escaped HTML.

    Args:
        scale: the |value| of the strongest shade.
        basis: what the scale is the maximum of, as "both answers" or "this feature in the whole run".
        unit: what the values are, as "activation".
    """
    if signed:
        ends = (f"lowers (dashed) {number(-abs(scale))}", f"{number(abs(scale))} raises (solid)")
    else:
        ends = ("0", number(scale, signed=False))
    kind = "two" if signed else "one"
    return (
        f'<div class="legend"><b>{esc(unit)}:</b><span>{ends[0]}</span><span class="ramp {kind}" '
        f'aria-hidden="true"></span><span>{ends[1]}</span><span>(scale: largest of {esc(basis)})</span></div>'
    )


def _span(
    token: str, value: float, scale: float, signed: bool, anchored: bool, position: int, marked: bool = False
) -> str:
    classes, style = ["t"], ""
    if math.isnan(value):
        classes.append("nan")
    elif scale > 0 and value != 0:
        alpha = round(STRONGEST * min(1.0, abs(value) / scale))
        if alpha and (signed or value > 0):
            style = f' style="--a:{alpha}"'
            if signed:
                classes.append("up" if value > 0 else "down")
        elif not signed and value < 0:
            classes.append("minus")
    if anchored:
        classes.append("anchor")
    if marked:
        classes.append("mark")
    if token == "":
        classes.append("rest")
    elif token == END_OF_TURN:
        classes.append("end")
    title = esc(f"{spoken(token)} · {number(value, signed)} · token {position}")
    before = "<wbr>" if token == END_OF_TURN else ""  # the marker may stand on a line of its own
    return f'{before}<span class="{" ".join(classes)}"{style} title="{title}">{_shown(token)}</span>'


def _shown(token: str) -> str:
    """The token's text, escaped; white space that carries meaning gets a faint glyph, what hides text its code."""
    if token == END_OF_TURN:
        return "end of turn"
    if _JOINERS.fullmatch(token):
        return _JOINERS.sub(_code, token)
    if len(token) > 1 and not token.strip(" "):
        return _glyph("·") * len(token)
    text = plain_html(token)  # its markup holds no line ends and no tabs
    for char, glyph in _GLYPHS.items():
        text = text.replace(char, _glyph(glyph) + ("" if char == "\r" else char))
    return text


def _glyph(mark: str) -> str:
    """Drawn by the style sheet, so that it is neither copied nor read out."""
    return f'<span class="gl" data-g="{mark}"></span>'


def _code(found: re.Match[str]) -> str:
    return "".join(f'<span class="code">U+{ord(char):04X}</span>' for char in found.group())


def spoken(token: str) -> str:
    """A token in words and marks that are safe in a tooltip or a list (not HTML-escaped)."""
    if token == "":
        return "(rest of a character)"
    if token == END_OF_TURN:
        return "end of turn"
    text = _HIDDEN.sub(lambda found: f"U+{ord(found.group()):04X}", token)
    return f"“{''.join(_GLYPHS.get(char, char) for char in text)}”"


def _summary(tokens: Sequence[str], values: Sequence[float], signed: bool) -> str:
    """What a screen reader says before the text: its length and the strongest tokens."""
    strongest = sorted((i for i, value in enumerate(values) if abs(value) > 0), key=lambda i: -abs(values[i]))[:3]
    listed = ", ".join(f"{spoken(tokens[i])} {number(values[i], signed)}" for i in strongest)
    return f"{len(tokens)} tokens" + (f"; strongest: {listed}" if listed else "; none is active")
