"""Colours, type and the page template's settings: decided once, here and in assets/*.css."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from core.paths import ASSETS

RAISES = "#0072B2"
LOWERS = "#D55E00"
NEUTRAL = "#8a94a3"
"""Blue raises the reward, vermillion lowers it (told apart with every kind of colour vision); grey is neither."""

CLUSTER_COLOURS = (
    "#4477AA", "#EE6677", "#228833", "#AA8833", "#66CCEE", "#AA3377", "#7A7A7A", "#CC6633",
    "#44AA99", "#882255", "#6699CC", "#999933",
)  # fmt: skip
"""Map clusters, in turn; a cluster is also named on the map, so that colour is never the only sign."""

LOGO = ASSETS / "logo.svg"
PARTS = Path(__file__).parent / "parts"

TYPOGRAPHY: dict[str, Any] = {
    "fontSize": 13,
    "body1": {"fontSize": "14px"},
    "body2": {"fontSize": "13px"},
    "button": {"textTransform": "none"},
}

COMPONENTS: dict[str, Any] = {
    "MuiButton": {"styleOverrides": {"sizeSmall": {"fontSize": "13px"}}},
    "MuiToggleButton": {"styleOverrides": {"sizeSmall": {"fontSize": "13px"}}},
    "MuiInputLabel": {"styleOverrides": {"shrink": {"fontSize": "16px"}}},  # drawn at three quarters: 12 px
}

THEME_CONFIG: dict[str, Any] = {
    "light": {
        "palette": {
            "primary": {"main": "#334155", "contrastText": "#ffffff"},
            "background": {"default": "#f5f6f8", "paper": "#ffffff"},
            "text": {"primary": "#1b2230", "secondary": "#566070"},
            "divider": "#dfe3e9",
        },
        "typography": TYPOGRAPHY,
        "components": COMPONENTS,
        "shape": {"borderRadius": 6},
    },
    "dark": {
        "palette": {
            "primary": {"main": "#cbd5e1", "contrastText": "#191e26"},
            "background": {"default": "#12161c", "paper": "#191e26"},
            "text": {"primary": "#e6eaf0", "secondary": "#a3adbb"},
            "divider": "#2d3440",
        },
        "typography": TYPOGRAPHY,
        "components": COMPONENTS,
        "shape": {"borderRadius": 6},
    },
}

PAGE_SX: dict[str, Any] = {
    # Written exactly so, pmui leaves the header's widgets in the page's own colours.
    ".MuiAppBar-root": {
        "bgcolor": "primary.contrastText",
        "color": "primary.main",
        "backgroundImage": "none",
        "boxShadow": "none",
        "borderBottom": "1px solid",
        "borderColor": "divider",
        "display": "var(--rs-around, flex)",  # none in presentation mode (assets/page.css)
    },
    "& nav": {"display": "var(--rs-around, flex)"},
    "& main > div > .MuiToolbar-root": {"display": "var(--rs-around, flex)"},
    "& .header a": {"color": "inherit"},
    "& .title": {"color": "inherit !important", "fontSize": "18px !important", "fontWeight": 600},
    "& .logo": {"height": "28px !important"},
    "& .MuiToolbar-root": {"minHeight": "52px !important", "gap": "12px"},
    "& .main": {"backgroundColor": "background.default"},
    "& .sidebar": {"backgroundColor": "background.paper", "overflow": "hidden"},
}


@cache
def script(name: str) -> str:
    """A component's own JavaScript, parts/<name>.js, behind what they share, parts/dom.js (one module: a page fetches none)."""
    return "".join((PARTS / f"{one}.js").read_text(encoding="utf-8") for one in ("dom", name))


@cache
def sheet(name: str) -> str:
    """The text of assets/<name>.css, inlined because plain `panel serve dashboard` serves no top-level folder."""
    return (ASSETS / f"{name}.css").read_text(encoding="utf-8")
